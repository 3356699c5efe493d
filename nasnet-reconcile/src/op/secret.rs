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

/// The secret values a plan and its undo write. Never printed; serialised only to be sealed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Vault(BTreeMap<SecretSlot, String>);

impl Vault {
    /// Puts a value into its slot.
    pub fn insert(&mut self, slot: SecretSlot, value: String) {
        self.0.insert(slot, value);
    }

    /// Returns the value of a slot.
    pub fn get(&self, step: usize, direction: Direction, field: &str) -> Option<&str> {
        let slot = SecretSlot { step, direction, field: field.to_owned() };
        self.0.get(&slot).map(String::as_str)
    }

    /// Returns whether there is nothing to seal.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the clear bytes, to be sealed at once.
    ///
    /// # Errors
    ///
    /// Never for values that were inserted as text; the signature leaves room for the serialiser's own error.
    pub fn to_clear_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.0.iter().collect::<Vec<_>>())
    }

    /// Reads back what [`Vault::to_clear_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// The bytes are not a vault.
    pub fn from_clear_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::from_slice::<Vec<(SecretSlot, String)>>(bytes)?.into_iter().collect()))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_survives_its_bytes_and_never_prints_a_value() {
        let mut vault = Vault::default();
        let slot = SecretSlot { step: 1, direction: Direction::Forward, field: "private-key".into() };
        vault.insert(slot, "canary".into());
        let back = Vault::from_clear_bytes(&vault.to_clear_bytes().unwrap()).unwrap();
        assert_eq!(back.get(1, Direction::Forward, "private-key"), Some("canary"));
        assert_eq!(back.get(1, Direction::Backward, "private-key"), None);
        assert!(!format!("{vault:?}").contains("canary"));
    }
}
