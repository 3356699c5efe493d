//! Names of the things a fleet is made of: routers, scopes and the causes of writes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// The name of the scope that is not a router; no router may take it.
const SYSTEM: &str = "system";

/// Longest router id in bytes.
const ROUTER_ID_LEN_MAX: usize = 63;

/// The id of a managed router: `[a-z0-9][a-z0-9-]{0,62}`, and not `system`.
///
/// It is the only caller-supplied text that becomes part of a file name, so it is parsed once, here, and carried as
/// this type from then on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(Arc<str>);

impl RouterId {
    /// Parses a router id.
    ///
    /// # Errors
    /// [`Error::InvalidRouterId`] when the text has another form or is the reserved word `system`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        match fault_in(text) {
            None => Ok(Self(text.into())),
            Some(reason) => Err(Error::InvalidRouterId { input: text.to_owned(), reason }),
        }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What keeps `text` from being a router id.
fn fault_in(text: &str) -> Option<&'static str> {
    let bytes = text.as_bytes();
    let lower_or_digit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match bytes.first() {
        None => Some("it is empty"),
        Some(&first) if !lower_or_digit(first) => Some("it must start with a lower-case letter or a digit"),
        Some(_) if bytes.len() > ROUTER_ID_LEN_MAX => Some("it is longer than 63 characters"),
        Some(_) if !bytes.iter().all(|&byte| lower_or_digit(byte) || byte == b'-') => {
            Some("it may hold only lower-case letters, digits and hyphens")
        }
        Some(_) if text == SYSTEM => Some("the word is reserved for the system database"),
        Some(_) => None,
    }
}

impl FromStr for RouterId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouterId({})", self.0)
    }
}

impl Serialize for RouterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RouterId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Which part of the fleet something belongs to: the system itself, or one router.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The fleet as a whole, kept in `system.db`.
    System,
    /// One router, kept in its own database.
    Router(RouterId),
}

impl Scope {
    /// Returns the scope as text: `system`, or the router id.
    pub fn as_str(&self) -> &str {
        match self {
            Self::System => SYSTEM,
            Self::Router(id) => id.as_str(),
        }
    }

    /// Returns the router of this scope, if it is one.
    pub fn router(&self) -> Option<&RouterId> {
        match self {
            Self::System => None,
            Self::Router(id) => Some(id),
        }
    }
}

impl From<RouterId> for Scope {
    fn from(id: RouterId) -> Self {
        Self::Router(id)
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == SYSTEM { Ok(Self::System) } else { RouterId::parse(text).map(Self::Router) }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.as_str())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a database is read or written, such as `event-append` or `merge`.
///
/// Bytes on flash are charged to causes, so a cause is a constant of the program, never made from data. Its class says
/// what happens to it when space or the flash budget runs out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cause {
    name: &'static str,
    class: Class,
}

/// How much depends on a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// It can be made again or done without: the first to go.
    Low,
    /// The rule.
    Normal,
    /// It is admitted as long as there is anything left to admit it to.
    Critical,
}

impl Cause {
    /// Makes a cause from a short lower-case constant.
    pub const fn new(name: &'static str) -> Self {
        Self { name, class: Class::Normal }
    }

    /// Makes it critical: its operations may use the reserve of a full database or medium, and no budget refuses them.
    #[must_use]
    pub const fn critical(self) -> Self {
        Self { class: Class::Critical, ..self }
    }

    /// Makes it low: its operations are the first that an exhausted budget refuses.
    #[must_use]
    pub const fn low(self) -> Self {
        Self { class: Class::Low, ..self }
    }

    /// Returns its class.
    pub const fn class(&self) -> Class {
        self.class
    }

    /// Returns the name of the cause.
    pub const fn as_str(&self) -> &'static str {
        self.name
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cause({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for text in ["", ".", "..", "a/b", "a\\b", "-a", "A", "a_b", "a b", "a\0", "é", "system", "a.db"] {
            let error = RouterId::parse(text).expect_err(text);
            assert!(matches!(error, Error::InvalidRouterId { .. }), "{text:?} gave {error:?}");
        }
        assert!(RouterId::parse(&"a".repeat(64)).is_err());
        assert!(RouterId::parse(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn the_system_scope_and_a_router_never_share_a_name() {
        assert_eq!("system".parse::<Scope>().expect("system"), Scope::System);
        assert_eq!("systems".parse::<Scope>().expect("router"), Scope::Router(RouterId::parse("systems").expect("id")));
    }

    #[test]
    fn deserialising_checks_the_form() {
        assert!(serde_json::from_str::<RouterId>("\"../etc\"").is_err());
        assert!(serde_json::from_str::<Scope>("\"../etc\"").is_err());
    }

    proptest! {
        #[test]
        fn text_in_the_documented_form_survives_every_round_trip(text in "[a-z0-9][a-z0-9-]{0,62}") {
            prop_assume!(text != "system");
            let id = RouterId::parse(&text).expect("documented form");
            prop_assert_eq!(id.to_string(), text.clone());
            let json = serde_json::to_string(&Scope::Router(id.clone())).expect("json");
            prop_assert_eq!(serde_json::from_str::<Scope>(&json).expect("scope"), Scope::Router(id));
        }

        #[test]
        fn accepted_text_is_a_single_plain_file_name(text in any::<String>()) {
            if let Ok(id) = RouterId::parse(&text) {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            }
        }
    }
}
