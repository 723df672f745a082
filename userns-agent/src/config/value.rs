//! One value: read from a YAML tree or from text, checked against its limits, printed.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use serde_json::Value;

use super::{ApiServer, Config, LogLevel, Output, ReferenceUserns, Socket};
use crate::host::server_url;
use crate::kernel::plan::Mechanism;

/// A value before it is checked.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    /// From the file: has a type.
    Tree(&'a Value),
    /// From a flag or the environment: has none.
    Text(&'a str),
}

/// A value that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which element of a list.
    pub index: Option<usize>,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub allowed: String,
}

/// Where a value is kept.
pub type Field<T> = fn(&mut Config) -> &mut T;

/// A value's type, limits and place.
#[derive(Clone, Debug)]
pub enum Slot {
    /// An absolute path.
    Directory(Field<PathBuf>),
    /// An absolute path, or `auto`.
    AutoDirectory(Field<Option<PathBuf>>),
    /// An absolute path, or `none`.
    OptionalDirectory(Field<Option<PathBuf>>),
    /// An absolute path of a file, or `none`.
    OptionalFile(Field<Option<PathBuf>>),
    /// An absolute path, `auto` or `off`.
    Socket(Field<Socket>),
    /// A path; absent if not given.
    File(Field<Option<PathBuf>>),
    /// An IP address and port.
    Address(Field<SocketAddr>),
    /// A time with its unit.
    Time(Field<Duration>, RangeInclusive<Duration>),
    /// A whole number.
    Number(Field<u64>, RangeInclusive<u64>),
    /// A number of bytes, with or without a unit.
    Bytes(Field<u64>, RangeInclusive<u64>),
    /// One of [`Output`].
    Output(Field<Output>),
    /// One of [`LogLevel`].
    Level(Field<LogLevel>),
    /// One of [`Mechanism`], or `auto`.
    Mechanism(Field<Option<Mechanism>>),
    /// One of [`ApiServer`].
    ApiServer(Field<ApiServer>),
    /// A URL of https, or `off`.
    Url(Field<Option<Uri>>),
    /// The name of a Kubernetes object; absent if not given.
    Name(Field<Option<String>>),
    /// One of [`ReferenceUserns`].
    Reference(Field<ReferenceUserns>),
    /// Names of Kubernetes objects, each perhaps with a `*` at its end.
    Names(Field<Vec<String>>),
    /// Absolute paths.
    Paths(Field<Vec<PathBuf>>),
}

const OUTPUTS: [(&str, Output); 3] = [("auto", Output::Auto), ("json", Output::Json), ("live", Output::Live)];
const API_SERVERS: [(&str, ApiServer); 2] = [("auto", ApiServer::Auto), ("off", ApiServer::Off)];
const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];
const MECHANISMS: [(&str, Option<Mechanism>); 5] = [
    ("auto", None),
    (Mechanism::TpBtf.name(), Some(Mechanism::TpBtf)),
    (Mechanism::FExit.name(), Some(Mechanism::FExit)),
    (Mechanism::KProbe.name(), Some(Mechanism::KProbe)),
    (Mechanism::Tracepoint.name(), Some(Mechanism::Tracepoint)),
];
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// Characters shown of a value that is wrong.
pub(crate) const SHOWN: usize = 64;
/// Longest path the kernel takes (`PATH_MAX`, with the terminating NUL).
const PATH_MAX: usize = 4096;
/// Longest name of an object (a DNS subdomain, RFC 1123).
const NAME_MAX: usize = 253;

