//! What several tests need: a real file, a sealer, and a kind with one field of every type.
#![allow(dead_code, unreachable_pub, reason = "every test takes what it needs")]

use hmac::{Hmac, Mac as _};
use nasnet_state::{
    BoxError, FieldSpec, FieldType, Fields, Fingerprint, HostBits, HostForm, KindSchema, ListSem, MIGRATIONS,
    MigrationText, NewResource, Seal, Secret, SecretPlace, SecretRef, Stamp, Timestamp, Unset,
};
use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Executor};
use tempfile::TempDir;
use ulid::Ulid;

/// A router's file in a directory that goes with it.
pub struct TestFile {
    pub dir: TempDir,
}

impl TestFile {
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub async fn open(&self, migrations: &[MigrationText]) -> SqliteConnection {
        let mut conn = self.reopen().await;
        for migration in migrations {
            conn.execute(migration.up).await.unwrap();
        }
        conn
    }

    pub async fn reopen(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(self.dir.path().join("router.db"))
            .create_if_missing(true)
            .foreign_keys(true);
        options.connect().await.unwrap()
    }
}

/// Opens a new file and runs a test on it.
pub fn with_store<T>(test: impl AsyncFnOnce(&mut SqliteConnection) -> T) -> T {
    runtime().block_on(async {
        let file = TestFile::new();
        let mut conn = file.open(MIGRATIONS).await;
        test(&mut conn).await
    })
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn stamp(unix_ms: i64) -> Stamp {
    Stamp::new(Timestamp::synced(unix_ms), "ada")
}

pub fn uid(number: u128) -> Ulid {
    Ulid::from_parts(1_700_000_000_000, number)
}

pub fn new_resource(number: u128, name: &str, spec: Fields) -> NewResource {
    NewResource::new(uid(number), EVERYTHING.kind(), EVERYTHING.revision, name, spec)
}

/// Seals with a keystream and a tag: small, but bytes moved to another place do not open.
pub struct TestSeal;

impl TestSeal {
    fn mac(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"a key of the test").unwrap();
        mac.update(domain.as_bytes());
        for part in parts {
            mac.update(&[0]);
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn keystream(data: &[u8], len: usize) -> Vec<u8> {
        (0_u32..)
            .flat_map(|block| Sha256::new().chain_update(data).chain_update(block.to_be_bytes()).finalize())
            .take(len)
            .collect()
    }
}

impl Seal for TestSeal {
    fn seal(&self, place: &SecretPlace<'_>, secret: &Secret) -> Result<SecretRef, BoxError> {
        let digest = Self::mac(&place.fingerprint_domain(), &[secret.expose()]);
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&digest[..16]);
        let sealed = place.associated_data().map(|data| {
            let key = Self::mac("seal", &[&data]);
            let stream = Self::keystream(&key, secret.expose().len());
            let mut sealed: Vec<u8> = secret.expose().iter().zip(stream).map(|(plain, key)| plain ^ key).collect();
            sealed.extend_from_slice(&Self::mac("tag", &[&data, &sealed])[..16]);
            sealed
        });
        Ok(SecretRef { fingerprint: Fingerprint(fingerprint), version: place.version, sealed })
    }

    fn open(&self, place: &SecretPlace<'_>, sealed: &SecretRef) -> Result<Secret, BoxError> {
        let data = place.associated_data().ok_or("no place")?;
        let sealed = sealed.sealed.as_deref().ok_or("no sealed bytes")?;
        let (body, tag) = sealed.split_at(sealed.len().checked_sub(16).ok_or("too short")?);
        if Self::mac("tag", &[&data, body])[..16] != *tag {
            return Err("sealed for another place".into());
        }
        let stream = Self::keystream(&Self::mac("seal", &[&data]), body.len());
        Ok(Secret::new(body.iter().zip(stream).map(|(sealed, key)| sealed ^ key).collect::<Vec<u8>>()))
    }
}

const LISTED: FieldType = FieldType::Prefix { host_bits: HostBits::Zero, host: HostForm::WithLength };

/// One field of every type.
pub static EVERYTHING: KindSchema = KindSchema::new(
    "test.everything",
    3,
    &[
        FieldSpec::new("name", FieldType::Str),
        FieldSpec::new("disabled", FieldType::Bool).default("no"),
        FieldSpec::new("blackhole", FieldType::Flag),
        FieldSpec::new("mtu", FieldType::Int { min: 68, max: 65_535 }).words(&["auto"]).default("1500"),
        FieldSpec::new("keepalive", FieldType::Duration).words(&["never"]).default("10s"),
        FieldSpec::new("max-rate", FieldType::Rate),
        FieldSpec::new("max-size", FieldType::Bytes).unset(Unset::Command),
        FieldSpec::new("mac-address", FieldType::Mac).device("mac"),
        FieldSpec::new("gateway", FieldType::Ip),
        FieldSpec::new("address", FieldType::Prefix { host_bits: HostBits::Keep, host: HostForm::WithLength }),
        FieldSpec::new("src-address", FieldType::AddressMatch).negatable(),
        FieldSpec::new("dst-port", FieldType::Ranges { min: 0, max: 65_535 }).negatable(),
        FieldSpec::new("mode", FieldType::Enum(&["access", "trunk"])).default("access"),
        FieldSpec::new("allowed-address", FieldType::List(&LISTED, ListSem::Set)),
        FieldSpec::new("order", FieldType::List(&FieldType::Str, ListSem::Ordered)),
        FieldSpec::new("flags", FieldType::List(&FieldType::Enum(&["syn", "ack", "fin"]), ListSem::Set))
            .negation(nasnet_state::Negation::Members),
        FieldSpec::new("interface", FieldType::Ref("interface")),
        FieldSpec::new("private-key", FieldType::Str).sensitive().generated(),
        FieldSpec::new("comment", FieldType::Str),
        FieldSpec::new("running", FieldType::Bool).read_only(),
    ],
)
.menu("/test/everything")
.natural_key(&["name"])
.provides(&["interface"]);
