//! Watching and healing.

use std::collections::{BTreeMap, BTreeSet};

use nasnet_dbmanager::{Cause, Database, RouterId, Scope};
use nasnet_events::{Expected, NewEvent, StreamName, types};
use nasnet_locking::LeaseGuard;
use nasnet_state::canonical::{Domain, FieldMask, hash};
use nasnet_state::diff::{FieldState, Verdict};
use nasnet_state::layer::runtime::{DriftState, Runtime};
use nasnet_state::validate::finding::{Finding, Severity};
use nasnet_state::{Access, FieldName, Fields, Resource, Timestamp, opaque_name, store};
use ulid::Ulid;

use super::apply::{refuse_open, release};
use super::{Reconciler, menus_of, op};
use crate::device::{Device, MenuPath, RawFields};
use crate::drift::{DriftClass, DriftReport, ExtraRow, ResourceDrift, three_way};
use crate::driver::{list, request_digest};
use crate::error::Error;
use crate::journal::Purpose;
use crate::merge::timestamp;
use crate::observe::{MenuView, ObservedRow, read_rows};
use crate::op::plan::PlanHead;
use crate::op::{Intent, OpReport, RowKey, Sight};
use crate::resolve::rows::{self, Drafted, Refusal, Subject};
use crate::resolve::{assemble, row_key, schema_of};

const RUNTIME: Cause = Cause::new("runtime");

