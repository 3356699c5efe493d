//! The record is what it was, or the report says where it is not.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nasnet_dbmanager::{ClockQuality, DbManager, Scope};
use nasnet_events::evidence::{self, Bundle};
use nasnet_events::{
    ChainHead, Error, EventStore, Expected, FaultKind, FlushReason, Lane, NewEvent, Query, Span, Subject, Verification,
    prepare_cold_dir,
};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use support::{NOW_MS, Site, event, kind, normal, on_scope, read, router, stream, with_cold};

async fn some_events(manager: &DbManager, store: &EventStore, rounds: usize) {
    for scope in [Scope::System, router("r1")] {
        for round in 0..rounds {
            for name in ["config.applied", "resource.updated", "resource.updated", "metric.updated"] {
                let name = event(manager, name);
                store.append(&scope, &stream(&format!("s/{}", round % 3)), Expected::Any, vec![name]).await.unwrap();
            }
            if round % 2 == 1 {
                store.flush(FlushReason::Requested).await.unwrap();
            }
        }
    }
    store.flush(FlushReason::Requested).await.unwrap();
}

async fn recorded(site: &Site) -> (DbManager, EventStore) {
    let (manager, store) = site.open_with(with_cold(site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    some_events(&manager, &store, 6).await;
    store.archive().await.unwrap();
    some_events(&manager, &store, 4).await;
    (manager, store)
}

fn kinds(verification: &Verification) -> Vec<(Lane, FaultKind)> {
    let mut kinds: Vec<_> = verification.faults.iter().map(|fault| (fault.lane, fault.kind)).collect();
    kinds.dedup();
    kinds
}

/// Puts another file in the place of one, as a copy from elsewhere does.
fn replace(file: &Path, bytes: impl AsRef<[u8]>) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, bytes).unwrap();
    std::fs::rename(beside, file).unwrap();
}

async fn tamper(manager: &DbManager, sql: &'static str) {
    on_scope(manager, &router("r1"), sql).await;
}

const WITHOUT_TRIGGERS: &str = "
    DROP TRIGGER event_rows_are_immutable; DROP TRIGGER event_segments_are_immutable;
    DROP TRIGGER event_rows_are_retained; DROP TRIGGER event_segments_are_retained;
    DROP TRIGGER event_rows_leave_their_digest; DROP TRIGGER event_segments_leave_their_digest";

