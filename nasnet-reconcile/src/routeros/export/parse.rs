//! Reads the text of an export into statements.

use std::borrow::Cow;

use super::argument::argument;
use super::excerpt::excerpt;
use super::lex::{Cursor, LexError, Lines};
use super::position::Positions;
use super::statement::{Command, Export, ParseError, Statement, StatementKind};
use crate::device::MenuPath;
use crate::routeros::{menus, text};

/// Names that are commands wherever they stand; no menu of RouterOS 7 is called like one of them.
pub(super) const VERBS: &[&str] = &[
    "add",
    "set",
    "remove",
    "enable",
    "disable",
    "move",
    "unset",
    "edit",
    "comment",
    "print",
    "find",
    "get",
    "export",
    "import",
    "reset",
    "reset-counters",
    "reset-counters-all",
    "monitor",
    "flush",
    "renew",
    "release",
    "make-static",
];

/// Commands that do something once and describe no configuration; they are kept aside like scripts.
const ACTIONS: &[&str] = &[
    "check-for-updates",
    "clear",
    "download",
    "fetch",
    "import-host-key",
    "install",
    "load",
    "ping",
    "reboot",
    "run",
    "save",
    "scan",
    "send",
    "shutdown",
    "sign",
    "start",
    "stop",
];

/// Reads what `/export` prints, in its compact, terse, verbose and sensitive forms.
///
/// Reading never fails as a whole: a statement that cannot be understood becomes one entry of
/// [`Export::errors`] and reading goes on with the next line.
pub fn parse(bytes: &[u8]) -> Export {
    let (input, error) = decode(bytes);
    let mut parser = Parser {
        cursor: Cursor::new(&input),
        positions: Positions::new(&input),
        menu: None,
        export: Export::default(),
        commands_seen: false,
    };
    parser.export.errors.extend(error);
    parser.run();
    parser.export.lines = parser.positions.lines();
    parser.export
}

/// Removes a byte order mark and turns UTF-16, which some shells write when output is redirected, into UTF-8.
fn decode(bytes: &[u8]) -> (Cow<'_, [u8]>, Option<ParseError>) {
    let from_pair: fn([u8; 2]) -> u16 = match bytes {
        [0xFF, 0xFE, ..] => u16::from_le_bytes,
        [0xFE, 0xFF, ..] => u16::from_be_bytes,
        _ => return (Cow::Borrowed(bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)), None),
    };
    let units: Vec<u16> = bytes[2..].chunks_exact(2).map(|pair| from_pair([pair[0], pair[1]])).collect();
    match String::from_utf16(&units) {
        Ok(text) if bytes.len().is_multiple_of(2) => (Cow::Owned(text.into_bytes()), None),
        _ => {
            let message = "the file is broken UTF-16; save it as UTF-8".to_owned();
            (Cow::Owned(Vec::new()), Some(ParseError { line: 1, column: 1, message, excerpt: String::new() }))
        }
    }
}

#[derive(Debug)]
struct Parser<'a> {
    cursor: Cursor<'a>,
    positions: Positions<'a>,
    menu: Option<MenuPath>,
    export: Export,
    commands_seen: bool,
}

impl<'a> Parser<'a> {
    fn run(&mut self) {
        loop {
            self.skip_to_statement();
            let start = self.cursor.pos;
            let Some(first) = self.cursor.peek() else { return };
            let result = match first {
                b'#' => {
                    self.comment();
                    Ok(())
                }
                b'/' => self.path_statement(),
                b'[' if self.is_prompt() => {
                    let text = self.rest_of_line();
                    self.push(start, StatementKind::Noise(text));
                    Ok(())
                }
                b':' | b'{' | b'(' | b'[' | b'$' => self.script(),
                _ => self.menu_command(),
            };
            if let Err(error) = result {
                self.recover(start, error);
            }
        }
    }

