//! The merge: what the router confirmed becomes the stored state, in one transaction.
//!
//! Resources, deployment revisions, events and the journal's last record are written by one write op on the router's
//! database, after the lease was checked in it. Runtime layers live in another file and are rebuilt by any reading.

use std::sync::Arc;

use nasnet_dbmanager::{Now, Scope};
use nasnet_events::{EventStore, EventType, Expected, NewEvent, PendingReceipt, StreamAppend, StreamName, types};
use nasnet_locking::WriteRight;
use nasnet_state::layer::deployment::{DeploymentRecord, RowRef};
use nasnet_state::layer::metadata::Source;
use nasnet_state::layer::runtime::Runtime;
use nasnet_state::{
    ChangeEvent, ConfigurationWrite, FieldName, Fields, KindSchema, MENU_FIELD, NewResource, SecretIntake, Stamp,
    Timestamp, store,
};
use serde::Serialize;
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::device::{MenuPath, RawFields, RowId};
use crate::error::Error;
use crate::journal::{self, Purpose};
use crate::kinds::Kinds;
use crate::observe::{generated, settable};
use crate::op::journal::ConfirmedRow;
use crate::op::{Action, Direction, Intent, JournalState, Plan, Record, Step, Vault, Wire};
use crate::seal::StateSeal;

/// The version of the secrets of a resource: a secret is told from another by its fingerprint.
pub(crate) const SECRET_VERSION: u32 = 1;

/// Everything a merge needs, owned, so that a write op can carry it.
pub(crate) struct Merge {
    pub(crate) plan: Plan,
    pub(crate) vault: Vault,
    pub(crate) rows: Vec<ConfirmedRow>,
    /// Records that ride along.
    pub(crate) lazy: Vec<Record>,
    pub(crate) purpose: Purpose,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) seal: StateSeal,
    pub(crate) events: EventStore,
    pub(crate) scope: Scope,
    pub(crate) right: WriteRight,
    pub(crate) version: String,
    pub(crate) now: Now,
    /// Fresh ids for the events, one a resource and one for the operation.
    pub(crate) fresh: Box<dyn Fn() -> Ulid + Send + Sync>,
}

/// What a merge leaves to be done after the commit.
pub(crate) struct Merged {
    pub(crate) pending: Option<PendingReceipt>,
    pub(crate) seen: Vec<(Ulid, Runtime)>,
    pub(crate) gone: Vec<Ulid>,
}

/// The body of the events that end an operation.
#[derive(Debug, Serialize)]
pub(crate) struct OperationEvent<'a> {
    pub(crate) op_id: Ulid,
    pub(crate) plan_hash: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) steps: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<Ulid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
}

/// Returns the moment people read.
pub(crate) fn timestamp(now: &Now) -> Timestamp {
    match now.quality {
        nasnet_dbmanager::ClockQuality::Synced => Timestamp::synced(now.wall_ms),
        _ => Timestamp::unsynced(now.wall_ms),
    }
}

impl Merge {
    /// Runs inside the write op. Repeating it after a commit that nobody heard of changes nothing.
    pub(crate) async fn run(self, conn: &mut SqliteConnection) -> Result<Merged, Error> {
        self.right.check(conn).await?;
        if journal::state_of(conn, self.plan.op_id).await? == JournalState::Merged {
            return Ok(Merged { pending: None, seen: Vec::new(), gone: Vec::new() });
        }
        let at = timestamp(&self.now);
        let stamp = Stamp::new(at, self.plan.actor.clone().unwrap_or_else(|| "reconcile".to_owned()));
        let mut appends = Vec::new();
        let mut merged = Merged { pending: None, seen: Vec::new(), gone: Vec::new() };
        for step in &self.plan.steps {
            let row = self.rows.iter().find(|row| row.step == step.index);
            let changes = self.merge_step(conn, step, row, &stamp, &mut merged).await?;
            appends.push(self.stream_of(step.uid, changes)?);
        }
        let kind = match self.purpose {
            Purpose::Change => types::CONFIG_APPLIED,
            Purpose::Heal => types::DRIFT_HEALED,
        };
        appends.push(operation_event(&self.plan, kind, None, (self.fresh)())?);
        appends.retain(|append| !append.events.is_empty());
        merged.pending = Some(self.events.append_in(conn, &self.scope, appends).await?);
        let mut records = self.lazy.clone();
        records.push(Record::Merged);
        journal::append(conn, self.plan.op_id, &records, None, self.now.wall_ms).await?;
        Ok(merged)
    }

