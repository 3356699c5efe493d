//! One byte sequence for one meaning, and the digest of it.
//!
//! The document is JSON as RFC 8785 writes it, with text as the only leaf: numbers of that RFC are doubles, which
//! cannot hold a 64-bit counter. Every leaf is an object of its type and text, so a number and the same digits as text
//! differ. Secrets enter as their fingerprints.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::kind::KindName;
use crate::value::{FieldName, FieldValue, Fields};

/// What a digest is of. Digests of different domains never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// What is wanted.
    Desired,
    /// What the device said.
    Observed,
    /// What was there before a write.
    Preimage,
    /// A plan.
    Plan,
    /// A journal record.
    Journal,
}

impl Domain {
    fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Observed => "observed",
            Self::Preimage => "preimage",
            Self::Plan => "plan",
            Self::Journal => "journal",
        }
    }
}

/// Which fields a digest covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldMask {
    /// All that are present.
    All,
    /// These, present or not.
    Only(BTreeSet<FieldName>),
}

impl FieldMask {
    /// Covers the fields that are present in `fields`, whether or not they are present where the mask is used.
    pub fn of(fields: &Fields) -> Self {
        Self::Only(fields.names().cloned().collect())
    }

    fn covers(&self, name: &FieldName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }

    fn digest(&self) -> StateHash {
        let mut digest = Sha256::new();
        match self {
            Self::All => digest.update(b"all"),
            Self::Only(names) => {
                digest.update(b"only");
                for name in names {
                    digest.update([0]);
                    digest.update(name.as_str().as_bytes());
                }
            }
        }
        StateHash(digest.finalize().into())
    }
}

/// A SHA-256 digest of fields.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateHash({self})")
    }
}

impl FromStr for StateHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("state hash", text);
        if text.len() != 64 || !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for StateHash {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<StateHash> for String {
    fn from(hash: StateHash) -> Self {
        hash.to_string()
    }
}

/// Digests fields: equal digests of one domain, kind, revision and mask mean equal fields.
///
/// Digests under different schema revisions are incomparable: normalise again before comparing.
pub fn hash(domain: Domain, kind: &KindName, schema_revision: u32, mask: &FieldMask, fields: &Fields) -> StateHash {
    let mut digest = Sha256::new();
    for part in ["nn1", domain.as_str(), kind.as_str(), &schema_revision.to_string(), &mask.digest().to_string()] {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    digest.update(canonical_json(mask, fields).as_bytes());
    StateHash(digest.finalize().into())
}

/// Returns the document that is digested.
pub fn canonical_json(mask: &FieldMask, fields: &Fields) -> String {
    let mut covered: Vec<_> = fields.iter().filter(|(name, _)| mask.covers(name)).collect();
    // RFC 8785 sorts by UTF-16 code units, which differs from byte order beyond the basic plane.
    covered.sort_by(|(a, _), (b, _)| a.as_str().encode_utf16().cmp(b.as_str().encode_utf16()));
    let mut text = String::from("{");
    for (at, (name, value)) in covered.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        push_string(&mut text, name.as_str());
        text.push(':');
        push_value(&mut text, value);
    }
    text.push('}');
    text
}

fn push_value(text: &mut String, value: &FieldValue) {
    match value {
        FieldValue::Set(members) => push_members(text, "set", members.iter()),
        FieldValue::List(members) => push_members(text, "list", members.iter()),
        FieldValue::Not(inner) => {
            text.push_str("{\"not\":");
            push_value(text, inner);
            text.push('}');
        }
        FieldValue::Secret(secret) => {
            text.push_str(&format!("{{\"secret\":\"hmac:{}\"}}", secret.fingerprint));
        }
        leaf => {
            let (tag, leaf) = leaf.leaf().unwrap_or(("none", "".into()));
            text.push_str(&format!("{{\"{tag}\":"));
            push_string(text, &leaf);
            text.push('}');
        }
    }
}

fn push_members<'a>(text: &mut String, tag: &str, members: impl Iterator<Item = &'a FieldValue>) {
    text.push_str(&format!("{{\"{tag}\":["));
    for (at, member) in members.enumerate() {
        if at > 0 {
            text.push(',');
        }
        push_value(text, member);
    }
    text.push_str("]}");
}

/// Escapes as RFC 8785 does, which is how `serde_json` escapes: only what must be, with the short forms.
fn push_string(text: &mut String, value: &str) {
    text.push_str(&serde_json::Value::from(value).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_utf16_and_text_is_escaped_as_rfc_8785_does() {
        let fields = Fields::new()
            .with("\u{20ac}", "Euro Sign")
            .with("\r", "Carriage\nReturn \u{f}\"\\/")
            .with("\u{fb33}", "Hebrew Letter")
            .with("1", 1_i64)
            .with("\u{1f600}", true)
            .with("\u{80}", "Control\u{7f}")
            .with("\u{f6}", "Latin");
        assert_eq!(
            canonical_json(&FieldMask::All, &fields),
            "{\"\\r\":{\"str\":\"Carriage\\nReturn \\u000f\\\"\\\\/\"},\"1\":{\"int\":\"1\"},\
             \"\u{80}\":{\"str\":\"Control\u{7f}\"},\"\u{f6}\":{\"str\":\"Latin\"},\"\u{20ac}\":{\"str\":\"Euro Sign\"},\
             \"\u{1f600}\":{\"bool\":\"true\"},\"\u{fb33}\":{\"str\":\"Hebrew Letter\"}}"
        );
    }

    #[test]
    fn a_digest_separates_domain_kind_revision_mask_and_type() {
        let kind = KindName::from_static("net.vlan");
        let other = KindName::from_static("net.vlan2");
        let fields = Fields::new().with("a", "1");
        let mask = FieldMask::of(&fields);
        let hashes = [
            hash(Domain::Desired, &kind, 1, &FieldMask::All, &fields),
            hash(Domain::Observed, &kind, 1, &FieldMask::All, &fields),
            hash(Domain::Desired, &other, 1, &FieldMask::All, &fields),
            hash(Domain::Desired, &kind, 2, &FieldMask::All, &fields),
            hash(Domain::Desired, &kind, 1, &mask, &fields),
            hash(Domain::Desired, &kind, 1, &mask, &Fields::new()),
            hash(Domain::Desired, &kind, 1, &mask, &Fields::new().with("a", 1_i64)),
        ];
        let distinct: BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
        let outside = fields.clone().with("b", "2");
        assert_eq!(hashes[4], hash(Domain::Desired, &kind, 1, &mask, &outside), "a field outside the mask counted");
    }

    #[test]
    fn a_digest_is_stable_across_releases() {
        let fields = Fields::new().with("listen-port", 13_231_i64).with("name", "wg0");
        let kind = KindName::from_static("vpn.wireguard");
        let got = hash(Domain::Desired, &kind, 1, &FieldMask::All, &fields);
        assert_eq!(got.to_string(), "d5736dbe9d5323a574759417a982771a0d98e7a11f36d7f73af733fd2a1b6d51");
        assert_eq!(got.to_string().parse::<StateHash>().unwrap(), got);
    }
}
