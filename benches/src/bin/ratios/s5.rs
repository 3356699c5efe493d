//! S5: what ten routers of 500 resources each take on flash after thirty days, and everything with one backup.
//!
//! Lived through with a clock moved by hand, an hour at a time: every resource is created and deployed at the beginning,
//! each is changed and deployed again once in the thirty days, all of it as state and events in one transaction, and each
//! gives one Normal event a day of what was seen of it. Flush, seal, retention and training happen hourly and daily as
//! `maintain` does them. There is no device: applying, confirming and the operation journal are not played.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasnet_benches::events::{Generator, Random, Sample};
use nasnet_benches::measure::{Ratio, exact};
use nasnet_benches::place::Place;
use nasnet_dbmanager::{Cause, DbManager, ManualClock, NewRouter, Options, RouterId, Scope, Which};
use nasnet_events::{EventOptions, EventStore, EventType, Expected, NewEvent, StreamAppend, StreamName};
use nasnet_state::layer::deployment::DeploymentRecord;
use nasnet_state::{ChangeEvent, ConfigurationWrite, Fields, KindName, NewResource, Stamp, Timestamp, store};
use serde_json::value::RawValue;
use ulid::Ulid;

use crate::Failure;

const ROUTERS: u64 = 10;
const RESOURCES: usize = 500;
const DAYS: usize = 30;
const HOURS: usize = 24;
/// Resources created in one transaction.
const CREATED: usize = 50;
const BEGINS_MS: i64 = 1_795_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);
const STATE: Cause = Cause::new("bench-state");
const MB: f64 = 1e6;
const KINDS: [&str; 6] =
    ["interface.ethernet", "dhcp.lease", "firewall.filter", "vpn.wireguard.peer", "ip.route", "bridge.port"];

/// What is done to one resource.
enum Step {
    Create(Box<NewResource>),
    /// A write at this version.
    Change(Ulid, u64, Fields),
}

struct Fleet {
    db: DbManager,
    store: EventStore,
    clock: ManualClock,
    scopes: Vec<Scope>,
    generator: Generator,
    random: Random,
}

impl Fleet {
    async fn open(place: &Place) -> Result<Self, Failure> {
        let clock = ManualClock::new(BEGINS_MS);
        let mut databases = Options::new(place.disk.path().join("data"))
            .run_dir(place.tmpfs.path().join("run"))
            .schemas(nasnet_reconcile::schema_sets());
        databases.clock = Arc::new(clock.clone());
        let db = DbManager::open(databases).await?;
        let ids: Vec<RouterId> = (0..ROUTERS).map(|number| format!("r{number}").parse()).collect::<Result<_, _>>()?;
        for id in &ids {
            db.create_router(NewRouter::new(id.clone()).name("a router").host("192.0.2.1")).await?;
        }
        let store = EventStore::open(&db, EventOptions::default()).await?;
        let scopes = ids.into_iter().map(Scope::Router).collect();
        Ok(Self { db, store, clock, scopes, generator: Generator::new(21), random: Random::new(22) })
    }

    /// Fields as a row of a router has them: about 200 bytes.
    fn spec(&mut self) -> Fields {
        let number = self.random.below(1 << 20).cast_signed();
        Fields::new()
            .with("mtu", 1_280 + number % 220)
            .with("address", format!("10.{}.{}.{}/24", number % 250, number % 240, number % 230))
            .with("mac-address", format!("48:8F:5A:{:02X}:{:02X}:{:02X}", number % 251, number % 241, number % 239))
            .with("comment", format!("uplink to the office number {number}"))
            .with("interface", "ether1")
            .with("disabled", false)
            .with("distance", number % 8)
            .with("vrf", "main")
    }

    /// Carries steps out in one transaction of a router, each with its deployment, and appends what they say.
    async fn commit(&self, scope: &Scope, steps: Vec<Step>) -> Result<(), Failure> {
        let now = Timestamp::synced(self.db.now().wall_ms);
        let (stamp, operation) = (Stamp::new(now, "anna"), self.db.next_ulid());
        let ids: Vec<[Ulid; 2]> = steps.iter().map(|_| [self.db.next_ulid(), self.db.next_ulid()]).collect();
        let (events, own) = (self.store.clone(), scope.clone());
        let database = self.db.scope(scope).await?;
        let pending = database
            .write(STATE, move |conn| {
                Box::pin(async move {
                    let mut appends = Vec::new();
                    for (step, ids) in steps.into_iter().zip(ids) {
                        let (uid, generation, spec, first) = match step {
                            Step::Create(new) => {
                                let (uid, spec) = (new.uid, new.spec.clone());
                                (uid, 1, spec, store::create(conn, *new, &stamp).await?)
                            }
                            Step::Change(uid, version, spec) => {
                                let write = ConfigurationWrite::spec(spec.clone());
                                let change = store::write_configuration(conn, uid, version, write, &stamp).await?;
                                (uid, version + 1, spec, change.ok_or("nothing changed")?)
                            }
                        };
                        let record = DeploymentRecord::confirmed(generation, operation, spec, now);
                        let second = store::record_deployment(conn, uid, record, &stamp).await?;
                        let said =
                            [first, second].into_iter().zip(ids).map(|(change, id)| event(id, operation, &change));
                        let stream = StreamName::parse(&format!("resource/{uid}"))?;
                        appends.push(StreamAppend::new(stream, Expected::Any, said.collect::<Result<_, _>>()?));
                    }
                    Ok::<_, Failure>(events.append_in(conn, &own, appends).await?)
                })
            })
            .await?;
        self.store.published(pending).await;
        Ok(())
    }

