//! Bodies sealed under a key of their subject. The keys are sealed under the master key and live in `system.db` alone.
//!
//! A sealed body is a JSON string: base64 of `version u8, key id 16, fingerprint 16`, then what the sealer gives. The
//! fingerprint depends on the key; it tells a repeated append from another one, and nothing once the key is gone.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nasnet_dbmanager::{Cause, MasterKey, Scope, Sealer};
use serde_json::value::RawValue;
use sqlx::SqliteConnection;
use ulid::Ulid;
use zeroize::Zeroizing;

use crate::body::Body;
use crate::error::Error;
use crate::event::{NewEvent, Recorded};
use crate::name::{EventType, StreamName, Subject};
use crate::shared::Shared;

/// Keys are a few bytes a subject, and what is Critical may be in need of one.
const KEYS: Cause = Cause::new("event-subject-keys").critical();

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
/// Version, key id and fingerprint: a multiple of three, so that their base64 stands by itself.
const HEAD_BYTES: usize = 33;
/// The opening quote and the head in base64.
const HEAD_TEXT: usize = 1 + HEAD_BYTES / 3 * 4;

const CURRENT: &str = "SELECT subject, key_id, sealed_key FROM event_subjects \
     WHERE subject IN (SELECT value FROM json_each(?1)) AND shredded_ms = 0";
const BY_ID: &str = "SELECT key_id, sealed_key, shredded_ms FROM event_subjects \
     WHERE key_id IN (SELECT unhex(value) FROM json_each(?1))";
const ADD: &str = "INSERT INTO event_subjects (key_id, subject, sealed_key, created_ms) VALUES (?1, ?2, ?3, ?4)";

/// Removed and moved bytes are overwritten, so that no copy of a key stays in the file.
pub(crate) const SECURE_DELETE_ON: &str = "PRAGMA secure_delete = ON";
pub(crate) const SECURE_DELETE_OFF: &str = "PRAGMA secure_delete = OFF";

/// The key of a subject, ready for use.
#[derive(Clone)]
pub(crate) struct SubjectKey {
    id: Ulid,
    sealer: Sealer,
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubjectKey({})", self.id)
    }
}

/// Keys for the subjects of one append.
#[derive(Debug, Default)]
pub(crate) struct SubjectKeys(HashMap<Subject, SubjectKey>);

/// What a sealed body is bound to, so that it opens nowhere else.
struct Place<'a> {
    scope: &'a Scope,
    stream: &'a StreamName,
    id: Ulid,
    kind: &'a EventType,
    schema: u16,
}

impl Place<'_> {
    fn aad(&self) -> Vec<u8> {
        // No part but the stream may hold a slash, and it stands last.
        let Self { scope, stream, id, kind, schema } = self;
        format!("nasnet-events body/{}/{id}/{kind}/{schema}/{stream}", scope.as_str()).into_bytes()
    }
}

impl SubjectKeys {
    /// Gives a body the form it is stored in.
    pub(crate) fn seal(&self, scope: &Scope, stream: &StreamName, event: &NewEvent) -> Result<Option<Body>, Error> {
        let Some(subject) = &event.subject else { return Ok(None) };
        let missing = || Error::corrupt("event_subjects", format!("{subject} got no key"));
        let key = self.0.get(subject).ok_or_else(missing)?;
        let place = Place { scope, stream, id: event.id, kind: &event.kind, schema: event.schema };
        let plain = event.body.get().as_bytes();
        let aad = place.aad();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + plain.len() + 41);
        bytes.push(VERSION);
        bytes.extend_from_slice(&key.id.to_bytes());
        bytes.extend_from_slice(&key.sealer.fingerprint("event body", &[&aad[..], plain].concat()));
        bytes.extend_from_slice(&key.sealer.seal(&aad, plain)?);
        let text = format!("\"{}\"", STANDARD.encode(bytes));
        Body::from_stored(text, true).map(Some).map_err(|error| Error::corrupt("body to be sealed", error))
    }
}

/// The part of a sealed body that is the same whenever the same facts are sealed under the same key.
pub(crate) fn repeatable(sealed: &str) -> &str {
    sealed.get(..HEAD_TEXT).unwrap_or(sealed)
}

/// The id of the key a body is sealed under and what it protects.
fn parse(text: &str) -> Option<(Ulid, Vec<u8>)> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = STANDARD.decode(inner).ok()?;
    if bytes.first() != Some(&VERSION) || bytes.len() < HEAD_BYTES {
        return None;
    }
    let id = Ulid::from_bytes(bytes.get(1..17)?.try_into().ok()?);
    bytes.drain(..HEAD_BYTES);
    Some((id, bytes))
}

