//! The files of the repository.

use std::{fs, io, path::Path};

/// A text file, its path relative to the repository's root with `/` between components.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    #[cfg(test)]
    pub(crate) fn sample(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// `<path>:<line>: <message>`, in the form editors jump to.
    pub(crate) fn at(&self, line: usize, message: &str) -> String {
        format!("{}:{line}: {message}", self.path)
    }
}

/// Every text file but build output, fuzzing inputs and git's own.
pub(crate) fn all() -> io::Result<Vec<File>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    collect(&root, "", &mut files)?;
    Ok(files)
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<File>) -> io::Result<()> {
    // Cargo marks its build directories, wherever they are, with this file.
    if dir.join("CACHEDIR.TAG").exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if [".git", "target", "fuzz/corpus", "fuzz/artifacts"].contains(&path.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), files)?;
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            files.push(File { path, text });
        }
    }
    Ok(())
}

#[test]
fn this_file_is_found_and_build_output_is_not() {
    let files = all().expect("the repository is readable");
    assert!(files.iter().any(|file| file.path == "xtask/tests/tidy/files.rs"));
    assert!(!files.iter().any(|file| file.path.starts_with("target/")));
}