#[tokio::test]
async fn an_untouched_record_is_sound_and_leads_through_every_earlier_head() {
    let site = Site::new();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let mut heads: Vec<ChainHead> = vec![store.export_head().await.unwrap()];
    for round in 0..5 {
        some_events(&manager, &store, 2).await;
        if round % 2 == 1 {
            store.archive().await.unwrap();
        }
        heads.push(store.export_head().await.unwrap());
        // A clock that goes back is no tampering.
        site.clock.set_wall_ms(if round % 2 == 0 { 0 } else { NOW_MS + round * 60_000 });
        site.clock.set_quality(if round % 2 == 0 { ClockQuality::Unsynced } else { ClockQuality::Synced });
        site.clock.advance(Duration::from_secs(1));
    }
    let verification = store.verify(Span::all()).await.unwrap();
    assert!(verification.is_sound(), "{:?}", verification.faults);
    let count =
        |lane| verification.lanes.iter().filter(|report| report.lane == lane).map(|report| report.events).sum::<u64>();
    assert_eq!((count(Lane::Rows), count(Lane::Segments)), (20, 40));
    assert_eq!(count(Lane::Frames), 64, "Low events are archived too");
    for head in &heads {
        let verification = store.verify_against(head).await.unwrap();
        assert!(verification.is_sound() && verification.beyond.is_empty(), "{verification:?}");
    }
    // A part of it can be looked at alone.
    let positions: Vec<_> = read(&store, Query::all()).await.iter().map(|event| event.position).collect();
    for (after, until) in [(0, 9), (7, 30), (33, 34), (50, 79)] {
        let span = Span::all().after(positions[after]).until(positions[until]);
        let verification = store.verify(span).await.unwrap();
        assert!(verification.is_sound(), "{after} to {until}: {:?}", verification.faults);
    }
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    some_events(&manager, &store, 1).await;
    for head in &heads {
        assert!(store.verify_against(head).await.unwrap().is_sound(), "the chains go on in the next epoch");
    }
    // Another fleet's head, or a changed one, is not compared at all.
    let mut text = serde_json::to_string(&heads[3]).unwrap();
    text = text.replacen("\"made_ms\":", "\"made_ms\":1", 1);
    let changed: ChainHead = serde_json::from_str(&text).unwrap();
    assert!(matches!(store.verify_against(&changed).await, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn every_damaged_item_is_reported_and_none_hides_another() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    tamper(&manager, WITHOUT_TRIGGERS).await;
    tamper(
        &manager,
        "UPDATE event_rows SET body = '\"changed\"' WHERE pos IN (SELECT pos FROM event_rows ORDER BY pos LIMIT 1 OFFSET 2);
         UPDATE event_rows SET wall_ms = 5 WHERE pos IN (SELECT pos FROM event_rows ORDER BY pos LIMIT 1 OFFSET 7);
         UPDATE event_rows SET body = CAST(x'22ff22' AS TEXT)
            WHERE pos IN (SELECT pos FROM event_rows ORDER BY pos LIMIT 1 OFFSET 5);
         UPDATE event_segments SET body = CAST(substr(body, 1, 40) || x'00' || substr(body, 42) AS BLOB)
            WHERE first_pos = (SELECT first_pos FROM event_segments ORDER BY first_pos LIMIT 1 OFFSET 1)",
    )
    .await;
    let verification = store.verify(Span::all()).await.unwrap();
    let damaged = |lane| {
        let of = verification.faults.iter().filter(|fault| fault.lane == lane && fault.kind == FaultKind::Damaged);
        of.filter(|fault| fault.scope == router("r1")).count()
    };
    assert_eq!((damaged(Lane::Rows), damaged(Lane::Segments), damaged(Lane::Frames)), (3, 1, 0));
    assert_eq!(verification.faults.len(), 4, "{:?}", verification.faults);
    let rows = verification.lanes.iter().find(|lane| lane.lane == Lane::Rows && lane.scope == router("r1")).unwrap();
    assert_eq!(rows.events, 7, "the others are checked");
}

#[tokio::test]
async fn two_events_of_one_version_are_found_wherever_they_stand() {
    for name in ["config.applied", "resource.updated"] {
        let site = Site::new();
        let (manager, store) = site.open().await;
        let scope = router("r1");
        store.append(&scope, &stream("s"), Expected::Unwritten, vec![normal(&manager)]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
        tamper(&manager, WITHOUT_TRIGGERS).await;
        let hide = "CREATE TABLE hidden AS SELECT * FROM event_segments; DELETE FROM event_segments";
        tamper(&manager, hide).await;
        drop(store);
        manager.shutdown().await.unwrap();
        drop(manager);
        site.wipe_hot();
        let (manager, store) = site.open().await;
        let again = store.append(&scope, &stream("s"), Expected::Unwritten, vec![event(&manager, name)]).await.unwrap();
        assert_eq!(again.version, 1);
        store.flush(FlushReason::Requested).await.unwrap();
        tamper(&manager, "INSERT INTO event_segments SELECT * FROM hidden").await;
        let verification = store.verify(Span::all()).await.unwrap();
        let told = verification.faults.iter().filter(|fault| fault.detail.contains("stream s has version 1"));
        assert_eq!(told.count(), 1, "{:?}", verification.faults);
    }
}

#[tokio::test]
async fn a_careful_forgery_is_found_with_a_head_from_outside() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    let head = store.export_head().await.unwrap();
    some_events(&manager, &store, 2).await;
    tamper(&manager, WITHOUT_TRIGGERS).await;
    // Whole and chained to what stands before: the digest of the row after it gives it away.
    tamper(
        &manager,
        "CREATE TABLE copy AS SELECT * FROM event_rows;
         DELETE FROM event_rows WHERE pos = (SELECT pos FROM copy ORDER BY pos LIMIT 1 OFFSET 3)",
    )
    .await;
    let verification = store.verify(Span::all()).await.unwrap();
    assert_eq!(kinds(&verification), [(Lane::Rows, FaultKind::Broken)], "{:?}", verification.faults);
    // The end cut off: sound by itself, not with the head.
    tamper(
        &manager,
        "DELETE FROM event_rows; INSERT INTO event_rows SELECT * FROM copy ORDER BY pos LIMIT 4;
         DELETE FROM event_segments WHERE first_pos > (SELECT first_pos FROM event_segments ORDER BY first_pos LIMIT 1)",
    )
    .await;
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    let verification = store.verify_against(&head).await.unwrap();
    assert_eq!(
        kinds(&verification),
        [(Lane::Rows, FaultKind::Shorter), (Lane::Segments, FaultKind::Shorter)],
        "{:?}",
        verification.faults
    );
}

#[tokio::test]
async fn a_history_written_anew_from_some_point_does_not_lead_through_the_head() {
    // Two fleets that differ in one early event stand for the forged and the true history.
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let (first, forged, second) =
        (event(&manager, "config.applied"), event(&manager, "config.applied"), event(&manager, "config.applied"));
    store.append(&scope, &stream("s"), Expected::Any, vec![first.clone()]).await.unwrap();
    tamper(&manager, "CREATE TABLE early AS SELECT * FROM event_chain").await;
    store.append(&scope, &stream("s"), Expected::Any, vec![second]).await.unwrap();
    let head = store.export_head().await.unwrap();
    // Remove both, and write others over them with the store's own means.
    tamper(&manager, WITHOUT_TRIGGERS).await;
    tamper(&manager, "DELETE FROM event_rows").await;
    for event in [forged, event(&manager, "config.applied")] {
        store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    assert!(store.verify(Span::all()).await.unwrap().is_sound(), "a new history is whole by itself");
    let verification = store.verify_against(&head).await.unwrap();
    assert_eq!(kinds(&verification), [(Lane::Rows, FaultKind::Rewritten)], "{:?}", verification.faults);
}

#[tokio::test]
async fn a_removed_or_exchanged_frame_is_found_and_the_other_frames_are_read() {
    let site = Site::new();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    for _ in 0..3 {
        some_events(&manager, &store, 1).await;
        store.archive().await.unwrap();
    }
    let file: PathBuf = std::fs::read_dir(site.cold().join("r1")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    let starts: Vec<usize> = whole
        .windows(4)
        .enumerate()
        .filter(|(_, bytes)| *bytes == [0x50, 0x2a, 0x4d, 0x18])
        .map(|(at, _)| at)
        .collect();
    assert_eq!(starts.len(), 3);
    let head = store.export_head().await.unwrap();

    // The second frame taken out.
    replace(&file, [&whole[..starts[1]], &whole[starts[2]..]].concat());
    let verification = store.verify(Span::all()).await.unwrap();
    assert_eq!(kinds(&verification), [(Lane::Frames, FaultKind::Broken)], "{:?}", verification.faults);

    // One bit of the second frame flipped, anywhere in it.
    for at in [starts[1] + 12, starts[1] + 60, starts[2] - 9] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        replace(&file, &flipped);
        let verification = store.verify(Span::all()).await.unwrap();
        assert!(
            kinds(&verification).contains(&(Lane::Frames, FaultKind::Damaged)),
            "byte {at}: {:?}",
            verification.faults
        );
        let frames = verification.lanes.iter().find(|lane| lane.lane == Lane::Frames && lane.scope == router("r1"));
        assert_eq!(frames.unwrap().events, 8, "the other two frames are checked");
    }

    // The last frame cut off, as if it had never been there.
    replace(&file, &whole[..starts[2]]);
    assert!(store.verify(Span::all()).await.unwrap().is_sound());
    let verification = store.verify_against(&head).await.unwrap();
    assert_eq!(kinds(&verification), [(Lane::Frames, FaultKind::Shorter)], "{:?}", verification.faults);
    replace(&file, &whole);
    assert!(store.verify_against(&head).await.unwrap().is_sound());
}

#[tokio::test]
async fn shredding_changes_no_digest() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    let subject = Subject::parse("user/anna").unwrap();
    for name in ["config.applied", "resource.updated"] {
        let about = NewEvent::new(manager.next_ulid(), kind(name), &"the facts").unwrap().subject(subject.clone());
        store.append(&router("r1"), &stream("s"), Expected::Any, vec![about]).await.unwrap();
    }
    store.archive().await.unwrap();
    let head = store.export_head().await.unwrap();
    let bundle = evidence::export(&store, Span::all(), vec![]).await.unwrap();
    store.shred(&subject).await.unwrap();
    assert!(store.verify_against(&head).await.unwrap().is_sound());
    assert_eq!(bundle.verify(&head).unwrap().sealed, 2);
    let later = evidence::export(&store, Span::all(), vec![]).await.unwrap();
    assert_eq!(later.verify(later.head()).unwrap().sealed, 2);
    assert!(!later.to_json().unwrap().contains("the facts"));
}

#[tokio::test]
async fn a_bundle_is_verified_without_the_store() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    let early = store.export_head().await.unwrap();
    let events = read(&store, Query::scope(router("r1"))).await;
    let (after, until) = (events[6].position, events[29].position);
    some_events(&manager, &store, 2).await;
    let span = Span::scope(router("r1")).after(after).until(until);
    let bundle = evidence::export(&store, span, vec!["A.8.15".to_owned()]).await.unwrap();
    let late = store.export_head().await.unwrap();
    drop((manager, store));

    let text = bundle.to_json().unwrap();
    let read_back = Bundle::from_json(&text).unwrap();
    assert_eq!(read_back, bundle);
    assert_eq!(read_back.controls(), ["A.8.15"]);
    let expected: Vec<_> = events[7..30].iter().filter(|event| event.class != nasnet_events::Class::Low).collect();
    assert_eq!(read_back.events().len(), expected.len());
    assert!(read_back.events().iter().zip(&expected).all(|(own, expected)| own.id == expected.id));
    for head in [&early, read_back.head(), &late] {
        let proven = read_back.verify(head).unwrap();
        assert_eq!((proven.events, proven.lanes), (expected.len() as u64, 2));
    }
}

#[tokio::test]
async fn a_bundle_is_not_proven_by_a_head_that_does_not_know_it() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    let before = store.export_head().await.unwrap();
    some_events(&manager, &store, 1).await;
    let bundle = evidence::export(&store, Span::all(), vec![]).await.unwrap();
    assert!(matches!(bundle.verify(&before), Err(Error::Unproven { .. })), "its events are newer");
    some_events(&manager, &store, 1).await;
    let after = store.export_head().await.unwrap();
    assert!(matches!(bundle.verify(&after), Err(Error::Unproven { .. })), "the head is newer than the bundle");
    let other = Site::new();
    let (_manager, store) = recorded(&other).await;
    assert!(matches!(bundle.verify(&store.export_head().await.unwrap()), Err(Error::Unproven { .. })));
}

