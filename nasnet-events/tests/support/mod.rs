//! A fleet in a temporary directory, and short ways to make events.
#![allow(dead_code, clippy::cast_possible_truncation)]

pub mod child;
pub mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use nasnet_dbmanager::{Cause, DbManager, ManualClock, NewRouter, Options, RouterId, Scope};
use nasnet_events::{
    Class, ColdOptions, Error, EventOptions, EventStore, EventType, Expected, Keep, NewEvent, PendingReceipt, Query,
    Receipt, Recorded, Retention, StreamAppend, StreamName, prepare_cold_dir,
};
use ulid::Ulid;

pub const TEST: Cause = Cause::new("test");
/// A day in November 2026.
pub const NOW_MS: i64 = 1_795_000_000_000;
/// Far longer than anything takes, be the machine ever so slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Site {
    pub dir: tempfile::TempDir,
    pub clock: ManualClock,
}

impl Site {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: ManualClock::new(NOW_MS) }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn cold(&self) -> PathBuf {
        self.dir.path().join("cold")
    }

    pub async fn manager(&self) -> DbManager {
        let mut options = options(self.dir.path());
        options.clock = Arc::new(self.clock.clone());
        DbManager::open(options).await.unwrap()
    }

    /// Opens the fleet with a store; the routers `r1` and `r2` exist.
    pub async fn open(&self) -> (DbManager, EventStore) {
        self.open_with(EventOptions::default()).await
    }

    pub async fn open_with(&self, options: EventOptions) -> (DbManager, EventStore) {
        let manager = self.manager().await;
        let known = manager.system().routers().list().await.unwrap();
        for id in ["r1", "r2"] {
            if !known.iter().any(|router| router.id.as_str() == id) {
                manager.create_router(NewRouter::new(RouterId::parse(id).unwrap())).await.unwrap();
            }
        }
        let store = EventStore::open(&manager, options).await.unwrap();
        (manager, store)
    }

    /// Removes hot.db as a reboot does. A store that is open may be removing the same at this moment.
    pub fn wipe_hot(&self) {
        for suffix in ["", "-wal", "-shm"] {
            match std::fs::remove_file(self.run().join(format!("hot.db{suffix}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }
}

pub fn options(dir: &Path) -> Options {
    patient(Options::new(dir.join("data")).run_dir(dir.join("run")).schemas(nasnet_events::schema_sets()))
}

/// Waits long enough for the slowest machine.
pub fn patient(mut options: Options) -> Options {
    (options.lock_timeout, options.lease_timeout) = (PATIENCE, PATIENCE);
    (options.read_deadline, options.write_deadline) = (PATIENCE, PATIENCE);
    options
}

/// Retention that lets go of everything that was appended before the last mark, as soon as nothing holds it back.
pub fn keep_nothing() -> EventOptions {
    let keep = Keep::age(Duration::ZERO);
    let all = [Class::Critical, Class::Normal, Class::Low].into_iter();
    let retention = all.fold(Retention::default(), |retention, class| retention.class(class, keep));
    EventOptions::default().retention(retention.full_history([""; 0]))
}

/// The defaults, with an archive beside the data.
pub fn with_cold(site: &Site) -> EventOptions {
    EventOptions::default().cold(ColdOptions::new(site.cold()).allow_same_device())
}

/// Opens a fleet, as a process does that may be its first; the router `r1` exists.
pub async fn open_in(fleet: Options, store: EventOptions) -> (DbManager, EventStore) {
    let manager = DbManager::open(fleet).await.unwrap();
    if manager.routers().await.unwrap().is_empty() {
        manager.create_router(NewRouter::new(RouterId::parse("r1").unwrap())).await.unwrap();
    }
    let store = EventStore::open(&manager, store).await.unwrap();
    (manager, store)
}

/// Opens a store whose archive is there.
pub async fn open_with_cold(site: &Site) -> (DbManager, EventStore) {
    let (manager, store) = site.open_with(with_cold(site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    (manager, store)
}

/// Appends so many Normal events to stream `s` of a scope, in one batch.
pub async fn append_normal(manager: &DbManager, store: &EventStore, scope: &Scope, count: usize) -> Vec<Ulid> {
    let events: Vec<_> = (0..count).map(|_| normal(manager)).collect();
    let ids = events.iter().map(|event| event.id).collect();
    store.append(scope, &stream("s"), Expected::Any, events).await.unwrap();
    ids
}

pub fn router(id: &str) -> Scope {
    Scope::Router(RouterId::parse(id).unwrap())
}

pub fn stream(name: &str) -> StreamName {
    StreamName::parse(name).unwrap()
}

pub fn kind(name: &str) -> EventType {
    EventType::parse(name).unwrap()
}

/// A Normal event with a body of its own.
pub fn normal(manager: &DbManager) -> NewEvent {
    event(manager, "resource.updated")
}

/// Events a dictionary helps with.
pub fn alike(manager: &DbManager, number: usize) -> NewEvent {
    let noise = number.wrapping_mul(0x9E37_79B9) % 1_000_003;
    let body = serde_json::json!({
        "menu": "/interface/ethernet", "row": format!("*{noise:X}"), "uptime": format!("{}d{}h", noise % 30, noise % 24),
        "before": { "running": "false", "mtu": "1500", "rx-byte": noise * 31, "tx-byte": noise * 17 },
        "after": { "running": "true", "mtu": "1500", "mac-address": format!("48:8F:5A:{:02X}", noise % 256) },
    });
    NewEvent::new(manager.next_ulid(), kind("resource.updated"), &body).unwrap()
}

pub fn event(manager: &DbManager, name: &str) -> NewEvent {
    let id = manager.next_ulid();
    NewEvent::new(id, kind(name), &serde_json::json!({ "interface": "wg0", "id": id })).unwrap()
}

/// An event whose body hardly compresses.
pub fn large(manager: &DbManager, name: &str, bytes: usize) -> NewEvent {
    let id = manager.next_ulid();
    let mut state = id.0 as u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8 % 64)
    });
    let noise: String = noise.filter(|letter| letter.is_ascii_alphanumeric()).take(bytes).collect();
    NewEvent::new(id, kind(name), &serde_json::json!({ "noise": noise, "id": id })).unwrap()
}

pub async fn read(store: &EventStore, query: Query) -> Vec<Recorded> {
    store.read(query).try_collect().await.unwrap()
}

pub async fn read_ids(store: &EventStore, query: Query) -> Vec<Ulid> {
    read(store, query).await.into_iter().map(|event| event.id).collect()
}

/// Appends in a transaction that commits, and publishes.
pub async fn append_in(
    manager: &DbManager,
    store: &EventStore,
    scope: &Scope,
    appends: Vec<StreamAppend>,
) -> Result<Vec<Receipt>, Error> {
    let pending = transaction(manager, store, scope, appends, true).await?;
    Ok(store.published(pending).await)
}

/// Appends in a transaction that commits or, with an error of the operation, rolls back.
pub async fn transaction(
    manager: &DbManager,
    store: &EventStore,
    scope: &Scope,
    appends: Vec<StreamAppend>,
    commit: bool,
) -> Result<PendingReceipt, Error> {
    let (store, own) = (store.clone(), scope.clone());
    let database = manager.scope(scope).await?;
    database
        .write(TEST, move |conn| {
            Box::pin(async move {
                let pending = store.append_in(conn, &own, appends).await?;
                if commit { Ok(pending) } else { Err(Error::Closed) }
            })
        })
        .await
}

/// Runs a statement on hot.db, past the store.
pub async fn on_hot(manager: &DbManager, sql: &'static str) {
    manager
        .hot()
        .write(TEST, move |conn| {
            Box::pin(async move {
                sqlx::raw_sql(sql).execute(conn).await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
}

/// A statement was refused by the rule that says so, and not because it names what is not there.
pub fn assert_refused<T: std::fmt::Debug>(done: &Result<T, Error>, why: &str, sql: &str) {
    let Err(error @ Error::Storage { .. }) = done else { panic!("{sql} was not refused: {done:?}") };
    assert!(error.to_string().contains(why), "{sql}: {error}");
}

/// Empties the hot log as far as retention ever may: the newest row says where the order goes on, so it stays. Here it
/// is a void, so that no event is read from the hot tier.
pub async fn empty_hot(manager: &DbManager) {
    const SQL: &str = "
        INSERT INTO hot_log (first_seq, count, state, scope, reservation)
            SELECT MAX(first_seq + count), 1, 'void', 'system', MAX(first_seq + count) FROM hot_log;
        DELETE FROM hot_log WHERE first_seq < (SELECT MAX(first_seq) FROM hot_log)";
    on_hot(manager, SQL).await;
}

/// Runs a statement on the database of a scope, past the store.
pub async fn on_scope(manager: &DbManager, scope: &Scope, sql: &'static str) {
    manager
        .scope(scope)
        .await
        .unwrap()
        .write(TEST, move |conn| {
            Box::pin(async move {
                sqlx::raw_sql(sql).execute(conn).await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
}

/// Empties the warm tier of a scope as retention may, past the store.
pub async fn empty_warm(manager: &DbManager, scope: &Scope) {
    const SQL: &str = "
        INSERT INTO event_retained (what, through_pos)
            SELECT column1, 9223372036854775807 FROM (VALUES (-4), (0)) WHERE TRUE
            ON CONFLICT (what) DO UPDATE SET through_pos = excluded.through_pos;
        DELETE FROM event_rows;
        DELETE FROM event_segments";
    on_scope(manager, scope, SQL).await;
}
