//! What only the parts inside can show: a failure at every step, and how much a narrow query reads.

use std::io::Write;
use std::sync::PoisonError;

use futures_util::TryStreamExt;
use nasnet_dbmanager::{DbManager, Scope};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;

use crate::arbitrary;
use crate::chain::Digest;
use crate::cold::dir::{ColdDir, Step};
use crate::cold::frame::{self, FRAME_EVENTS_MAX};
use crate::cold::prepare_cold_dir;
use crate::error::Error;
use crate::event::{NewEvent, Recorded};
use crate::expected::Expected;
use crate::merge::Range;
use crate::name::{EventType, StreamName};
use crate::options::{ColdOptions, EventOptions};
use crate::place::Place as Databases;
use crate::position::Position;
use crate::query::Query;
use crate::store::EventStore;

struct Place {
    dir: tempfile::TempDir,
    manager: DbManager,
}

impl Place {
    async fn new() -> Self {
        let Databases { dir, manager, .. } = Databases::new().await;
        prepare_cold_dir(&manager, &dir.path().join("cold")).unwrap();
        Self { dir, manager }
    }

    fn cold(&self) -> ColdOptions {
        ColdOptions::new(self.dir.path().join("cold")).allow_same_device()
    }
}

async fn append(store: &EventStore, manager: &DbManager) {
    let kind = EventType::parse("resource.updated").unwrap();
    let event = NewEvent::new(manager.next_ulid(), kind, &json!({ "n": 1 })).unwrap();
    let stream = StreamName::parse("resource/1").unwrap();
    store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
}

/// Archive, verify, confirm: whichever step fails, nothing is confirmed that cannot be read back, nothing is lost, and
/// the next run leaves the file an undisturbed run would have written.
#[tokio::test]
async fn a_failure_at_any_step_confirms_nothing_and_is_caught_up_with() {
    let steps = [Step::MakeDir, Step::Open, Step::Write, Step::Sync, Step::SyncDir, Step::ReadBack];
    for (step, is_first_frame) in steps.into_iter().flat_map(|step| [(step, true), (step, false)]) {
        if step == Step::SyncDir && !is_first_frame {
            continue;
        }
        let place = Place::new().await;
        let store = EventStore::open(&place.manager, EventOptions::default().cold(place.cold())).await.unwrap();
        append(&store, &place.manager).await;
        if !is_first_frame {
            store.archive().await.unwrap();
            append(&store, &place.manager).await;
        }
        let confirmed = async || store.status().await.unwrap().warm[0].as_ref().unwrap().archived_through;
        let before = confirmed().await;
        let cold = store.shared().cold.clone().unwrap();
        cold.lock().unwrap_or_else(PoisonError::into_inner).failing = Some(step);
        let report = store.archive().await.unwrap();
        assert_eq!((report.frames, report.failed.len()), (0, 1), "{step:?}: {report:?}");
        assert_eq!(confirmed().await, before, "{step:?}");
        let all: Vec<Recorded> = store.read(Query::all()).try_collect().await.unwrap();
        assert_eq!(all.len(), if is_first_frame { 1 } else { 2 }, "{step:?}");

        if step == Step::SyncDir {
            // The file is there by now, and whether its name is on the medium is as unknown as before.
            cold.lock().unwrap_or_else(PoisonError::into_inner).failing = Some(step);
            assert_eq!(store.archive().await.unwrap().failed.len(), 1, "its name is not synced");
        }
        let path = place.dir.path().join("cold/system/events-2026-11.jsonl.zst");
        assert_eq!(path.exists(), !is_first_frame, "{step:?}: zstd takes an empty file for a damaged one");
        // As a power cut leaves one.
        let empty = path.with_file_name("events-2026-10.jsonl.zst");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&empty, "").unwrap();
        let report = store.archive().await.unwrap();
        assert_eq!((report.frames, report.failed.len()), (1, 0), "{step:?}: {report:?}");
        assert!(!empty.exists(), "{step:?}");
        assert_eq!(confirmed().await, Some(all[all.len() - 1].position));
        let text = zstd::stream::decode_all(std::fs::File::open(path).unwrap()).unwrap();
        let lines: Vec<Recorded> =
            String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, all, "{step:?}");
    }
}