/// Retention takes the older half, as it may once the copy is confirmed.
async fn retire_older_half(manager: &DbManager) {
    on_scope(
        manager,
        &router("r1"),
        "INSERT INTO event_retained (what, through_pos) SELECT -3, MAX(pos) FROM
            (SELECT pos FROM event_rows ORDER BY pos LIMIT 5);
         INSERT INTO event_retained (what, through_pos) SELECT 0, MAX(last_pos) FROM
            (SELECT last_pos FROM event_segments ORDER BY first_pos LIMIT 2);
         DELETE FROM event_rows WHERE pos <= (SELECT through_pos FROM event_retained WHERE what = -3);
         DELETE FROM event_segments WHERE last_pos <= (SELECT through_pos FROM event_retained WHERE what = 0)",
    )
    .await;
}

/// Retention takes everything.
async fn retire_all(manager: &DbManager) {
    on_scope(
        manager,
        &router("r1"),
        "INSERT INTO event_retained (what, through_pos) SELECT -3, MAX(pos) FROM event_rows
            WHERE true ON CONFLICT (what) DO UPDATE SET through_pos = excluded.through_pos;
         INSERT INTO event_retained (what, through_pos) SELECT 0, MAX(last_pos) FROM event_segments
            WHERE true ON CONFLICT (what) DO UPDATE SET through_pos = excluded.through_pos;
         DELETE FROM event_rows; DELETE FROM event_segments",
    )
    .await;
}

