//! What a lease covers: hierarchical keys and bounded sets of them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use nasnet_dbmanager::RouterId;
use serde::{Deserialize, Serialize};

use crate::error::{Error, KeyFault};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 255;
/// Most segments of one key.
pub const KEY_DEPTH_MAX: usize = 8;
/// Most keys one lease may cover.
pub const KEY_SET_MAX: usize = 1_024;

/// A path such as `router/r1/resource/vpn.wg.client:usa-vpn:a1b2`: a key covers itself and everything below it.
///
/// Segments are non-empty and made of ASCII letters, digits and `-._:@+~`. Nothing sorts between `/` and `0`, so the
/// descendants of a key are exactly the range from `key/` (inclusive) to `key0` (exclusive): the fence relies on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LockKey(String);

impl LockKey {
    /// Checks and takes a path.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] naming the key and what is wrong with it.
    pub fn parse(path: impl Into<String>) -> Result<Self, Error> {
        let path = path.into();
        match fault(&path) {
            None => Ok(Self(path)),
            Some(why) => {
                let mut key: String = path.chars().take(KEY_BYTES_MAX).collect();
                if key.len() < path.len() {
                    key.push('…');
                }
                Err(Error::InvalidKey { key, why })
            }
        }
    }

    /// Returns the key that covers a whole router.
    #[must_use]
    pub fn router(id: &RouterId) -> Self {
        Self(format!("router/{id}"))
    }

    /// Returns the key of one resource of a router; `resource` is its uid or its scoped id.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] when `resource` is not a segment.
    pub fn resource(id: &RouterId, resource: impl fmt::Display) -> Result<Self, Error> {
        Self::parse(format!("router/{id}/resource/{resource}"))
    }

    /// Returns the key one segment below this one.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] when the segment is not one, or the result is too long or too deep.
    pub fn child(&self, segment: impl fmt::Display) -> Result<Self, Error> {
        Self::parse(format!("{self}/{segment}"))
    }

    /// Returns the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the segments, outermost first.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns the keys above this one, nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = LockKey> + '_ {
        std::iter::successors(parent(&self.0), |path| parent(path)).map(|path| LockKey(path.to_owned()))
    }

    /// Tells whether `other` lies strictly below this key.
    #[must_use]
    pub fn is_ancestor_of(&self, other: &LockKey) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Tells whether one of the two keys covers the other.
    #[must_use]
    pub fn overlaps(&self, other: &LockKey) -> bool {
        self == other || self.is_ancestor_of(other) || other.is_ancestor_of(self)
    }
}

fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

fn fault(path: &str) -> Option<KeyFault> {
    if path.len() > KEY_BYTES_MAX {
        return Some(KeyFault::TooLong);
    }
    let mut depth = 0;
    for segment in path.split('/') {
        depth += 1;
        if depth > KEY_DEPTH_MAX {
            return Some(KeyFault::TooDeep);
        }
        if segment.is_empty() {
            return Some(KeyFault::EmptySegment);
        }
        if let Some(found) = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || "-._:@+~".contains(*c))) {
            return Some(KeyFault::Character(found));
        }
    }
    None
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LockKey {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        Self::parse(path)
    }
}

impl TryFrom<String> for LockKey {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        Self::parse(path)
    }
}

impl From<LockKey> for String {
    fn from(key: LockKey) -> Self {
        key.0
    }
}

/// The keys of one lease: sorted, without duplicates, at least one and at most [`KEY_SET_MAX`].
///
/// Sorting is what makes all-or-nothing acquisition free of deadlocks whatever order callers name their keys in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<LockKey>", into = "Vec<LockKey>")]
pub struct KeySet(Vec<LockKey>);

impl KeySet {
    /// Sorts and checks keys.
    ///
    /// # Errors
    /// [`Error::EmptyKeySet`], or [`Error::TooManyKeys`] with the number of distinct keys.
    pub fn new(keys: impl IntoIterator<Item = LockKey>) -> Result<Self, Error> {
        let mut keys: Vec<LockKey> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        match keys.len() {
            0 => Err(Error::EmptyKeySet),
            count if count > KEY_SET_MAX => Err(Error::TooManyKeys { count, max: KEY_SET_MAX }),
            _ => Ok(Self(keys)),
        }
    }

    /// Returns the keys in order.
    #[must_use]
    pub fn as_slice(&self) -> &[LockKey] {
        &self.0
    }

    /// Iterates over the keys in order.
    pub fn iter(&self) -> std::slice::Iter<'_, LockKey> {
        self.0.iter()
    }

    /// Returns the first key, the one errors name when the whole set is meant.
    #[must_use]
    pub fn first(&self) -> &LockKey {
        // A key set is never empty: both constructors refuse it.
        &self.0[0]
    }

    /// Tells whether one of the keys is, or lies above, `key`.
    #[must_use]
    pub fn covers(&self, key: &LockKey) -> bool {
        let mut path = Some(key.as_str());
        while let Some(at) = path {
            if self.0.binary_search_by(|probe| probe.as_str().cmp(at)).is_ok() {
                return true;
            }
            path = parent(at);
        }
        false
    }

    /// Returns the first key of this set that covers, equals or lies below a key of the other.
    #[must_use]
    pub fn overlap(&self, other: &KeySet) -> Option<&LockKey> {
        self.0.iter().find(|key| other.covers(key)).or_else(|| {
            let below = other.0.iter().find(|key| self.covers(key))?;
            self.0.iter().find(|key| key.is_ancestor_of(below))
        })
    }

    /// Returns the keys and everything above them, sorted and without duplicates.
    pub(crate) fn with_ancestors(&self) -> Vec<Cow<'_, str>> {
        let mut paths: Vec<Cow<'_, str>> = Vec::with_capacity(self.0.len() * 2);
        for key in &self.0 {
            paths.extend(std::iter::successors(Some(key.as_str()), |path| parent(path)).map(Cow::Borrowed));
        }
        paths.sort_unstable();
        paths.dedup();
        paths
    }
}