impl Slot {
    /// Checks `raw` and stores it.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] says what was found and what is allowed; the configuration is unchanged then.
    pub fn set(&self, config: &mut Config, raw: &Raw<'_>) -> Result<(), Mismatch> {
        let stored = match self {
            Self::Directory(field) => store(field(config), raw.text().and_then(absolute)),
            Self::AutoDirectory(field) => store(field(config), raw.directory_or("auto")),
            Self::OptionalDirectory(field) | Self::OptionalFile(field) => {
                store(field(config), raw.directory_or("none"))
            }
            Self::Socket(field) => store(field(config), raw.socket()),
            Self::File(field) => store(field(config), raw.file()),
            Self::Address(field) => store(field(config), raw.text().and_then(|text| text.parse().ok())),
            Self::Time(field, range) => store(field(config), within(range, raw.time())),
            Self::Number(field, range) => store(field(config), within(range, raw.number())),
            Self::Bytes(field, range) => store(field(config), within(range, raw.bytes())),
            Self::Output(field) => store(field(config), choose(&OUTPUTS, raw)),
            Self::Level(field) => store(field(config), choose(&LEVELS, raw)),
            Self::Mechanism(field) => store(field(config), choose(&MECHANISMS, raw)),
            Self::ApiServer(field) => store(field(config), choose(&API_SERVERS, raw)),
            Self::Url(field) => store(field(config), raw.url()),
            Self::Name(field) => store(field(config), raw.name()),
            Self::Reference(field) => store(field(config), raw.reference()),
            Self::Names(field) => return self.set_list(field(config), raw, name),
            Self::Paths(field) => return self.set_list(field(config), raw, absolute),
        };
        if stored { Ok(()) } else { Err(self.mismatch(None, raw)) }
    }

    fn set_list<T>(
        &self,
        list: &mut Vec<T>,
        raw: &Raw<'_>,
        read_one: fn(&str) -> Option<T>,
    ) -> Result<(), Mismatch> {
        let parts: Vec<Raw<'_>> = match raw {
            Raw::Tree(Value::Array(list)) => list.iter().map(Raw::Tree).collect(),
            Raw::Text(text) => text.split(',').map(Raw::Text).collect(),
            Raw::Tree(_) => return Err(self.mismatch(None, raw)),
        };
        let read = |(index, part): (usize, &Raw<'_>)| {
            part.text().and_then(read_one).ok_or_else(|| self.mismatch(Some(index), part))
        };
        *list = parts.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn mismatch(&self, index: Option<usize>, raw: &Raw<'_>) -> Mismatch {
        let allowed = match index {
            Some(_) if matches!(self, Self::Names(_)) => "a name, perhaps with `*` at its end".to_owned(),
            Some(_) => "an absolute path".to_owned(),
            None => self.allowed(),
        };
        Mismatch { index, found: raw.describe(), allowed }
    }