impl Reconciler {
    /// Compares every managed resource that was confirmed on the device with its row, field by field.
    ///
    /// Without drift nothing is written to flash. Drift is also appended to the event store as `drift.detected`. Rows of
    /// menus without a kind are not compared: nobody knows which of their fields only tell what the row is doing.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::Device`] when the device cannot be reached at all; a single menu it refuses to
    /// print is part of the report.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn detect_drift(&self, router: &RouterId, device: &dyn Device) -> Result<DriftReport, Error> {
        let db = self.db.router(router).await?;
        self.check_device(router, &db, device).await?;
        let resources = self.load(&db).await?;
        let managed: Vec<&Resource> = resources.values().filter(|resource| self.is_watched(resource)).collect();
        let (views, unreadable) = self.read_what_can_be_read(device, menus_of(managed.iter().copied())).await?;
        let at = timestamp(&self.db.now());
        let mut report = DriftReport {
            router: router.to_string(),
            detected_at: at,
            checked: 0,
            in_sync: 0,
            resources: Vec::new(),
            extra: Vec::new(),
            unreadable,
        };
        let mut owned: BTreeMap<MenuPath, BTreeSet<usize>> = BTreeMap::new();
        let mut seen = Vec::new();
        for resource in managed {
            let Some(compared) = self.compare(resource, &views)? else { continue };
            report.checked += 1;
            if let Some(at) = compared.at {
                owned.entry(compared.drift.menu.clone()).or_default().insert(at);
            }
            seen.extend(runtime_of(resource.uid, &compared, &views, at));
            if compared.drift.class == DriftClass::InSync {
                report.in_sync += 1;
            } else {
                report.resources.push(compared.drift);
            }
        }
        for (menu, view) in &views {
            let none = BTreeSet::new();
            let owned = owned.get(menu).unwrap_or(&none);
            let strangers = view.rows.iter().enumerate().filter(|(at, row)| !owned.contains(at) && !row.unowned);
            report.extra.extend(strangers.map(|(_, row)| ExtraRow {
                menu: menu.clone(),
                row: row.seen.id.clone(),
                name: view.schema.natural_name(&row.fields).unwrap_or_else(|| opaque_name(menu.as_str(), &row.fields)),
            }));
        }
        self.note_runtime(router, seen).await;
        if report.drifted().next().is_some() {
            self.note_drift(router, &report).await?;
        }
        Ok(report)
    }

    /// Brings the resources of a report back to what was confirmed last, as one operation with journal and undo.
    ///
    /// Only fields the report lists are written. Rows that are missing are created again, rows nobody manages and rows
    /// that cannot be told apart are left alone.
    ///
    /// # Errors
    /// As [`Reconciler::apply`]; [`Error::Stale`] when a row is not as the report says any more.
    ///
    /// # Cancel safety
    /// As [`Reconciler::apply`].
    pub async fn heal(&self, router: &RouterId, device: &dyn Device, report: &DriftReport) -> Result<OpReport, Error> {
        let db = self.db.router(router).await?;
        let lease = self.lease(router, "reconcile", "heal drift").await?;
        let result = self.heal_under(router, &db, device, report, &lease).await;
        release(lease).await;
        result
    }

    async fn heal_under(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        report: &DriftReport,
        lease: &LeaseGuard,
    ) -> Result<OpReport, Error> {
        refuse_open(router, db).await?;
        let facts = self.check_device(router, db, device).await?;
        let resources = self.load(db).await?;
        let drifted: Vec<&ResourceDrift> =
            report.drifted().filter(|drift| drift.class != DriftClass::Ambiguous).collect();
        let menus: BTreeSet<MenuPath> = drifted.iter().map(|drift| drift.menu.clone()).collect();
        let views = self.read_menus(device, menus).await?;
        let known = drifted.iter().filter_map(|drift| resources.get(&drift.uid).cloned()).collect();
        let secrets = self.reveal(db, known).await?;
        let mut drafts = Vec::new();
        for drift in drifted {
            let Some(resource) = resources.get(&drift.uid) else {
                return Err(Error::Stale { detail: format!("resource {} is gone", drift.uid) });
            };
            let known = secrets.get(&drift.uid).cloned().unwrap_or_default();
            drafts.push(self.draft_healing(resource, drift, &resources, &views, &known)?);
        }
        let head = PlanHead {
            op_id: self.db.next_ulid(),
            router: router.to_string(),
            serial: facts.serial,
            reason: "heal drift".to_owned(),
            actor: Some("reconcile".to_owned()),
        };
        let (plan, vault) = assemble(head, drafts)?;
        let request = request_digest(self, &[]);
        self.drive(router, db, device, lease, facts.version, plan, vault, Purpose::Heal, None, request).await
    }

    fn draft_healing(
        &self,
        resource: &Resource,
        drift: &ResourceDrift,
        resources: &BTreeMap<Ulid, Resource>,
        views: &BTreeMap<MenuPath, MenuView>,
        known: &RawFields,
    ) -> Result<Drafted, Error> {
        let schema = schema_of(&self.kinds, resource)?;
        let now = self.compare(resource, views)?;
        let now = now.ok_or_else(|| Error::Stale { detail: format!("{} has no confirmed row", resource.id) })?;
        if now.drift.class != drift.class || now.drift.actual_hash != drift.actual_hash {
            return Err(Error::Stale { detail: format!("the row of {} changed since", resource.id) });
        }
        let what = if drift.class == DriftClass::RowMissing { "its row is gone" } else { "somebody changed its row" };
        let subject = Subject {
            uid: resource.uid,
            kind: resource.kind.clone(),
            name: &resource.name,
            why: format!("{what}; bring back what was confirmed last"),
            intent: Intent::Restore,
            expected_version: None,
            schema,
            menu: drift.menu.clone(),
        };
        let refused = |field: &str| {
            let message = format!("{field} is not known, so the row cannot be brought back as it was");
            let finding = Finding::new("platform.irreversible", Severity::Error, resource.name.clone(), message);
            Error::Refused { findings: vec![finding] }
        };
        let base = base_of(resource).cloned().unwrap_or_default();
        let view = views.get(&drift.menu);
        match (now.at, view) {
            (Some(at), Some(view)) => {
                let moved = drift.fields.iter().filter(|field| is_moved(field));
                let names: BTreeSet<FieldName> = moved.clone().map(|field| field.field.clone()).collect();
                let wanted: Fields =
                    moved.filter_map(|field| Some((field.field.clone(), field.base.clone()?))).collect();
                let key = now.key;
                let row = &view.rows[at];
                rows::set(&self.kinds, subject, row, key, &names, &wanted, known, known).map_err(
                    |refusal| match refusal {
                        Refusal::Recreate(field) => refused(field.as_str()),
                        Refusal::Irreversible(field) => refused(&field),
                    },
                )
            }
            _ => {
                let fields = schema.intent_of(&base);
                for (field, _) in fields.secrets() {
                    if !known.contains_key(field.as_str()) {
                        return Err(refused(field.as_str()));
                    }
                }
                let lost = schema
                    .fields
                    .iter()
                    .find(|spec| spec.sensitive && spec.access == Access::Generated && !fields.contains(spec.name));
                if let Some(spec) = lost {
                    return Err(refused(spec.name));
                }
                let mut raw = schema.print(&fields);
                raw.extend(known.iter().filter(|(name, _)| fields.contains(name)).map(|(n, v)| (n.clone(), v.clone())));
                let place = view.filter(|_| schema.ordered).and_then(|view| next_row(resource, resources, view));
                Ok(rows::add(&self.kinds, subject, &fields, &raw, place))
            }
        }
    }

    /// Managed kinds with a row that the device confirmed.
    fn is_watched(&self, resource: &Resource) -> bool {
        let managed = self.kinds.schemas().kind(&resource.kind).is_some_and(|schema| !schema.is_opaque());
        managed && base_of(resource).is_some()
    }

    fn compare(&self, resource: &Resource, views: &BTreeMap<MenuPath, MenuView>) -> Result<Option<Compared>, Error> {
        let schema = schema_of(&self.kinds, resource)?;
        let (Some(key), Some(base)) = (row_key(schema, resource), base_of(resource)) else { return Ok(None) };
        let Some(view) = views.get(&key.menu) else { return Ok(None) };
        let desired = &resource.configuration.spec;
        let digest =
            |fields: &Fields, mask: &FieldMask, domain| hash(domain, &resource.kind, schema.revision, mask, fields);
        let mask = FieldMask::of(base);
        let mut drift = ResourceDrift {
            uid: resource.uid,
            kind: resource.kind.clone(),
            name: resource.name.clone(),
            menu: key.menu.clone(),
            row: None,
            class: DriftClass::RowMissing,
            fields: Vec::new(),
            base_hash: digest(base, &mask, Domain::Desired),
            desired_hash: digest(desired, &FieldMask::All, Domain::Desired),
            actual_hash: None,
        };
        let at = match view.find(&key) {
            Ok(at) => at,
            Err(sight) => {
                if matches!(sight, Sight::Ambiguous { .. }) {
                    drift.class = DriftClass::Ambiguous;
                }
                return Ok(Some(Compared { drift, key, at: None }));
            }
        };
        let row = &view.rows[at];
        let states = three_way::compare(schema, base, desired, &row.fields, &hidden_of(schema, base, row));
        drift.class = DriftClass::of(&states);
        drift.row.clone_from(&row.seen.id);
        drift.fields = states.into_iter().filter(|state| state.verdict != Verdict::InSync).collect();
        let shown = crate::observe::settable(schema, &row.fields);
        drift.actual_hash = Some(digest(&shown, &FieldMask::All, Domain::Observed));
        Ok(Some(Compared { drift, key, at: Some(at) }))
    }

    async fn read_what_can_be_read(
        &self,
        device: &dyn Device,
        menus: BTreeSet<MenuPath>,
    ) -> Result<(BTreeMap<MenuPath, MenuView>, Vec<(MenuPath, String)>), Error> {
        let (mut views, mut unreadable) = (BTreeMap::new(), Vec::new());
        for menu in menus {
            match list(device, &menu).await {
                Ok(rows) => {
                    let schema = self.kinds.schemas().for_menu(menu.as_str());
                    let rows = read_rows(schema, &menu, rows, &self.seal)?;
                    views.insert(menu, MenuView { schema, rows });
                }
                Err(error @ crate::device::DeviceError::Unreachable { .. }) => return Err(error.into()),
                Err(error) => unreadable.push((menu, error.to_string())),
            }
        }
        Ok((views, unreadable))
    }

    /// The runtime layer is in tmpfs and rebuilt by any reading: failing to write it fails nothing.
    pub(super) async fn note_runtime(&self, router: &RouterId, seen: Vec<(Ulid, Runtime)>) {
        let scope = Scope::Router(router.clone()).to_string();
        let write =
            op(move |conn| Box::pin(async move { Ok(store::runtime::record_many(conn, &scope, &seen).await?) }));
        if let Err(error) = self.db.runtime().write(RUNTIME, write).await {
            tracing::warn!(%router, %error, "the runtime layer could not be written");
        }
    }

    async fn note_drift(&self, router: &RouterId, report: &DriftReport) -> Result<(), Error> {
        let drifted: Vec<&ResourceDrift> = report.drifted().collect();
        let stream = StreamName::parse("drift/router")?;
        // A router may have drifted in more places than one append takes.
        for drifted in drifted.chunks(DRIFTS_MAX) {
            let mut events = Vec::with_capacity(drifted.len());
            for drift in drifted {
                events.push(NewEvent::new(self.db.next_ulid(), types::DRIFT_DETECTED, drift)?.actor("reconcile"));
            }
            self.events.append(&Scope::Router(router.clone()), &stream, Expected::Any, events).await?;
        }
        Ok(())
    }
}

