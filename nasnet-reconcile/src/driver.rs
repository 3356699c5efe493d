//! Performs the effects of the step machine: reads and writes the device, keeps the journal, merges.

use std::collections::VecDeque;
use std::time::Duration;

use nasnet_dbmanager::{Cause, Database, Scope};
use nasnet_events::types;
use nasnet_locking::LeaseGuard;
use nasnet_state::store;
use ulid::Ulid;

use crate::device::{Device, DeviceError, ErrorClass, RawFields, Row, RowId, WriteOp, WriteOutcome};
use crate::engine::{Reconciler, op};
use crate::error::Error;
use crate::journal::{self, NewOp, Purpose};
use crate::merge::{Merge, operation_event};
use crate::observe::{MenuView, ObservedRow, raw_secrets, read_rows};
use crate::op::machine::Outcome;
use crate::op::{Direction, Effect, Input, Machine, OpReport, Plan, Record, RowKey, Sight, Vault};

const JOURNAL_PLAN: Cause = Cause::new("journal-plan");
const JOURNAL: Cause = Cause::new("journal");
const MERGE: Cause = Cause::new("merge");
const RUNTIME: Cause = Cause::new("runtime");

/// One operation being driven.
pub(crate) struct Driver<'a> {
    pub(crate) engine: &'a Reconciler,
    pub(crate) db: &'a Database,
    pub(crate) scope: Scope,
    pub(crate) device: &'a dyn Device,
    pub(crate) lease: &'a LeaseGuard,
    pub(crate) version: String,
    pub(crate) vault: Vault,
    pub(crate) purpose: Purpose,
    pub(crate) key: Option<Ulid>,
    pub(crate) request: [u8; 16],
    /// Records that wait for the next durable one.
    pub(crate) lazy: Vec<Record>,
    /// What kept the plan from being stored: an error of the call, not an outcome of an operation.
    pub(crate) refused: Option<Error>,
}

