//! Secrets: never printed, never stored in clear, compared by fingerprint.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::kind::KindName;
use crate::value::FieldName;

/// A secret in clear: wiped when dropped, and silent in `Debug`.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes a secret; the bytes are wiped when it is dropped.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Shows the bytes. The name is meant to be found in a review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A keyed digest by which two secrets are compared without opening them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("fingerprint", text);
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(invalid());
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok()).ok_or_else(invalid);
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// What a field holds in place of a secret.
///
/// Two references are equal when their fingerprints are: the same secret sealed twice has different bytes. The sealed
/// bytes travel only towards the store, which keeps them in a column of their own; what is read back, serialised,
/// hashed or diffed is the fingerprint and the version.
#[derive(Clone)]
pub struct SecretRef {
    /// Keyed digest of the secret.
    pub fingerprint: Fingerprint,
    /// Which sealing of this field it is; part of what the sealed bytes are bound to.
    pub version: u32,
    /// The sealed bytes, present only on the way into the store and after asking it for them.
    pub sealed: Option<Vec<u8>>,
}

impl SecretRef {
    /// Returns the same reference without the sealed bytes.
    pub fn redacted(&self) -> Self {
        Self { fingerprint: self.fingerprint, version: self.version, sealed: None }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretRef({} v{})", self.fingerprint, self.version)
    }
}

impl PartialEq for SecretRef {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for SecretRef {}

impl PartialOrd for SecretRef {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SecretRef {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.fingerprint.cmp(&other.fingerprint)
    }
}

impl std::hash::Hash for SecretRef {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

/// The place a secret belongs to. Sealed bytes moved to another place must not open.
#[derive(Debug, Clone, Copy)]
pub struct SecretPlace<'a> {
    /// Kind of the resource.
    pub kind: &'a KindName,
    /// The resource; `None` when a reading of a device is only compared, never stored.
    pub uid: Option<Ulid>,
    /// The sensitive field.
    pub field: &'a FieldName,
    /// Which sealing of the field.
    pub version: u32,
}

impl SecretPlace<'_> {
    /// Returns the bytes to bind the sealed form to, or `None` when nothing is to be sealed.
    pub fn associated_data(&self) -> Option<Vec<u8>> {
        let uid = self.uid?;
        let mut data = uid.to_bytes().to_vec();
        data.extend_from_slice(self.field.as_str().as_bytes());
        data.push(0);
        data.extend_from_slice(&self.version.to_be_bytes());
        Some(data)
    }

    /// Returns the domain of the fingerprint: equal secrets of one field of one kind compare equal, whatever resource
    /// they belong to.
    pub fn fingerprint_domain(&self) -> String {
        format!("{}/{}", self.kind, self.field)
    }
}

/// What the crate needs from whoever holds the keys.
pub trait Seal: Send + Sync {
    /// Fingerprints a secret and, when the place names a resource, seals it.
    ///
    /// # Errors
    /// When the keys are not available.
    fn seal(&self, place: &SecretPlace<'_>, secret: &Secret) -> Result<SecretRef, BoxError>;

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// When the reference carries no sealed bytes, or they were not sealed for this place.
    fn open(&self, place: &SecretPlace<'_>, sealed: &SecretRef) -> Result<Secret, BoxError>;
}

/// The error of a [`Seal`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the secrets met while parsing are taken in.
#[derive(Clone, Copy)]
pub struct SecretIntake<'a> {
    seal: &'a dyn Seal,
    uid: Option<Ulid>,
    version: u32,
}

impl<'a> SecretIntake<'a> {
    /// Seals secrets for the resource they will be stored with.
    pub fn store(seal: &'a dyn Seal, uid: Ulid, version: u32) -> Self {
        Self { seal, uid: Some(uid), version }
    }

    /// Only fingerprints secrets, to compare a reading with what is known.
    pub fn compare(seal: &'a dyn Seal) -> Self {
        Self { seal, uid: None, version: 0 }
    }

    pub(crate) fn take(&self, kind: &KindName, field: &FieldName, secret: &Secret) -> Result<SecretRef, Error> {
        let place = SecretPlace { kind, uid: self.uid, field, version: self.version };
        self.seal.seal(&place, secret).map_err(|source| Error::Seal {
            action: "seal",
            field: field.to_string(),
            source,
        })
    }
}

impl fmt::Debug for SecretIntake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretIntake").field("uid", &self.uid).field("version", &self.version).finish_non_exhaustive()
    }
}

/// Device fields that hold secrets on menus no schema describes.
///
/// Rows are kept even when nobody has described their menu, so the names alone must tell what may not be shown.
pub fn is_sensitive_name(device_name: &str) -> bool {
    const ENDINGS: [&str; 6] = ["password", "passphrase", "secret", "-key", "-psk", "-pin"];
    const WHOLE: [&str; 6] = ["key", "psk", "pin", "token", "passwd", "pw"];
    const PUBLIC: [&str; 4] = ["public-key", "host-key", "name-key", "sort-key"];
    let name = device_name.trim_start_matches('.');
    !PUBLIC.iter().any(|public| name.ends_with(public))
        && (WHOLE.contains(&name)
            || ENDINGS.iter().any(|ending| name.ends_with(ending))
            || name.starts_with("static-key")
            || name.ends_with("-token"))
}