impl From<LockKey> for KeySet {
    fn from(key: LockKey) -> Self {
        Self(vec![key])
    }
}

impl TryFrom<Vec<LockKey>> for KeySet {
    type Error = Error;

    fn try_from(keys: Vec<LockKey>) -> Result<Self, Error> {
        Self::new(keys)
    }
}

impl From<KeySet> for Vec<LockKey> {
    fn from(keys: KeySet) -> Self {
        keys.0
    }
}

impl<'a> IntoIterator for &'a KeySet {
    type Item = &'a LockKey;
    type IntoIter = std::slice::Iter<'a, LockKey>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            keys => write!(f, "{} (and {} more)", self.first(), keys.len() - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(path: &str) -> LockKey {
        LockKey::parse(path).unwrap()
    }

    #[test]
    fn a_key_names_its_fault() {
        for (path, expected) in [
            ("", KeyFault::EmptySegment),
            ("router//x", KeyFault::EmptySegment),
            ("/router", KeyFault::EmptySegment),
            ("router/", KeyFault::EmptySegment),
            ("router/a b", KeyFault::Character(' ')),
            ("router/ü", KeyFault::Character('ü')),
            ("a/b/c/d/e/f/g/h/i", KeyFault::TooDeep),
        ] {
            match LockKey::parse(path) {
                Err(Error::InvalidKey { why, .. }) => assert_eq!(why, expected, "{path}"),
                other => panic!("{path}: {other:?}"),
            }
        }
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        assert!(matches!(LockKey::parse(long), Err(Error::InvalidKey { why: KeyFault::TooLong, .. })));
        assert!(LockKey::parse("x".repeat(KEY_BYTES_MAX)).is_ok());
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_below() {
        assert!(key("router/r1").is_ancestor_of(&key("router/r1/resource/a")));
        assert!(!key("router/r1").is_ancestor_of(&key("router/r10")));
        assert!(!key("router/r1").is_ancestor_of(&key("router/r1")));
        assert!(!key("router/r1").overlaps(&key("router/r1-b/resource/a")));
    }

    #[test]
    fn ancestors_come_nearest_first() {
        let above: Vec<String> = key("router/r1/resource/a").ancestors().map(String::from).collect();
        assert_eq!(above, ["router/r1/resource", "router/r1", "router"]);
    }

    #[test]
    fn a_set_is_sorted_without_duplicates_and_bounded() {
        let set = KeySet::new([key("b"), key("a"), key("b")]).unwrap();
        assert_eq!(set.as_slice(), [key("a"), key("b")]);
        assert!(matches!(KeySet::new([]), Err(Error::EmptyKeySet)));
        let many = (0..10_000).map(|n| key(&format!("router/r{n}")));
        assert!(matches!(KeySet::new(many), Err(Error::TooManyKeys { count: 10_000, max: KEY_SET_MAX })));
    }

    #[test]
    fn serde_checks_what_it_reads() {
        assert!(serde_json::from_str::<LockKey>(r#""router/r 1""#).is_err());
        assert!(serde_json::from_str::<KeySet>("[]").is_err());
        let set = KeySet::new([key("router/r1"), key("a")]).unwrap();
        assert_eq!(serde_json::from_str::<KeySet>(&serde_json::to_string(&set).unwrap()).unwrap(), set);
    }

    prop_compose! {
        fn any_key()(segments in prop::collection::vec("[ab0]|a-|a\\.", 1..4)) -> LockKey {
            key(&segments.join("/"))
        }
    }

    proptest! {
        #[test]
        fn the_descendants_of_a_key_are_one_range(a in any_key(), b in any_key()) {
            let (from, to) = (format!("{a}/"), format!("{a}0"));
            let in_range = b.as_str() >= from.as_str() && b.as_str() < to.as_str();
            prop_assert_eq!(a.is_ancestor_of(&b), in_range);
        }

        #[test]
        fn sets_overlap_exactly_when_a_pair_of_their_keys_does(
            a in prop::collection::vec(any_key(), 1..5),
            b in prop::collection::vec(any_key(), 1..5),
        ) {
            let pair = a.iter().any(|x| b.iter().any(|y| x.overlaps(y)));
            let (a, b) = (KeySet::new(a).unwrap(), KeySet::new(b).unwrap());
            prop_assert_eq!(a.overlap(&b).is_some(), pair);
            prop_assert_eq!(b.overlap(&a).is_some(), pair);
            if let Some(named) = a.overlap(&b) {
                prop_assert!(b.iter().any(|key| key.overlaps(named)));
            }
        }
    }
}
