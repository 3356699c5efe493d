//! Observe and adopt: a router's configuration becomes resources, without writing anything to the router.

use std::collections::{BTreeMap, BTreeSet};

use nasnet_dbmanager::{Cause, Database, RouterId, Scope};
use nasnet_locking::LeaseGuard;
use nasnet_state::layer::deployment::DeploymentRecord;
use nasnet_state::layer::metadata::Source;
use nasnet_state::layer::runtime::Runtime;
use nasnet_state::{
    ChangeEvent, ConfigurationWrite, Fields, KindSchema, NewResource, Resource, SecretIntake, Stamp, UniqueNames,
    opaque_name, store,
};
use ulid::Ulid;

use super::apply::{refuse_open, release};
use super::matching::{content, match_rows, without_volatile};
use super::{Reconciler, op};
use crate::device::{Device, DeviceError, ErrorClass, MenuPath, Row};
use crate::error::Error;
use crate::merge::{SECRET_VERSION, change_stream, row_ref, timestamp};
use crate::observe::{ObservedRow, generated, settable};
use crate::resolve::{row_key, schema_of};

const IMPORT: Cause = Cause::new("import");

/// Resources in one transaction: large enough to be fast, small enough not to hold up other writers.
const BATCH: usize = 500;

/// What an import found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportReport {
    /// Rows read.
    pub rows: usize,
    /// Resources created, of managed kinds.
    pub created: usize,
    /// Resources created for rows of menus without a kind.
    pub created_opaque: usize,
    /// Rows that already were resources and are as they were.
    pub unchanged: usize,
    /// Rows that already were resources and whose record was brought up to date: rows of menus without a kind whose
    /// values changed, and rows that have another handle now.
    pub refreshed: usize,
    /// Managed resources whose rows differ from what was confirmed: that is drift, not import.
    pub differing: Vec<Ulid>,
    /// Resources whose rows are gone: drift as well.
    pub missing: Vec<Ulid>,
    /// Rows nobody can own: made by a protocol, or always there.
    pub skipped: usize,
    /// Values that are no value of their field's type; kept as text.
    pub not_understood: usize,
    /// Menus the device does not have.
    pub absent: usize,
    /// Menus it refused to print, with the reason.
    pub unreadable: Vec<(MenuPath, String)>,
}

/// One resource to be created.
struct Adoption {
    new: NewResource,
    record: DeploymentRecord,
    runtime: Runtime,
}

/// One resource to be brought up to date.
struct Refresh {
    uid: Ulid,
    spec: Option<Fields>,
    record: DeploymentRecord,
    runtime: Runtime,
}

/// What one batch writes.
#[derive(Default)]
struct Batch {
    adoptions: Vec<Adoption>,
    refreshes: Vec<Refresh>,
}

impl Batch {
    fn len(&self) -> usize {
        self.adoptions.len() + self.refreshes.len()
    }

    /// Takes out as much as one transaction may hold.
    fn take(&mut self, max: usize) -> Self {
        let adoptions: Vec<Adoption> = self.adoptions.drain(..self.adoptions.len().min(max)).collect();
        let left = (max - adoptions.len()).min(self.refreshes.len());
        Self { adoptions, refreshes: self.refreshes.drain(..left).collect() }
    }
}

impl Reconciler {
    /// Reads menus of a router and adopts every row as a resource: managed kinds with typed fields, everything else as
    /// opaque rows. Nothing is written to the router.
    ///
    /// Rows that already are resources are recognised by marker, natural key, handle or content, so importing again
    /// creates nothing twice. The first import also remembers the device's serial number.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::Device`] when the device cannot be reached; [`Error::Lock`];
    /// [`Error::OperationOpen`] (call [`Reconciler::recover`]); [`Error::State`], [`Error::Events`],
    /// [`Error::Database`]: batches before the failing one stay imported.
    ///
    /// # Cancel safety
    /// Safe: what was imported stays, the rest is imported next time.
    pub async fn import(
        &self,
        router: &RouterId,
        device: &dyn Device,
        menus: &[MenuPath],
    ) -> Result<ImportReport, Error> {
        let db = self.db.router(router).await?;
        let lease = self.lease(router, "import", "import the router's configuration").await?;
        let result = self.import_under(router, &db, device, menus, &lease).await;
        release(lease).await;
        result
    }

