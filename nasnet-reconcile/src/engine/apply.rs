//! Plan, apply and recover.

use std::collections::BTreeSet;

use nasnet_dbmanager::{Cause, Database, RouterId, Scope};
use nasnet_locking::LeaseGuard;
use nasnet_state::validate::finding::{Finding, Severity};
use nasnet_state::{Resource, store};
use ulid::Ulid;

use super::{Reconciler, op};
use crate::change::{Change, ChangeSet};
use crate::device::{Device, MenuPath, RawFields};
use crate::driver::{Driver, request_digest};
use crate::error::Error;
use crate::journal::{self, Purpose, StoredOp};
use crate::merge::timestamp;
use crate::op::plan::PlanHead;
use crate::op::{Effect, Input, Machine, OpReport, Plan, Vault};
use crate::resolve::{self, Deed, Known, Parsed};

const FIND: Cause = Cause::new("journal-find");

/// The code of a finding about a text that is too long.
const TOO_LARGE: &str = "schema.too-large";
/// The longest reason and the longest actor; both are in every event of an operation.
const REASON_BYTES_MAX: usize = 4 << 10;
const ACTOR_BYTES_MAX: usize = 256;
/// The longest change, names and values together: an event holds a few copies of them.
const CHANGE_BYTES_MAX: usize = 32 << 10;