impl Driver<'_> {
    /// Runs the machine to its end.
    pub(crate) async fn run(&mut self, machine: &mut Machine, first: Vec<Effect>) -> Result<OpReport, Error> {
        let mut queue: VecDeque<Effect> = first.into();
        while let Some(effect) = queue.pop_front() {
            let input = match effect {
                Effect::Journal { record, durable: false } => {
                    self.lazy.push(record);
                    continue;
                }
                Effect::Journal { record, durable: true } => self.journal(machine.plan(), record).await,
                Effect::Read { step } => Input::Sighted { step, sight: self.read(machine.plan(), step).await },
                Effect::Write { step, direction, id } => self.write(machine.plan(), step, direction, id).await,
                Effect::SetTimer { after_ms } => {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    Input::Timer
                }
                Effect::Merge { rows } => match self.merge(machine.plan(), rows).await {
                    Ok(()) => Input::Merged,
                    Err(error) => Input::MergeFailed { cause: error.to_string() },
                },
                Effect::Finish(report) => {
                    tracing::info!(op = %report.op_id, router = %report.router, outcome = ?report.outcome, "operation ended");
                    return match self.refused.take() {
                        Some(error) => Err(error),
                        None => Ok(*report),
                    };
                }
            };
            queue.extend(machine.step(input));
        }
        Err(Error::corrupt("operation", "the step machine stopped without an end"))
    }

    async fn journal(&mut self, plan: &Plan, record: Record) -> Input {
        let result = match record {
            Record::OpPlanned { .. } => {
                let stored = self.store_plan(plan).await;
                stored.map_err(|error| {
                    let cause = error.to_string();
                    self.refused = Some(error);
                    cause
                })
            }
            record => match self.append(plan, record).await {
                // Somebody else holds the router now, so the device is theirs as well.
                Err(Error::Lock(error)) => return Input::LeaseLost { cause: error.to_string() },
                other => other.map_err(|error| error.to_string()),
            },
        };
        match result {
            Ok(()) => Input::JournalDurable,
            Err(cause) => Input::JournalFailed { cause },
        }
    }

    async fn store_plan(&self, plan: &Plan) -> Result<(), Error> {
        let new = NewOp {
            key: self.key,
            request: self.request,
            purpose: self.purpose,
            sealed: self.sealed(plan.op_id)?,
            token: self.lease.token().get(),
            now_ms: self.engine.db().now().wall_ms,
        };
        let (right, plan) = (self.lease.write_right(), plan.clone());
        let write = op(move |conn| {
            Box::pin(async move {
                right.check(conn).await?;
                journal::insert(conn, &plan, &new).await
            })
        });
        self.db.write(JOURNAL_PLAN, write).await
    }

    /// Appends a record with those that waited, and with the event of an ending that is no merge.
    async fn append(&mut self, plan: &Plan, record: Record) -> Result<(), Error> {
        // Secrets the device showed are needed by a merge that may happen after a restart.
        let sealed = match &record {
            Record::ConfirmIntent { .. } => self.sealed(plan.op_id)?,
            _ => None,
        };
        let event = match &record {
            Record::RolledBack => Some((types::CONFIG_ROLLED_BACK, None)),
            Record::RollbackPartial { left } => {
                Some((types::OPERATION_PARTIALLY_FAILED, Some(format!("{} rows were left", left.len()))))
            }
            Record::Cancelled { reason } => Some((types::OPERATION_FAILED, Some(reason.clone()))),
            _ => None,
        };
        let append = match event {
            Some((kind, because)) => Some(operation_event(plan, kind, because, self.engine.db().next_ulid())?),
            None => None,
        };
        let mut records = self.lazy.clone();
        records.push(record);
        let (right, op_id, now_ms) = (self.lease.write_right(), plan.op_id, self.engine.db().now().wall_ms);
        let (events, scope) = (self.engine.events().clone(), self.scope.clone());
        let write = op(move |conn| {
            Box::pin(async move {
                right.check(conn).await?;
                let before = journal::state_of(conn, op_id).await?;
                journal::append(conn, op_id, &records, sealed, now_ms).await?;
                match append.filter(|_| before.is_open()) {
                    Some(append) => Ok(Some(events.append_in(conn, &scope, vec![append]).await?)),
                    None => Ok(None),
                }
            })
        });
        let pending = self.db.write(JOURNAL, write).await?;
        self.lazy.clear();
        if let Some(pending) = pending {
            self.engine.events().published(pending).await;
        }
        Ok(())
    }

    fn sealed(&self, op_id: Ulid) -> Result<Option<Vec<u8>>, Error> {
        if self.vault.is_empty() {
            return Ok(None);
        }
        let clear = self.vault.to_clear_bytes().map_err(|error| Error::corrupt("secrets of a plan", error))?;
        Ok(Some(self.engine.seal().sealer().seal(&op_id.to_bytes(), &clear)?))
    }

    async fn merge(&mut self, plan: &Plan, rows: Vec<crate::op::journal::ConfirmedRow>) -> Result<(), Error> {
        let db = self.engine.db().clone();
        let merge = Merge {
            plan: plan.clone(),
            vault: self.vault.clone(),
            rows,
            lazy: self.lazy.clone(),
            purpose: self.purpose,
            kinds: self.engine.kinds().clone(),
            seal: self.engine.seal().clone(),
            events: self.engine.events().clone(),
            scope: self.scope.clone(),
            right: self.lease.write_right(),
            version: self.version.clone(),
            now: db.now(),
            fresh: Box::new(move || db.next_ulid()),
        };
        let write = op(move |conn| Box::pin(merge.run(conn)));
        let merged = self.db.write(MERGE, write).await?;
        self.lazy.clear();
        if let Some(pending) = merged.pending {
            self.engine.events().published(pending).await;
        }
        self.record_runtime(merged.seen, merged.gone).await;
        Ok(())
    }

    /// The runtime layer is rebuilt by any reading, so failing to write it is no failure of the operation.
    async fn record_runtime(&self, seen: Vec<(Ulid, nasnet_state::layer::runtime::Runtime)>, gone: Vec<Ulid>) {
        let scope = self.scope.to_string();
        let write = op(move |conn| {
            Box::pin(async move {
                store::runtime::record_many(conn, &scope, &seen).await?;
                for uid in gone {
                    store::runtime::forget(conn, &scope, uid).await?;
                }
                Ok(())
            })
        });
        if let Err(error) = self.engine.db().runtime().write(RUNTIME, write).await {
            tracing::warn!(scope = %self.scope, %error, "the runtime layer could not be written");
        }
    }

    async fn read(&mut self, plan: &Plan, step: usize) -> Sight {
        let planned = &plan.steps[step];
        let view = match self.view(&planned.key, &planned.kind).await {
            Ok(view) => view,
            Err(cause) => return Sight::Unreadable { cause: self.vault.redact(cause) },
        };
        let sight = view.sight(&planned.key);
        if let Ok(at) = view.find(&planned.key) {
            let schema = view.schema;
            for (field, value) in raw_secrets(schema, &view.rows[at].raw) {
                self.vault.saw(step, &field, value);
            }
        }
        sight
    }

    async fn view(&self, key: &RowKey, kind: &str) -> Result<MenuView, String> {
        let kind = kind.parse().map_err(|error: nasnet_state::Error| error.to_string())?;
        let schema = self.engine.kinds().schemas().kind(&kind).ok_or_else(|| format!("kind {kind} is not known"))?;
        let rows = list(self.device, &key.menu).await.map_err(|error| error.to_string())?;
        let rows = read_rows(schema, &key.menu, rows, self.engine.seal()).map_err(|error| error.to_string())?;
        Ok(MenuView { schema, rows })
    }

    async fn write(&mut self, plan: &Plan, step: usize, direction: Direction, id: Option<RowId>) -> Input {
        // A lease that ran out may have a new holder: from here on the device is theirs.
        if self.lease.remaining().is_zero() {
            return Input::LeaseLost { cause: "its time ran out".to_owned() };
        }
        let planned = &plan.steps[step];
        let Some(mut op) = planned.write_op(direction, id, &self.vault) else {
            let outcome = Outcome::NotSent { cause: "the row has no handle".to_owned() };
            return Input::Written { step, outcome };
        };
        if let (WriteOp::Add { fields, .. }, Some(key)) = (&mut op, planned.placement_of(direction)) {
            match self.neighbour(key, &planned.kind).await {
                Ok(Some(id)) => _ = fields.insert("place-before".to_owned(), id.0),
                // The neighbour went away meanwhile: the end of the list is the best place left.
                Ok(None) => {}
                Err(cause) => {
                    let outcome = Outcome::NotSent { cause: self.vault.redact(cause) };
                    return Input::Written { step, outcome };
                }
            }
        }
        let outcome = match self.device.write(&op).await {
            WriteOutcome::Done { row: None } => Outcome::Done { echo: None },
            WriteOutcome::Done { row: Some(row) } => Outcome::Done { echo: Some(self.echo(plan, step, row)) },
            // These words go to the journal, the events and the report, which hold no secret.
            WriteOutcome::Rejected { class, detail } => Outcome::Rejected { class, detail: self.vault.redact(detail) },
            WriteOutcome::NotSent(error) => Outcome::NotSent { cause: self.vault.redact(error.to_string()) },
            WriteOutcome::Unknown { hint } => Outcome::Unknown { hint: self.vault.redact(hint) },
        };
        Input::Written { step, outcome }
    }

    async fn neighbour(&self, key: &RowKey, kind: &str) -> Result<Option<RowId>, String> {
        let view = self.view(key, kind).await?;
        Ok(view.find(key).ok().and_then(|at| view.rows[at].seen.id.clone()))
    }

    fn echo(&mut self, plan: &Plan, step: usize, row: Row) -> Sight {
        let planned = &plan.steps[step];
        let unreadable = |cause: String| Sight::Unreadable { cause };
        let Ok(kind) = planned.kind.parse() else { return unreadable("unknown kind".to_owned()) };
        let Some(schema) = self.engine.kinds().schemas().kind(&kind) else {
            return unreadable("unknown kind".to_owned());
        };
        for (field, value) in raw_secrets(schema, &row.fields) {
            self.vault.saw(step, &field, value);
        }
        let intake = nasnet_state::SecretIntake::compare(self.engine.seal());
        match ObservedRow::read(schema, &planned.key.menu, row, &intake) {
            Ok(row) => Sight::Row { id: row.seen.id, image: row.seen.image },
            Err(error) => unreadable(self.vault.redact(error.to_string())),
        }
    }
}

/// Lists a menu; one that the device does not have is empty.
pub(crate) async fn list(device: &dyn Device, menu: &crate::device::MenuPath) -> Result<Vec<Row>, DeviceError> {
    match device.list(menu).await {
        Err(DeviceError::Refused { class: ErrorClass::NoSuchMenu, .. }) => Ok(Vec::new()),
        other => other,
    }
}

/// Returns a digest of what was asked for, so that one idempotency key cannot stand for two requests.
pub(crate) fn request_digest(engine: &Reconciler, parts: &[(&str, &RawFields)]) -> [u8; 16] {
    let mut text = String::new();
    for (head, fields) in parts {
        text.push_str(head);
        for (name, value) in *fields {
            text.push('\u{1}');
            text.push_str(name);
            text.push('\u{2}');
            text.push_str(value);
        }
        text.push('\u{3}');
    }
    engine.seal().sealer().fingerprint("reconcile/request", text.as_bytes())
}
