//! The bearer tokens of sessions and API keys: random, shown once, stored as a hash.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::Error;

/// Random bytes of a token. A plain hash is enough for what cannot be guessed.
const RANDOM_LEN: usize = 32;

/// Longest text looked at.
const LEN_MAX: usize = 256;

/// Length of the part of an API key that may be shown.
const PREFIX_LEN: usize = 12;

/// A bearer token; its text is shown by [`Token::expose`] alone.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Makes the token of a session.
    pub(super) fn session() -> Result<Self, Error> {
        Ok(Self(Zeroizing::new(format!("nss_{}", random_text()?.as_str()))))
    }

    /// Makes an API key.
    pub(super) fn api_key() -> Result<Self, Error> {
        let mut mark = [0; 4];
        getrandom::fill(&mut mark).map_err(|_| Error::Random)?;
        let mark = u32::from_be_bytes(mark);
        Ok(Self(Zeroizing::new(format!("nsk_{mark:08x}_{}", random_text()?.as_str()))))
    }

    /// Returns the text, to be given to whoever it was issued for.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn prefix(&self) -> &str {
        prefix_of(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Hashes a presented text; `None` for one that no token has.
pub(super) fn hash_of(text: &str) -> Option<[u8; 32]> {
    (text.len() <= LEN_MAX).then(|| Sha256::digest(text.as_bytes()).into())
}

/// Returns the part of an API key that may be shown.
pub(super) fn prefix_of(text: &str) -> Option<&str> {
    let prefix = text.get(..PREFIX_LEN)?;
    (prefix.starts_with("nsk_") && text[PREFIX_LEN..].starts_with('_')).then_some(prefix)
}

/// Compares hashes in a time that does not tell where they differ.
pub(super) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

fn random_text() -> Result<Zeroizing<String>, Error> {
    let mut bytes = Zeroizing::new([0; RANDOM_LEN]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| Error::Random)?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_debug_hides_them() {
        let (one, two) = (Token::session().expect("token"), Token::session().expect("token"));
        assert_ne!(one.expose(), two.expose());
        assert_eq!(format!("{one:?}"), "Token(..)");
        let key = Token::api_key().expect("key");
        assert_eq!(key.prefix().len(), PREFIX_LEN);
        assert_eq!(prefix_of(key.expose()), Some(key.prefix()));
        for odd in ["", "nsk_", "nsk_12345678", "nss_12345678_x", "nsk_1234567é_", "é".repeat(20).as_str()] {
            assert_eq!(prefix_of(odd), None, "{odd}");
        }
        assert!(same(&[1; 32], &[1; 32]) && !same(&[1; 32], &[2; 32]));
        assert_eq!(hash_of(&"x".repeat(257)), None);
    }
}