/// The lines of all files the archive has of `r1`.
fn cold_text(site: &Site) -> String {
    let files = std::fs::read_dir(site.cold().join("r1")).unwrap().map(|entry| entry.unwrap().path());
    let lines = files.map(|path| zstd::stream::decode_all(std::fs::File::open(path).unwrap()).unwrap());
    lines.map(|lines| String::from_utf8(lines).unwrap()).collect()
}

#[tokio::test]
async fn what_the_warm_tier_has_given_up_is_proven_from_the_archive() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    store.archive().await.unwrap();
    let head = store.export_head().await.unwrap();
    retire_older_half(&manager).await;
    let verification = store.verify_against(&head).await.unwrap();
    assert!(verification.is_sound(), "{:?}", verification.faults);
    let bundle = evidence::export(&store, Span::scope(router("r1")), vec![]).await.unwrap();
    let proven = bundle.verify(bundle.head()).unwrap();
    assert_eq!((proven.events, proven.lanes), (40, 1), "all of them, from the chain of frames");
    // Without the stick the gap is told, not passed over.
    std::fs::rename(site.cold(), site.dir.path().join("away")).unwrap();
    let refused = evidence::export(&store, Span::scope(router("r1")), vec![]).await;
    assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_came_after_the_last_archive_is_proven_from_the_warm_tier_beside_it() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    store.archive().await.unwrap();
    retire_older_half(&manager).await;
    some_events(&manager, &store, 3).await;
    let all = read(&store, Query::scope(router("r1"))).await;
    let bundle = evidence::export(&store, Span::scope(router("r1")), vec![]).await.unwrap();
    let proven = bundle.verify(bundle.head()).unwrap();
    assert_eq!((proven.events, proven.lanes), (40 + 9, 3), "the frames, and both chains behind them");
    // Low events that were not archived are in no chain.
    let newest = |ids: Vec<_>| ids.last().copied();
    let expected = all.iter().filter(|event| event.class != nasnet_events::Class::Low).map(|event| event.id);
    assert_eq!(newest(bundle.events().iter().map(|event| event.id).collect()), newest(expected.collect()));
    assert_eq!(Bundle::from_json(&bundle.to_json().unwrap()).unwrap(), bundle);
    // What ends where the archive does needs nothing behind it.
    let until = all[39].position;
    let bundle = evidence::export(&store, Span::scope(router("r1")).until(until), vec![]).await.unwrap();
    assert_eq!(bundle.verify(bundle.head()).unwrap().lanes, 1);
    assert_eq!(bundle.events().len(), 40);
}

