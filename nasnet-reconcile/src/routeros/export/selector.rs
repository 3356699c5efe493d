//! Which rows a command is about: `[ find default-name=ether1 ]`, `0,2`, `*1A`, `telnet`.

use std::collections::BTreeMap;

use super::argument::argument;
use super::lex::Cursor;
use super::statement::{Argument, Value};
use crate::device::RawFields;
use crate::routeros::text;

/// The rows a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// No row is named: the one row of the menu.
    Single,
    /// Every row all conditions hold for.
    Where(Vec<Condition>),
    /// Rows by number, id or name.
    Items(Vec<Item>),
    /// Something only a device can evaluate.
    Unsupported,
}

/// One row by number, id or name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// Its place in the menu, counted from 0.
    Number(u32),
    /// Its id, such as `*1A`.
    Id(String),
    /// Its name.
    Name(String),
}

/// One condition of `find`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    field: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equals(String),
    Differs(String),
    Matches(Pattern),
}

/// The regular expressions that need no engine: literal text with anchors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    literal: String,
    at_start: bool,
    at_end: bool,
}

impl Selector {
    /// Reads the argument that names the rows.
    pub(super) fn of(value: Option<&Value>) -> Self {
        match value {
            None => Self::Single,
            Some(Value::Word(word)) => Self::Items(word.split(',').map(Item::of).collect()),
            Some(Value::Quoted(name)) => Self::Items(vec![Item::Name(name.clone())]),
            Some(Value::Expression(expression)) => find(expression).map_or(Self::Unsupported, Self::Where),
            Some(Value::Flag | Value::Unset) => Self::Unsupported,
        }
    }
}

impl Item {
    fn of(word: &str) -> Self {
        if let Ok(number) = word.parse::<u32>()
            && word.bytes().all(|b| b.is_ascii_digit())
        {
            return Self::Number(number);
        }
        if word.len() > 1 && word.starts_with('*') && word[1..].bytes().all(|b| b.is_ascii_hexdigit()) {
            return Self::Id(word.to_owned());
        }
        Self::Name(word.to_owned())
    }
}

impl Condition {
    /// Returns whether the condition holds for a row.
    pub(super) fn holds(&self, fields: &RawFields) -> bool {
        let absent = if self.field == "disabled" { "no" } else { "" };
        let value = fields.get(&self.field).map_or(absent, String::as_str);
        match &self.test {
            Test::Equals(wanted) => spelled_alike(value, wanted),
            Test::Differs(wanted) => !spelled_alike(value, wanted),
            Test::Matches(pattern) => pattern.matches(value),
        }
    }
}

/// Returns the fields that all conditions ask for, when they ask for nothing else.
pub(super) fn equalities(conditions: &[Condition]) -> Option<BTreeMap<String, String>> {
    let pairs = conditions.iter().map(|condition| match &condition.test {
        Test::Equals(value) => Some((condition.field.clone(), value.clone())),
        Test::Differs(_) | Test::Matches(_) => None,
    });
    pairs.collect()
}

fn spelled_alike(a: &str, b: &str) -> bool {
    fn plain(word: &str) -> &str {
        match word {
            "true" => "yes",
            "false" => "no",
            other => other,
        }
    }
    plain(a) == plain(b)
}

