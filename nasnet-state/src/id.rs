//! The readable id beside the uid, and unique names for rows that have none of their own.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::error::Error;
use crate::kind::{KindName, is_kind_name};

/// The readable id of a resource: `vpn.wg.client:usa-vpn:a1b2`.
///
/// Kind, a slug of the name the resource was created with, and a few characters derived from the uid. It never changes
/// afterwards, not even when the resource is renamed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScopedId(String);

const SLUG_CHARS_MAX: usize = 40;
const SUFFIX_CHARS: [usize; 3] = [4, 8, 26];

impl ScopedId {
    /// Derives the id of a new resource.
    pub fn new(kind: &KindName, name: &str, uid: Ulid) -> Self {
        Self::with_suffix(kind, name, uid, SUFFIX_CHARS[0])
    }

    /// Derives the shortest id that is not `taken`: four characters tell apart what people look at, but not always a
    /// whole import.
    pub(crate) fn untaken(kind: &KindName, name: &str, uid: Ulid, taken: &BTreeSet<String>) -> Self {
        SUFFIX_CHARS
            .into_iter()
            .map(|chars| Self::with_suffix(kind, name, uid, chars))
            .find(|id| !taken.contains(&id.0))
            .unwrap_or_else(|| Self::with_suffix(kind, name, uid, SUFFIX_CHARS[2]))
    }

    fn with_suffix(kind: &KindName, name: &str, uid: Ulid, chars: usize) -> Self {
        // The tail of a digest: neighbouring uids of one millisecond differ in their last characters only.
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let digest = Sha256::digest(uid.to_bytes());
        let suffix: String =
            digest.iter().take(chars).map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
        Self(format!("{kind}:{}:{suffix}", slug(name)))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reduces a name to lower-case letters, digits and single inner dashes.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars().flat_map(char::to_lowercase) {
        if slug.len() >= SLUG_CHARS_MAX {
            break;
        }
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "unnamed".to_owned() } else { slug.to_owned() }
}

impl FromStr for ScopedId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(kind), Some(slug), Some(suffix), None)
                if is_kind_name(kind)
                    && !slug.is_empty()
                    && slug.len() <= SLUG_CHARS_MAX
                    && lower(slug)
                    && SUFFIX_CHARS.contains(&suffix.len())
                    && lower(suffix) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Error::invalid("scoped id", text)),
        }
    }
}

impl TryFrom<String> for ScopedId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ScopedId> for String {
    fn from(id: ScopedId) -> Self {
        id.0
    }
}

impl fmt::Display for ScopedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ScopedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopedId({})", self.0)
    }
}

/// Hands out names that are unique per kind, in the order rows are met: the second `allow` becomes `allow~2`.
///
/// Firewall rules, opaque rows and other things a router keeps without a name of their own get a stable one this way.
#[derive(Debug, Default)]
pub struct UniqueNames {
    met: HashMap<(KindName, String), u64>,
}

impl UniqueNames {
    /// Starts with no name taken.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks a name as taken by a resource that already exists.
    pub fn take(&mut self, kind: &KindName, name: &str) {
        self.met.entry((kind.clone(), name.to_owned())).or_insert(1);
    }

    /// Returns `name`, or `name~N` with the smallest N from 2 on that was not handed out yet.
    pub fn next(&mut self, kind: &KindName, name: &str) -> String {
        let name = if name.is_empty() { "unnamed" } else { name };
        let mut count = match self.met.get(&(kind.clone(), name.to_owned())) {
            None => {
                self.take(kind, name);
                return name.to_owned();
            }
            Some(count) => *count,
        };
        loop {
            count += 1;
            let candidate = format!("{name}~{count}");
            if !self.met.contains_key(&(kind.clone(), candidate.clone())) {
                self.take(kind, &candidate);
                self.met.insert((kind.clone(), name.to_owned()), count);
                return candidate;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: KindName = KindName::from_static("vpn.wg.client");

    #[test]
    fn a_scoped_id_reads_back_and_shows_kind_slug_and_suffix() {
        for name in ["USA  VPN!", "ether1", "ÄÖÜ", "", "-", &"x".repeat(300)] {
            let id = ScopedId::new(&KIND, name, Ulid::from_parts(1, 2));
            assert_eq!(id.as_str().parse::<ScopedId>().unwrap(), id);
        }
        let id = ScopedId::new(&KIND, "USA  VPN!", Ulid::from_parts(1, 2));
        assert!(id.as_str().starts_with("vpn.wg.client:usa-vpn:"), "{id}");
        assert_eq!(id.as_str().len(), "vpn.wg.client:usa-vpn:a1b2".len());
    }

    #[test]
    fn a_taken_suffix_is_lengthened() {
        let uid = Ulid::from_parts(1, 2);
        let short = ScopedId::new(&KIND, "a", uid);
        let taken = BTreeSet::from([short.to_string()]);
        let longer = ScopedId::untaken(&KIND, "a", uid, &taken);
        assert!(longer.as_str().starts_with(short.as_str()) && longer.as_str().len() == short.as_str().len() + 4);
    }

    #[test]
    fn broken_scoped_ids_are_refused() {
        for bad in ["", "a:b", "a:b:c:d", "A:b:a1b2", "a::a1b2", "a:b:a1b", "a:b:A1B2", "a:b c:a1b2"] {
            assert!(bad.parse::<ScopedId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn names_never_repeat_even_when_a_row_is_called_like_a_counted_one() {
        let mut names = UniqueNames::new();
        let given: Vec<String> = ["a", "a~2", "a", "a", "b", ""].iter().map(|name| names.next(&KIND, name)).collect();
        assert_eq!(given, ["a", "a~2", "a~3", "a~4", "b", "unnamed"]);
        assert_eq!(names.next(&KindName::from_static("other"), "a"), "a");
    }
}