    fn skip_to_statement(&mut self) {
        loop {
            self.cursor.skip_blanks();
            match self.cursor.peek() {
                Some(b'\n' | b';') => self.cursor.pos += 1,
                _ => return,
            }
        }
    }

    fn push(&mut self, start: usize, kind: StatementKind) {
        self.commands_seen |= matches!(kind, StatementKind::Command(_) | StatementKind::Script { .. });
        self.export.statements.push(Statement { line: self.positions.line(start), kind });
    }

    /// Records the error and goes on behind the broken line.
    fn recover(&mut self, start: usize, error: LexError) {
        let end = self.cursor.logical_line_end(error.at.max(start));
        let (line, column) = self.positions.line_and_column(error.at);
        let excerpt = excerpt(self.cursor.slice(start, end));
        self.export.errors.push(ParseError { line, column, message: error.message, excerpt });
        self.cursor.pos = end;
    }

    fn rest_of_line(&mut self) -> String {
        let end = self.cursor.line_end(self.cursor.pos);
        let text = text::from_bytes(self.cursor.slice(self.cursor.pos, end).trim_ascii_end());
        self.cursor.pos = end;
        text
    }

    fn comment(&mut self) {
        let start = self.cursor.pos;
        self.cursor.pos += 1;
        let text = self.rest_of_line();
        if !self.commands_seen {
            self.header_line(text.trim());
        }
        self.push(start, StatementKind::Comment(text));
    }

    fn header_line(&mut self, line: &str) {
        let header = &mut self.export.header;
        if let Some((date, version)) = line.split_once(" by RouterOS ") {
            header.date.get_or_insert_with(|| date.trim().to_owned());
            header.version.get_or_insert_with(|| version.trim().to_owned());
        } else if let Some((name, value)) = line.split_once('=') {
            let slot = match name.trim() {
                "software id" => &mut header.software_id,
                "system id" => &mut header.system_id,
                "model" => &mut header.model,
                "serial number" => &mut header.serial,
                _ => return,
            };
            slot.get_or_insert_with(|| value.trim().to_owned());
        }
    }

    /// Returns whether the line begins with a prompt such as `[admin@MikroTik] /ip address>`.
    fn is_prompt(&self) -> bool {
        let start = self.cursor.pos;
        let line = self.cursor.slice(start, self.cursor.line_end(start).min(start + 200));
        let Some(close) = line.iter().position(|b| *b == b']') else { return false };
        let in_menu = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b" /-<SAFE".contains(b);
        line[..close].contains(&b'@') && line[close + 1..].iter().find(|b| !in_menu(b)).is_some_and(|b| *b == b'>')
    }

    /// Reads code up to the end of the statement: a semicolon or the end of the line on which all its brackets are closed.
    fn script(&mut self) -> Result<(), LexError> {
        let start = self.cursor.pos;
        // The code without blanks and continuations at its end: they would swallow the line printed behind it.
        let mut end = start;
        loop {
            let at = self.cursor.pos;
            match self.cursor.peek() {
                // What stands behind a semicolon is a statement of its own.
                None | Some(b'\n' | b';') => break,
                Some(b'{' | b'[' | b'(') => self.cursor.skip_balanced(Lines::Many)?,
                Some(b'"') => {
                    let limit = self.cursor.search_limit(at);
                    match self.cursor.string_end(at, limit, Lines::Many) {
                        Some(end) => self.cursor.pos = end,
                        None => {
                            self.cursor.charge(limit - at);
                            return Err(LexError::new(at, "a quoted text is never closed"));
                        }
                    }
                }
                Some(b @ (b'}' | b']' | b')')) => {
                    return Err(LexError::new(at, format!("`{}` closes nothing that is open", char::from(b))));
                }
                Some(b'\\') => match self.cursor.continuation(at) {
                    Some(next) => {
                        self.cursor.pos = next;
                        continue;
                    }
                    None => self.cursor.skip_escaped()?,
                },
                Some(b' ' | b'\t' | b'\r') => {
                    self.cursor.pos += 1;
                    continue;
                }
                Some(_) => self.cursor.pos += 1,
            }
            end = self.cursor.pos;
        }
        let text = text::from_bytes(self.cursor.slice(start, end));
        self.push(start, StatementKind::Script { menu: self.menu.clone(), text });
        Ok(())
    }

