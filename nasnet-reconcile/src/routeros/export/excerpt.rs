//! The beginning of a broken statement for an error message, without anything that could be a secret.

use crate::device::is_secret_name;
use crate::routeros::text;

const CHARACTERS_MAX: usize = 72;

/// Returns the beginning of a statement, cut before the value of the first field that could hold a secret.
///
/// A line that does not begin like a statement can be the rest of a broken value, so nothing of it is shown.
pub(super) fn excerpt(statement: &[u8]) -> String {
    let line = statement.split(|b| *b == b'\n').next().unwrap_or_default();
    let shown = text::from_bytes(&line[..line.len().min(CHARACTERS_MAX * 4)]);
    let shown: String = shown.trim().chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    let first: String = shown.chars().take_while(|c| !c.is_whitespace()).collect();
    let plain_start = first.starts_with(['/', ':'])
        || (!first.is_empty() && first.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
    if !plain_start {
        return format!("({} characters)", text::from_bytes(line).trim().chars().count());
    }
    let end = secret_start(&shown).unwrap_or(shown.len());
    let mut out: String = shown[..end].chars().take(CHARACTERS_MAX).collect();
    if out.len() < shown.len() || statement.len() > line.len() {
        out.push_str("..");
    }
    out
}

/// Returns where the value of the first secret or script field begins.
fn secret_start(line: &str) -> Option<usize> {
    line.match_indices('=').map(|(at, _)| at + 1).find(|after| {
        let before = &line[..after - 1];
        let name = before.rsplit(|c: char| c.is_whitespace() || matches!(c, '[' | '(' | '{' | '!' | ';')).next();
        name.map(|name| name.trim_matches('"')).is_some_and(|name| {
            is_secret_name(name)
                || name.ends_with("key")
                || matches!(name, "source" | "on-event" | "value" | "script" | "community")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::excerpt;

    #[test]
    fn no_value_of_a_secret_field_is_shown() {
        for line in [
            "add name=x password=canary\" comment=y",
            "/ppp secret add name=\"a b\" password=\"canary",
            "set [ find password=canary ] x=\\q",
            "add source=\":put canary\\q\"",
            "canary4lzdWz0=",
            "  Canary=canary add",
        ] {
            assert!(!excerpt(line.as_bytes()).to_lowercase().contains("canary"), "{}", excerpt(line.as_bytes()));
        }
        assert_eq!(excerpt(b"add name=x \"password\"=canary\n   y"), "add name=x \"password\"=..");
        assert_eq!(excerpt(b"add chain=input bad\"word\r"), "add chain=input bad\"word");
    }
}