#[tokio::test]
async fn a_medium_that_was_begun_after_the_older_events_had_gone_proves_only_what_it_has() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    store.archive().await.unwrap();
    let all = read(&store, Query::scope(router("r1"))).await;
    retire_older_half(&manager).await;
    std::fs::rename(site.cold(), site.dir.path().join("first")).unwrap();
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    support::empty_hot(&manager).await;
    store.archive().await.unwrap();
    let text = cold_text(&site);
    let is_in_it = |event: &nasnet_events::Recorded| text.contains(&event.id.to_string());
    let begins = all.iter().position(is_in_it).unwrap();
    assert!(begins > 0);
    let span = Span::scope(router("r1")).after(all[begins].position);
    let bundle = evidence::export(&store, span.clone(), vec![]).await.unwrap();
    let durable = |event: &&nasnet_events::Recorded| event.class != nasnet_events::Class::Low;
    assert_eq!(bundle.events().len(), all[begins + 1..].iter().filter(durable).count());
    // The warm tier has given up more since, and nobody knows any more where the chains stood when the medium was begun.
    retire_all(&manager).await;
    for after in [None, Some(all[0].position), Some(all[begins].position)] {
        let span = after.map_or(Span::scope(router("r1")), |after| Span::scope(router("r1")).after(after));
        let refused = evidence::export(&store, span, vec![]).await;
        assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_medium_that_was_away_for_a_while_does_not_hide_what_another_one_has() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    store.archive().await.unwrap();
    let first = read(&store, Query::scope(router("r1"))).await;
    let (cold, away, other) = (site.cold(), site.dir.path().join("away"), site.dir.path().join("other"));
    std::fs::rename(&cold, &away).unwrap();
    prepare_cold_dir(&manager, &cold).unwrap();
    some_events(&manager, &store, 2).await;
    assert!(store.archive().await.unwrap().failed.is_empty());
    support::empty_hot(&manager).await;
    retire_all(&manager).await;
    std::fs::rename(&cold, &other).unwrap();
    std::fs::rename(&away, &cold).unwrap();
    some_events(&manager, &store, 2).await;
    assert!(store.archive().await.unwrap().failed.is_empty());
    support::empty_hot(&manager).await;
    retire_all(&manager).await;

    let last = read(&store, Query::scope(router("r1"))).await.last().unwrap().position;
    for (after, until) in [(0, None), (10, None), (10, Some(last)), (first.len() - 1, None)] {
        let span = Span::scope(router("r1")).after(first[after].position);
        let span = until.map_or(span.clone(), |until| span.clone().until(until));
        let refused = evidence::export(&store, span, vec![]).await;
        assert!(matches!(refused, Err(Error::Unproven { .. })), "after {after}: {refused:?}");
    }
}