    /// Reads a line that begins with a slash: a menu to go to, or a command with its menu.
    fn path_statement(&mut self) -> Result<(), LexError> {
        let start = self.cursor.pos;
        let (mut words, verb) = self.path();
        let menu_only = verb.is_none() && (self.cursor.at_statement_end() || self.cursor.peek() == Some(b'#'));
        if menu_only {
            self.menu = menu_path(&words, start)?;
            let menu = self.menu.clone();
            self.push(start, StatementKind::Menu(menu));
            return Ok(());
        }
        let known = verb.is_some();
        let Some(verb) = verb.or_else(|| words.pop()) else {
            return Err(LexError::new(self.cursor.pos, "a menu name is expected after `/`"));
        };
        if !known && self.cursor.peek().is_some_and(|b| b.is_ascii_uppercase()) {
            return Err(LexError::new(self.cursor.pos, "menu names are written in lower case"));
        }
        match menu_path(&words, start)? {
            Some(menu) => self.command(start, menu, verb),
            // Commands of the root, such as /import, do something once and are no configuration.
            None => {
                self.cursor.pos = start;
                self.script()
            }
        }
    }

    /// Reads the words of a path up to a command or to what belongs to no path.
    fn path(&mut self) -> (Vec<&'a str>, Option<&'a str>) {
        let mut words = Vec::new();
        loop {
            while self.cursor.peek() == Some(b'/') {
                self.cursor.pos += 1;
            }
            self.cursor.skip_blanks();
            if self.cursor.peek() == Some(b'/') {
                continue;
            }
            let Some((word, end)) = self.path_word() else { return (words, None) };
            self.cursor.pos = end;
            if VERBS.contains(&word) {
                return (words, Some(word));
            }
            words.push(word);
        }
    }

    /// Reads a path that goes on from the menu of the line before: `..`, `port`, `address add ..`.
    ///
    /// Only menus that are known are taken for one; a broken line looks just like it. Returns whether there was one.
    fn relative_statement(&mut self) -> Result<bool, LexError> {
        let start = self.cursor.pos;
        let menu = self.menu.clone();
        let mut words: Vec<&str> = menu.as_ref().map_or_else(Vec::new, |menu| menu.as_str()[1..].split('/').collect());
        let mut ups = 0;
        while self.cursor.slice(self.cursor.pos, self.cursor.pos + 2) == b".."
            && (self.cursor.delimits(self.cursor.pos + 2) || self.cursor.byte(self.cursor.pos + 2) == Some(b'/'))
        {
            ups += 1;
            words.pop();
            self.cursor.pos += 2;
            while matches!(self.cursor.peek(), Some(b' ' | b'\t' | b'\r' | b'/')) {
                self.cursor.pos += 1;
            }
        }
        let (path, verb) = self.path();
        let ends = self.cursor.at_statement_end() || self.cursor.peek() == Some(b'#');
        words.extend(&path);
        let goes_on = ups > 0 || !path.is_empty();
        if !goes_on || !(path.is_empty() || is_known_menu(&words)) || !(ends || verb.is_some()) {
            self.cursor.pos = start;
            return Ok(false);
        }
        match (menu_path(&words, start)?, verb) {
            (Some(menu), Some(verb)) => self.command(start, menu, verb)?,
            (None, Some(_)) => {
                self.cursor.pos = start;
                return Ok(false);
            }
            (menu, None) => {
                self.menu.clone_from(&menu);
                self.push(start, StatementKind::Menu(menu));
            }
        }
        Ok(true)
    }