/// The frames of 200 times 1,000 events: only those of the range are read, and the descriptions of all others.
#[tokio::test]
async fn a_narrow_range_reads_a_small_part_of_a_large_file() {
    let place = Place::new().await;
    let mut runner = TestRunner::deterministic();
    let mut sample = arbitrary::events(1..2).new_tree(&mut runner).unwrap().current().remove(0);
    sample.scope = Scope::System;
    let frame_of = |number: u64| {
        let event = |offset: u64| {
            // As incompressible as what routers say: about 75 bytes an event.
            let noise = (number * 1_000 + offset).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let noise: String = (0..6_u32).map(|turn| format!("{:x}", noise.rotate_left(turn * 11))).collect();
            let body = serde_json::value::to_raw_value(&json!({ "menu": "/interface", "noise": noise })).unwrap();
            Recorded {
                position: Position::new(1, number * 1_000 + offset + 1),
                version: number * 1_000 + offset + 1,
                body: crate::body::Body::Json(body),
                ..sample.clone()
            }
        };
        (0..FRAME_EVENTS_MAX as u64).map(event).collect::<Vec<_>>()
    };
    let dir = place.dir.path().join("cold/system");
    std::fs::create_dir(&dir).unwrap();
    let mut file = std::fs::File::create(dir.join("events-2026-11.jsonl.zst")).unwrap();
    // The descriptions are true, but behind most of them stand the lines of another frame: reading one would fail.
    let (template, bytes) = frame::encode(&frame_of(0), Digest::GENESIS).unwrap();
    let packed = &bytes[bytes.len() - usize::try_from(template.packed_bytes).unwrap()..];
    for number in 0..200 {
        if number == 123 {
            file.write_all(&frame::encode(&frame_of(number), Digest::GENESIS).unwrap().1).unwrap();
            continue;
        }
        let (first, last) = (Position::new(1, number * 1_000 + 1), Position::new(1, number * 1_000 + 1_000));
        let header = frame::Header { first, last, ..template.clone() };
        file.write_all(&header.prefixed().unwrap()).unwrap();
        file.write_all(packed).unwrap();
    }
    let size = file.metadata().unwrap().len();

    let mut cold = ColdDir::new(&place.cold(), &place.manager);
    let (low, high) = (Position::new(1, 123_400), Position::new(1, 123_500));
    let query = Query::scope(Scope::System).after(low).until(high);
    let slice = cold.read(&Scope::System, &query, Range { low, high }, None).unwrap();
    assert!(slice.errors.is_empty(), "{:?}", slice.errors);
    assert_eq!(slice.events.len(), 100);
    let totals = cold.totals().unwrap();
    assert_eq!(totals.events, 200_000);
    let read = totals.findings.bytes_read;
    println!("{read} of {size} bytes read, {:.2} %", read as f64 * 100.0 / size as f64);
    assert!(read * 50 <= size, "{read} of {size} bytes are more than 2 %");
    // The second time nothing but the frame.
    let _ = cold.read(&Scope::System, &query, Range { low, high }, None).unwrap();
    assert!(cold.totals().unwrap().findings.bytes_read - read < size / 150);
    assert!(matches!(
        cold.read(&Scope::System, &query, Range { low: Position::START, high }, None).unwrap().errors[..],
        [Error::Corrupt { .. }, ..]
    ));
}

/// As the end of the process between a frame and the note of it.
async fn forget_archived(manager: &DbManager) {
    let forget = "UPDATE event_cursors SET pos = 0 WHERE name = 'archive'";
    let system = manager.system();
    let forgotten = system
        .write(nasnet_dbmanager::Cause::new("test"), move |conn| {
            Box::pin(async move { Ok::<_, Error>(sqlx::query(forget).execute(conn).await?.rows_affected()) })
        })
        .await
        .unwrap();
    assert_eq!(forgotten, 1);
}

