//! Lends the database manager's keys to the resource model.

use nasnet_dbmanager::Sealer;
use nasnet_state::{BoxError, Fingerprint, Seal, Secret, SecretPlace, SecretRef};

/// Seals secrets of resources with the keys of a [`Sealer`].
#[derive(Clone)]
pub struct StateSeal(Sealer);

impl StateSeal {
    /// Wraps the sealer.
    pub fn new(sealer: Sealer) -> Self {
        Self(sealer)
    }

    /// Returns the sealer.
    pub(crate) fn sealer(&self) -> &Sealer {
        &self.0
    }
}

impl std::fmt::Debug for StateSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StateSeal(..)")
    }
}

impl Seal for StateSeal {
    fn seal(&self, place: &SecretPlace<'_>, secret: &Secret) -> Result<SecretRef, BoxError> {
        let fingerprint = Fingerprint(self.0.fingerprint(&place.fingerprint_domain(), secret.expose()));
        let sealed = match place.associated_data() {
            Some(aad) => Some(self.0.seal(&aad, secret.expose())?),
            None => None,
        };
        Ok(SecretRef { fingerprint, version: place.version, sealed })
    }

    fn open(&self, place: &SecretPlace<'_>, sealed: &SecretRef) -> Result<Secret, BoxError> {
        let (Some(aad), Some(bytes)) = (place.associated_data(), &sealed.sealed) else {
            return Err("the reference carries no sealed bytes".into());
        };
        Ok(Secret::new(self.0.open(&aad, bytes)?.to_vec()))
    }
}
