//! Prints rows the way `/export` does.

use super::apply::implied_fields;
use super::argument::is_field_name;
use super::parse::VERBS;
use super::seed::{RowOrigin, Seed, SeedRow};
use super::statement::{Argument, Command, Header, Value};
use crate::device::MenuPath;
use crate::routeros::text;

/// How an export is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Style {
    /// Menus on their own lines and long lines continued, as `/export` prints them.
    #[default]
    Compact,
    /// One line for each row, with its menu, as `/export terse` prints them.
    Terse,
}

/// The device continues lines at this width.
const WIDTH: usize = 78;
const INDENT: &[u8] = b"    ";

/// Prints a seed as an export; reading it again gives the same rows.
///
/// Statements that are not in the rows come first, where they find no rows to act on, like when they were read. Values
/// are printed in ASCII with the other bytes as escapes; scripts and expressions are printed as they were written.
pub fn export(seed: &Seed, style: Style) -> Vec<u8> {
    let mut out = Vec::new();
    header(&mut out, &seed.header);
    let mut menu: Option<&MenuPath> = None;
    for unapplied in &seed.unapplied {
        if unapplied.menu.as_ref() != menu {
            menu = unapplied.menu.as_ref();
            let path = menu.map_or("/".to_owned(), menu_words);
            out.extend_from_slice(path.as_bytes());
            out.push(b'\n');
        }
        out.extend_from_slice(&text::to_bytes(&unapplied.text));
        out.push(b'\n');
    }
    for (menu, rows) in seed.ordered() {
        let words = menu_words(menu);
        if style == Style::Compact {
            out.extend_from_slice(words.as_bytes());
            out.push(b'\n');
        }
        for row in rows {
            let mut line = Line::new(&mut out, style);
            if style == Style::Terse {
                line.out.extend_from_slice(words.as_bytes());
                line.out.push(b' ');
            }
            print_row(&mut line, menu, row);
            out.push(b'\n');
        }
    }
    out
}

/// Prints a command without its menu, on one line unless an argument holds lines itself.
pub(super) fn command(command: &Command) -> String {
    let mut out = Vec::new();
    // Only these words are commands on a line of their own.
    if !VERBS.contains(&command.verb.as_str()) {
        out.extend_from_slice(menu_words(&command.menu).as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(command.verb.as_bytes());
    let mut line = Line { out: &mut out, column: 0, wraps: false };
    for Argument { name, value } in &command.arguments {
        match (name, value) {
            (Some(name), Value::Unset) => line.plain(&format!("!{name}")),
            (Some(name), Value::Flag) => line.plain(name),
            (Some(name), Value::Expression(code)) => line.verbatim(&format!("{name}="), code),
            (Some(name), Value::Word(value) | Value::Quoted(value)) => line.field(name, value),
            (None, Value::Expression(code)) => line.verbatim("", code),
            (None, Value::Word(word)) => line.text("", word, is_bare_place(word)),
            (None, Value::Quoted(word)) => line.text("", word, false),
            (None, Value::Flag | Value::Unset) => {}
        }
    }
    text::from_bytes(&out)
}

fn header(out: &mut Vec<u8>, header: &Header) {
    let clean = |text: &str| text.replace(|c: char| c.is_control(), " ");
    let mut comment = |line: String| out.extend_from_slice(&text::to_bytes(format!("# {}\n", clean(&line)).as_str()));
    if let Some(version) = &header.version {
        comment(format!("{} by RouterOS {version}", header.date.as_deref().unwrap_or_default()));
    }
    let fields = [
        ("software id", &header.software_id),
        ("system id", &header.system_id),
        ("model", &header.model),
        ("serial number", &header.serial),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            comment(format!("{name} = {value}"));
        }
    }
}

fn menu_words(menu: &MenuPath) -> String {
    format!("/{}", menu.as_str().trim_start_matches('/').replace('/', " "))
}

fn print_row(line: &mut Line<'_>, menu: &MenuPath, row: &SeedRow) {
    let verb: &[u8] = if row.origin == RowOrigin::Added { b"add" } else { b"set" };
    line.out.extend_from_slice(verb);
    line.column = verb.len();
    match &row.origin {
        RowOrigin::Added | RowOrigin::Single => {}
        RowOrigin::Number(number) => line.plain(&number.to_string()),
        RowOrigin::Id(id) => line.text("", id, is_bare_place(id)),
        RowOrigin::Named(name) => line.text("", name, is_bare_name(name)),
        RowOrigin::Found(fields) => {
            line.plain("[");
            line.plain("find");
            for (name, value) in fields {
                line.field(name, value);
            }
            line.plain("]");
        }
    }
    let implied = implied_fields(menu, &row.origin);
    for (name, value) in &row.fields {
        let is_expression = row.expressions.contains(name);
        if !is_expression && implied.get(name) == Some(value) {
            continue;
        }
        // Behind a bare `set` the first word would name a row.
        let is_flag = row.flags.contains(name) && value.is_empty() && row.origin != RowOrigin::Single;
        if is_flag && is_field_name(name) {
            line.plain(name);
        } else if is_expression {
            line.verbatim(&format!("{name}="), value);
        } else {
            line.field(name, value);
        }
    }
    for name in row.unset.iter().filter(|name| is_field_name(name)) {
        line.plain(&format!("!{name}"));
    }
}

/// One line of output, continued at the width of the console.
#[derive(Debug)]
struct Line<'a> {
    out: &'a mut Vec<u8>,
    column: usize,
    wraps: bool,
}