/// Reads `[find ..]`; `None` means it holds more than conditions joined by `and`.
fn find(expression: &str) -> Option<Vec<Condition>> {
    let inner = text::to_bytes(expression.strip_prefix('[')?.strip_suffix(']')?);
    let mut cursor = Cursor::new(&inner);
    cursor.skip_blanks();
    if cursor.word().ok()? != b"find" {
        return None;
    }
    let mut conditions = Vec::new();
    loop {
        cursor.skip_blanks();
        if cursor.peek().is_none() {
            return Some(conditions);
        }
        if let Some(condition) = marked_condition(&mut cursor)? {
            conditions.push(condition);
            continue;
        }
        match argument(&mut cursor).ok()? {
            Argument { name: Some(field), value: Value::Word(value) | Value::Quoted(value) } => {
                conditions.push(Condition { field, test: Test::Equals(value) });
            }
            Argument { name: Some(field), value: Value::Unset } => {
                conditions.push(Condition { field, test: Test::Differs("yes".to_owned()) });
            }
            Argument { name: None, value: Value::Word(word) } => match word.as_str() {
                "where" | "and" | "&&" => {}
                "or" | "||" => return None,
                _ if word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') => {
                    conditions.push(Condition { field: word, test: Test::Equals("yes".to_owned()) });
                }
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// Reads `name~"pattern"` or `name!="value"`; the outer `None` means it stands there but cannot be used.
#[expect(clippy::option_option, reason = "three answers: not one of these, one of these, one that cannot be used")]
fn marked_condition(cursor: &mut Cursor<'_>) -> Option<Option<Condition>> {
    let start = cursor.pos;
    let mut end = start;
    while cursor.byte(end).is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        end += 1;
    }
    let sign = match (cursor.byte(end), cursor.byte(end + 1)) {
        (Some(b'~'), _) => 1,
        (Some(b'!'), Some(b'=')) => 2,
        _ => return Some(None),
    };
    if end == start {
        return None;
    }
    let field = text::from_bytes(cursor.slice(start, end));
    cursor.pos = end + sign;
    let value = match cursor.peek() {
        Some(b'"') => cursor.quoted().ok().filter(|quoted| !quoted.interpolated)?.bytes,
        _ => cursor.word().ok()?,
    };
    let value = text::from_bytes(&value);
    let test = if sign == 1 { Test::Matches(Pattern::of(&value)?) } else { Test::Differs(value) };
    Some(Some(Condition { field, test }))
}

impl Pattern {
    fn of(expression: &str) -> Option<Self> {
        let (at_start, rest) = match expression.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, expression),
        };
        let (at_end, rest) = match rest.strip_suffix('$') {
            Some(rest) if !rest.ends_with('\\') => (true, rest),
            _ => (false, rest),
        };
        let mut literal = String::with_capacity(rest.len());
        let mut characters = rest.chars();
        while let Some(c) = characters.next() {
            match c {
                '\\' => literal.push(characters.next().filter(|c| c.is_ascii_punctuation())?),
                '.' | '*' | '+' | '?' | '[' | ']' | '(' | ')' | '{' | '}' | '|' | '^' | '$' => return None,
                c => literal.push(c),
            }
        }
        Some(Self { literal, at_start, at_end })
    }

    fn matches(&self, value: &str) -> bool {
        match (self.at_start, self.at_end) {
            (true, true) => value == self.literal,
            (true, false) => value.starts_with(&self.literal),
            (false, true) => value.ends_with(&self.literal),
            (false, false) => value.contains(&self.literal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_found(expression: &str) -> Option<Vec<&'static str>> {
        let rows = [
            ("a", RawFields::from([("name".into(), "a".into()), ("comment".into(), "to the office".into())])),
            ("b", RawFields::from([("name".into(), "b".into()), ("disabled".into(), "yes".into())])),
        ];
        match Selector::of(Some(&Value::Expression(expression.to_owned()))) {
            Selector::Where(conditions) => Some(
                rows.iter().filter(|(_, f)| conditions.iter().all(|c| c.holds(f))).map(|(name, _)| *name).collect(),
            ),
            _ => None,
        }
    }

    #[test]
    fn find_understands_conditions_joined_by_and() {
        assert_eq!(rows_found("[find]"), Some(vec!["a", "b"]));
        assert_eq!(rows_found("[ find name=a ]"), Some(vec!["a"]));
        assert_eq!(rows_found("[find where name=\"b\" and disabled=yes]"), Some(vec!["b"]));
        assert_eq!(rows_found("[find disabled]"), Some(vec!["b"]));
        assert_eq!(rows_found("[find !disabled]"), Some(vec!["a"]));
        assert_eq!(rows_found("[find disabled=false]"), Some(vec!["a"]));
        assert_eq!(rows_found("[find where name!=\"a\"]"), Some(vec!["b"]));
        assert_eq!(rows_found("[find comment~\"^to the\"]"), Some(vec!["a"]));
        assert_eq!(rows_found("[find comment~\"office\\$\"]"), Some(vec!["a"]));
        assert_eq!(rows_found("[find comment~\"the\" name=b]"), Some(vec![]));
    }

    #[test]
    fn what_only_a_device_can_evaluate_is_left_alone() {
        for expression in [
            "[find name=a or name=b]",
            "[find comment~\"a.*b\"]",
            "[find name=$x]",
            "[/interface find]",
            "[get 0 name]",
            "(1+1)",
            "{1;2}",
            "$rows",
            "[find (a=b)]",
            "[find name=\"a$x\"]",
            "[",
            "",
        ] {
            assert_eq!(rows_found(expression), None, "{expression}");
        }
    }

    #[test]
    fn rows_are_named_by_number_id_or_name() {
        let items = |value| match Selector::of(Some(&value)) {
            Selector::Items(items) => items,
            other => panic!("{other:?}"),
        };
        assert_eq!(items(Value::Word("0,12".into())), [Item::Number(0), Item::Number(12)]);
        assert_eq!(items(Value::Word("*FFFFFFFE".into())), [Item::Id("*FFFFFFFE".into())]);
        assert_eq!(items(Value::Word("api-ssl".into())), [Item::Name("api-ssl".into())]);
        assert_eq!(items(Value::Quoted("0,1".into())), [Item::Name("0,1".into())]);
    }
}