    async fn merge_step(
        &self,
        conn: &mut SqliteConnection,
        step: &Step,
        row: Option<&ConfirmedRow>,
        stamp: &Stamp,
        merged: &mut Merged,
    ) -> Result<Vec<ChangeEvent>, Error> {
        let kind = step.kind.parse()?;
        let schema = self.kinds.schemas().kind(&kind);
        let schema = schema.ok_or_else(|| Error::corrupt("kind of a step", &step.kind))?;
        let intake = SecretIntake::store(&self.seal, step.uid, SECRET_VERSION);
        let mut events = Vec::new();
        match step.intent {
            Intent::Create => {
                let spec = wish(schema, Fields::new(), &self.asked(step), &step.asked, &intake)?;
                let revision = schema.revision;
                let mut new = NewResource::new(step.uid, kind, revision, step.name.clone(), spec).source(Source::Api);
                new.correlation_id = Some(self.plan.op_id);
                events.push(store::create(conn, new, stamp).await?);
            }
            Intent::Configure => {
                let before = store::get(conn, step.uid).await?;
                let spec = wish(schema, before.configuration.spec, &self.asked(step), &step.asked, &intake)?;
                let version = before.versions.configuration;
                let write = ConfigurationWrite::spec(spec);
                events.extend(store::write_configuration(conn, step.uid, version, write, stamp).await?);
            }
            Intent::Delete => {
                let version = store::get(conn, step.uid).await?.versions.configuration;
                events.push(store::delete(conn, step.uid, version, stamp).await?);
                merged.gone.push(step.uid);
                return Ok(events);
            }
            Intent::Restore => {}
        }
        let Some((row, image)) = row.and_then(|row| Some((row, row.image.as_ref()?))) else { return Ok(events) };
        // Back to the device's spelling: fingerprints give way to the secrets themselves, so that they can be sealed.
        let mut raw = image.clone();
        raw.retain(|name, value| {
            let spec = schema.device_field(name);
            let sensitive = spec.map_or_else(|| nasnet_state::is_sensitive_name(name), |spec| spec.sensitive);
            if !(sensitive && value.starts_with("hmac:")) {
                return true;
            }
            let secret = self.vault.seen(step.index, name);
            if let Some(secret) = secret {
                secret.clone_into(value);
            }
            secret.is_some()
        });
        if schema.is_opaque() {
            raw.insert(MENU_FIELD.to_owned(), step.key.menu.to_string());
        }
        let parsed = schema.parse(&raw, &intake)?;
        let at = stamp.at;
        let current = store::get(conn, step.uid).await?;
        let marker = match step.action {
            Action::Add => step.key.marker.clone(),
            _ => {
                let before = current.deployment.as_ref().and_then(|deployment| deployment.current.as_ref());
                before.and_then(|before| before.record.rows.first()?.marker.clone())
            }
        };
        let mut record = DeploymentRecord::confirmed(
            current.configuration.generation,
            self.plan.op_id,
            settable(schema, &parsed.fields),
            at,
        );
        record.generated = generated(schema, &parsed.fields, &current.configuration.spec);
        record.rows = vec![row_ref(schema, &step.key.menu, row.id.as_ref(), marker, &parsed.fields)];
        record.tier = Some("T3".to_owned());
        record.device_version = Some(self.version.clone());
        record.confirmed_by = vec!["read-back".to_owned()];
        events.push(store::record_deployment(conn, step.uid, record, stamp).await?);
        merged.seen.push((step.uid, Runtime::of_reading(&parsed.fields, &parsed.hidden, at)));
        Ok(events)
    }

