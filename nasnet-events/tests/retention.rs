//! Retention removes what is old and wanted by nobody, never because of a clock, and what is left stays provable.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

#[path = "retention/record.rs"]
mod record;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use nasnet_dbmanager::{BoxFuture, ClockQuality, DbManager, Scope};
use nasnet_events::history::{Until, events_until};
use nasnet_events::{
    Blocker, Class, Error, EventOptions, EventStore, Expected, FlushReason, GuardLimits, Item, Keep, Position, Query,
    Retention, RetentionReport, SnapshotHorizon, Span, StreamAppend, TruncatedBy, evidence, prepare_cold_dir,
};
use support::watch::{consumer, ids, shown, until_caught_up};
use support::{
    NOW_MS, Site, append_in, empty_hot, event, normal, on_scope, open_with_cold, read, read_ids, router, stream,
};
use ulid::Ulid;

const DAY: Duration = Duration::from_secs(86_400);

/// Two flushed segments of two events each, and two rows, in `r1`.
async fn append_some(manager: &DbManager, store: &EventStore) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for _ in 0..2 {
        for name in ["alert.raised", "backup.made", "config.applied"] {
            let event = event(manager, name);
            ids.push(event.id);
            store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
        }
        store.flush(FlushReason::Requested).await.unwrap();
    }
    ids
}

/// The events appended up to now get so much older.
async fn let_pass(site: &Site, store: &EventStore, time: Duration) {
    store.mark_age().await.unwrap();
    site.clock.advance(time);
}

async fn retain(store: &EventStore) -> RetentionReport {
    let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    report
}

async fn warm_events(store: &EventStore, scope: &Scope) -> u64 {
    let status = store.status().await.unwrap();
    let warm = status.warm.iter().flatten().find(|status| status.scope == *scope).unwrap();
    warm.rows.events + warm.segments.events + warm.sealed.events
}

async fn blockers(store: &EventStore) -> Vec<Blocker> {
    let plan = store.retention_plan().await.unwrap();
    plan.scope(&router("r1")).unwrap().blocked.iter().map(|blocked| blocked.by.clone()).collect()
}

#[tokio::test]
async fn normal_events_go_after_a_week_and_critical_ones_after_a_month() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = append_some(&manager, &store).await;
    let_pass(&site, &store, 6 * DAY).await;
    assert_eq!(retain(&store).await.events, 0);
    let_pass(&site, &store, 2 * DAY).await;
    let dry = store.retain(store.retention_plan().await.unwrap().dry_run()).await.unwrap();
    assert_eq!((dry.is_dry, dry.events, warm_events(&store, &router("r1")).await), (true, 2, 6));
    // The newest segment says how far the scope is flushed: it stays until there is another.
    let report = retain(&store).await;
    assert_eq!((report.events, report.segments, report.rows), (2, 1, 0), "{report}");
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, [ids[2], ids[3], ids[4], ids[5]]);
    let_pass(&site, &store, 23 * DAY).await;
    let report = retain(&store).await;
    assert_eq!((report.events, report.segments, report.rows), (2, 0, 2), "{report}");
    assert_eq!(read_ids(&store, Query::all()).await, ids[3..5]);
    let status = store.status().await.unwrap();
    let warm = status.warm.iter().flatten().find(|status| status.scope == router("r1")).unwrap();
    assert_eq!(warm.retained_through, Some(Position::new(1, 6)));
}