    /// What is allowed, as a phrase.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Directory(_) => "an absolute path".to_owned(),
            Self::AutoDirectory(_) => "`auto` or an absolute path".to_owned(),
            Self::OptionalDirectory(_) | Self::OptionalFile(_) => "`none` or an absolute path".to_owned(),
            Self::Socket(_) => "`auto`, `off` or an absolute path".to_owned(),
            Self::File(_) => "a path".to_owned(),
            Self::Address(_) => "an IP address and port, such as 127.0.0.1:9477 or [::]:9477".to_owned(),
            Self::Time(_, range) => {
                format!("a time from {} to {}", time(*range.start()), time(*range.end()))
            }
            Self::Number(_, range) => format!("a whole number from {} to {}", range.start(), range.end()),
            Self::Bytes(_, range) => {
                format!("a size from {} to {}", bytes(*range.start()), bytes(*range.end()))
            }
            Self::Output(_) => one_of(&OUTPUTS),
            Self::Level(_) => one_of(&LEVELS),
            Self::Mechanism(_) => one_of(&MECHANISMS),
            Self::ApiServer(_) => one_of(&API_SERVERS),
            Self::Url(_) => "`off` or a URL such as https://127.0.0.1:10250".to_owned(),
            Self::Name(_) => format!("a name of at most {NAME_MAX} lower case letters, digits, `-` and `.`"),
            Self::Reference(_) => "`auto`, `initial`, or a process id".to_owned(),
            Self::Names(_) => {
                "a list of names, each perhaps with `*` at its end (in flags and the environment, separated by commas)"
                    .to_owned()
            }
            Self::Paths(_) => {
                "a list of absolute paths (in flags and the environment, separated by commas)".to_owned()
            }
        }
    }

    /// What stands for the value in a flag's help.
    #[must_use]
    pub fn value_name(&self) -> &'static str {
        match self {
            Self::Directory(_) | Self::AutoDirectory(_) | Self::OptionalDirectory(_) => "DIR",
            Self::Socket(_) => "SOCKET",
            Self::OptionalFile(_) | Self::File(_) => "FILE",
            Self::Address(_) => "ADDRESS",
            Self::Time(..) => "TIME",
            Self::Number(..) => "NUMBER",
            Self::Bytes(..) => "SIZE",
            Self::Output(_) => "OUTPUT",
            Self::Level(_) => "LEVEL",
            Self::Mechanism(_) => "MECHANISM",
            Self::ApiServer(_) => "WHERE",
            Self::Url(_) => "URL",
            Self::Name(_) => "NAME",
            Self::Reference(_) => "USERNS",
            Self::Names(_) => "NAMES",
            Self::Paths(_) => "PATHS",
        }
    }

    /// The value in `config`, as YAML.
    #[must_use]
    pub fn show(&self, config: &Config) -> String {
        let mut config = config.clone();
        let config = &mut config;
        match self {
            Self::Directory(field) => quote(field(config).display()),
            Self::AutoDirectory(field) => {
                field(config).as_ref().map_or_else(|| "auto".to_owned(), |path| quote(path.display()))
            }
            Self::OptionalDirectory(field) | Self::OptionalFile(field) => {
                field(config).as_ref().map_or_else(|| "none".to_owned(), |path| quote(path.display()))
            }
            Self::Socket(field) => match field(config) {
                Socket::Auto => "auto".to_owned(),
                Socket::Off => "off".to_owned(),
                Socket::Path(path) => quote(path.display()),
            },
            Self::File(field) => {
                field(config).as_ref().map_or_else(|| "null".to_owned(), |path| quote(path.display()))
            }
            Self::Address(field) => quote(*field(config)),
            Self::Time(field, _) => time(*field(config)),
            Self::Number(field, _) => field(config).to_string(),
            Self::Bytes(field, _) => bytes(*field(config)),
            Self::Output(field) => name_of(&OUTPUTS, *field(config)),
            Self::Level(field) => name_of(&LEVELS, *field(config)),
            Self::Mechanism(field) => name_of(&MECHANISMS, *field(config)),
            Self::ApiServer(field) => name_of(&API_SERVERS, *field(config)),
            Self::Url(field) => field(config).as_ref().map_or_else(|| "off".to_owned(), quote),
            Self::Name(field) => field(config).as_ref().map_or_else(|| "null".to_owned(), quote),
            Self::Reference(field) => match field(config) {
                ReferenceUserns::Auto => "auto".to_owned(),
                ReferenceUserns::Initial => "initial".to_owned(),
                ReferenceUserns::Process(pid) => pid.to_string(),
            },
            Self::Names(field) => {
                let names: Vec<_> = field(config).iter().map(quote).collect();
                format!("[{}]", names.join(", "))
            }
            Self::Paths(field) => {
                let paths: Vec<_> = field(config).iter().map(|path| quote(path.display())).collect();
                format!("[{}]", paths.join(", "))
            }
        }
    }
}

