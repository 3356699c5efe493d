//! The facts of an event: readable, sealed under the key of the person they are about, or gone with that key.

use std::fmt;

use serde_json::value::RawValue;

use crate::varint::Malformed;

/// The facts of a recorded event.
///
/// [`crate::EventStore::read`] gives `Json` and, after [`crate::EventStore::shred`], `Shredded`. What the tiers, bundles
/// and forwarders carry of an event with a subject is `Sealed`.
#[derive(Clone)]
pub enum Body {
    /// JSON on one line.
    Json(Box<RawValue>),
    /// Sealed under the key of the event's subject: a JSON string of base64.
    Sealed(Box<RawValue>),
    /// The key of the event's subject was destroyed: nobody can read them any more.
    Shredded,
}

impl Body {
    /// The stored text: JSON, the sealed string, or `null`.
    #[must_use]
    pub fn get(&self) -> &str {
        match self {
            Self::Json(text) | Self::Sealed(text) => text.get(),
            Self::Shredded => "null",
        }
    }

    /// True while the facts are sealed.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }

    /// True when the facts are gone for ever.
    #[must_use]
    pub const fn is_shredded(&self) -> bool {
        matches!(self, Self::Shredded)
    }

    /// Makes a body from its stored text.
    pub(crate) fn from_stored(text: String, sealed: bool) -> Result<Self, Malformed> {
        let text = RawValue::from_string(text).map_err(|_| Malformed("body is not JSON"))?;
        Ok(if sealed { Self::Sealed(text) } else { Self::Json(text) })
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(own), Self::Json(other)) | (Self::Sealed(own), Self::Sealed(other)) => own.get() == other.get(),
            (Self::Shredded, Self::Shredded) => true,
            _ => false,
        }
    }
}

/// Shows which kind of body it is and nothing of it.
impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(text) => write!(f, "Json({} bytes)", text.get().len()),
            Self::Sealed(text) => write!(f, "Sealed({} bytes)", text.get().len()),
            Self::Shredded => f.write_str("Shredded"),
        }
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}
