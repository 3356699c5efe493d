//! What an export says, statement by statement.

use std::fmt;

use crate::device::MenuPath;

/// An export as it was read: everything it says, and the lines that could not be understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Export {
    /// What the comments at the top say about the device.
    pub header: Header,
    /// All statements in their order.
    pub statements: Vec<Statement>,
    /// The statements that could not be understood; each cost the rest of its own line only.
    pub errors: Vec<ParseError>,
    /// The number of lines read.
    pub lines: u32,
}

/// What the comments at the top of an export say about the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// When the export was made, in the device's own spelling and time zone.
    pub date: Option<String>,
    /// The RouterOS version.
    pub version: Option<String>,
    /// The licence's software id; empty on devices without a licence.
    pub software_id: Option<String>,
    /// The system id that virtual routers print in place of the software id.
    pub system_id: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The serial number.
    pub serial: Option<String>,
}

/// One statement and the line it starts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The line, counted from 1.
    pub line: u32,
    /// What it says.
    pub kind: StatementKind,
}

/// The kinds of statements.
#[derive(Clone, PartialEq, Eq)]
pub enum StatementKind {
    /// Goes to a menu; `None` is the root.
    Menu(Option<MenuPath>),
    /// A command in a menu.
    Command(Command),
    /// Script code, which only a device can run: kept as it was written.
    Script {
        /// The menu it was written in.
        menu: Option<MenuPath>,
        /// The code.
        text: String,
    },
    /// A comment line without its `#`.
    Comment(String),
    /// A line of the console that the export was copied from, such as a prompt.
    Noise(String),
}

impl fmt::Debug for StatementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Menu(menu) => f.debug_tuple("Menu").field(menu).finish(),
            Self::Command(command) => command.fmt(f),
            // Scripts and pasted console lines hold passwords like everything else does.
            Self::Script { menu, text } => {
                f.debug_struct("Script").field("menu", menu).field("bytes", &text.len()).finish()
            }
            Self::Comment(text) => f.debug_tuple("Comment").field(&text.len()).finish(),
            Self::Noise(text) => f.debug_tuple("Noise").field(&text.len()).finish(),
        }
    }
}

/// A command in a menu.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// The menu.
    pub menu: MenuPath,
    /// The command's name, such as `add`.
    pub verb: String,
    /// What follows, in order.
    pub arguments: Vec<Argument>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} {}", self.menu, self.verb)?;
        for argument in &self.arguments {
            match &argument.name {
                Some(name) => write!(f, " {name}=..")?,
                None => write!(f, " ..")?,
            }
        }
        write!(f, ")")
    }
}

/// One argument of a command. `Debug` of a command shows names only, because values can be secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Argument {
    /// The field's name; `None` for an argument given by its place.
    pub name: Option<String>,
    /// The value.
    pub value: Value,
}

/// The value of an argument.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// A word without quotes, decoded.
    Word(String),
    /// A quoted text, decoded.
    Quoted(String),
    /// `[..]`, `(..)`, `{..}`, `$name` or a quoted text with variables, as it was written: only a device knows its value.
    Expression(String),
    /// A field written without a value, such as `blackhole`.
    Flag,
    /// `!name`: the field has no value.
    Unset,
}

/// A statement that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: u32,
    /// The column in characters, counted from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// The beginning of the statement, up to the first value that could be a secret.
    pub excerpt: String,
}

/// How many statements of each kind an export holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines that only go to a menu.
    pub menus: usize,
    /// Commands.
    pub commands: usize,
    /// Script statements.
    pub scripts: usize,
    /// Comments.
    pub comments: usize,
    /// Lines of a console.
    pub noise: usize,
    /// Statements that could not be understood.
    pub errors: usize,
}

impl Export {
    /// Runs the statements on an empty device and returns the rows.
    pub fn rows(&self) -> super::Seed {
        super::apply(self)
    }

    /// Counts the statements by kind.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally { errors: self.errors.len(), ..Tally::default() };
        for statement in &self.statements {
            match statement.kind {
                StatementKind::Menu(_) => tally.menus += 1,
                StatementKind::Command(_) => tally.commands += 1,
                StatementKind::Script { .. } => tally.scripts += 1,
                StatementKind::Comment(_) => tally.comments += 1,
                StatementKind::Noise(_) => tally.noise += 1,
            }
        }
        tally
    }
}