    /// Returns the path word that starts here and the offset behind it.
    fn path_word(&self) -> Option<(&'a str, usize)> {
        let start = self.cursor.pos;
        let mut end = start;
        while self.cursor.byte(end).is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || is_joint(b)) {
            end += 1;
        }
        let ends = self.cursor.delimits(end) || matches!(self.cursor.byte(end), Some(b'/' | b'['));
        let word = std::str::from_utf8(self.cursor.slice(start, end)).ok()?;
        (ends && !word.is_empty()).then_some((word, end))
    }

    fn menu_command(&mut self) -> Result<(), LexError> {
        let start = self.cursor.pos;
        let mut end = start;
        while self.cursor.byte(end).is_some_and(|b| b.is_ascii_alphanumeric() || is_joint(b)) {
            end += 1;
        }
        let word = String::from_utf8_lossy(self.cursor.slice(start, end)).into_owned();
        if !VERBS.contains(&word.as_str()) || !self.cursor.delimits(end) && self.cursor.byte(end) != Some(b'[') {
            if ACTIONS.contains(&word.as_str()) && self.menu.is_some() && self.cursor.delimits(end) {
                return self.script();
            }
            if self.relative_statement()? {
                return Ok(());
            }
            return Err(LexError::new(start, not_a_command(&word, self.cursor.byte(end))));
        }
        let Some(menu) = self.menu.clone() else {
            return Err(LexError::new(start, format!("`{word}` stands before any menu")));
        };
        self.cursor.pos = end;
        self.command(start, menu, &word)
    }

    fn command(&mut self, start: usize, menu: MenuPath, verb: &str) -> Result<(), LexError> {
        let mut arguments = Vec::new();
        let mut group = String::new();
        loop {
            self.cursor.skip_blanks();
            if self.cursor.at_statement_end() || self.cursor.peek() == Some(b'#') {
                break;
            }
            let mut argument = argument(&mut self.cursor)?;
            if let Some(name) = &mut argument.name {
                expand_group(name, &mut group);
            }
            arguments.push(argument);
        }
        self.push(start, StatementKind::Command(Command { menu, verb: verb.to_owned(), arguments }));
        Ok(())
    }
}

/// Writes out `.mode` behind `configuration.manager` as `configuration.mode`: a group is named only once.
fn expand_group(name: &mut String, group: &mut String) {
    match name.find('.') {
        Some(0) => name.insert_str(0, group),
        Some(dot) => name[..dot].clone_into(group),
        None => {}
    }
}

fn is_joint(b: u8) -> bool {
    matches!(b, b'-' | b'_')
}

/// Returns whether there is a menu of this path, or one below it.
fn is_known_menu(words: &[&str]) -> bool {
    let path: String = words.iter().flat_map(|word| ["/", word]).collect();
    let below = |known: &str| known.strip_prefix(&path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    menus::KNOWN.iter().any(|(known, _)| below(known))
}

fn menu_path(words: &[&str], start: usize) -> Result<Option<MenuPath>, LexError> {
    if words.is_empty() {
        return Ok(None);
    }
    let path: String = words.iter().flat_map(|word| ["/", word]).collect();
    path.parse().map(Some).map_err(|_| LexError::new(start, "this path is too long to be a menu"))
}

/// Says why a line does not start a command. Words that could be the rest of a broken secret are not repeated.
fn not_a_command(word: &str, next: Option<u8>) -> String {
    let repeatable = word.len() <= 20 && word.bytes().all(|b| b.is_ascii_lowercase() || is_joint(b));
    match next {
        Some(b) if word.is_empty() && b.is_ascii_graphic() => {
            format!("`{}` begins neither a menu nor a command", char::from(b))
        }
        Some(b'=') if repeatable => format!("the field `{word}` stands outside a command"),
        _ if repeatable && !word.is_empty() => format!("`{word}` is neither a menu nor a command"),
        _ => "this is neither a menu nor a command".to_owned(),
    }
}