/// Reads the envelope of a sealed body from any text.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_envelope(text: &str) -> bool {
    parse(text).is_some()
}

/// What became of a key.
enum Found {
    Key(SubjectKey),
    Shredded,
    /// It is there and cannot be opened, for this reason.
    Damaged(String),
}

fn key_aad(id: Ulid) -> Vec<u8> {
    format!("nasnet-events subject key/{id}").into_bytes()
}

fn key_of(master: &Sealer, id: Ulid, sealed: &[u8]) -> Result<SubjectKey, Error> {
    let opened = master.open(&key_aad(id), sealed)?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if opened.len() != KEY_BYTES {
        return Err(Error::corrupt(format!("system.db event_subjects key {id}"), "it has another length"));
    }
    bytes.copy_from_slice(&opened);
    Ok(SubjectKey { id, sealer: Sealer::new(&MasterKey::from_bytes(*bytes), "nasnet-events subject") })
}

async fn current(
    conn: &mut SqliteConnection,
    master: &Sealer,
    subjects: &BTreeSet<Subject>,
) -> Result<HashMap<Subject, SubjectKey>, Error> {
    let wanted: Vec<&str> = subjects.iter().map(Subject::as_str).collect();
    let wanted = serde_json::to_string(&wanted).map_err(|error| Error::corrupt("subjects of an append", error))?;
    let found: Vec<(String, Vec<u8>, Vec<u8>)> = sqlx::query_as(CURRENT).bind(wanted).fetch_all(conn).await?;
    let mut keys = HashMap::new();
    for (subject, id, sealed) in found {
        let id = key_id(id)?;
        keys.insert(Subject::parse(&subject)?, key_of(master, id, &sealed)?);
    }
    Ok(keys)
}

fn key_id(bytes: Vec<u8>) -> Result<Ulid, Error> {
    let bytes = bytes.try_into().map_err(|_| Error::corrupt("system.db event_subjects", "a key id has another length"));
    bytes.map(Ulid::from_bytes)
}

/// Finds the keys of `subjects`, making those that are missing, in a write transaction of system.db.
async fn find_or_make(
    conn: &mut SqliteConnection,
    master: &Sealer,
    subjects: &BTreeSet<Subject>,
    now_ms: i64,
    mut next_id: impl FnMut() -> Ulid,
) -> Result<HashMap<Subject, SubjectKey>, Error> {
    let mut keys = current(conn, master, subjects).await?;
    for subject in subjects {
        if keys.contains_key(subject) {
            continue;
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *bytes).map_err(|_| Error::from(nasnet_dbmanager::Error::Random))?;
        let id = next_id();
        let sealed = master.seal(&key_aad(id), &*bytes)?;
        sqlx::raw_sql(SECURE_DELETE_ON).execute(&mut *conn).await?;
        sqlx::query(ADD)
            .bind(id.to_bytes().to_vec())
            .bind(subject.as_str())
            .bind(sealed.as_slice())
            .bind(now_ms)
            .execute(&mut *conn)
            .await?;
        sqlx::raw_sql(SECURE_DELETE_OFF).execute(&mut *conn).await?;
        keys.insert(subject.clone(), key_of(master, id, &sealed)?);
    }
    Ok(keys)
}

fn subjects_of<'a>(events: impl IntoIterator<Item = &'a NewEvent>) -> BTreeSet<Subject> {
    events.into_iter().filter_map(|event| event.subject.clone()).collect()
}

/// The keys an append needs. Keys are asked for at each append and kept by nobody, so that a shredded one is used by
/// nobody either.
pub(crate) async fn for_append<'a>(
    shared: &Shared,
    events: impl IntoIterator<Item = &'a NewEvent>,
) -> Result<SubjectKeys, Error> {
    let subjects = subjects_of(events);
    if subjects.is_empty() {
        return Ok(SubjectKeys::default());
    }
    let (system, master) = (shared.manager.system(), shared.manager.sealer().clone());
    let (wanted, own) = (subjects.clone(), master.clone());
    let found = system.read(KEYS, move |conn| Box::pin(async move { current(conn, &own, &wanted).await })).await?;
    if found.len() == subjects.len() {
        return Ok(SubjectKeys(found));
    }
    let (manager, now_ms) = (shared.manager.clone(), shared.manager.now().wall_ms);
    let made = system
        .write(KEYS, move |conn| {
            Box::pin(async move { find_or_make(conn, &master, &subjects, now_ms, || manager.next_ulid()).await })
        })
        .await?;
    Ok(SubjectKeys(made))
}

