//! Step 9: the database of one router is lost and comes back from a backup, while the other routers go on.

use std::path::PathBuf;

use futures_util::TryStreamExt as _;
use nasnet_dbmanager::{Cause, DbManager, Error, Manifest, NewRouter, RestoreMode, RouterId, Scope, Which};
use nasnet_events::{EventType, Expected, NewEvent, Query, StreamAppend, StreamName};
use nasnet_reconcile::routeros::kinds;
use nasnet_state::{FieldValue, Fields, NewResource, Stamp, store};

use super::checks::Checks;
use super::stale_holder::WriteError;
use super::{Demo, Failure, timestamp};

/// The router whose database is lost.
const BRANCH: &str = "branch-office";
const READ: Cause = Cause::new("demo-read");

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let branch: RouterId = BRANCH.parse()?;
    if demo.manager.system().routers().get(&branch).await?.is_none() {
        demo.manager.create_router(NewRouter::new(branch.clone()).name("a second router")).await?;
    }
    add_bridge(demo, &branch).await?;
    let before = names(demo, &branch).await?;
    let events_before = events(demo, &branch).await?;
    let manifest = demo.manager.backup(Which::Router(branch.clone()), demo.manager.data_dir().join("backup")).await?;
    demo.manager.verify_backup(&manifest).await?;
    checks.that("the backup is whole", true, "decompressed, checked and counted");

    // Somebody deletes the directory under the running program.
    std::fs::remove_dir_all(directory(demo, &branch))?;
    let lost = demo.manager.router(&branch).await.map(|database| database.is_in_place());
    let seen = match &lost {
        Ok(true) => "in place".to_owned(),
        Ok(false) => "the open file has no name any more".to_owned(),
        Err(error) => error.to_string(),
    };
    checks.that("the loss is noticed", !matches!(lost, Ok(true)), seen);
    let others = names(demo, &demo.router_id).await?;
    checks.that("the other router goes on", others > 0, format!("{others} resources"));

    let report = demo.manager.restore(&manifest, RestoreMode::Router(branch.clone())).await?;
    checks.equal("the router is restored", &report.restored.iter().map(|router| &router.id).collect(), &vec![&branch]);
    checks.equal("with every resource", &names(demo, &branch).await?, &before);
    checks.equal("and every event", &events(demo, &branch).await?, &events_before);
    add_bridge(demo, &branch).await?;
    checks.equal("and it can be written again", &names(demo, &branch).await?, &(before + 1));
    demo.operation("loss of one router's database", "restored from its backup");
    Ok(())
}

/// Restores a router from the newest backup that can be read.
pub(crate) async fn restore_newest(manager: &DbManager, router: &RouterId) -> Result<(), Error> {
    let mut backups = manager.backups().await?;
    backups.sort_by_key(|backup| std::cmp::Reverse(backup.created_ms));
    let mut manifests = backups.iter().filter_map(|backup| Manifest::read(&backup.path).ok());
    let Some(manifest) = manifests.find(|manifest| manifest.routers().contains(router)) else {
        return manager.router(router).await.map(drop);
    };
    manager.restore(&manifest, RestoreMode::Router(router.clone())).await.map(drop)
}

fn directory(demo: &Demo, router: &RouterId) -> PathBuf {
    demo.manager.data_dir().join("routers").join(router.as_str())
}

async fn names(demo: &Demo, router: &RouterId) -> Result<usize, Failure> {
    let database = demo.manager.router(router).await?;
    let count = database
        .read::<_, WriteError, _>(READ, |conn| Box::pin(async move { Ok(store::names(conn).await?.len()) }))
        .await?;
    Ok(count)
}

async fn events(demo: &Demo, router: &RouterId) -> Result<usize, Failure> {
    let all: Vec<_> = demo.events.read(Query::scope(Scope::Router(router.clone()))).try_collect().await?;
    Ok(all.len())
}

/// Makes a resource and its event, in one transaction.
async fn add_bridge(demo: &Demo, router: &RouterId) -> Result<(), Failure> {
    let database = demo.manager.router(router).await?;
    let (events, scope, now) = (demo.events.clone(), Scope::Router(router.clone()), demo.manager.now());
    let (uid, id) = (demo.manager.next_ulid(), demo.manager.next_ulid());
    let name = format!("bridge-{uid}").to_lowercase();
    let pending = database
        .write::<_, WriteError, _>(Cause::new("demo-write"), move |conn| {
            Box::pin(async move {
                let spec = Fields::new().with("name", FieldValue::Str(name.clone()));
                let new = NewResource::new(uid, kinds::BRIDGE.kind(), kinds::BRIDGE.revision, name, spec);
                let change = store::create(conn, new, &Stamp::new(timestamp(&now), "demo")).await?;
                let event = NewEvent::new(id, EventType::parse(change.event_type())?, &change)?;
                let stream = StreamName::parse(&format!("resource/{uid}"))?;
                let append = StreamAppend::new(stream, Expected::Unwritten, vec![event]);
                Ok(events.append_in(conn, &scope, vec![append]).await?)
            })
        })
        .await?;
    demo.events.published(pending).await;
    Ok(())
}