#[tokio::test]
async fn a_segment_the_archive_passed_over_is_missed_after_it_was_removed() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    let all = read(&store, Query::scope(router("r1"))).await;
    tamper(&manager, WITHOUT_TRIGGERS).await;
    tamper(
        &manager,
        "CREATE TABLE whole AS SELECT first_pos, body FROM event_segments;
         UPDATE event_segments SET body = CAST(substr(body, 1, 40) || x'00' || substr(body, 42) AS BLOB)
            WHERE first_pos = (SELECT MAX(first_pos) FROM event_segments)",
    )
    .await;
    support::empty_hot(&manager).await;
    assert_eq!(store.archive().await.unwrap().failed.len(), 1, "it is damaged before it was archived");
    some_events(&manager, &store, 1).await;
    assert!(store.archive().await.unwrap().frames > 0, "it goes on behind it");
    // As the triggers leave it.
    tamper(
        &manager,
        "INSERT INTO event_chain SELECT 'segments', last_pos, digest FROM event_segments
            WHERE last_pos = (SELECT MAX(last_pos) FROM event_segments);
         INSERT INTO event_chain SELECT 'rows', pos, digest FROM event_rows
            WHERE pos = (SELECT MAX(pos) FROM event_rows)",
    )
    .await;
    retire_all(&manager).await;
    for after in [None, Some(all[0].position), Some(all[9].position)] {
        let span = after.map_or(Span::scope(router("r1")), |after| Span::scope(router("r1")).after(after));
        let refused = evidence::export(&store, span, vec![]).await;
        assert!(matches!(refused, Err(Error::Unproven { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_span_that_begins_between_two_frames_is_proven_from_the_archive() {
    let site = Site::new();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let mut ends = Vec::new();
    for _ in 0..3 {
        // Those of the system come first, so there are positions between the frames of the router.
        some_events(&manager, &store, 2).await;
        store.archive().await.unwrap();
        ends.push(read(&store, Query::scope(router("r1"))).await.len());
    }
    let all = read(&store, Query::scope(router("r1"))).await;
    let elsewhere = read(&store, Query::scope(Scope::System)).await;
    retire_all(&manager).await;
    let head = store.export_head().await.unwrap();
    for (round, begins) in ends[..2].iter().enumerate() {
        let between = elsewhere[(round + 1) * elsewhere.len() / 3].position;
        assert!(all[begins - 1].position < between && between < all[*begins].position);
        for after in [all[begins - 1].position, between, all[*begins].position.max(between)] {
            let bundle = evidence::export(&store, Span::scope(router("r1")).after(after), vec![]).await.unwrap();
            let expected = all.iter().filter(|event| event.position > after).count();
            assert_eq!(bundle.verify(&head).unwrap().events, expected as u64, "after {after}");
            let verification = store.verify(Span::all().after(after)).await.unwrap();
            assert!(verification.is_sound(), "{:?}", verification.faults);
        }
    }
    assert_eq!(store.export_head().await.unwrap().lanes, head.lanes);
}

#[tokio::test]
async fn events_the_archive_had_to_pass_over_are_not_left_out_in_silence() {
    let site = Site::new();
    let (manager, store) = recorded(&site).await;
    tamper(&manager, WITHOUT_TRIGGERS).await;
    tamper(
        &manager,
        "UPDATE event_segments SET body = CAST(substr(body, 1, 40) || x'00' || substr(body, 42) AS BLOB)
            WHERE first_pos = (SELECT MAX(first_pos) FROM event_segments)",
    )
    .await;
    support::empty_hot(&manager).await;
    assert_eq!(store.archive().await.unwrap().failed.len(), 1, "it is damaged before it was archived");
    some_events(&manager, &store, 1).await;
    store.archive().await.unwrap();
    let refused = evidence::export(&store, Span::scope(router("r1")), vec![]).await;
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
}

/// A bundle and its head, made once.
fn sample() -> (String, ChainHead) {
    static SAMPLE: std::sync::OnceLock<(String, ChainHead)> = std::sync::OnceLock::new();
    let make = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = Site::new();
            let (manager, store) = site.open().await;
            for name in ["config.applied", "resource.updated"] {
                let about = event(&manager, name).actor("anna").subject(Subject::parse("user/anna").unwrap());
                store.append(&router("r1"), &stream("s"), Expected::Any, vec![about, normal(&manager)]).await.unwrap();
            }
            let bundle = evidence::export(&store, Span::all(), vec!["A.8.15".to_owned()]).await.unwrap();
            (bundle.to_json().unwrap(), bundle.head().clone())
        })
    };
    SAMPLE.get_or_init(make).clone()
}

proptest! {
    #[test]
    fn a_changed_byte_of_a_bundle_is_noticed(at: prop::sample::Index, with: u8) {
        let (text, head) = sample();
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != with);
        bytes[at] = with;
        let opened = std::str::from_utf8(&bytes).map_err(drop).and_then(|text| Bundle::from_json(text).map_err(drop));
        prop_assert!(opened.is_err() || opened.unwrap().verify(&head).is_err());
    }

    #[test]
    fn a_bundle_cut_short_or_with_more_in_it_is_noticed(at: prop::sample::Index, more in "[ -~]{1,8}") {
        let (text, _) = sample();
        let at = at.index(text.len());
        prop_assert!(Bundle::from_json(&text[..at]).is_err());
        let longer = format!("{}{more}{}", &text[..at], &text[at..]);
        prop_assert!(Bundle::from_json(&longer).is_err());
    }
}

/// A bundle with the digest of what is in it now, which stands last.
fn digested_anew(text: &str) -> String {
    let kept = &text[..text.len() - 64 - r#""}"#.len()];
    let mut hash = Sha256::new();
    hash.update(b"nasnet-events bundle 1\0");
    hash.update(format!("{kept}{}\"}}", "0".repeat(64)));
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kept}{digest}\"}}")
}

#[test]
fn events_of_a_forged_bundle_with_a_right_digest_are_not_proven() {
    // Whoever can compute the digest anew still has no chain that leads to the head.
    let (text, head) = sample();
    assert_eq!(Bundle::from_json(&text).unwrap().verify(&head).unwrap().events, 4);
    let forged = text.replacen("\"actor\":\"anna\"", "\"actor\":\"mike\"", 1);
    assert_ne!(forged, text);
    let found = Bundle::from_json(&forged);
    assert!(matches!(found, Err(Error::Corrupt { .. })), "{found:?}");
    let found = Bundle::from_json(&digested_anew(&forged)).unwrap().verify(&head);
    assert!(matches!(found, Err(Error::Unproven { .. })), "{found:?}");
}
