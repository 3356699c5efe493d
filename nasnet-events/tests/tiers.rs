//! Events move from tier to tier without being lost, doubled or made unreadable.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{
    Class, ColdOptions, ColdPolicy, ColdState, Error, EventOptions, EventStore, Expected, FlushReason, Level, Position,
    Query, Recorded, StreamAppend, prepare_cold_dir,
};
use support::{
    Site, append_in, empty_hot, empty_warm, event, normal, on_hot, on_scope, open_with_cold, read, read_ids, router,
    stream, with_cold,
};
use ulid::Ulid;

/// What retention does to events up to sequence number 12.
const RETAIN_A_THIRD: &str = "
    INSERT INTO event_retained (what, through_pos) VALUES (-4, (1 << 40) + 12), (0, (1 << 40) + 12);
    DELETE FROM event_rows WHERE pos <= (1 << 40) + 12;
    DELETE FROM event_segments WHERE last_pos <= (1 << 40) + 12";

/// Appends a Low, a Normal and a Critical event and one in a transaction, to each of the scopes.
async fn append_some(manager: &DbManager, store: &EventStore) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for scope in [router("r1"), Scope::System, router("r2")] {
        for name in ["metric.updated", "resource.updated", "config.applied"] {
            let event = event(manager, name);
            ids.push(event.id);
            store.append(&scope, &stream("resource/1"), Expected::Any, vec![event]).await.unwrap();
        }
        let event = normal(manager);
        ids.push(event.id);
        let append = StreamAppend::new(stream("resource/2"), Expected::Any, vec![event]);
        append_in(manager, store, &scope, vec![append]).await.unwrap();
    }
    ids
}

fn cold_files(site: &Site, scope: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(site.cold().join(scope)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn lines_of(path: &Path) -> Vec<Recorded> {
    let text = zstd::stream::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_flush_writes_one_segment_of_each_scope_and_nothing_twice() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    let report = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((report.segments, report.events, report.failed.len()), (3, 3, 0));
    assert_eq!(report.through, store.status().await.unwrap().end);
    let written = manager.system().written();
    let again = store.flush(FlushReason::Requested).await.unwrap();
    assert_eq!((again.segments, again.events), (0, 0));
    assert_eq!(manager.system().written().bytes, written.bytes, "a flush of nothing writes nothing");

    for status in store.status().await.unwrap().warm {
        let status = status.unwrap();
        assert_eq!((status.rows.events, status.segments.events, status.segment_count), (2, 1, 1), "{}", status.scope);
    }
}

#[tokio::test]
async fn a_flush_that_was_cut_short_or_runs_twice_writes_no_event_twice() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    store.flush(FlushReason::Requested).await.unwrap();
    // Killed after the segments and before the note that saves looking at them again.
    on_hot(&manager, "UPDATE hot_meta SET flushed_through = 0").await;
    let other = EventStore::open(&manager, EventOptions::default()).await.unwrap();
    append_some(&manager, &store).await;
    let (one, two) = tokio::join!(store.flush(FlushReason::Requested), other.flush(FlushReason::Interval));
    assert_eq!(one.unwrap().events + two.unwrap().events, 3);
    for status in store.status().await.unwrap().warm {
        assert_eq!(status.unwrap().segments.events, 2);
    }
}

#[tokio::test]
async fn a_database_that_takes_nothing_holds_up_no_other() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ids = append_some(&manager, &store).await;
    const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON event_segments BEGIN SELECT RAISE(ABORT, 'no'); END";
    on_scope(&manager, &router("r1"), REFUSE).await;
    for round in 1..=2 {
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert_eq!((report.events, report.through.seq), (2, 0), "round {round}");
        assert!(matches!(&report.failed[..], [(Some(scope), _)] if *scope == router("r1")));
        let report = store.archive().await.unwrap();
        assert_eq!((report.events, report.failed.len()), (8, 1), "round {round}");
        ids.extend(append_some(&manager, &store).await);
    }
    on_scope(&manager, &router("r1"), "DROP TRIGGER refuse").await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (12 + 8, 0));
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn only_what_is_unflushed_is_flushed_whatever_the_clock_does() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let mut ids = Vec::new();
    for wall_ms in [support::NOW_MS, 0, support::NOW_MS + 56 * 365 * 86_400_000, support::NOW_MS - 1] {
        site.clock.set_wall_ms(wall_ms);
        let event = normal(&manager);
        ids.push(event.id);
        store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
        assert_eq!(store.flush(FlushReason::Requested).await.unwrap().events, 1);
    }
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(scope)).await, ids);
}

