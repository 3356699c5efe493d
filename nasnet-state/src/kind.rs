//! Names of kinds, and of the name spaces references point into.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The dotted name of a kind (`vpn.wg.client`), or of a name space several kinds provide names for (`interface`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KindName(Cow<'static, str>);

impl KindName {
    /// Takes a name written in source code.
    ///
    /// # Panics
    /// When the text is not a kind name; in a constant this is a compile error.
    pub const fn from_static(name: &'static str) -> Self {
        assert!(is_kind_name(name), "not a kind name");
        Self(Cow::Borrowed(name))
    }

    /// Returns the dotted name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true for the kind itself and everything below it: `vpn` covers `vpn.wg.client`.
    pub fn is_within(&self, prefix: &str) -> bool {
        self.0.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Segments of `a-z`, `0-9` and inner `-`, separated by single dots, each starting with a letter.
pub(crate) const fn is_kind_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 80 {
        return false;
    }
    let mut at = 0;
    let mut segment_start = true;
    while at < bytes.len() {
        let byte = bytes[at];
        let ok = if segment_start {
            byte.is_ascii_lowercase()
        } else {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
        };
        if !ok {
            return false;
        }
        segment_start = byte == b'.';
        at += 1;
    }
    !segment_start
}

impl FromStr for KindName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if is_kind_name(text) { Ok(Self(Cow::Owned(text.to_owned()))) } else { Err(Error::invalid("kind name", text)) }
    }
}

impl TryFrom<String> for KindName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<KindName> for String {
    fn from(kind: KindName) -> Self {
        kind.0.into_owned()
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KindName({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dotted_lower_case_names_are_kinds() {
        for good in ["vpn", "vpn.wg.client", "ros.ip-address", "net.vlan8"] {
            assert_eq!(good.parse::<KindName>().unwrap().to_string(), good);
        }
        for bad in ["", ".", "vpn.", ".vpn", "vpn..wg", "VPN", "vpn wg", "8net", "vpn:wg", &"a".repeat(81)] {
            assert!(bad.parse::<KindName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_kind_is_within_its_own_prefix_only_at_a_dot() {
        let kind = KindName::from_static("vpn.wg.client");
        assert!(kind.is_within("vpn") && kind.is_within("vpn.wg") && kind.is_within("vpn.wg.client"));
        assert!(!kind.is_within("vp") && !kind.is_within("vpn.w") && !kind.is_within("wg"));
    }
}