#[tokio::test]
async fn a_type_may_be_kept_for_longer_or_shorter_than_its_class_and_a_class_by_its_number() {
    let site = Site::new();
    let retention = Retention::default()
        .types("backup", None)
        .types("config", Some(DAY))
        .class(Class::Normal, Keep::days(7).events_max(3));
    let (manager, store) = site.open_with(EventOptions::default().retention(retention)).await;
    let ids = append_some(&manager, &store).await;
    let_pass(&site, &store, 2 * DAY).await;
    let report = retain(&store).await;
    assert_eq!((report.rows, report.segments), (2, 0), "the segments hold backups, which stay");
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, [ids[0], ids[1], ids[3], ids[4]]);
    for _ in 0..3 {
        let alert = event(&manager, "alert.raised");
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![alert]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let alert = event(&manager, "alert.raised");
    store.append(&router("r1"), &stream("s"), Expected::Any, vec![alert]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let report = retain(&store).await;
    assert_eq!((report.events, report.segments), (1, 1), "the fourth-newest is one too many, whatever its age");
}

#[tokio::test]
async fn no_clock_removes_anything_and_no_reboot_either() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = append_some(&manager, &store).await;
    store.mark_age().await.unwrap();
    for wall_ms in [0, NOW_MS - 315_576_000_000, NOW_MS + 56 * 31_557_600_000, i64::MAX, i64::MIN] {
        for quality in [ClockQuality::Synced, ClockQuality::Unsynced] {
            site.clock.set_wall_ms(wall_ms);
            site.clock.set_quality(quality);
            store.mark_age().await.unwrap();
            assert_eq!(retain(&store).await.events, 0, "the clock shows {wall_ms}");
        }
    }
    site.clock.set_wall_ms(NOW_MS + 56 * 31_557_600_000);
    site.clock.set_quality(ClockQuality::Synced);
    assert_eq!(blockers(&store).await, [Blocker::Clock], "what the clock alone says is told");
    for _ in 0..40 {
        site.clock.reboot();
        site.clock.advance(DAY / 24);
        store.mark_age().await.unwrap();
    }
    assert_eq!(retain(&store).await.events, 0, "an hour of each boot passed before its mark, and is not counted");
    for _ in 0..8 {
        site.clock.reboot();
        let_pass(&site, &store, DAY).await;
        store.mark_age().await.unwrap();
    }
    assert_eq!(retain(&store).await.events, 2, "days that were seen to pass count in every boot");
    assert_eq!(read_ids(&store, Query::all()).await.len(), ids.len(), "the hot tier has them still");
}

#[tokio::test]
async fn nothing_goes_before_the_archive_has_confirmed_it_and_then_it_is_read_from_there() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ids = append_some(&manager, &store).await;
    let_pass(&site, &store, 40 * DAY).await;
    assert_eq!(retain(&store).await.events, 0);
    assert_eq!(blockers(&store).await, [Blocker::NotArchived { through: Position::START }]);
    store.archive().await.unwrap();
    ids.extend(append_some(&manager, &store).await);
    let_pass(&site, &store, 40 * DAY).await;
    // The newest of the archived segments is no longer the newest of all.
    let report = retain(&store).await;
    assert_eq!((report.events, report.segments, report.rows), (6, 2, 2));
    assert_eq!(blockers(&store).await, [Blocker::NotArchived { through: Position::new(1, 6) }]);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    let told = store.retention_plan().await.unwrap().to_string();
    assert!(told.contains("wait for the archive, confirmed through 1:6"), "{told}");
}

#[tokio::test]
async fn a_consumer_holds_events_back_until_its_guard_is_over_and_is_told_once_what_it_missed() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let limits = GuardLimits { max_age: 20 * DAY, bytes_max: 1 << 20 };
    let slow = || consumer("slow").guard(limits);
    let mut subscription = store.subscribe(slow()).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await, []);
    subscription.close().await.unwrap();
    let first = append_some(&manager, &store).await;
    let second = append_some(&manager, &store).await;
    let_pass(&site, &store, 10 * DAY).await;
    assert_eq!(retain(&store).await.events, 0);
    let by = blockers(&store).await;
    assert_eq!(by, [Blocker::Consumer { name: "slow".to_owned(), position: Position::START }]);
    let_pass(&site, &store, 11 * DAY).await;
    let report = retain(&store).await;
    assert_eq!((report.events, report.forced.len(), report.forced[0].events), (6, 1, 6));
    empty_hot(&manager).await;

    let left = [first[2], first[5], second[2], second[3], second[4], second[5]];
    let mut subscription = store.subscribe(slow()).await.unwrap();
    let items = until_caught_up(&mut subscription).await;
    assert_eq!(ids(&items), left);
    let markers: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            Item::Truncated { removed, .. } => Some(removed.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(markers.len(), 1, "{markers:?}");
    assert_eq!(markers[0].by, TruncatedBy::Guard { consumer: "slow".to_owned() });
    assert_eq!((markers[0].events, markers[0].scope.as_ref()), (6, Some(&router("r1"))));
    // Acknowledged, it does not come again, not even in another life.
    subscription.ack(items.last().unwrap().position()).await.unwrap();
    subscription.close().await.unwrap();
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    let (_manager, store) = site.open().await;
    let mut subscription = store.subscribe(slow()).await.unwrap();
    assert_eq!(until_caught_up(&mut subscription).await, []);
    // Somebody who comes later is told too.
    assert!(shown(&store, "late").await.iter().any(|item| matches!(item, Item::Truncated { .. })));
}

