//! Sealing of secrets: the master key, and authenticated encryption with keys derived from it.
//!
//! A sealed value is `version (1 byte) || nonce (24 bytes) || ciphertext and tag`, XChaCha20-Poly1305 under a key that
//! HMAC-SHA-256 derives from the master key and the sealer's context. The associated data names the place the value
//! belongs to, so a sealed value copied to another place does not open there.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::durable::{self, Access};
use crate::error::{Error, KeyFault};

const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
const VERSION: u8 = 1;

/// The key every other key is derived from.
///
/// Losing it loses every sealed value; it is never stored in a database or a backup. Its memory is cleared on drop and
/// its `Debug` form shows nothing of it.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; KEY_LEN]>);

impl MasterKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// [`Error::Random`] when the operating system gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *key).map_err(|_| Error::Random)?;
        Ok(Self(key))
    }

    /// Takes a key the caller keeps somewhere else.
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        let key = Self(Zeroizing::new(bytes));
        bytes.zeroize();
        key
    }

    /// Reads the key file, or creates it with a new random key when there is none.
    ///
    /// The file holds the 32 raw bytes and has mode 0600. It is written under a temporary name, synced and moved into
    /// place without replacing, so a power cut leaves either no key file or a whole one, and of two processes that
    /// create it at once both end with the same key.
    ///
    /// # Errors
    /// [`Error::MasterKey`] naming the path when the file is not a regular one, has another length, or can be read by
    /// its group or by others; [`Error::Io`] when it can be neither read nor created.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match Self::load(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let key = Self::generate()?;
        if key.store(path)? {
            return Ok(key);
        }
        Self::load(path)
    }

    /// Reads the key from an environment variable holding 64 hexadecimal digits or the base64 form.
    ///
    /// # Errors
    /// [`Error::MasterKey`] naming the variable when it is not set or has another form; the value is not repeated.
    pub fn from_env(variable: &str) -> Result<Self, Error> {
        let fault = |fault| Error::MasterKey { origin: format!("environment variable {variable}"), fault };
        let text = std::env::var(variable).map(Zeroizing::new).map_err(|error| match error {
            std::env::VarError::NotPresent => fault(KeyFault::Missing),
            std::env::VarError::NotUnicode(_) => fault(KeyFault::Encoding),
        })?;
        parse(text.trim()).map(Self).ok_or_else(|| fault(KeyFault::Encoding))
    }

    /// Reads an existing key file.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::io("read master key", path, source);
        let fault = |fault| Error::MasterKey { origin: path.display().to_string(), fault };
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(fault(KeyFault::NotAFile));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(fault(KeyFault::Permissions { mode }));
        }
        if metadata.len() != KEY_LEN as u64 {
            return Err(fault(KeyFault::Length { actual: metadata.len() }));
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        file.read_exact(&mut *key).map_err(io)?;
        Ok(Self(key))
    }

    /// Writes the key to a file, replacing what is there.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::io("write master key", path, source);
        match durable::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        durable::write_file(path, &*self.0, Access::Owner).map_err(io)?;
        durable::sync_dir(parent_of(path)).map_err(io)
    }

    /// Writes the key file unless there is one; returns whether it did.
    fn store(&self, path: &Path) -> Result<bool, Error> {
        let io = |source| Error::io("create master key", path, source);
        let temporary = temporary_beside(path)?;
        let written = durable::write_file(&temporary, &*self.0, Access::Owner)
            .and_then(|()| move_without_replacing(&temporary, path));
        if written.is_err() {
            // Best effort: a leftover holds a key nobody uses.
            let _ = durable::remove_file(&temporary);
        }
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(io(error)),
        }
        durable::sync_dir(parent_of(path)).map_err(io)?;
        Ok(true)
    }

    /// Derives a key for one purpose and context.
    fn derive(&self, purpose: &str, context: &str) -> Zeroizing<[u8; KEY_LEN]> {
        let mut mac = keyed(&self.0);
        for part in ["nasnet-dbmanager key 1", purpose, context] {
            update_with_length(&mut mac, part.as_bytes());
        }
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Seals and opens values of one context, such as `router-secrets`.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    fingerprint_key: Zeroizing<[u8; KEY_LEN]>,
}

impl Sealer {
    /// Derives the keys of a context; two contexts cannot open each other's values.
    pub fn new(master: &MasterKey, context: &str) -> Self {
        let key = master.derive("seal", context);
        Self { cipher: XChaCha20Poly1305::new((&*key).into()), fingerprint_key: master.derive("fingerprint", context) }
    }

