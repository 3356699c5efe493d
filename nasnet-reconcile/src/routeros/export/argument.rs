//! Reads one argument of a command.

use super::lex::{Cursor, LexError, Lines};
use super::statement::{Argument, Value};
use crate::routeros::text;

/// Reads the argument that starts here: `name=value`, `!name` or a value given by its place.
pub(super) fn argument(cursor: &mut Cursor<'_>) -> Result<Argument, LexError> {
    let start = cursor.pos;
    match cursor.peek() {
        Some(b'!') => {
            let end = name_end(cursor, start + 1);
            if end == start + 1 || !cursor.delimits(end) {
                return Err(LexError::new(start, "a field name is expected after `!`"));
            }
            cursor.pos = end;
            Ok(Argument { name: Some(text::from_bytes(cursor.slice(start + 1, end))), value: Value::Unset })
        }
        Some(b @ (b']' | b')' | b'}')) => {
            Err(LexError::new(start, format!("`{}` closes nothing that is open", char::from(b))))
        }
        Some(b'[' | b'(' | b'{' | b'$' | b'"') => Ok(Argument { name: None, value: value(cursor)? }),
        _ => {
            let end = name_end(cursor, start);
            if end > start && cursor.byte(end) == Some(b'=') {
                cursor.pos = end + 1;
                let name = text::from_bytes(cursor.slice(start, end));
                return Ok(Argument { name: Some(name), value: value(cursor)? });
            }
            let word = cursor.word()?;
            if word.contains(&b'=') {
                return Err(LexError::new(start, "a field name is expected before `=`"));
            }
            Ok(Argument { name: None, value: Value::Word(text::from_bytes(&word)) })
        }
    }
}

/// Returns whether a text can be a field name.
pub(super) fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_name_byte)
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
}

fn name_end(cursor: &Cursor<'_>, from: usize) -> usize {
    let mut end = from;
    while cursor.byte(end).is_some_and(is_name_byte) {
        end += 1;
    }
    end
}

fn value(cursor: &mut Cursor<'_>) -> Result<Value, LexError> {
    cursor.skip_continuations();
    let start = cursor.pos;
    match cursor.peek() {
        Some(b'"') => {
            let quoted = cursor.quoted()?;
            ends_here(cursor, "text directly behind a closing quote")?;
            if quoted.interpolated {
                return Ok(Value::Expression(text::from_bytes(cursor.slice(start, cursor.pos))));
            }
            Ok(Value::Quoted(text::from_bytes(&quoted.bytes)))
        }
        Some(b'[' | b'(' | b'{') => {
            cursor.skip_balanced(Lines::ManyInBraces)?;
            ends_here(cursor, "text directly behind a closing bracket")?;
            Ok(Value::Expression(text::from_bytes(cursor.slice(start, cursor.pos))))
        }
        Some(b'$') => {
            while !cursor.delimits(cursor.pos) {
                match cursor.peek() {
                    Some(b'[' | b'(' | b'{') => cursor.skip_balanced(Lines::ManyInBraces)?,
                    Some(b'"') => return Err(LexError::new(cursor.pos, "a quote in the middle of a word")),
                    Some(b'\\') => cursor.skip_escaped()?,
                    _ => cursor.pos += 1,
                }
            }
            Ok(Value::Expression(text::from_bytes(cursor.slice(start, cursor.pos))))
        }
        _ => Ok(Value::Word(text::from_bytes(&cursor.word()?))),
    }
}

fn ends_here(cursor: &Cursor<'_>, message: &str) -> Result<(), LexError> {
    if cursor.delimits(cursor.pos) { Ok(()) } else { Err(LexError::new(cursor.pos, message)) }
}