#[tokio::test]
async fn an_archive_is_read_by_zstd_and_jq() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let ids = append_some(&manager, &store).await;
    for _ in 0..2_100 {
        let batch = vec![normal(&manager)];
        store.append(&router("r1"), &stream("resource/1"), Expected::Any, batch).await.unwrap();
    }
    let report = store.archive().await.unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    assert_eq!((report.events, report.frames), (2_112, 5));

    let files = cold_files(&site, "r1");
    assert_eq!(files, [site.cold().join("r1/events-2026-11.jsonl.zst")]);
    let archived = lines_of(&files[0]);
    assert_eq!(archived, read(&store, Query::scope(router("r1"))).await);
    assert_eq!(archived[..4].iter().map(|event| event.id).collect::<Vec<_>>(), ids[..4]);

    // The two commands people use, where they are installed.
    let zstd = Command::new("zstd").arg("-dc").arg(&files[0]).stderr(Stdio::null()).output();
    if let Ok(output) = zstd {
        assert!(output.status.success());
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 2_104);
        let jq = Command::new("jq").args(["-r", ".type"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        if let Ok(mut jq) = jq {
            let mut input = jq.stdin.take().unwrap();
            let text = output.stdout;
            let feeder = std::thread::spawn(move || input.write_all(&text));
            let answer = jq.wait_with_output().unwrap();
            feeder.join().unwrap().unwrap();
            let types = String::from_utf8(answer.stdout).unwrap();
            assert_eq!(types.lines().next(), Some("metric.updated"));
            assert_eq!(types.lines().count(), 2_104);
        }
    }

    let again = store.archive().await.unwrap();
    assert_eq!((again.events, again.frames), (0, 0), "nothing is archived twice");
}

#[tokio::test]
async fn one_query_returns_every_event_once_in_order_wherever_it_is() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ids = append_some(&manager, &store).await;
    store.archive().await.unwrap();
    ids.extend(append_some(&manager, &store).await);
    store.flush(FlushReason::Requested).await.unwrap();
    ids.extend(append_some(&manager, &store).await);

    let backwards: Vec<Ulid> = ids.iter().rev().copied().collect();
    let check = async |what: &str| {
        assert_eq!(read_ids(&store, Query::all()).await, ids, "{what}");
        assert_eq!(read_ids(&store, Query::all().backwards()).await, backwards, "{what}, backwards");
        assert_eq!(read_ids(&store, Query::all().backwards().limit(3)).await, backwards[..3], "{what}, limited");
        // A cursor held before the events moved goes on where it was.
        let middle = Query::all().after(Position::new(1, 10)).until(Position::new(1, 30));
        assert_eq!(read_ids(&store, middle.clone()).await, ids[10..30], "{what}, a range");
        assert_eq!(read_ids(&store, middle.backwards()).await, backwards[6..26], "{what}, a range backwards");
    };
    check("all in hot").await;
    // What retention will do once a day is over.
    on_hot(&manager, "DELETE FROM hot_log WHERE first_seq <= 12").await;
    check("the archived third is no longer in hot").await;
    for scope in [Scope::System, router("r1"), router("r2")] {
        on_scope(&manager, &scope, RETAIN_A_THIRD).await;
    }
    check("the archived third is only in cold").await;
}