    /// Creates all resources of a router; returns their ids.
    async fn create(&mut self, scope: &Scope) -> Result<Vec<Ulid>, Failure> {
        let mut made = Vec::new();
        while made.len() < RESOURCES {
            let mut steps = Vec::new();
            for _ in 0..CREATED {
                let (uid, spec) = (self.db.next_ulid(), self.spec());
                let kind = KindName::from_static(KINDS[made.len() % KINDS.len()]);
                let new = NewResource::new(uid, kind, 1, format!("resource {}", made.len()), spec);
                steps.push(Step::Create(Box::new(new)));
                made.push(uid);
            }
            self.commit(scope, steps).await?;
        }
        Ok(made)
    }

    /// What is seen of some resources, as Normal events.
    async fn observe(&mut self, scope: &Scope, seen: &[Ulid]) -> Result<(), Failure> {
        let mut appends = Vec::new();
        for uid in seen {
            let Sample { kind, body, .. } = self.generator.sample();
            let event = NewEvent::with_body(self.db.next_ulid(), EventType::parse(kind)?, RawValue::from_string(body)?);
            appends.push(StreamAppend::new(StreamName::parse(&format!("observed/{uid}"))?, Expected::Any, vec![event]));
        }
        for receipt in self.store.append_each(scope, appends).await? {
            receipt?;
        }
        Ok(())
    }

    /// The day of every router.
    async fn live(&mut self, day: usize, resources: &[(Scope, Vec<Ulid>)]) -> Result<(), Failure> {
        for hour in 0..HOURS {
            self.clock.advance(HOUR);
            for (scope, uids) in resources {
                let of_hour = |part: usize| part * RESOURCES / HOURS;
                self.observe(scope, &uids[of_hour(hour)..of_hour(hour + 1)]).await?;
            }
            if let Some(reason) = self.store.flush_due().await {
                fine(self.store.flush(reason).await?.failed)?;
            }
            self.store.expire().await?;
            self.store.compact().await?;
            fine(self.store.seal().await?.failed)?;
        }
        for (scope, uids) in resources {
            for uid in &uids[day * RESOURCES / DAYS..(day + 1) * RESOURCES / DAYS] {
                let spec = self.spec();
                self.commit(scope, vec![Step::Change(*uid, 1, spec)]).await?;
            }
        }
        self.store.train().await?;
        self.store.mark_age().await?;
        fine(self.store.retain(self.store.retention_plan().await?).await?.failed)
    }

    async fn close(self) -> Result<(), Failure> {
        self.store.shutdown().await?;
        self.db.shutdown().await?;
        Ok(())
    }
}

fn event(id: Ulid, operation: Ulid, change: &ChangeEvent) -> Result<NewEvent, Failure> {
    let event = NewEvent::new(id, EventType::parse(change.event_type())?, change)?;
    Ok(event.schema(ChangeEvent::SCHEMA_VERSION).actor(change.stamp.by.clone()).correlation_id(operation))
}

fn fine<S: std::fmt::Debug, E: std::fmt::Display>(failed: Vec<(S, E)>) -> Result<(), Failure> {
    failed.first().map_or(Ok(()), |(scope, error)| Err(format!("{scope:?}: {error}").into()))
}

/// Bytes of the files in a directory and below.
fn bytes_in(dir: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

pub(crate) async fn rows(disk: Option<&Path>) -> Result<Vec<Ratio>, Failure> {
    let place = Place::new(disk)?;
    let data = place.disk.path().join("data");
    let mut fleet = Fleet::open(&place).await?;
    let mut resources = Vec::new();
    for scope in fleet.scopes.clone() {
        let made = fleet.create(&scope).await?;
        resources.push((scope, made));
    }
    for day in 0..DAYS {
        fleet.live(day, &resources).await?;
    }
    // As `maintain` leaves them after the last flush, logs included.
    let mut largest = 0;
    for (scope, _) in &resources {
        if let Scope::Router(id) = scope {
            largest = largest.max(bytes_in(&data.join("routers").join(id.as_str()))?);
        }
    }
    let of_system = |name: &str| std::fs::metadata(data.join(name)).map_or(0, |file| file.len());
    let system = of_system("system.db") + of_system("system.db-wal");
    fleet.db.backup(Which::Fleet, data.join("backup")).await?;
    let all = bytes_in(&data)?;
    let status = fleet.store.status().await?;
    let warm = status.warm.iter().flatten();
    let (kept, durable) = warm.fold((0, 0), |(kept, durable), scope| {
        (kept + scope.segments.events, durable + scope.rows.events + scope.sealed.events)
    });
    fleet.close().await?;
    let router = format!(
        "MB of the largest router's database, log and annexes: {RESOURCES} resources, {DAYS} days; simulated: every \
         resource created, changed and deployed twice without a device or a journal, and seen once a day ({kept} \
         Normal and {durable} durable events kept by the fleet)"
    );
    Ok(vec![
        Ratio::at_most("S5", router, exact(largest) / MB, 4.0),
        Ratio::at_most("S5", format!("MB of system.db and its log, {ROUTERS} routers"), exact(system) / MB, 2.0),
        Ratio::at_most("S5", "MB of the data directory with one backup of the fleet in it", exact(all) / MB, 50.0),
    ])
}