    /// Returns what the caller asked for in the device's spelling, secrets included.
    fn asked(&self, step: &Step) -> RawFields {
        let mut raw = step.asked.fields.clone();
        for name in &step.asked.secrets {
            if let Some(value) = self.vault.get(step.index, Direction::Forward, name) {
                raw.insert(name.clone(), value.to_owned());
            }
        }
        raw
    }

    fn stream_of(&self, uid: Ulid, changes: Vec<ChangeEvent>) -> Result<StreamAppend, Error> {
        change_stream(uid, changes, Some(self.plan.op_id), &*self.fresh)
    }
}

/// Returns the append of a resource's changes to its stream.
pub(crate) fn change_stream(
    uid: Ulid,
    changes: Vec<ChangeEvent>,
    correlation: Option<Ulid>,
    fresh: &(dyn Fn() -> Ulid + Send + Sync),
) -> Result<StreamAppend, Error> {
    let mut events = Vec::with_capacity(changes.len());
    for change in &changes {
        let kind = EventType::parse(change.event_type())?;
        let mut event =
            NewEvent::new(fresh(), kind, change)?.schema(ChangeEvent::SCHEMA_VERSION).actor(change.stamp.by.clone());
        event.correlation_id = correlation;
        events.push(event);
    }
    Ok(StreamAppend::new(resource_stream(uid)?, Expected::Any, events))
}

/// Returns the stream of a resource's changes.
pub(crate) fn resource_stream(uid: Ulid) -> Result<StreamName, Error> {
    Ok(StreamName::parse(&format!("resource/{uid}"))?)
}

/// Returns the event that ends an operation, in the operation's own stream.
pub(crate) fn operation_event(
    plan: &Plan,
    kind: EventType,
    because: Option<String>,
    id: Ulid,
) -> Result<StreamAppend, Error> {
    let body = OperationEvent {
        op_id: plan.op_id,
        plan_hash: &plan.hash,
        reason: &plan.reason,
        steps: plan.steps.len(),
        resources: plan.steps.iter().map(|step| step.uid).collect(),
        because,
    };
    let mut event = NewEvent::new(id, kind, &body)?.correlation_id(plan.op_id);
    event.actor.clone_from(&plan.actor);
    let stream = StreamName::parse(&format!("operation/{}", plan.op_id))?;
    Ok(StreamAppend::new(stream, Expected::Any, vec![event]))
}

/// Returns what is known of a row on the device.
pub(crate) fn row_ref(
    schema: &KindSchema,
    menu: &MenuPath,
    id: Option<&RowId>,
    marker: Option<String>,
    fields: &Fields,
) -> RowRef {
    RowRef {
        menu: menu.to_string(),
        id: id.map(ToString::to_string),
        boot_epoch: None,
        natural_key: schema.natural_name(fields),
        marker,
    }
}

/// Returns the wish after a change. A value that somebody wrote stays a wish even when it is the device's default today:
/// the next version of the device may have another one.
fn wish(
    schema: &KindSchema,
    mut spec: Fields,
    raw: &RawFields,
    asked: &Wire,
    intake: &SecretIntake<'_>,
) -> Result<Fields, Error> {
    let parsed = schema.parse(raw, intake)?.fields;
    let device_names = raw.keys().chain(&asked.unset);
    for name in device_names {
        let spec_of = schema.device_field(name);
        let name = FieldName::from(spec_of.map_or(name.as_str(), |spec| spec.name));
        let value = parsed.get(name.as_str());
        match value {
            Some(value) => _ = spec.insert(name, value.clone()),
            None => _ = spec.remove(name.as_str()),
        }
    }
    Ok(spec)
}