    /// Seals `plain` for the place named by `aad`.
    ///
    /// The same value sealed twice gives different bytes: the nonce is random, and long enough to never repeat.
    ///
    /// # Errors
    /// [`Error::Random`] when the operating system gives no random bytes.
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| Error::Random)?;
        let payload = Payload { msg: plain, aad: &versioned(aad) };
        let ciphertext = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| Error::Sealed { reason: "the value is too long to be sealed" })?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + ciphertext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        Ok(sealed)
    }

    /// Opens a sealed value at the place named by `aad`.
    ///
    /// # Errors
    /// [`Error::Sealed`] when the value was changed, belongs to another place, was sealed under another key or
    /// context, or has an unknown version. The error says nothing of the value.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (version, rest) = sealed.split_first().ok_or(Error::Sealed { reason: "it is empty" })?;
        if *version != VERSION {
            return Err(Error::Sealed { reason: "its version is unknown" });
        }
        if rest.len() < NONCE_LEN + TAG_LEN {
            return Err(Error::Sealed { reason: "it is cut short" });
        }
        let (nonce, ciphertext) = rest.split_at(NONCE_LEN);
        let payload = Payload { msg: ciphertext, aad: &versioned(aad) };
        self.cipher.decrypt(XNonce::from_slice(nonce), payload).map(Zeroizing::new).map_err(|_| Error::Sealed {
            reason: "it was changed, belongs to another place, or was sealed under another key",
        })
    }

    /// Returns a keyed digest of `value`, for telling whether two secrets are equal without showing either.
    ///
    /// Without the key it cannot be computed, so guessing values against it is no use.
    pub fn fingerprint(&self, domain: &str, value: &[u8]) -> [u8; 16] {
        let mut mac = keyed(&self.fingerprint_key);
        update_with_length(&mut mac, domain.as_bytes());
        mac.update(value);
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        short
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

fn keyed(key: &[u8; KEY_LEN]) -> Hmac<Sha256> {
    <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Feeds a part after its length, so that no two lists of parts give the same input.
fn update_with_length(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_be_bytes());
    mac.update(part);
}

/// The associated data as it is authenticated: the version cannot be exchanged either.
fn versioned(aad: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + aad.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(aad);
    bytes
}

fn parse(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if text.len() == 2 * KEY_LEN {
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let value = char::from(pair[0]).to_digit(16)? * 16 + char::from(pair[1]).to_digit(16)?;
            *byte = u8::try_from(value).ok()?;
        }
        return Some(key);
    }
    let decoded = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).map(Zeroizing::new).ok()?;
    (decoded.len() == KEY_LEN).then(|| {
        key.copy_from_slice(&decoded);
        key
    })
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_beside(path: &Path) -> Result<PathBuf, Error> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|_| Error::Random)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(parent_of(path).join(format!(".{name}.{:016x}.tmp", u64::from_be_bytes(suffix))))
}