    async fn import_under(
        &self,
        router: &RouterId,
        db: &Database,
        device: &dyn Device,
        menus: &[MenuPath],
        lease: &LeaseGuard,
    ) -> Result<ImportReport, Error> {
        // Its rows would be adopted as resources of their own, which its merge could not become any more.
        refuse_open(router, db).await?;
        let facts = self.check_device(router, db, device).await?;
        let resources = self.load(db).await?;
        let mut report = ImportReport::default();
        let mut names = UniqueNames::new();
        for resource in resources.values() {
            names.take(&resource.kind, &resource.name);
        }
        let mut by_menu: BTreeMap<MenuPath, Vec<&Resource>> = BTreeMap::new();
        for resource in resources.values() {
            let schema = schema_of(&self.kinds, resource)?;
            if let Some(key) = row_key(schema, resource) {
                by_menu.entry(key.menu).or_default().push(resource);
            }
        }
        let mut batch = Batch::default();
        for menu in menus {
            let rows = match device.list(menu).await {
                Ok(rows) => rows,
                Err(DeviceError::Refused { class: ErrorClass::NoSuchMenu, .. }) => {
                    report.absent += 1;
                    continue;
                }
                Err(error @ DeviceError::Unreachable { .. }) => return Err(error.into()),
                Err(error) => {
                    report.unreadable.push((menu.clone(), error.to_string()));
                    continue;
                }
            };
            report.rows += rows.len();
            let owned = by_menu.remove(menu).unwrap_or_default();
            let reading = Reading { menu, rows, owned, version: &facts.version };
            self.adopt_menu(reading, &mut names, &mut report, &mut batch)?;
            while batch.len() >= BATCH {
                self.write_batch(router, db, lease, batch.take(BATCH)).await?;
            }
        }
        self.write_batch(router, db, lease, batch).await?;
        Ok(report)
    }

    fn adopt_menu(
        &self,
        reading: Reading<'_>,
        names: &mut UniqueNames,
        report: &mut ImportReport,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let Reading { menu, rows, owned, version } = reading;
        let schema = self.kinds.schemas().for_menu(menu.as_str());
        let compare = SecretIntake::compare(&self.seal);
        let mut observed = Vec::with_capacity(rows.len());
        for row in &rows {
            observed.push(ObservedRow::read(schema, menu, row.clone(), &compare)?);
        }
        let matches = match_rows(schema, &owned, &observed);
        let found: BTreeSet<usize> = matches.iter().flatten().copied().collect();
        let missing = owned.iter().enumerate().filter(|(at, _)| !found.contains(at));
        report.missing.extend(missing.map(|(_, resource)| resource.uid));
        for ((row, seen), owner) in rows.into_iter().zip(observed).zip(matches) {
            match owner.map(|at| owned[at]) {
                Some(resource) => self.meet_again(schema, menu, resource, row, &seen, version, report, batch)?,
                None if seen.unowned => report.skipped += 1,
                None => {
                    let adoption = self.adopt(schema, menu, row, &seen, version, names, report)?;
                    batch.adoptions.push(adoption);
                }
            }
        }
        Ok(())
    }