impl Reconciler {
    /// Returns the plan of a change set as it would be applied now. Writes nothing to the router, locks nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the findings of validation; [`Error::Plan`]; [`Error::WrongDevice`]; [`Error::Device`] when
    /// a menu cannot be read.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn plan(&self, router: &RouterId, device: &dyn Device, set: &ChangeSet) -> Result<Plan, Error> {
        let db = self.db.router(router).await?;
        self.refuse_invalid(&db, set).await?;
        let serial = self.check_device(router, &db, device).await?.serial;
        Ok(self.draft(router, &db, device, set, serial).await?.0)
    }

    /// Applies a change set by apply, confirm and merge.
    ///
    /// Validates first; then takes the router's lease, journals the plan with every undo, writes step by step, reads
    /// everything back, decides, and commits state, events and journal in one transaction of the router's database. How
    /// it went is in the report, also when it was taken back. The same `key` again answers with the same operation.
    ///
    /// # Errors
    /// Nothing was written to the device: [`Error::Refused`], [`Error::Plan`], [`Error::WrongDevice`],
    /// [`Error::OperationOpen`] (call [`Reconciler::recover`]), [`Error::KeyReused`], [`Error::Lock`] when somebody else
    /// holds the router, [`Error::Device`], [`Error::Database`].
    ///
    /// # Cancel safety
    /// Dropping the future is like losing power: the journal keeps the operation open and [`Reconciler::recover`] ends it.
    pub async fn apply(
        &self,
        router: &RouterId,
        device: &dyn Device,
        set: &ChangeSet,
        key: Ulid,
    ) -> Result<OpReport, Error> {
        let db = self.db.router(router).await?;
        let request = self.digest(set);
        if let Some(stored) = find(&db, key).await? {
            return self.answer_again(router, key, request, stored);
        }
        if let Err(refused) = self.refuse_invalid(&db, set).await {
            // Another call may have ended the operation of this key since it was looked for: then it is no refusal.
            return match find(&db, key).await? {
                Some(stored) => self.answer_again(router, key, request, stored),
                None => Err(refused),
            };
        }
        let lease = self.lease(router, &set.actor, &set.reason).await?;
        let result = self.apply_under(router, &db, device, set, key, request, &lease).await;
        release(lease).await;
        result
    }

    async fn apply_under(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        set: &ChangeSet,
        key: Ulid,
        request: [u8; 16],
        lease: &LeaseGuard,
    ) -> Result<OpReport, Error> {
        // Asked again under the lease: only now nobody else can begin the operation of this key.
        if let Some(stored) = find(db, key).await? {
            return self.answer_again(router, key, request, stored);
        }
        refuse_open(router, db).await?;
        let facts = self.check_device(router, db, device).await?;
        let (plan, vault) = self.draft(router, db, device, set, facts.serial).await?;
        let purpose = Purpose::Change;
        self.drive(router, db, device, lease, facts.version, plan, vault, purpose, Some(key), request).await
    }

    /// Drives a plan that was just made.
    #[expect(clippy::too_many_arguments, reason = "every one is another part of one operation")]
    pub(super) async fn drive(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        lease: &LeaseGuard,
        version: String,
        plan: Plan,
        vault: Vault,
        purpose: Purpose,
        key: Option<Ulid>,
        request: [u8; 16],
    ) -> Result<OpReport, Error> {
        let scope = Scope::Router(router.clone());
        let lazy = Vec::new();
        let mut driver = Driver {
            engine: self,
            db,
            scope,
            device,
            lease,
            version,
            vault,
            purpose,
            key,
            request,
            lazy,
            refused: None,
        };
        let mut machine = Machine::new(plan, self.limits);
        let first = machine.step(Input::Start);
        driver.run(&mut machine, first).await
    }

    /// Ends an interrupted operation of a router: forward if it was fully applied or decided, back otherwise. `None` if
    /// there is none. Call it when the program starts, and after [`Error::OperationOpen`].
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::Device`], [`Error::Lock`]: the operation stays open.
    ///
    /// # Cancel safety
    /// As [`Reconciler::apply`]; recovering twice does no more than once.
    pub async fn recover(&self, router: &RouterId, device: &dyn Device) -> Result<Option<OpReport>, Error> {
        let db = self.db.router(router).await?;
        if open(&db).await?.is_none() {
            return Ok(None);
        }
        let lease = self.lease(router, "reconcile", "recover an interrupted operation").await?;
        let result = self.recover_under(router, &db, device, &lease).await;
        release(lease).await;
        result
    }

    async fn recover_under(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        lease: &LeaseGuard,
    ) -> Result<Option<OpReport>, Error> {
        // Asked again under the lease: whoever held it before may have ended the operation.
        let Some(stored) = open(db).await? else { return Ok(None) };
        let facts = self.check_device(router, db, device).await?;
        if facts.serial != stored.plan.serial {
            let (expected, found) = (stored.plan.serial.clone(), facts.serial);
            return Err(Error::WrongDevice { router: router.clone(), expected, found });
        }
        let vault = self.unseal(&stored)?;
        tracing::info!(op = %stored.op_id, %router, state = stored.state.as_str(), "recovering an operation");
        let mut driver = Driver {
            engine: self,
            db,
            scope: Scope::Router(router.clone()),
            device,
            lease,
            version: facts.version,
            vault,
            purpose: stored.purpose,
            key: None,
            request: [0; 16],
            lazy: Vec::new(),
            refused: None,
        };
        let (mut machine, first) = Machine::recover(stored.plan, &stored.records, self.limits);
        driver.run(&mut machine, first).await.map(Some)
    }

    /// Answers a repeated request from the journal.
    fn answer_again(
        &self,
        router: &RouterId,
        key: Ulid,
        request: [u8; 16],
        stored: StoredOp,
    ) -> Result<OpReport, Error> {
        if stored.request != request {
            return Err(Error::KeyReused { key });
        }
        if stored.state.is_open() {
            return Err(Error::OperationOpen { router: router.clone(), op_id: stored.op_id });
        }
        let (_, effects) = Machine::recover(stored.plan, &stored.records, self.limits);
        let report = effects.into_iter().find_map(|effect| match effect {
            Effect::Finish(report) => Some(*report),
            _ => None,
        });
        report.ok_or_else(|| Error::corrupt("operation", "an ended operation has no report"))
    }

    fn unseal(&self, stored: &StoredOp) -> Result<Vault, Error> {
        let Some(sealed) = &stored.sealed else { return Ok(Vault::default()) };
        let clear = self.seal.sealer().open(&stored.op_id.to_bytes(), sealed)?;
        Vault::from_clear_bytes(&clear).map_err(|error| Error::corrupt("secrets of a plan", error))
    }

    /// The stages that need no device, before anything is locked.
    async fn refuse_invalid(&self, db: &Database, set: &ChangeSet) -> Result<(), Error> {
        refuse_oversized(set)?;
        let resources = self.load(db).await?;
        self.parse(&resources, set)?;
        // A uid whose resource was deleted is taken for ever; the merge would find out only after the device was changed.
        for change in &set.changes {
            let Change::Create { uid: Some(uid), name, .. } = change else { continue };
            let uid = *uid;
            let left = db.read(FIND, op(move |conn| Box::pin(async move { Ok(store::get(conn, uid).await?) }))).await;
            match left {
                Err(Error::State(nasnet_state::Error::NotFound { .. })) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    let message = "a deleted resource had this uid";
                    let finding = Finding::new(resolve::UID_TAKEN, Severity::Error, name.clone(), message);
                    return Err(Error::Refused { findings: vec![finding] });
                }
            }
        }
        Ok(())
    }

    fn parse(&self, resources: &std::collections::BTreeMap<Ulid, Resource>, set: &ChangeSet) -> Result<Parsed, Error> {
        let now = timestamp(&self.db.now());
        resolve::parse(&self.kinds, &self.seal, resources, set, now, || self.db.next_ulid())
    }

    async fn draft(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        set: &ChangeSet,
        serial: String,
    ) -> Result<(Plan, Vault), Error> {
        let resources = self.load(db).await?;
        let parsed = self.parse(&resources, set)?;
        let menus: BTreeSet<MenuPath> = parsed.items.iter().map(|item| item.menu.clone()).collect();
        let menus = self.read_menus(device, menus).await?;
        let changed = parsed.items.iter().filter(|item| !matches!(item.deed, Deed::Create { .. }));
        let changed = changed.filter_map(|item| resources.get(&item.uid).cloned()).collect();
        let secrets = self.reveal(db, changed).await?;
        let known = Known { kinds: &self.kinds, resources: &resources, menus: &menus, secrets: &secrets };
        let head = PlanHead {
            op_id: self.db.next_ulid(),
            router: router.to_string(),
            serial,
            reason: set.reason.clone(),
            actor: Some(set.actor.clone()),
        };
        resolve::plan(&known, parsed, head)
    }

    fn digest(&self, set: &ChangeSet) -> [u8; 16] {
        let none = RawFields::new();
        let mut parts: Vec<(String, &RawFields)> = Vec::new();
        for change in &set.changes {
            parts.push(match change {
                Change::Create { uid, kind, name, fields, before } => {
                    (format!("create {kind} {name:?} {uid:?} {before:?}"), fields)
                }
                Change::Update { uid, set, unset, expected_version } => {
                    (format!("update {uid} {unset:?} {expected_version:?}"), set)
                }
                Change::Delete { uid } => (format!("delete {uid}"), &none),
            });
        }
        let parts: Vec<(&str, &RawFields)> = parts.iter().map(|(head, fields)| (head.as_str(), *fields)).collect();
        request_digest(self, &parts)
    }
}

/// Refuses texts that no event could hold: the merge would find out only after the device was changed.
fn refuse_oversized(set: &ChangeSet) -> Result<(), Error> {
    let mut findings = Vec::new();
    let mut check = |what: &str, path: &str, bytes: usize, max: usize| {
        if bytes > max {
            let message = format!("{what} of {bytes} bytes, at most {max} are allowed");
            findings.push(Finding::new(TOO_LARGE, Severity::Error, path.to_owned(), message));
        }
    };
    check("a reason", "reason", set.reason.len(), REASON_BYTES_MAX);
    check("an actor", "actor", set.actor.len(), ACTOR_BYTES_MAX);
    for change in &set.changes {
        let (name, fields) = match change {
            Change::Create { name, fields, .. } => (name.clone(), fields),
            Change::Update { uid, set, .. } => (uid.to_string(), set),
            Change::Delete { .. } => continue,
        };
        let bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + name.len();
        let path: String = name.chars().take(64).collect();
        check("a change", &path, bytes, CHANGE_BYTES_MAX);
    }
    if findings.is_empty() { Ok(()) } else { Err(Error::Refused { findings }) }
}

/// Gives the lease back; one that was lost meanwhile is nobody's loss any more.
pub(super) async fn release(lease: LeaseGuard) {
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease had ended before it was released");
    }
}

/// Refuses while an operation is open.
pub(super) async fn refuse_open(router: &RouterId, db: &Database) -> Result<(), Error> {
    match open(db).await? {
        Some(stored) => Err(Error::OperationOpen { router: router.clone(), op_id: stored.op_id }),
        None => Ok(()),
    }
}

async fn open(db: &Database) -> Result<Option<StoredOp>, Error> {
    db.read(FIND, op(|conn| Box::pin(journal::open_op(conn)))).await
}

async fn find(db: &Database, key: Ulid) -> Result<Option<StoredOp>, Error> {
    db.read(FIND, op(move |conn| Box::pin(async move { journal::by_key(conn, key).await }))).await
}