/// Moves a file to a name that must not exist yet.
fn move_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    // A hard link refuses an existing name on every file system that can also hold a mode of 0600.
    durable::link(from, to)?;
    durable::remove_file(from)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn sealer() -> Sealer {
        Sealer::new(&MasterKey::from_bytes([7; 32]), "test")
    }

    fn is_refused(opened: &Result<Zeroizing<Vec<u8>>, Error>) -> bool {
        matches!(opened, Err(Error::Sealed { .. }))
    }

    proptest! {
        #[test]
        fn a_sealed_value_opens_only_at_its_own_place(
            plain in prop::collection::vec(any::<u8>(), 0..200),
            aad in prop::collection::vec(any::<u8>(), 0..40),
            other in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let sealed = sealer().seal(&aad, &plain).expect("seal");
            prop_assert_eq!(&*sealer().open(&aad, &sealed).expect("open"), &plain);
            if other != aad {
                prop_assert!(is_refused(&sealer().open(&other, &sealed)));
            }
        }

        #[test]
        fn one_flipped_bit_anywhere_is_noticed(
            plain in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        ) {
            let mut sealed = sealer().seal(b"place", &plain).expect("seal");
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(is_refused(&sealer().open(b"place", &sealed)));
        }

        #[test]
        fn a_value_cut_short_is_an_error(plain in prop::collection::vec(any::<u8>(), 0..32), keep in any::<prop::sample::Index>()) {
            let sealed = sealer().seal(b"place", &plain).expect("seal");
            let cut = &sealed[..keep.index(sealed.len())];
            prop_assert!(is_refused(&sealer().open(b"place", cut)));
        }
    }

    #[test]
    fn another_context_or_key_does_not_open_a_value() {
        let sealed = sealer().seal(b"", b"secret").expect("seal");
        let context = Sealer::new(&MasterKey::from_bytes([7; 32]), "other");
        let key = Sealer::new(&MasterKey::from_bytes([8; 32]), "test");
        assert!(context.open(b"", &sealed).is_err());
        assert!(key.open(b"", &sealed).is_err());
    }

    #[test]
    fn sealing_twice_gives_different_bytes_and_no_plain_text() {
        let plain = b"canary-5d1f-canary";
        let first = sealer().seal(b"", plain).expect("seal");
        assert_ne!(first, sealer().seal(b"", plain).expect("seal"));
        assert!(!first.windows(6).any(|window| window == &plain[..6]));
    }

    #[test]
    fn a_fingerprint_depends_on_key_context_domain_and_value() {
        let base = sealer().fingerprint("password", b"a");
        assert_eq!(base, sealer().fingerprint("password", b"a"));
        assert_ne!(base, sealer().fingerprint("password", b"b"));
        assert_ne!(base, sealer().fingerprint("passwor", b"da"));
        assert_ne!(base, Sealer::new(&MasterKey::from_bytes([7; 32]), "other").fingerprint("password", b"a"));
        assert_ne!(base, Sealer::new(&MasterKey::from_bytes([9; 32]), "test").fingerprint("password", b"a"));
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let master = MasterKey::from_bytes([0xab; 32]);
        let text = format!("{master:?} {:?}", Sealer::new(&master, "ctx"));
        assert_eq!(text, "MasterKey(..) Sealer(..)");
    }

    #[test]
    fn the_key_file_is_created_once_private_and_read_back() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("master.key");
        let created = MasterKey::load_or_create(&path).expect("create");
        let loaded = MasterKey::load_or_create(&path).expect("load");
        assert_eq!(*created.0, *loaded.0);
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1, "no temporary file stays behind");
    }

    #[test]
    fn threads_creating_the_key_file_at_once_agree_on_the_key() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("master.key");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || *MasterKey::load_or_create(&path).expect("key").0)
            })
            .collect();
        let keys: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("thread")).collect();
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_key_file_others_can_read_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("master.key");
        MasterKey::load_or_create(&path).expect("create");
        for mode in [0o640, 0o604, 0o660, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let error = MasterKey::load_or_create(&path).expect_err("open mode");
            assert!(matches!(&error, Error::MasterKey { fault: KeyFault::Permissions { mode: m }, .. } if *m == mode));
            assert!(error.to_string().contains("master.key"), "{error}");
        }
    }

    #[test]
    fn a_key_file_of_the_wrong_length_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("master.key");
        for length in [0_usize, 31, 33, 64] {
            fs::write(&path, vec![1; length]).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
            let error = MasterKey::load_or_create(&path).expect_err("wrong length");
            let expected = length as u64;
            assert!(matches!(error, Error::MasterKey { fault: KeyFault::Length { actual }, .. } if actual == expected));
            assert_eq!(fs::read(&path).expect("read").len(), length);
        }
    }

    #[test]
    fn a_missing_directory_and_a_directory_in_place_of_the_file_are_errors() {
        let directory = tempfile::tempdir().expect("directory");
        let missing = directory.path().join("none/master.key");
        assert!(matches!(MasterKey::load_or_create(&missing), Err(Error::Io { .. })));
        let error = MasterKey::load_or_create(directory.path()).expect_err("directory");
        assert!(matches!(error, Error::MasterKey { fault: KeyFault::NotAFile, .. }));
    }

    #[test]
    fn keys_are_read_from_hexadecimal_and_base64_text() {
        let bytes: [u8; 32] = std::array::from_fn(|index| u8::try_from(index * 7).expect("small"));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        for text in [hex.clone(), hex.to_lowercase(), STANDARD.encode(bytes), STANDARD_NO_PAD.encode(bytes)] {
            assert_eq!(*parse(&text).expect("key"), bytes);
        }
        for text in ["", "00", &hex[1..], &format!("{}zz", &hex[2..]), &STANDARD.encode([1; 31])] {
            assert!(parse(text).is_none());
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = MasterKey::from_env("NASNET_TEST_NO_SUCH_VARIABLE").expect_err("not set");
        assert!(matches!(error, Error::MasterKey { fault: KeyFault::Missing, .. }));
        assert!(error.to_string().contains("NASNET_TEST_NO_SUCH_VARIABLE"));
    }
}