/// Drifted resources noted in one append.
const DRIFTS_MAX: usize = 1_000;

/// One resource compared.
struct Compared {
    drift: ResourceDrift,
    key: RowKey,
    /// Its row in the menu's view.
    at: Option<usize>,
}

fn base_of(resource: &Resource) -> Option<&Fields> {
    Some(&resource.deployment.as_ref()?.current.as_ref()?.record.last_applied)
}

fn is_moved(field: &FieldState) -> bool {
    matches!(field.verdict, Verdict::DeviceDrift | Verdict::Conflict)
}

/// Secrets the device hides, by a mask or by leaving them out.
fn hidden_of(schema: &nasnet_state::KindSchema, base: &Fields, row: &ObservedRow) -> BTreeSet<FieldName> {
    let sensitive = |name: &FieldName| schema.field(name.as_str()).is_some_and(|spec| spec.sensitive);
    let left_out = base.names().filter(|name| sensitive(name) && !row.fields.contains(name.as_str()));
    row.hidden.iter().chain(left_out).cloned().collect()
}

/// Finds the row before which a missing one belongs: resources are numbered in the order their rows were met.
fn next_row(missing: &Resource, resources: &BTreeMap<Ulid, Resource>, view: &MenuView) -> Option<RowKey> {
    let later = resources.range(missing.uid..).skip(1).map(|(_, resource)| resource);
    let keys = later.filter(|other| other.kind == missing.kind).filter_map(|other| row_key(view.schema, other));
    keys.into_iter().find(|key| view.find(key).is_ok())
}

fn runtime_of(
    uid: Ulid,
    compared: &Compared,
    views: &BTreeMap<MenuPath, MenuView>,
    at: Timestamp,
) -> Option<(Ulid, Runtime)> {
    let row = views.get(&compared.drift.menu).zip(compared.at).map(|(view, at)| &view.rows[at]);
    let mut runtime = match row {
        Some(row) => Runtime::of_reading(&row.fields, &row.hidden, at),
        None => Runtime::of_reading(&Fields::new(), &BTreeSet::new(), at),
    };
    let names = |verdict: fn(&FieldState) -> bool| {
        compared.drift.fields.iter().filter(|field| verdict(field)).map(|field| field.field.clone()).collect()
    };
    runtime.drift = match compared.drift.class {
        DriftClass::InSync | DriftClass::PendingChange => DriftState::InSync,
        DriftClass::Unverifiable => DriftState::Unverifiable(names(|field| field.verdict == Verdict::Unverifiable)),
        DriftClass::Changed | DriftClass::Conflict => DriftState::Drifted(names(is_moved)),
        DriftClass::RowMissing => DriftState::Missing,
        DriftClass::Ambiguous => DriftState::Error("several rows answer to its key".to_owned()),
    };
    Some((uid, runtime))
}