#[derive(Debug, Default)]
struct Snapshots(AtomicU64);

impl SnapshotHorizon for Snapshots {
    fn snapshot_through<'c>(
        &'c self,
        _: &'c mut sqlx::SqliteConnection,
        _: &'c Scope,
    ) -> BoxFuture<'c, Result<Option<Position>, Error>> {
        let through = self.0.load(Ordering::Relaxed);
        Box::pin(async move { Ok((through > 0).then_some(Position::new(1, through))) })
    }
}

#[tokio::test]
async fn what_is_folded_stays_until_a_snapshot_at_or_after_it_exists() {
    let site = Site::new();
    let snapshots = Arc::new(Snapshots::default());
    let retention = Retention::default().snapshots(Arc::clone(&snapshots) as _);
    let (manager, store) = site.open_with(EventOptions::default().retention(retention)).await;
    for number in 0..4 {
        let name = stream(if number == 1 { "s" } else { "resource/1" });
        store.append(&router("r1"), &name, Expected::Any, vec![normal(&manager)]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let_pass(&site, &store, 10 * DAY).await;
    let plan = store.retention_plan().await.unwrap();
    assert_eq!(plan.scope(&router("r1")).unwrap().through, Some(Position::new(1, 2)));
    assert_eq!(blockers(&store).await, [Blocker::NoSnapshot { through: None }]);
    snapshots.0.store(2, Ordering::Relaxed);
    let wider = store.retention_plan().await.unwrap();
    assert_eq!(wider.events(), 2);
    // A plan that was made on an assumption which does not hold any more is not carried out.
    snapshots.0.store(0, Ordering::Relaxed);
    let report = store.retain(wider).await.unwrap();
    assert_eq!((report.events, report.skipped), (1, 1));
    snapshots.0.store(3, Ordering::Relaxed);
    assert_eq!(retain(&store).await.events, 2);
    empty_hot(&manager).await;
    let beyond = events_until(&store, &router("r1"), &stream("resource/1"), Until::Position(Position::END)).await;
    assert!(matches!(beyond, Err(Error::BeyondHorizon { oldest, .. }) if oldest == Position::new(1, 3)));
}

#[tokio::test]
async fn a_history_with_a_part_removed_is_refused_and_told_from_the_archive_when_that_is_there() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let (scope, name) = (router("r1"), stream("vpn/1"));
    for kind in ["vpn.created", "vpn.updated", "vpn.applied", "vpn.deleted"] {
        store.append(&scope, &name, Expected::Any, vec![event(&manager, kind)]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    store.archive().await.unwrap();
    store.append(&scope, &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let_pass(&site, &store, 10 * DAY).await;
    let history = async |until| -> Result<Vec<u64>, Error> {
        let events: Vec<_> = events_until(&store, &scope, &name, until).await?.try_collect().await?;
        Ok(events.into_iter().map(|event| event.version).collect())
    };
    assert_eq!(retain(&store).await.events, 2, "created and updated");
    empty_hot(&manager).await;
    assert_eq!(
        history(Until::Position(Position::END)).await.unwrap(),
        [1, 2, 3, 4],
        "the resource is gone, its history is not"
    );
    assert_eq!(history(Until::Position(Position::new(1, 2))).await.unwrap(), [1, 2]);
    let away = site.dir.path().join("away");
    std::fs::rename(site.cold(), &away).unwrap();
    for until in [Until::Position(Position::END), Until::Position(Position::new(1, 1)), Until::WallMs(NOW_MS)] {
        let refused = history(until).await;
        assert!(
            matches!(refused, Err(Error::BeyondHorizon { oldest, .. }) if oldest == Position::new(1, 2)),
            "{refused:?}"
        );
    }
    // A stream of which nothing was removed is not concerned.
    let other = events_until(&store, &scope, &stream("s"), Until::Position(Position::END)).await.unwrap();
    assert_eq!(other.try_collect::<Vec<_>>().await.unwrap().len(), 1);
    std::fs::rename(&away, site.cold()).unwrap();
    assert_eq!(history(Until::WallMs(i64::MAX)).await.unwrap(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_hole_in_a_history_is_an_error_and_not_passed_over() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("vpn/1"));
    store.append(&scope, &name, Expected::Any, vec![event(&manager, "vpn.applied")]).await.unwrap();
    for _ in 0..2 {
        store.append(&scope, &name, Expected::Any, vec![event(&manager, "vpn.updated")]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let_pass(&site, &store, 10 * DAY).await;
    assert_eq!(retain(&store).await.events, 1);
    empty_hot(&manager).await;
    let history = events_until(&store, &scope, &name, Until::Position(Position::END)).await.unwrap();
    let told = history.try_collect::<Vec<_>>().await;
    assert!(matches!(told, Err(Error::BeyondHorizon { .. })), "{told:?}");
}

#[tokio::test]
async fn a_history_whose_newest_part_was_removed_is_not_told_as_if_it_ended_before() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (scope, name) = (router("r1"), stream("vpn/1"));
    store.append(&scope, &name, Expected::Any, vec![event(&manager, "vpn.applied")]).await.unwrap();
    for of in [&name, &stream("s")] {
        store.append(&scope, of, Expected::Any, vec![event(&manager, "vpn.updated")]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let_pass(&site, &store, 10 * DAY).await;
    assert_eq!(retain(&store).await.events, 1);
    empty_hot(&manager).await;
    for until in [Until::Position(Position::END), Until::Position(Position::new(1, 2)), Until::WallMs(NOW_MS + 1)] {
        let whole = events_until(&store, &scope, &name, until).await.unwrap();
        let told = whole.try_collect::<Vec<_>>().await;
        assert!(matches!(told, Err(Error::BeyondHorizon { .. })), "{until:?}: {told:?}");
    }
    // What was known before that is.
    let before = events_until(&store, &scope, &name, Until::Position(Position::new(1, 1))).await.unwrap();
    assert_eq!(before.try_collect::<Vec<_>>().await.unwrap().len(), 1);
}

#[tokio::test]
async fn versions_go_on_behind_removed_events_in_another_life_and_in_another_process() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    store.append(&router("r1"), &stream("other"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    store.flush(FlushReason::Requested).await.unwrap();
    let_pass(&site, &store, 40 * DAY).await;
    assert_eq!(retain(&store).await.events, 6);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (manager, store) = site.open().await;
    assert_eq!(read_ids(&store, Query::scope(router("r1")).stream(stream("s"))).await, []);
    for (name, version) in [("alert.raised", 7), ("config.applied", 8)] {
        let again = vec![event(&manager, name)];
        let refused = store.append(&router("r1"), &stream("s"), Expected::Unwritten, again.clone()).await;
        assert!(matches!(refused, Err(Error::Conflict(conflict)) if conflict.actual == version - 1));
        let receipt = store.append(&router("r1"), &stream("s"), Expected::Exact(version - 1), again).await.unwrap();
        assert_eq!(receipt.version, version);
    }
    let inside = StreamAppend::new(stream("s"), Expected::Exact(8), vec![normal(&manager)]);
    assert_eq!(append_in(&manager, &store, &router("r1"), vec![inside]).await.unwrap()[0].version, 9);
}

#[tokio::test]
async fn plain_statements_still_remove_and_change_nothing() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    let_pass(&site, &store, 8 * DAY).await;
    append_some(&manager, &store).await;
    retain(&store).await;
    let before = warm_events(&store, &router("r1")).await;
    for (sql, why) in [
        ("DELETE FROM event_rows", "deleted by retention alone"),
        ("DELETE FROM event_segments", "deleted by retention alone"),
        ("UPDATE event_rows SET body = '1'", "append-only"),
        ("UPDATE event_segments SET wall_max_ms = 0", "append-only"),
        ("UPDATE event_retained SET through_pos = 0", "never goes back"),
        ("DELETE FROM event_retained", "the mark of retention stays"),
        (
            "INSERT INTO event_retained (what, through_pos) VALUES (0, 0) \
             ON CONFLICT (what) DO UPDATE SET through_pos = 0",
            "never goes back",
        ),
        ("UPDATE event_tops SET version = 1", "a version is never given again"),
        ("UPDATE event_tops SET pos = 1", "a version is never given again"),
    ] {
        let database = manager.scope(&router("r1")).await.unwrap();
        let done = database
            .write(support::TEST, move |conn| {
                Box::pin(async move {
                    sqlx::raw_sql(sql).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await;
        support::assert_refused(&done, why, sql);
    }
    assert_eq!(warm_events(&store, &router("r1")).await, before);
}

#[tokio::test]
async fn a_transaction_that_fails_at_any_statement_has_removed_nothing() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    append_some(&manager, &store).await;
    let_pass(&site, &store, 40 * DAY).await;
    let before = read_ids(&store, Query::all()).await;
    let plan_before = store.retention_plan().await.unwrap().to_string();
    for (table, change) in [
        ("event_tops", "INSERT"),
        ("event_retained", "INSERT"),
        ("event_rows", "DELETE"),
        ("event_chain", "INSERT"),
        ("event_segments", "DELETE"),
        ("event_truncated", "INSERT"),
    ] {
        let sql = format!("CREATE TRIGGER refuse BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, 'power'); END");
        on_scope(&manager, &router("r1"), sql.leak()).await;
        let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
        assert_eq!((report.events, report.failed.len()), (0, 1), "{table}: {report:?}");
        on_scope(&manager, &router("r1"), "DROP TRIGGER refuse").await;
        assert_eq!(store.retention_plan().await.unwrap().to_string(), plan_before, "{table}");
        assert_eq!(warm_events(&store, &router("r1")).await, before.len() as u64);
        assert!(store.verify(Span::all()).await.unwrap().is_sound());
    }
    assert_eq!(retain(&store).await.events, 10);
}

#[tokio::test]
async fn two_stores_that_retain_at_once_remove_and_record_everything_once() {
    let site = Site::new();
    let (manager, first) = site.open().await;
    let second = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    for _ in 0..40 {
        append_some(&manager, &first).await;
    }
    let_pass(&site, &first, 40 * DAY).await;
    let plans = (first.retention_plan().await.unwrap(), second.retention_plan().await.unwrap());
    let planned = plans.0.events();
    assert_eq!(planned, 40 * 6 - 2);
    let (one, two) = tokio::join!(first.retain(plans.0), second.retain(plans.1));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.events + two.events, planned, "{one} / {two}");
    assert!(one.failed.is_empty() && two.failed.is_empty());
    empty_hot(&manager).await;
    let items = shown(&first, "late").await;
    let told: u64 = items
        .iter()
        .filter_map(|item| match item {
            Item::Truncated { removed, .. } => Some(removed.events),
            _ => None,
        })
        .sum();
    assert_eq!(told, planned);
}

#[tokio::test]
async fn dictionaries_go_once_nothing_needs_them_and_none_before() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    append_some(&manager, &store).await;
    // Four versions; the oldest is needed by the newest segment.
    on_scope(
        &manager,
        &router("r1"),
        "INSERT INTO event_dictionaries (id, made_pos, kinds, events, body)
             SELECT column1, column1, x'', 1, x'00' FROM (VALUES (1), (2), (3), (4));
         DROP TRIGGER event_segments_are_immutable;
         UPDATE event_segments SET dictionary = 1 WHERE first_pos = (SELECT MAX(first_pos) FROM event_segments);
         UPDATE event_segments SET dictionary = 2 WHERE first_pos = (SELECT MIN(first_pos) FROM event_segments)",
    )
    .await;
    let_pass(&site, &store, 8 * DAY).await;
    assert_eq!(retain(&store).await.segments, 3);
    let database = manager.scope(&router("r1")).await.unwrap();
    let left: Vec<i64> = database
        .read(support::TEST, |conn| {
            Box::pin(async move {
                Ok::<_, Error>(
                    sqlx::query_scalar("SELECT id FROM event_dictionaries ORDER BY id").fetch_all(conn).await?,
                )
            })
        })
        .await
        .unwrap();
    assert_eq!(left, [1, 3, 4]);
}

#[tokio::test]
async fn removing_a_segment_costs_less_flash_than_its_flush_did() {
    const SEGMENTS: u64 = 100;
    let site = Site::new();
    let (manager, store) = site.open().await;
    let written = async || manager.scope(&router("r1")).await.unwrap().written().bytes;
    let before = written().await;
    for _ in 0..SEGMENTS {
        let events: Vec<_> = (0..55).map(|_| event(&manager, "alert.raised")).collect();
        store.append(&router("r1"), &stream("s"), Expected::Any, events).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    let flushed = written().await;
    let_pass(&site, &store, 8 * DAY).await;
    let report = retain(&store).await;
    assert_eq!((report.segments, report.events), (SEGMENTS - 1, (SEGMENTS - 1) * 55));
    let (flush, removal) = ((flushed - before) / SEGMENTS, (written().await - flushed) / report.segments);
    println!("{flush} bytes to flush a segment into its database, {removal} to remove it");
    assert!(removal < flush / 2, "{flush} to flush, {removal} to remove");
}

#[tokio::test]
async fn a_plan_of_another_fleet_is_refused() {
    let (one, other) = (Site::new(), Site::new());
    let (_manager, store) = one.open().await;
    let (_other_manager, other) = other.open().await;
    let refused = other.retain(store.retention_plan().await.unwrap()).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn the_end_of_the_loop_notes_the_running_time_that_would_not_count_after_a_reboot() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let ids = append_some(&manager, &store).await;
    append_some(&manager, &store).await;
    store.mark_age().await.unwrap();
    // Quarters of days, each in a boot of its own, noted when it begins and when the loop ends.
    for quarter in 1..=30 {
        site.clock.advance(DAY / 4);
        store.maintain(async {}).await.unwrap();
        site.clock.reboot();
        store.mark_age().await.unwrap();
        assert_eq!(retain(&store).await.events, if quarter == 28 { 6 } else { 0 }, "quarter {quarter}");
    }
    assert_eq!(read_ids(&store, Query::all()).await[..6], ids[..]);
}

#[tokio::test]
async fn the_loop_marks_ages_and_removes_what_may_go() {
    let site = Site::new();
    let mut options = EventOptions::default();
    options.flush_interval = Duration::from_millis(10);
    let (manager, store) = site.open_with(options).await;
    append_some(&manager, &store).await;
    append_some(&manager, &store).await;
    store.mark_age().await.unwrap();
    site.clock.advance(8 * DAY);
    store
        .maintain(async {
            while warm_events(&store, &router("r1")).await > 6 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    let status = store.status().await.unwrap();
    let warm = status.warm.iter().flatten().find(|status| status.scope == router("r1")).unwrap();
    assert_eq!((warm.segments.events, warm.rows.events), (2, 4));
    assert_eq!(warm.retained_through, Some(Position::new(1, 8)));
    assert!(status.retention.is_empty());
}