    fn adopt(
        &self,
        schema: &'static KindSchema,
        menu: &MenuPath,
        row: Row,
        seen: &ObservedRow,
        version: &str,
        names: &mut UniqueNames,
        report: &mut ImportReport,
    ) -> Result<Adoption, Error> {
        let uid = self.db.next_ulid();
        let sealed = ObservedRow::read(schema, menu, row, &SecretIntake::store(&self.seal, uid, SECRET_VERSION))?;
        report.not_understood += sealed.fields.iter().filter(|(_, value)| is_opaque_value(schema, value)).count();
        let spec = wish_of(schema, &sealed.fields);
        let kind = schema.kind();
        let name = names.next(&kind, &proposed_name(schema, menu, &sealed.fields));
        if schema.is_opaque() {
            report.created_opaque += 1;
        } else {
            report.created += 1;
        }
        let record = self.record(schema, menu, &sealed, &spec, 1, uid, version);
        let at = timestamp(&self.db.now());
        let runtime = Runtime::of_reading(&seen.fields, &seen.hidden, at);
        let new = NewResource::new(uid, kind, schema.revision, name, spec).source(Source::Import);
        Ok(Adoption { new, record, runtime })
    }

    #[expect(clippy::too_many_arguments, reason = "one row with all that is known of it")]
    fn meet_again(
        &self,
        schema: &'static KindSchema,
        menu: &MenuPath,
        resource: &Resource,
        row: Row,
        seen: &ObservedRow,
        version: &str,
        report: &mut ImportReport,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let Some(current) = resource.deployment.as_ref().and_then(|deployment| deployment.current.as_ref()) else {
            return Ok(());
        };
        let stored = &current.record;
        let same = content(schema, &stored.last_applied) == content(schema, &seen.fields);
        let handle = stored.rows.first().and_then(|row| row.id.clone());
        let same_handle = handle == seen.seen.id.as_ref().map(ToString::to_string);
        if same && same_handle {
            report.unchanged += 1;
            return Ok(());
        }
        if !same && !schema.is_opaque() {
            report.differing.push(resource.uid);
            return Ok(());
        }
        let intake = SecretIntake::store(&self.seal, resource.uid, SECRET_VERSION);
        let sealed = ObservedRow::read(schema, menu, row, &intake)?;
        let spec = (!same).then(|| wish_of(schema, &sealed.fields));
        let wanted = spec.as_ref().unwrap_or(&resource.configuration.spec);
        let generation = resource.configuration.generation + u64::from(!same);
        let record = self.record(schema, menu, &sealed, wanted, generation, resource.uid, version);
        let runtime = Runtime::of_reading(&seen.fields, &seen.hidden, timestamp(&self.db.now()));
        report.refreshed += 1;
        batch.refreshes.push(Refresh { uid: resource.uid, spec, record, runtime });
        Ok(())
    }

    /// Returns the record of a row that was found on the device: it is there, so it counts as confirmed.
    fn record(
        &self,
        schema: &'static KindSchema,
        menu: &MenuPath,
        row: &ObservedRow,
        wanted: &Fields,
        generation: u64,
        operation: Ulid,
        version: &str,
    ) -> DeploymentRecord {
        let at = timestamp(&self.db.now());
        let applied = without_volatile(schema, settable(schema, &row.fields));
        let mut record = DeploymentRecord::confirmed(generation, operation, applied, at);
        record.generated = generated(schema, &row.fields, wanted);
        record.rows = vec![row_ref(schema, menu, row.seen.id.as_ref(), row.seen.marker.clone(), &row.fields)];
        record.device_version = Some(version.to_owned());
        record.confirmed_by = vec!["import".to_owned()];
        record
    }