/// The keys an append needs that runs inside a write operation: one on system.db must not wait for another on it.
pub(crate) async fn for_append_in<'a>(
    shared: &Shared,
    conn: &mut SqliteConnection,
    scope: &Scope,
    events: impl IntoIterator<Item = &'a NewEvent>,
) -> Result<SubjectKeys, Error> {
    if *scope != Scope::System {
        return for_append(shared, events).await;
    }
    let subjects = subjects_of(events);
    if subjects.is_empty() {
        return Ok(SubjectKeys::default());
    }
    let manager = &shared.manager;
    let now_ms = manager.now().wall_ms;
    find_or_make(conn, manager.sealer(), &subjects, now_ms, || manager.next_ulid()).await.map(SubjectKeys)
}

/// Opens the sealed bodies among `items`. What cannot be opened is an error in its place and hides no other.
pub(crate) async fn open_all(shared: &Shared, items: &mut [Result<Recorded, Error>]) -> Result<(), Error> {
    let sealed = |event: &Recorded| if event.body.is_sealed() { parse(event.body.get()) } else { None };
    let ids: BTreeSet<Ulid> = items.iter().flatten().filter_map(|event| Some(sealed(event)?.0)).collect();
    let found = if ids.is_empty() { HashMap::new() } else { look_up(shared, ids).await? };
    for item in items.iter_mut() {
        let Ok(event) = item else { continue };
        if !event.body.is_sealed() {
            continue;
        }
        let opened = open(event, &found);
        match opened {
            Ok(body) => event.body = body,
            Err(error) => *item = Err(error),
        }
    }
    Ok(())
}

async fn look_up(shared: &Shared, ids: BTreeSet<Ulid>) -> Result<HashMap<Ulid, Found>, Error> {
    let hex: Vec<String> = ids.iter().map(|id| format!("{:032x}", id.0)).collect();
    let wanted = serde_json::to_string(&hex).map_err(|error| Error::corrupt("key ids", error))?;
    let master = shared.manager.sealer().clone();
    shared
        .manager
        .system()
        .read(KEYS, move |conn| {
            Box::pin(async move {
                let rows: Vec<(Vec<u8>, Vec<u8>, i64)> = sqlx::query_as(BY_ID).bind(wanted).fetch_all(conn).await?;
                let mut found = HashMap::new();
                for (id, sealed, shredded_ms) in rows {
                    let id = key_id(id)?;
                    let key = match key_of(&master, id, &sealed) {
                        _ if shredded_ms != 0 => Found::Shredded,
                        Ok(key) => Found::Key(key),
                        // Of its own events alone: those of other subjects are in the same page.
                        Err(error) => Found::Damaged(error.to_string()),
                    };
                    found.insert(id, key);
                }
                Ok::<_, Error>(found)
            })
        })
        .await
}

fn open(event: &Recorded, keys: &HashMap<Ulid, Found>) -> Result<Body, Error> {
    let what = || format!("sealed body of {}", event.position);
    let (Some((id, bytes)), Some(subject)) = (parse(event.body.get()), &event.subject) else {
        return Err(Error::corrupt(what(), "it has not the form of one"));
    };
    match keys.get(&id) {
        None => Err(Error::KeyMissing { position: event.position, subject: subject.clone() }),
        Some(Found::Shredded) => Ok(Body::Shredded),
        Some(Found::Damaged(why)) => {
            Err(Error::corrupt(format!("system.db event_subjects key {id} of the event at {}", event.position), why))
        }
        Some(Found::Key(key)) => {
            let place = Place {
                scope: &event.scope,
                stream: &event.stream,
                id: event.id,
                kind: &event.kind,
                schema: event.schema,
            };
            let plain = key.sealer.open(&place.aad(), &bytes).map_err(|error| Error::corrupt(what(), error))?;
            let text = std::str::from_utf8(&plain).map_err(|error| Error::corrupt(what(), error))?;
            let text: Box<RawValue> =
                RawValue::from_string(text.to_owned()).map_err(|_| Error::corrupt(what(), "it is not JSON"))?;
            Ok(Body::Json(text))
        }
    }
}
