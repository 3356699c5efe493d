//! A router in memory, databases on disk, and an engine between them.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::path::Path;
use std::time::Duration;

use nasnet_dbmanager::{DbManager, NewRouter, Options, RouterId, Scope};
use nasnet_events::{EventOptions, EventStore, Query, Recorded};
use nasnet_locking::{LockManager, LockOptions};
use nasnet_reconcile::device::testing::ScriptedDevice;
use nasnet_reconcile::device::{MenuPath, Row};
use nasnet_reconcile::op::Limits;
use nasnet_reconcile::routeros::kinds;
use nasnet_reconcile::{ChangeSet, Reconciler, schema_sets};
use tempfile::TempDir;

/// Far longer than anything takes, be the machine ever so slow.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub dir: TempDir,
    pub db: DbManager,
    pub events: EventStore,
    pub locks: LockManager,
    pub engine: Reconciler,
    pub device: ScriptedDevice,
    pub router: RouterId,
}

pub fn menu(path: &str) -> MenuPath {
    path.parse().unwrap()
}

/// The menus of the router in memory.
pub fn menus() -> Vec<MenuPath> {
    let mut menus: Vec<MenuPath> = kinds::ALL.iter().map(|kind| menu(kind.menu)).collect();
    menus.extend([menu("/interface/ethernet"), menu("/ip/dns"), menu("/user"), menu("/ip/firewall/nat")]);
    menus
}

/// Fast and few attempts: the device in memory answers at once.
pub fn limits() -> Limits {
    Limits { attempts_max: 3, settle_reads_max: 2, backoff_ms: 1, backoff_max_ms: 2 }
}

/// A small router: two ports, a LAN bridge with its address, a list, two firewall rules.
pub fn router() -> ScriptedDevice {
    let device = ScriptedDevice::new("SERIAL1");
    device.unique(&menu("/interface/wireguard"), "name");
    device.generate(&menu("/interface/wireguard"), |fields| {
        let key = fields.entry("private-key".to_owned()).or_insert_with(|| "GENERATED-PRIVATE".to_owned()).clone();
        fields.insert("public-key".to_owned(), format!("pub-of-{}", key.len()));
        fields.entry("listen-port".to_owned()).or_insert_with(|| "51820".to_owned());
        fields.entry("mtu".to_owned()).or_insert_with(|| "1420".to_owned());
        fields.insert("running".to_owned(), "true".to_owned());
    });
    for name in ["ether1", "ether2"] {
        device.put(&menu("/interface/ethernet"), &[("name", name), ("running", "true"), ("rx-byte", "123")]);
    }
    device.put(&menu("/interface/bridge"), &[("name", "bridge"), ("comment", "lan"), ("protocol-mode", "rstp")]);
    device.put(&menu("/interface/list"), &[("name", "LAN")]);
    device.put(&menu("/interface/list"), &[("name", "all"), ("builtin", "true")]);
    device.put(&menu("/interface/list/member"), &[("list", "LAN"), ("interface", "bridge")]);
    device.put(
        &menu("/ip/address"),
        &[("address", "192.168.88.1/24"), ("interface", "bridge"), ("network", "192.168.88.0"), ("disabled", "false")],
    );
    device.put(&menu("/ip/address"), &[("address", "100.64.0.2/24"), ("interface", "ether1"), ("dynamic", "true")]);
    device.put(
        &menu("/ip/firewall/filter"),
        &[
            ("chain", "input"),
            ("action", "accept"),
            ("connection-state", "established,related"),
            ("comment", "keep what is known"),
            ("disabled", "false"),
            ("bytes", "1000"),
        ],
    );
    device.put(
        &menu("/ip/firewall/filter"),
        &[("chain", "input"), ("action", "drop"), ("in-interface-list", "!LAN"), ("comment", "drop the rest")],
    );
    device.put(&menu("/user"), &[("name", "admin"), ("password", "canary-password"), ("last-logged-in", "today")]);
    device
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (db, events, locks, engine) = open(dir.path()).await;
        let router_id: RouterId = "edge".parse().unwrap();
        db.create_router(NewRouter::new(router_id.clone())).await.unwrap();
        Self { dir, db, events, locks, engine, device: router(), router: router_id }
    }

    /// A world that has imported its router.
    pub async fn imported() -> Self {
        let world = Self::new().await;
        let report = world.engine.import(&world.router, &world.device, &menus()).await.unwrap();
        assert!(report.unreadable.is_empty(), "{report:?}");
        world
    }

    /// Closes everything and opens it again on the same files, as after a restart of the program.
    pub async fn restart(self) -> Self {
        let Self { dir, db, events, locks, engine, device, router } = self;
        drop(engine);
        locks.shutdown().await.unwrap();
        events.shutdown().await.unwrap();
        db.shutdown().await.unwrap();
        let (db, events, locks, engine) = open(dir.path()).await;
        Self { dir, db, events, locks, engine, device, router }
    }

    pub fn rows(&self, path: &str) -> Vec<Row> {
        self.device.stored(&menu(path))
    }

    pub fn row(&self, path: &str, field: &str, value: &str) -> Option<Row> {
        self.rows(path).into_iter().find(|row| row.fields.get(field).is_some_and(|found| found == value))
    }

    pub async fn events_of(&self, prefix: &str) -> Vec<Recorded> {
        use futures_util::TryStreamExt;
        let query = Query::scope(Scope::Router(self.router.clone())).kind_prefix(prefix);
        self.events.read(query).try_collect().await.unwrap()
    }

    /// Every byte of every file the world has written.
    pub fn all_bytes(&self) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push((path.clone(), std::fs::read(&path).unwrap_or_default()));
                }
            }
        }
        found
    }
}

async fn open(dir: &Path) -> (DbManager, EventStore, LockManager, Reconciler) {
    let mut options = Options::new(dir.join("data")).run_dir(dir.join("run")).schemas(schema_sets());
    // Long enough for the slowest machine.
    (options.lock_timeout, options.lease_timeout) = (PATIENCE, PATIENCE);
    (options.read_deadline, options.write_deadline) = (PATIENCE, PATIENCE);
    let db = DbManager::open(options).await.unwrap();
    let events = EventStore::open(&db, EventOptions::default()).await.unwrap();
    let locks = LockManager::open(&db, LockOptions::default()).await.unwrap();
    let engine = Reconciler::new(&db, &events, &locks, kinds::kinds()).with_limits(limits());
    (db, events, locks, engine)
}

/// The change set of the main job: interface, address, peer, firewall rule.
pub fn vpn() -> ChangeSet {
    ChangeSet::new("bring up the vpn", "tester")
        .create(
            kinds::WIREGUARD_PEER.kind(),
            "peer-usa",
            [
                ("interface", "wg0"),
                ("public-key", "PEER-PUBLIC"),
                ("preshared-key", "canary-psk"),
                ("allowed-address", "10.9.0.0/24,0.0.0.0/0"),
                ("persistent-keepalive", "25"),
                ("endpoint-address", "vpn.example.net"),
                ("endpoint-port", "51820"),
            ],
        )
        .create(kinds::IP_ADDRESS.kind(), "wg0-address", [("address", "10.9.0.2/24"), ("interface", "wg0")])
        .create(kinds::WIREGUARD.kind(), "wg0", [("name", "wg0"), ("comment", "to the office")])
        .create(
            kinds::FIREWALL_FILTER.kind(),
            "allow-wg",
            [("chain", "input"), ("action", "accept"), ("in-interface", "wg0"), ("comment", "allow the vpn")],
        )
}
