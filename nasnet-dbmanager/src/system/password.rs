//! Passwords: argon2id with the parameters of the device class, hashed outside every transaction.

use std::sync::LazyLock;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::error::Error;

/// Bytes of a salt.
const SALT_LEN: usize = 16;

/// Longest password in bytes: hashing a longer one would be work for an attacker's pleasure.
const LEN_MAX: usize = 1024;

/// Kibibytes of memory, passes and lanes: the entry of the OWASP list that fits a router with 256 MB.
const MEMORY_KIB: u32 = 7168;
const PASSES: u32 = 5;
const LANES: u32 = 1;

/// Hashes waiting at once; each takes some 7 MiB and a core for a moment, so they run one by one.
const WAITING_MAX: usize = 32;

static TURN: Semaphore = Semaphore::const_new(1);
static PLACES: Semaphore = Semaphore::const_new(WAITING_MAX);

/// What is verified for a user that does not exist, so that names cannot be told by the time it takes.
static NOBODY: LazyLock<Result<String, Error>> = LazyLock::new(|| hash_now("nobody"));

/// Hashes a password.
pub(super) async fn hash(password: &str) -> Result<String, Error> {
    if password.is_empty() || password.len() > LEN_MAX {
        let detail = format!("it has {} bytes instead of 1 to {LEN_MAX}", password.len());
        return Err(Error::Encode { what: "password", detail });
    }
    let password = Zeroizing::new(password.to_owned());
    work(move || hash_now(&password)).await
}

/// Tells whether a password belongs to a stored hash; without one it takes as long and fails.
pub(super) async fn verify(password: &str, stored: Option<String>) -> Result<bool, Error> {
    if password.len() > LEN_MAX {
        return Ok(false);
    }
    let password = Zeroizing::new(password.to_owned());
    work(move || {
        let known = stored.is_some();
        let stored = match stored {
            Some(stored) => stored,
            None => NOBODY.clone()?,
        };
        let decode = |_| Error::Decode { what: "password hash", detail: "it is no PHC string".to_owned() };
        let stored = PasswordHash::new(&stored).map_err(decode)?;
        // The parameters are those in the string, so older hashes stay valid.
        Ok(Argon2::default().verify_password(password.as_bytes(), &stored).is_ok() && known)
    })
    .await
}

async fn work<T: Send + 'static>(job: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let _place = PLACES.try_acquire().map_err(|_| Error::Overloaded { queue: "passwords" })?;
    let stopped = || Error::Panicked { message: "while hashing a password".to_owned() };
    let turn = TURN.acquire().await.map_err(|_| stopped())?;
    tokio::task::spawn_blocking(move || {
        // Held by the work, not by whoever waits for it.
        let _turn = turn;
        job()
    })
    .await
    .map_err(|_| stopped())?
}

fn hash_now(password: &str) -> Result<String, Error> {
    let refused = |detail: &str| Error::Encode { what: "password", detail: detail.to_owned() };
    let mut salt = [0; SALT_LEN];
    getrandom::fill(&mut salt).map_err(|_| Error::Random)?;
    let salt = SaltString::encode_b64(&salt).map_err(|_| refused("no salt"))?;
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| refused("argon2id parameters"))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    Ok(argon2.hash_password(password.as_bytes(), &salt).map_err(|_| refused("argon2id refuses it"))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_opens_its_own_hash_alone() {
        let stored = hash("correct horse").await.expect("hash");
        assert!(stored.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{stored}");
        assert_ne!(hash("correct horse").await.expect("hash"), stored, "salted");
        assert!(verify("correct horse", Some(stored.clone())).await.expect("verify"));
        assert!(!verify("correct hors", Some(stored)).await.expect("verify"));
        assert!(!verify("nobody", None).await.expect("verify"), "not even the stand-in's own password");
        assert!(verify("x", Some("junk".to_owned())).await.is_err());
        assert!(hash("").await.is_err());
        assert!(hash(&"x".repeat(1025)).await.is_err());
    }
}