impl Raw<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Tree(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Self::Tree(value) => value.as_u64(),
            Self::Text(text) => text.parse().ok(),
        }
    }

    fn bytes(&self) -> Option<u64> {
        self.number().or_else(|| {
            let text = self.text()?;
            let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*factor)
        })
    }

    fn time(&self) -> Option<Duration> {
        humantime::parse_duration(self.text()?).ok()
    }

    fn reference(&self) -> Option<ReferenceUserns> {
        match self.text() {
            Some("auto") => Some(ReferenceUserns::Auto),
            Some("initial") => Some(ReferenceUserns::Initial),
            _ => u32::try_from(self.number()?).ok().filter(|pid| *pid != 0).map(ReferenceUserns::Process),
        }
    }

    fn file(&self) -> Option<Option<PathBuf>> {
        match self {
            Self::Tree(Value::Null) => Some(None),
            Self::Tree(_) | Self::Text(_) => self.text().and_then(path).map(Some),
        }
    }

    fn socket(&self) -> Option<Socket> {
        match self.text()? {
            "auto" => Some(Socket::Auto),
            "off" => Some(Socket::Off),
            text => absolute(text).map(Socket::Path),
        }
    }

    fn url(&self) -> Option<Option<Uri>> {
        match self.text()? {
            "off" => Some(None),
            text => server_url(text).ok().map(Some),
        }
    }

    fn name(&self) -> Option<Option<String>> {
        let is_name = |text: &&str| {
            let allowed =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            !text.is_empty() && text.len() <= NAME_MAX && text.bytes().all(allowed)
        };
        match self {
            Self::Tree(Value::Null) => Some(None),
            Self::Tree(_) | Self::Text(_) => self.text().filter(is_name).map(|text| Some(text.to_owned())),
        }
    }

    /// An absolute path, or the word that stands for none.
    fn directory_or(&self, word: &str) -> Option<Option<PathBuf>> {
        match self.text()? {
            text if text == word => Some(None),
            text => absolute(text).map(Some),
        }
    }

    /// What it is, for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Text("") | Self::Tree(Value::Null) => "nothing".to_owned(),
            Self::Text(text) => quote(cut(text, SHOWN)),
            Self::Tree(Value::String(text)) => quote(cut(text, SHOWN)),
            Self::Tree(Value::Bool(value)) => format!("the truth value {value}"),
            Self::Tree(Value::Number(number)) => format!("the number {number}"),
            Self::Tree(Value::Array(list)) => format!("a list of {}", list.len()),
            Self::Tree(Value::Object(_)) => "a mapping".to_owned(),
        }
    }
}

/// Whether there was a value to store.
fn store<T>(slot: &mut T, value: Option<T>) -> bool {
    value.map(|value| *slot = value).is_some()
}

fn within<T: PartialOrd>(range: &RangeInclusive<T>, value: Option<T>) -> Option<T> {
    value.filter(|value| range.contains(value))
}

/// A text short enough for a message, control characters escaped.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).flat_map(escape).collect();
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}

fn escape(character: char) -> Vec<char> {
    if character.is_control() { character.escape_default().collect() } else { vec![character] }
}

fn quote(text: impl Display) -> String {
    Value::String(text.to_string()).to_string()
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && text.len() < PATH_MAX && !text.contains('\0')).then(|| PathBuf::from(text))
}

fn absolute(text: &str) -> Option<PathBuf> {
    path(text).filter(|path| path.is_absolute())
}

/// A name as Kubernetes has them (RFC 1123), perhaps with a `*` behind it.
pub(crate) fn name(text: &str) -> Option<String> {
    let stem = text.strip_suffix('*').unwrap_or(text);
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (!stem.is_empty() && stem.len() <= 253 && stem.bytes().all(allowed)).then(|| text.to_owned())
}

fn choose<T: Copy>(choices: &[(&str, T)], raw: &Raw<'_>) -> Option<T> {
    let text = raw.text()?;
    choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice)
}

fn name_of<T: PartialEq>(choices: &[(&str, T)], value: T) -> String {
    choices
        .iter()
        .find(|(_, choice)| *choice == value)
        .map(|(name, _)| (*name).to_owned())
        .unwrap_or_default()
}

fn one_of<T>(choices: &[(&str, T)]) -> String {
    let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
    format!("one of {}", names.join(", "))
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn bytes(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}