#[tokio::test]
async fn filters_find_the_same_events_in_every_tier() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let correlation = manager.next_ulid();
    for (number, name) in ["resource.updated", "resourceful.thing", "config.applied", "log.appended", "drift.detected"]
        .into_iter()
        .cycle()
        .take(40)
        .enumerate()
    {
        let mut event = event(&manager, name).level(if number % 3 == 0 { Level::Warning } else { Level::Info });
        if number % 4 == 0 {
            event = event.actor("anna").correlation_id(correlation);
        }
        site.clock.advance(Duration::from_secs(60));
        let scope = if number % 2 == 0 { router("r1") } else { router("r2") };
        let name = stream(&format!("resource/{}", number % 12));
        store.append(&scope, &name, Expected::Any, vec![event]).await.unwrap();
    }
    let all = read(&store, Query::all()).await;
    const LIMIT: usize = 7;
    let queries = [
        Query::scopes([router("r1"), Scope::System]).limit(LIMIT as u64),
        Query::all().kind_prefix("resource"),
        Query::all().kind(support::kind("config.applied")),
        Query::all().stream(stream("resource/1")),
        Query::all().stream_prefix("resource/1"),
        Query::all().class(Class::Normal).class(Class::Low),
        Query::all().level_min(Level::Warning),
        Query::all().actor("anna"),
        Query::all().correlation_id(correlation),
        Query::all().wall_ms(all[5].wall_ms..=all[20].wall_ms),
        Query::scope(router("r2")).kind_prefix("drift."),
        Query::by_id(all[17].id),
        Query::all().stream(stream("nowhere")),
    ];
    let mut found = Vec::new();
    for (at, query) in queries.iter().enumerate() {
        let most = if at == 0 { LIMIT } else { usize::MAX };
        let expected: Vec<_> =
            all.iter().filter(|event| query.matches(event)).map(|event| event.id).take(most).collect();
        let ids = read_ids(&store, query.clone()).await;
        assert_eq!(ids, expected, "{query:?}");
        found.push(ids);
    }
    store.archive().await.unwrap();
    empty_hot(&manager).await;
    for (query, expected) in queries.iter().zip(&found) {
        assert_eq!(&read_ids(&store, query.clone()).await, expected, "warm and cold, {query:?}");
    }
    for scope in [router("r1"), router("r2")] {
        empty_warm(&manager, &scope).await;
    }
    for (query, expected) in queries.iter().zip(&found) {
        assert_eq!(&read_ids(&store, query.clone()).await, expected, "cold, {query:?}");
    }
}

#[tokio::test]
async fn without_low_events_in_its_policy_the_cold_tier_takes_what_is_warm() {
    let site = Site::new();
    let cold = ColdOptions::new(site.cold()).allow_same_device().policy(ColdPolicy::WarmOnly);
    let (manager, store) = site.open_with(EventOptions::default().cold(cold)).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    append_some(&manager, &store).await;
    assert_eq!(store.archive().await.unwrap().events, 9);
    assert!(lines_of(&cold_files(&site, "r1")[0]).iter().all(|event| event.class != Class::Low));
}

#[tokio::test]
async fn a_damaged_segment_is_an_item_and_hides_nothing_else() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let mut ids = Vec::new();
    for _ in 0..3 {
        let event = normal(&manager);
        ids.push(event.id);
        store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
        store.flush(FlushReason::Requested).await.unwrap();
    }
    empty_hot(&manager).await;
    let damage = "DROP TRIGGER event_segments_are_immutable; \
        UPDATE event_segments SET body = zeroblob(length(body)) WHERE first_pos & 0xFF = 2";
    on_scope(&manager, &scope, damage).await;
    for query in [Query::all(), Query::all().backwards()] {
        let items: Vec<_> = store.read(query).collect().await;
        let found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&ids[0]) && found.contains(&ids[2]));
        let errors: Vec<_> = items.iter().filter_map(|item| item.as_ref().err()).collect();
        assert!(
            matches!(errors[..], [Error::Corrupt { what, .. }] if what.starts_with("r1 event_segments row ")),
            "{errors:?}"
        );
    }
}

