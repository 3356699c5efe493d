//! Readers see every event once and in order while events move under them: flush, seal, archive, training of
//! dictionaries and what retention removes run at the same time as appends.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt;
use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{ColdOptions, Error, EventStore, Expected, FlushReason, Position, Query, prepare_cold_dir};
use support::{Site, event, keep_nothing, router, stream};
use ulid::Ulid;

/// What was acknowledged, in the order of positions, and how far it may be relied on to be complete.
#[derive(Default)]
struct Model {
    acked: Mutex<Vec<(Position, Ulid, Scope)>>,
}

impl Model {
    fn add(&self, position: Position, id: Ulid, scope: Scope) {
        let mut acked = self.acked.lock().unwrap();
        acked.push((position, id, scope));
        acked.sort_by_key(|(position, ..)| *position);
    }

    fn all(&self) -> Vec<(Position, Ulid)> {
        self.acked.lock().unwrap().iter().map(|(position, id, _)| (*position, *id)).collect()
    }

    fn of(&self, wanted: &Scope) -> Vec<(Position, Ulid)> {
        let acked = self.acked.lock().unwrap();
        acked.iter().filter(|(.., scope)| scope == wanted).map(|(position, id, _)| (*position, *id)).collect()
    }
}

fn scopes() -> [Scope; 3] {
    [Scope::System, router("r1"), router("r2")]
}

/// Has retention remove from the warm tier what the cold one has, and takes out of the hot tier what all scopes have there.
async fn prune(manager: &DbManager, store: &EventStore) -> u64 {
    store.mark_age().await.unwrap();
    let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    let status = store.status().await.unwrap();
    let confirmed = status.warm.iter().map(|scope| scope.as_ref().unwrap().archived_through);
    let Some(confirmed) = confirmed.min().flatten() else { return report.events };
    let seq = i64::try_from(confirmed.seq).unwrap();
    manager
        .hot()
        .write(support::TEST, move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "DELETE FROM hot_log WHERE first_seq + count - 1 <= ?1
                     AND first_seq < (SELECT MAX(first_seq) FROM hot_log)",
                )
                .bind(seq)
                .execute(conn)
                .await?;
                Ok::<_, Error>(())
            })
        })
        .await
        .unwrap();
    report.events
}

async fn append(manager: DbManager, store: EventStore, model: Arc<Model>, by: usize, rounds: usize) {
    for round in 0..rounds {
        let scope = scopes()[(by + round) % 3].clone();
        let kind = ["metric.updated", "resource.updated", "config.applied"][round % 3];
        let events: Vec<_> = (0..=round % 4).map(|_| event(&manager, kind)).collect();
        let ids: Vec<Ulid> = events.iter().map(|event| event.id).collect();
        let name = stream(&format!("resource/{by}"));
        let receipt = store.append(&scope, &name, Expected::Any, events).await.unwrap();
        for (seq, id) in (receipt.first.seq..=receipt.last.seq).zip(ids) {
            model.add(Position::new(receipt.first.epoch, seq), id, scope.clone());
        }
    }
}

/// Reads the way `round` says and compares with what was acknowledged before and after.
async fn read_once(store: &EventStore, model: &Model, round: usize) {
    let scope = scopes()[round % 3].clone();
    let one_scope = round % 2 == 1;
    let expected = || if one_scope { model.of(&scope) } else { model.all() };
    // Readers see positions up to the first transaction that has not ended.
    let stable = store.status().await.unwrap().stable;
    let before: Vec<_> = expected().into_iter().filter(|(position, _)| *position <= stable).collect();
    let mut query = if one_scope { Query::scope(scope.clone()) } else { Query::all() };
    let backwards = round % 3 == 2;
    if backwards {
        query = query.backwards();
    }
    // In one stream, or in pages that each go on where the last one ended.
    let mut found: Vec<(Position, Ulid)> = Vec::new();
    let at = |event: nasnet_events::Recorded| (event.position, event.id);
    if round % 4 == 3 && !backwards {
        loop {
            let after = found.last().map_or(Position::START, |(position, _)| *position);
            let page: Vec<_> = store.read(query.clone().after(after).limit(37)).map_ok(at).try_collect().await.unwrap();
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
    } else {
        found = store.read(query).map_ok(at).try_collect().await.unwrap();
    }
    if backwards {
        found.reverse();
    }
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "round {round}: out of order or twice");
    let missing: Vec<_> = before.iter().filter(|event| found.binary_search(event).is_err()).collect();
    assert!(missing.is_empty(), "round {round}: {} of {} are missing: {missing:?}", missing.len(), before.len());
    // Nothing is made up: what was found is acknowledged by now, or just about to be.
    let after = expected();
    let unknown = found.iter().filter(|event| after.binary_search(event).is_err()).count();
    assert!(unknown <= 3 * 4, "round {round}: {unknown} events nobody appended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_every_event_once_while_events_move() {
    let site = Site::new();
    let mut options = keep_nothing().cold(ColdOptions::new(site.cold()).allow_same_device());
    // As many rows as make a segment are too many.
    options.rows_max = 1;
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let model = Arc::new(Model::default());
    let appending = Arc::new(AtomicBool::new(true));

    let movers = {
        let (manager, store, appending) = (manager.clone(), store.clone(), Arc::clone(&appending));
        tokio::spawn(async move {
            let (mut sealed, mut archived, mut removed, mut rounds) = (0, 0, 0, 0);
            // On a busy machine the appends may end before everything has moved once.
            while appending.load(Ordering::Acquire) || (removed * archived * sealed == 0 && rounds < 30) {
                assert!(store.flush(FlushReason::Requested).await.unwrap().failed.is_empty());
                let report = store.seal().await.unwrap();
                assert!(report.failed.is_empty(), "{report:?}");
                sealed += report.events;
                store.train().await.unwrap();
                if rounds % 3 == 2 {
                    let report = store.archive().await.unwrap();
                    assert!(report.failed.is_empty(), "{report:?}");
                    archived += report.events;
                    removed += prune(&manager, &store).await;
                }
                rounds += 1;
            }
            (sealed, archived, removed)
        })
    };
    let readers: Vec<_> = (0..2)
        .map(|reader| {
            let (store, model, appending) = (store.clone(), Arc::clone(&model), Arc::clone(&appending));
            tokio::spawn(async move {
                let mut round = reader;
                while appending.load(Ordering::Acquire) || round < 12 {
                    read_once(&store, &model, round).await;
                    round += 1;
                }
            })
        })
        .collect();
    let appenders: Vec<_> =
        (0..3).map(|by| tokio::spawn(append(manager.clone(), store.clone(), Arc::clone(&model), by, 150))).collect();
    for appender in appenders {
        appender.await.unwrap();
    }
    appending.store(false, Ordering::Release);
    let (sealed, archived, removed) = movers.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(sealed > 0 && archived > 0 && removed > 0, "sealed {sealed}, archived {archived}, removed {removed}");
    for round in 0..12 {
        read_once(&store, &model, round).await;
    }
}
