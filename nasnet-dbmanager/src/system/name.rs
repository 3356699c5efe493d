//! The form of the names that callers choose.

use crate::error::Error;

/// Longest name in bytes.
const LEN_MAX: usize = 64;

/// Refuses a name that is not `[a-z][a-z0-9._-]{0,63}`; `what` says what it names.
pub(super) fn check(what: &'static str, name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let well_formed = name.len() <= LEN_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(allowed);
    if well_formed { Ok(()) } else { Err(Error::InvalidName { what, input: name.chars().take(LEN_MAX).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        for name in ["a", "event_epoch", "api.password", "x-1"] {
            assert!(check("counter", name).is_ok(), "{name}");
        }
        for name in ["", "1a", "A", "a b", "_a", "é", "a\n", &"a".repeat(65)] {
            assert!(matches!(check("counter", name), Err(Error::InvalidName { what: "counter", .. })), "{name:?}");
        }
    }
}