#[tokio::test]
async fn a_damaged_row_or_name_is_an_item_and_a_damaged_hot_block_is_read_from_flash() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let scope = router("r1");
    let mut ids = Vec::new();
    for _ in 0..3 {
        let event = event(&manager, "config.applied");
        ids.push(event.id);
        store.append(&scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    on_hot(&manager, "UPDATE hot_log SET body = x'0100' WHERE first_seq = 2").await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert_eq!(items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect::<Vec<_>>(), ids);
    assert!(matches!(items.iter().find_map(|item| item.as_ref().err()), Some(Error::Corrupt { .. })));

    empty_hot(&manager).await;
    on_scope(
        &manager,
        &scope,
        "DROP TRIGGER event_rows_are_immutable; UPDATE event_rows SET wall_ms = 1 WHERE pos & 0xFF = 3",
    )
    .await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert_eq!(items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect::<Vec<_>>(), ids[..2]);
    on_scope(&manager, &scope, "UPDATE event_names SET text = 't' WHERE text = 's'").await;
    let items: Vec<_> = store.read(Query::all()).collect().await;
    assert_eq!(items.iter().filter(|item| item.is_ok()).count(), 0, "a changed name is noticed");
}

#[tokio::test]
async fn what_a_damaged_hot_block_held_is_told_as_lost_once_flushes_are_past_it() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let batch = vec![normal(&manager), normal(&manager)];
        ids.extend(batch.iter().map(|event| event.id));
        store.append(&router("r1"), &stream(name), Expected::Any, batch).await.unwrap();
    }
    on_hot(&manager, "UPDATE hot_log SET body = x'0100' WHERE first_seq = 3").await;
    for _ in 0..2 {
        let report = store.flush(FlushReason::Requested).await.unwrap();
        assert!(report.failed.iter().all(|(scope, _)| scope.is_none()));
        store.append(&router("r1"), &stream("a"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    }
    let told = store.truncated(Position::START).await.unwrap();
    let [lost] = &told[..] else { panic!("{told:?}") };
    assert_eq!((lost.after.seq, lost.through.seq, lost.events, lost.lost), (2, 4, 2, 2));
    // Whoever has it still may append it again.
    let mut again = normal(&manager);
    again.id = ids[2];
    let receipt = store.append(&router("r1"), &stream("b"), Expected::Any, vec![again]).await.unwrap();
    assert!(!receipt.deduplicated);
    store.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
    drop((manager, store));
    site.wipe_hot();
    let (_manager, store) = site.open().await;
    assert_eq!(store.losses(), [], "the end was clean");
    assert_eq!(store.truncated(Position::START).await.unwrap(), told);
    let left = read(&store, Query::all()).await;
    assert_eq!(left.iter().map(|event| event.position.seq).collect::<Vec<_>>(), [1, 2, 5, 6, 7, 8, 9]);
}

#[tokio::test]
async fn stored_events_refuse_to_be_changed() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    append_some(&manager, &store).await;
    store.flush(FlushReason::Requested).await.unwrap();
    for sql in ["UPDATE event_rows SET body = '{}'", "UPDATE event_segments SET events = 9"] {
        let changed = manager
            .system()
            .write(support::TEST, move |conn| {
                Box::pin(async move {
                    sqlx::query(sql).execute(conn).await?;
                    Ok::<_, Error>(())
                })
            })
            .await;
        support::assert_refused(&changed, "append-only", sql);
    }
}