/// A file of the archive that cannot be read may hold what was never confirmed, and is before frames that can be read.
#[tokio::test]
async fn nothing_is_confirmed_over_a_file_that_cannot_be_read_and_was_never_confirmed() {
    let place = Databases::new().await;
    let cold = place.dir.path().join("cold");
    prepare_cold_dir(&place.manager, &cold).unwrap();
    let options = EventOptions::default().cold(ColdOptions::new(cold.clone()).allow_same_device());
    let stall_after = options.stall_after;
    let store = EventStore::open(&place.manager, options).await.unwrap();
    let mut paths = Vec::new();
    for (month, wall_ms) in [(11, 1_795_000_000_000), (12, 1_797_500_000_000), (1, 1_800_000_000_000)] {
        place.clock.set_wall_ms(wall_ms);
        append(&store, &place.manager).await;
        assert_eq!(store.archive().await.unwrap().frames, 1);
        paths.push(cold.join(format!("system/events-202{}-{month:02}.jsonl.zst", if month == 1 { 7 } else { 6 })));
    }
    let archived = async || store.status().await.unwrap().warm[0].as_ref().unwrap().archived_through;
    let confirmed = archived().await;
    forget_archived(&place.manager).await;
    let nothing = archived().await;
    for path in &paths[..2] {
        let away = path.with_extension("away");
        std::fs::rename(path, &away).unwrap();
        std::fs::create_dir(path).unwrap();
        for _ in 0..2 {
            let report = store.archive().await.unwrap();
            let told = |error: &Error| matches!(error, Error::Io { path: told, .. } if told == path);
            assert!(matches!(&report.failed[..], [(_, error)] if told(error)), "{report:?}");
            assert_eq!((report.frames, archived().await), (0, nothing));
            place.clock.advance(stall_after);
        }
        std::fs::remove_dir(path).unwrap();
        std::fs::rename(&away, path).unwrap();
    }
    assert!(store.archive().await.unwrap().failed.is_empty());
    assert_eq!(archived().await, confirmed);
}

/// A sync that fails leaves a frame that reads well and is on no medium. Whoever finds it must not confirm it before it is.
#[tokio::test]
async fn a_frame_that_an_earlier_run_left_is_confirmed_only_once_it_is_synced() {
    let place = Place::new().await;
    let store = EventStore::open(&place.manager, EventOptions::default().cold(place.cold())).await.unwrap();
    append(&store, &place.manager).await;
    store.archive().await.unwrap();
    let archived = async || store.status().await.unwrap().warm[0].as_ref().unwrap().archived_through;
    let confirmed = archived().await;
    forget_archived(&place.manager).await;
    let cold = store.shared().cold.clone().unwrap();
    cold.lock().unwrap_or_else(PoisonError::into_inner).failing = Some(Step::Settle);
    let report = store.archive().await.unwrap();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert_ne!(archived().await, confirmed, "it may be in the page cache alone");
    let report = store.archive().await.unwrap();
    assert_eq!((report.frames, report.failed.len()), (0, 0), "it is there already: {report:?}");
    assert_eq!(archived().await, confirmed);
    cold.lock().unwrap_or_else(PoisonError::into_inner).failing = Some(Step::Settle);
    assert_eq!(store.archive().await.unwrap().failed.len(), 0, "what is confirmed is not synced again");
}

/// Makes zeros of the lines of the last frame: its description and the length of the file had reached the medium.
fn lose_lines(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = bytes.len();
    bytes[length - 60..].fill(0);
    std::fs::write(path, bytes).unwrap();
}

/// What is confirmed was confirmed on one medium, and nobody knows which.
#[tokio::test]
async fn a_frame_that_was_never_whole_on_this_medium_is_written_again_although_another_has_it() {
    let place = Place::new().await;
    let open = async || EventStore::open(&place.manager, EventOptions::default().cold(place.cold())).await.unwrap();
    let store = open().await;
    let path = place.dir.path().join("cold/system/events-2026-11.jsonl.zst");
    append(&store, &place.manager).await;
    store.archive().await.unwrap();
    let first_ends = std::fs::metadata(&path).unwrap().len();
    append(&store, &place.manager).await;
    assert_eq!(store.archive().await.unwrap().frames, 1);
    let whole = std::fs::read(&path).unwrap();

    // Found by the next process.
    store.shutdown().await.unwrap();
    lose_lines(&path);
    let store = open().await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.frames, report.failed.len()), (1, 0), "{report:?}");
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    // And by the same, when it was put in meanwhile.
    let (cold, first) = (place.dir.path().join("cold"), place.dir.path().join("first"));
    std::fs::rename(&cold, &first).unwrap();
    prepare_cold_dir(&place.manager, &cold).unwrap();
    std::fs::create_dir(cold.join("system")).unwrap();
    std::fs::write(&path, &whole).unwrap();
    lose_lines(&path);
    let damaged = std::fs::read(&path).unwrap();
    let report = store.archive().await.unwrap();
    assert_eq!((report.frames, report.failed.len()), (1, 0), "{report:?}");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // It was confirmed somewhere, so nothing of it is thrown away.
    let aside = std::fs::read(format!("{}.damaged-{first_ends}", path.display())).unwrap();
    assert!(damaged.ends_with(&aside) && aside.len() as u64 + first_ends == damaged.len() as u64);
}