impl<'a> Line<'a> {
    fn new(out: &'a mut Vec<u8>, style: Style) -> Self {
        Self { out, column: 0, wraps: style == Style::Compact }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        self.column += bytes.len();
    }

    fn fits(&self, length: usize) -> bool {
        !self.wraps || self.column + length < WIDTH
    }

    fn continue_below(&mut self) {
        self.out.extend_from_slice(b"\\\n");
        self.out.extend_from_slice(INDENT);
        self.column = INDENT.len();
    }

    /// Separates the next argument from what stands before it.
    fn separate(&mut self, length: usize) {
        self.put(b" ");
        if !self.fits(length) {
            self.continue_below();
        }
    }

    fn plain(&mut self, word: &str) {
        self.separate(word.len());
        self.put(word.as_bytes());
    }

    fn verbatim(&mut self, name: &str, code: &str) {
        self.separate(name.len());
        self.put(name.as_bytes());
        self.put(&text::to_bytes(code));
    }

    fn field(&mut self, name: &str, value: &str) {
        if is_field_name(name) {
            self.text(&format!("{name}="), value, is_bare(value));
        }
    }

    /// Writes a value; a quoted one goes over as many lines as it needs.
    fn text(&mut self, name: &str, value: &str, bare: bool) {
        if bare {
            self.separate(name.len() + value.len().min(WIDTH / 2));
            self.put(name.as_bytes());
            if !self.fits(value.len()) && !name.is_empty() && self.column > INDENT.len() {
                self.continue_below();
            }
            self.put(value.as_bytes());
            return;
        }
        self.separate(name.len() + 2);
        self.put(name.as_bytes());
        self.put(b"\"");
        let mut after_break = false;
        for byte in text::to_bytes(value) {
            let mut atom = [0_u8; 3];
            let length = escape(byte, &mut atom);
            if !self.fits(length + 1) {
                self.continue_below();
                after_break = true;
            }
            // Blanks at the start of a continued line would be skipped.
            if after_break && byte == b' ' {
                self.put(b"\\_");
            } else {
                self.put(&atom[..length]);
            }
            after_break = false;
        }
        self.put(b"\"");
    }
}

/// Writes the spelling of a byte inside quotes and returns its length.
fn escape(byte: u8, atom: &mut [u8; 3]) -> usize {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let short = match byte {
        b'"' | b'\\' | b'$' | b'?' => Some(byte),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\t' => Some(b't'),
        _ => None,
    };
    atom[0] = b'\\';
    if let Some(short) = short {
        atom[1] = short;
        2
    } else if (0x20..0x7F).contains(&byte) {
        atom[0] = byte;
        1
    } else {
        atom[1] = HEX[usize::from(byte >> 4)];
        atom[2] = HEX[usize::from(byte & 15)];
        3
    }
}

/// Returns whether the device prints the value of a field without quotes.
fn is_bare(value: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,@!*+%|".contains(&b);
    !value.is_empty() && value.bytes().all(plain)
}

/// Returns whether a value given by its place means the same without quotes.
fn is_bare_place(word: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.:,*".contains(&b);
    !word.is_empty() && word.bytes().all(safe)
}

/// Returns whether a name given by its place is not mistaken for a number, an id or a list.
fn is_bare_name(name: &str) -> bool {
    is_bare_place(name) && !name.contains(',') && !name.starts_with('*') && !name.bytes().all(|b| b.is_ascii_digit())
}