#[tokio::test]
async fn a_torn_frame_is_cut_and_written_again() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ids = append_some(&manager, &store).await;
    store.archive().await.unwrap();
    let path = cold_files(&site, "r1").remove(0);
    let whole = std::fs::read(&path).unwrap();
    ids.extend(append_some(&manager, &store).await);
    store.archive().await.unwrap();
    let longer = std::fs::read(&path).unwrap();

    // A stick yanked at any byte of the second frame.
    for length in [whole.len() + 1, whole.len() + 7, whole.len() + 60, longer.len() - 1] {
        std::fs::write(&path, &longer[..length]).unwrap();
        on_scope(&manager, &router("r1"), "DELETE FROM event_cursors").await;
        assert_eq!(read_ids(&store, Query::all()).await, ids);
        let report = store.archive().await.unwrap();
        assert_eq!((report.frames, report.events, report.failed.len()), (1, 4, 0));
        assert_eq!(std::fs::read(&path).unwrap(), longer, "cut at {length}");
    }
    // The length arrived, the bytes did not: the frame was never confirmed and so is written again.
    let mut zeroed = longer.clone();
    let tail = zeroed.len() - 40;
    zeroed[tail..].fill(0);
    std::fs::write(&path, &zeroed).unwrap();
    on_scope(&manager, &router("r1"), "DELETE FROM event_cursors").await;
    drop((store, manager));
    let (manager, store) = open_with_cold(&site).await;
    assert_eq!(store.archive().await.unwrap().events, 4);
    assert_eq!(std::fs::read(&path).unwrap(), longer);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn damage_inside_a_cold_file_is_told_and_the_frames_behind_it_are_read() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    let mut ends = Vec::new();
    let mut path = PathBuf::new();
    let (mut ids, mut places) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let event = normal(&manager);
        ids.push(event.id);
        let receipt = store.append(&router("r1"), &stream("s"), Expected::Any, vec![event]).await.unwrap();
        places.push(receipt.last);
        store.archive().await.unwrap();
        path = cold_files(&site, "r1").remove(0);
        ends.push(std::fs::metadata(&path).unwrap().len());
    }
    empty_hot(&manager).await;
    let whole = std::fs::read(&path).unwrap();
    let middle = usize::try_from(ends[0]).unwrap();
    // While the database has what was copied from it, damage is told to those alone who want what may be there only.
    let mut bytes = whole.clone();
    bytes[middle + 20] ^= 0x5a;
    std::fs::write(&path, &bytes).unwrap();
    let other = EventStore::open(&manager, with_cold(&site)).await.unwrap();
    assert_eq!(read_ids(&other, Query::all().class(Class::Normal)).await, ids);
    let items: Vec<_> = other.read(Query::all()).collect().await;
    assert_eq!(items.iter().filter(|item| matches!(item, Err(Error::Corrupt { .. }))).count(), 1, "Low ones, maybe");
    assert_eq!(items.iter().flatten().count(), 3);
    empty_warm(&manager, &router("r1")).await;
    for damaged in [middle, middle + 20, usize::try_from(ends[1]).unwrap() - 5] {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x5a;
        std::fs::write(&path, &bytes).unwrap();
        let store = EventStore::open(&manager, with_cold(&site)).await.unwrap();
        let items: Vec<_> = store.read(Query::all()).collect().await;
        let found: Vec<_> = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect();
        assert_eq!(found, [ids[0], ids[2]], "byte {damaged}");
        assert!(items.iter().any(|item| matches!(item, Err(Error::Corrupt { .. }))), "byte {damaged}");
        // Whoever wants nothing of that place is not told of it.
        assert_eq!(read_ids(&store, Query::all().after(places[1])).await, ids[2..], "byte {damaged}");
        assert_eq!(read_ids(&store, Query::all().until(places[0])).await, ids[..1], "byte {damaged}");
        store.archive().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "confirmed frames are never cut");
    }
}

