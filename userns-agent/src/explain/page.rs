//! Text for people, in as many columns as they have.

/// A page under construction.
pub(super) struct Page {
    text: String,
    width: usize,
}

/// Columns before the text of a section.
const INDENT: usize = 2;
/// Columns for the name of a field.
const NAME: usize = 12;

impl Page {
    pub(super) fn new(width: usize) -> Self {
        Self { text: String::new(), width }
    }

    /// The first line.
    pub(super) fn title(&mut self, text: &str) {
        self.wrapped("", "  ", text);
    }

    /// A line below it.
    pub(super) fn line(&mut self, text: &str) {
        self.wrapped("", "", text);
    }

    pub(super) fn section(&mut self, title: &str) {
        self.text.push('\n');
        self.line(title);
    }

    pub(super) fn paragraph(&mut self, text: &str) {
        let indent = " ".repeat(INDENT);
        self.wrapped(&indent, &indent, text);
    }

    /// A field of a section.
    pub(super) fn field(&mut self, name: &str, text: &str) {
        let first = format!("{}{name:<NAME$} ", " ".repeat(INDENT));
        let indent = " ".repeat(first.chars().count());
        self.wrapped(&first, &indent, text);
    }

    /// An item of a list, after its mark.
    pub(super) fn item(&mut self, mark: &str, text: &str) {
        let first = format!("{}{mark} ", " ".repeat(INDENT));
        let indent = " ".repeat(first.chars().count());
        self.wrapped(&first, &indent, text);
    }

    /// A command, which has to stay on its line to be copied.
    pub(super) fn command(&mut self, text: &str) {
        self.text.push_str(&format!("{}$ {text}\n", " ".repeat(INDENT + 5)));
    }

    pub(super) fn end(self) -> String {
        self.text
    }

    fn wrapped(&mut self, first: &str, rest: &str, text: &str) {
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in text.split(' ') {
            let columns = line.chars().count() + usize::from(!is_empty) + word.chars().count();
            if !is_empty && columns > self.width {
                self.text.push_str(line.trim_end());
                self.text.push('\n');
                rest.clone_into(&mut line);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}
