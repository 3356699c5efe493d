//! Secret values of a plan, kept apart from the plan so that the journal holds them only sealed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::step::Direction;

/// Where a secret value belongs: step, direction and field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretSlot {
    /// The index of the step.
    pub step: usize,
    /// Whether the step itself or its undo writes the value.
    pub direction: Direction,
    /// The device's name of the field.
    pub field: String,
}

/// The secret values a plan and its undo write, and those the device showed when the rows were read back. Never printed;
/// serialised only to be sealed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Vault {
    slots: BTreeMap<SecretSlot, String>,
    seen: BTreeMap<(usize, String), String>,
}

impl Vault {
    /// Puts a value into its slot.
    pub fn insert(&mut self, slot: SecretSlot, value: String) {
        self.slots.insert(slot, value);
    }

    /// Returns the value of a slot.
    pub fn get(&self, step: usize, direction: Direction, field: &str) -> Option<&str> {
        let slot = SecretSlot { step, direction, field: field.to_owned() };
        self.slots.get(&slot).map(String::as_str)
    }

    /// Keeps a secret the device showed in the row of a step: a key it made itself is known nowhere else.
    pub fn saw(&mut self, step: usize, field: &str, value: String) {
        self.seen.insert((step, field.to_owned()), value);
    }

    /// Returns the secret the device showed last, else the one the step writes.
    pub fn seen(&self, step: usize, field: &str) -> Option<&str> {
        let seen = self.seen.get(&(step, field.to_owned())).map(String::as_str);
        seen.or_else(|| self.get(step, Direction::Forward, field))
    }

    /// Makes words of the device fit to be kept: without the secrets it may repeat, and not without end.
    pub fn redact(&self, words: String) -> String {
        const WORDS_BYTES_MAX: usize = 1 << 10;
        let mut secrets: Vec<&String> = self.slots.values().chain(self.seen.values()).collect();
        // The longest first, so that none is left in part because another one is inside of it.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        let mut words = secrets
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .fold(words, |words, secret| words.replace(secret.as_str(), "(secret)"));
        if words.len() > WORDS_BYTES_MAX {
            words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
            words.push_str(" ..");
        }
        words
    }

    /// Returns whether there is nothing to seal.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.seen.is_empty()
    }

    /// Returns the clear bytes, to be sealed at once.
    ///
    /// # Errors
    ///
    /// Never for values that were inserted as text; the signature leaves room for the serialiser's own error.
    pub fn to_clear_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&(self.slots.iter().collect::<Vec<_>>(), self.seen.iter().collect::<Vec<_>>()))
    }

    /// Reads back what [`Vault::to_clear_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// The bytes are not a vault.
    pub fn from_clear_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        type Parts = (Vec<(SecretSlot, String)>, Vec<((usize, String), String)>);
        let (slots, seen): Parts = serde_json::from_slice(bytes)?;
        Ok(Self { slots: slots.into_iter().collect(), seen: seen.into_iter().collect() })
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} secrets)", self.slots.len() + self.seen.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_words_hold_no_secret_and_end() {
        let mut vault = Vault::default();
        vault.saw(0, "a", "key".into());
        vault.saw(0, "b", "keyhole".into());
        vault.saw(0, "c", String::new());
        assert_eq!(vault.redact("no keyhole, no key".into()), "no (secret), no (secret)");
        assert!(vault.redact("\u{e9}".repeat(100_000)).len() < 1_100);
    }

    #[test]
    fn a_vault_survives_its_bytes_and_never_prints_a_value() {
        let mut vault = Vault::default();
        let slot = SecretSlot { step: 1, direction: Direction::Forward, field: "private-key".into() };
        vault.insert(slot, "canary".into());
        vault.saw(2, "private-key", "canary".into());
        let back = Vault::from_clear_bytes(&vault.to_clear_bytes().unwrap()).unwrap();
        assert_eq!(back.get(1, Direction::Forward, "private-key"), Some("canary"));
        assert_eq!(back.get(1, Direction::Backward, "private-key"), None);
        assert_eq!(back.seen(1, "private-key"), Some("canary"), "what was written counts until something is seen");
        assert_eq!(back.seen(2, "private-key"), Some("canary"));
        assert!(!format!("{vault:?}").contains("canary"));
    }
}