#[tokio::test]
async fn a_missing_stick_is_a_normal_event_and_is_caught_up_with() {
    let site = Site::new();
    let (manager, store) = site.open_with(with_cold(&site)).await;
    let mut ids = append_some(&manager, &store).await;
    assert!(matches!(store.archive().await, Err(Error::ColdAbsent { .. })));
    assert!(matches!(store.status().await.unwrap().cold_state, ColdState::Absent(_)));
    assert!(!site.cold().exists(), "nothing is written under an absent mount point");

    prepare_cold_dir(&manager, &site.cold()).unwrap();
    assert_eq!(store.archive().await.unwrap().events, 12);
    let status = store.status().await.unwrap();
    assert_eq!((status.cold_state, status.cold.events), (ColdState::Present, 12));

    // Another stick gets what is still there, and the first one goes on where it was.
    let away = site.dir.path().join("away");
    std::fs::rename(site.cold(), &away).unwrap();
    ids.extend(append_some(&manager, &store).await);
    assert!(matches!(store.archive().await, Err(Error::ColdAbsent { .. })));
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    assert_eq!(store.archive().await.unwrap().events, 24);
    std::fs::rename(site.cold(), site.dir.path().join("second")).unwrap();
    std::fs::rename(&away, site.cold()).unwrap();
    assert_eq!(store.archive().await.unwrap().events, 12);
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

#[tokio::test]
async fn a_directory_on_flash_or_of_another_fleet_is_no_cold_tier() {
    let (site, other) = (Site::new(), Site::new());
    let options = EventOptions::default().cold(ColdOptions::new(site.cold()));
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let Err(Error::ColdAbsent { why, .. }) = store.archive().await else { panic!() };
    assert_eq!(why, "it is on the device of the data directory");

    let (stranger, store) = other.open_with(with_cold(&site)).await;
    assert!(matches!(store.archive().await, Err(Error::ColdAbsent { .. })));
    assert!(matches!(prepare_cold_dir(&stranger, &site.cold()), Err(Error::ColdAbsent { .. })));
}

#[tokio::test]
async fn until_a_clock_is_trusted_the_file_is_named_by_the_epoch() {
    let site = Site::new();
    site.clock.set_wall_ms(1_000);
    let (manager, store) = open_with_cold(&site).await;
    append_some(&manager, &store).await;
    store.archive().await.unwrap();
    site.clock.set_wall_ms(support::NOW_MS);
    append_some(&manager, &store).await;
    store.archive().await.unwrap();
    let names: Vec<_> = cold_files(&site, "system").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["events-2026-11.jsonl.zst", "events-unsynced-1.jsonl.zst"]);
    let all = read_ids(&store, Query::all()).await;
    empty_hot(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, all);
}

#[tokio::test]
async fn history_in_the_cold_tier_survives_its_router() {
    let site = Site::new();
    let (manager, store) = open_with_cold(&site).await;
    append_some(&manager, &store).await;
    store.archive().await.unwrap();
    let ids = read_ids(&store, Query::all()).await;
    empty_hot(&manager).await;
    on_scope(&manager, &Scope::System, "UPDATE routers SET lifecycle = 'retired' WHERE id = 'r2'").await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    assert_eq!(read_ids(&store, Query::scope(router("r2"))).await, ids[8..]);
}

#[tokio::test]
async fn the_loop_flushes_a_full_page_and_once_more_at_the_end() {
    let site = Site::new();
    let (manager, store) = site.open().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let own = store.clone();
    let worker = tokio::spawn(async move {
        own.maintain(async {
            drop(stopped.await);
        })
        .await
    });
    let scope = router("r1");
    let mut appended = 0;
    while store.status().await.unwrap().flushed_through.seq == 0 {
        store.append(&scope, &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
        appended += 1;
        assert!(appended < 2_000, "a page is full long before");
    }
    store.append(&scope, &stream("s"), Expected::Any, vec![normal(&manager)]).await.unwrap();
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    let status = store.status().await.unwrap();
    assert_eq!(status.flushed_through, status.end);
}
