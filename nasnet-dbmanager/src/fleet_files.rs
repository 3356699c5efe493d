//! What each file of a fleet must be: its place, its identity, its schemas and its settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ulid::Ulid;

use crate::budget::Ledger;
use crate::clock::Now;
use crate::connection::{Bound, Target};
use crate::database::Limits;
use crate::db_lock::{DbLock, LockFile};
use crate::health::Migrating;
use crate::id::RouterId;
use crate::layout::{self, Layout};
use crate::meta::Identity;
use crate::migrate::Sets;
use crate::open::{Policy, Spec};
use crate::options::{OnOpen, Options};
use crate::room::Room;
use crate::schema::{FileKind, Profile, SchemaSet};
use crate::space::Space;
use crate::template::Templates;
use crate::ulid_gen::UlidGen;
use crate::vitals::{Suspects, Vitals};

/// Describes the files of one fleet.
#[derive(Debug, Clone)]
pub(crate) struct FleetFiles {
    layout: Layout,
    fleet_id: Ulid,
    sets: Vec<SchemaSet>,
    /// The same by kind of file.
    sets_of: Arc<[(FileKind, Arc<Sets>)]>,
    options: Options,
    space: Arc<Space>,
    ledger: Arc<Ledger>,
    locks: Arc<LockFile>,
    room: Arc<Room>,
    ulids: Arc<UlidGen>,
    suspects: Arc<Suspects>,
    migrating: Arc<Migrating>,
}

impl FleetFiles {
    pub(crate) fn new(layout: Layout, fleet_id: Ulid, sets: Vec<SchemaSet>, options: Options) -> Self {
        let log_bytes = u64::from(options.preset.tuning().journal_bytes_max);
        let space = Arc::new(Space::new(&layout.data_dir, log_bytes, options.reserve_bytes));
        let ledger = Arc::new(Ledger::new(options.budget, Arc::clone(&options.clock)));
        let locks = LockFile::new(layout.locks());
        let of = |kind| Sets::new(sets.iter().filter(|set| set.file == kind).cloned().collect());
        let sets_of = FileKind::ALL.into_iter().map(|kind| (kind, Arc::new(of(kind)))).collect();
        let (suspects, migrating) = (Arc::default(), Arc::default());
        let room = Arc::new(Room::new(options.flash_bytes_max, options.database_bytes_max));
        let ulids = Arc::new(UlidGen::new(None));
        Self { layout, fleet_id, sets, sets_of, options, space, ledger, room, ulids, locks, suspects, migrating }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn sets(&self) -> &[SchemaSet] {
        &self.sets
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Returns what bounds the databases on flash.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Returns what makes the ids of the fleet.
    pub(crate) fn ulids(&self) -> &Arc<UlidGen> {
        &self.ulids
    }

    /// Charges a file that is no database to the flash budget, if it is on the medium of the data directory.
    pub(crate) fn charge_file(&self, cause: &'static str, path: &Path, bytes: u64) {
        let device = |path: &Path| layout::place_of(path).map(|(device, _)| device);
        if device(path.parent().unwrap_or(path)) == device(&self.layout.data_dir) {
            self.ledger.charge_file(cause, bytes);
        }
    }

    /// Returns the databases whose schema is being changed.
    pub(crate) fn migrating(&self) -> &Arc<Migrating> {
        &self.migrating
    }

    /// Returns what was found damaged while in use.
    pub(crate) fn suspects(&self) -> &Arc<Suspects> {
        &self.suspects
    }

    /// Returns what a database opened from a spec reports to.
    pub(crate) fn vitals(&self, spec: &Spec, file_uid: [u8; 16]) -> Arc<Vitals> {
        let identity = &spec.identity;
        Vitals::new(identity.kind, identity.router_id.clone(), file_uid, Arc::clone(&self.suspects))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn single(&self, kind: FileKind, file_uid: Option<[u8; 16]>) -> Spec {
        let identity = Identity { kind, fleet_id: self.fleet_id, router_id: None, file_uid };
        let path = self.layout.single(kind);
        self.spec(self.locks.lock_of(kind.as_str(), path.clone()), path, identity)
    }

    pub(crate) fn router(&self, id: &RouterId, file_uid: Option<[u8; 16]>) -> Spec {
        let identity =
            Identity { kind: FileKind::Router, fleet_id: self.fleet_id, router_id: Some(id.clone()), file_uid };
        self.spec(self.router_lock(id), self.layout.router(id), identity)
    }

    /// Returns the lock of a router database.
    pub(crate) fn router_lock(&self, id: &RouterId) -> DbLock {
        self.locks.lock_of(&format!("router-{id}"), self.layout.router(id))
    }

    fn spec(&self, lock: DbLock, path: PathBuf, identity: Identity) -> Spec {
        let (kind, dir) = (identity.kind, self.layout.templates());
        Spec {
            target: Target {
                path,
                profile: kind.profile(),
                tuning: self.options.preset.tuning(),
                bound: match kind {
                    FileKind::System | FileKind::Router => {
                        Bound::Share { room: Arc::clone(&self.room), system: kind == FileKind::System }
                    }
                    _ => Bound::Fixed(self.options.database_bytes_max),
                },
                ledger: (kind.profile() == Profile::Flash).then(|| Arc::clone(&self.ledger)),
                space: (kind.profile() == Profile::Flash).then(|| Arc::clone(&self.space)),
                annex_bytes: Arc::default(),
            },
            lock,
            identity,
            migrating: Arc::clone(&self.migrating),
            sets: self.sets_of(kind),
            templates: Templates { lock: self.locks.lock_of("template", dir.clone()), dir },
        }
    }

    fn sets_of(&self, kind: FileKind) -> Arc<Sets> {
        let of_kind = self.sets_of.iter().find(|(of, _)| *of == kind);
        of_kind.map_or_else(|| Arc::new(Sets::new(Vec::new())), |(_, sets)| Arc::clone(sets))
    }

    pub(crate) fn policy(&self, now: Now) -> Policy {
        Policy { on_open: self.on_open(), lock_timeout: self.options.lock_timeout, wall_ms: now.wall_ms }
    }

    fn on_open(&self) -> OnOpen {
        self.options.on_open
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { read: self.options.read_deadline, write: self.options.write_deadline, queue: self.options.write_queue }
    }
}