    async fn write_batch(
        &self,
        router: &RouterId,
        db: &Database,
        lease: &LeaseGuard,
        batch: Batch,
    ) -> Result<(), Error> {
        if batch.adoptions.is_empty() && batch.refreshes.is_empty() {
            return Ok(());
        }
        let seen: Vec<(Ulid, Runtime)> = batch
            .adoptions
            .iter()
            .map(|adoption| (adoption.new.uid, adoption.runtime.clone()))
            .chain(batch.refreshes.iter().map(|refresh| (refresh.uid, refresh.runtime.clone())))
            .collect();
        let (right, events, scope) = (lease.write_right(), self.events.clone(), Scope::Router(router.clone()));
        let stamp = Stamp::new(timestamp(&self.db.now()), "import");
        let ids = self.db.clone();
        let write = op(move |conn| {
            Box::pin(async move {
                right.check(conn).await?;
                let fresh = move || ids.next_ulid();
                let mut changes: BTreeMap<Ulid, Vec<ChangeEvent>> = BTreeMap::new();
                let (new, records): (Vec<NewResource>, Vec<(Ulid, DeploymentRecord)>) = batch
                    .adoptions
                    .into_iter()
                    .map(|adoption| {
                        let uid = adoption.new.uid;
                        (adoption.new, (uid, adoption.record))
                    })
                    .unzip();
                for event in store::create_many(conn, new, &stamp).await? {
                    changes.entry(event.uid).or_default().push(event);
                }
                for event in store::record_deployments(conn, records, &stamp).await? {
                    changes.entry(event.uid).or_default().push(event);
                }
                for refresh in batch.refreshes {
                    let uid = refresh.uid;
                    let mut of_one = Vec::new();
                    if let Some(spec) = refresh.spec {
                        let version = store::get(conn, uid).await?.versions.configuration;
                        let write = ConfigurationWrite::spec(spec);
                        of_one.extend(store::write_configuration(conn, uid, version, write, &stamp).await?);
                    }
                    let mut record = refresh.record;
                    record.generation = store::get(conn, uid).await?.configuration.generation;
                    of_one.push(store::record_deployment(conn, uid, record, &stamp).await?);
                    changes.entry(uid).or_default().extend(of_one);
                }
                let appends = changes.into_iter().map(|(uid, changes)| change_stream(uid, changes, None, &fresh));
                let appends = appends.collect::<Result<Vec<_>, Error>>()?;
                Ok(events.append_in(conn, &scope, appends).await?)
            })
        });
        let pending = db.write(IMPORT, write).await?;
        self.events.published(pending).await;
        self.note_runtime(router, seen).await;
        Ok(())
    }
}

/// One menu as it was read, with the resources that have rows in it.
struct Reading<'a> {
    menu: &'a MenuPath,
    rows: Vec<Row>,
    owned: Vec<&'a Resource>,
    version: &'a str,
}

fn wish_of(schema: &KindSchema, fields: &Fields) -> Fields {
    without_volatile(schema, schema.intent_of(fields))
}

fn is_opaque_value(schema: &KindSchema, value: &nasnet_state::FieldValue) -> bool {
    !schema.is_opaque() && matches!(value, nasnet_state::FieldValue::Opaque(_))
}

/// What people would call a row.
fn proposed_name(schema: &KindSchema, menu: &MenuPath, fields: &Fields) -> String {
    if schema.is_opaque() {
        return opaque_name(menu.as_str(), fields);
    }
    if let Some(name) = schema.natural_name(fields) {
        return name;
    }
    let text = |name: &str| fields.text(name).filter(|text| !text.is_empty());
    let described = || match (text("chain"), text("action")) {
        (Some(chain), Some(action)) => format!("{chain} {action}"),
        (Some(chain), None) => chain.to_owned(),
        _ => menu.to_string(),
    };
    text("name").or_else(|| text("comment")).map_or_else(described, str::to_owned)
}

#[cfg(test)]
mod tests {
    use nasnet_state::Timestamp;

    use super::*;

    #[test]
    fn no_transaction_holds_more_than_a_batch_whatever_it_is_made_of() {
        let at = Timestamp::synced(0);
        let refresh = |uid: u128| Refresh {
            uid: Ulid::from(uid),
            spec: None,
            record: DeploymentRecord::confirmed(1, Ulid::from(uid), Fields::new(), at),
            runtime: Runtime::of_reading(&Fields::new(), &BTreeSet::new(), at),
        };
        let mut batch = Batch { adoptions: Vec::new(), refreshes: (0..25).map(refresh).collect() };
        let mut taken = Vec::new();
        for expected in [10, 10, 5, 0] {
            let full = batch.take(10);
            assert_eq!(full.len(), expected);
            taken.extend(full.refreshes.iter().map(|refresh| refresh.uid));
        }
        assert_eq!(taken, (0..25).map(Ulid::from).collect::<Vec<_>>());
    }
}
