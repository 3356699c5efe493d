//! The two names every event carries: its type and its stream.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

const EVENT_TYPE_BYTES_MAX: usize = 96;
const STREAM_NAME_BYTES_MAX: usize = 200;

/// The longest name of a subject.
const SUBJECT_BYTES_MAX: usize = 96;

/// A name that is either a constant of the program or shared by many events.
#[derive(Clone)]
enum Text {
    Constant(&'static str),
    Shared(Arc<str>),
}

impl Text {
    fn as_str(&self) -> &str {
        match self {
            Self::Constant(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// The type of an event: dotted lower-case words such as `resource.created`.
#[derive(Clone)]
pub struct EventType(Text);

impl EventType {
    /// Makes a type from a constant; a malformed one does not compile when used in a `const`.
    ///
    /// # Panics
    /// When the text is not a valid type.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        assert!(is_event_type(text.as_bytes()), "event types are dotted lower-case words");
        Self(Text::Constant(text))
    }

    /// Parses a type.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is one or more words of `[a-z0-9_]` joined by dots, at most 96 bytes long.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if is_event_type(text.as_bytes()) {
            Ok(Self(Text::Shared(text.into())))
        } else {
            Err(Error::Invalid { what: "event type", value: text.to_owned(), why: "expected dotted lower-case words" })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

const fn is_event_type(text: &[u8]) -> bool {
    if text.is_empty() || text.len() > EVENT_TYPE_BYTES_MAX {
        return false;
    }
    let mut word_length = 0;
    let mut index = 0;
    while index < text.len() {
        match text[index] {
            b'.' if word_length > 0 => word_length = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'_' => word_length += 1,
            _ => return false,
        }
        index += 1;
    }
    word_length > 0
}

/// The stream an event belongs to, such as `resource/01HZ8...`; versions count inside it.
#[derive(Clone)]
pub struct StreamName(Text);

impl StreamName {
    /// Parses a stream name.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is 1-200 bytes of printable ASCII without spaces.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let well_formed =
            !text.is_empty() && text.len() <= STREAM_NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        if well_formed {
            Ok(Self(Text::Shared(text.into())))
        } else {
            Err(Error::Invalid {
                what: "stream name",
                value: text.to_owned(),
                why: "expected 1-200 printable ASCII characters without spaces",
            })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// Who the facts of an event are about; they can be shredded together.
///
/// The name stays when the facts are shredded, so use a pseudonym such as `user/01HZ8..`, never a person's name.
#[derive(Clone)]
pub struct Subject(Text);

impl Subject {
    /// Parses a subject.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is 1-96 bytes of printable ASCII without spaces.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let well_formed =
            !text.is_empty() && text.len() <= SUBJECT_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        if well_formed {
            Ok(Self(Text::Shared(text.into())))
        } else {
            Err(Error::Invalid {
                what: "subject",
                value: text.to_owned(),
                why: "expected 1-96 printable ASCII characters without spaces",
            })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

macro_rules! text_traits {
    ($name:ident) => {
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }
        impl Eq for $name {}
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.as_str().cmp(other.as_str())
            }
        }
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_traits!(EventType);
text_traits!(StreamName);
text_traits!(Subject);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_when_parsed() {
        for good in ["resource.created", "a", "vpn.wireguard.client.connected", "quota.warning.80", "rolled_back"] {
            assert_eq!(EventType::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "a.", ".a", "a..b", "Resource.created", "a b", "a-b", &"a".repeat(97)] {
            assert!(EventType::parse(bad).is_err(), "{bad:?}");
        }
        assert!(StreamName::parse("resource/01HZ8").is_ok());
        for bad in ["", "a b", "a\n", "\u{e9}", &"a".repeat(201)] {
            assert!(StreamName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn constants_and_parsed_names_are_equal() {
        const CREATED: EventType = EventType::from_static("resource.created");
        assert_eq!(CREATED, EventType::parse("resource.created").unwrap());
    }
}
