//! The cold tier on a medium that is torn, damaged, shared, misdated or somebody else's.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs, unreachable_pub)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_dbmanager::{ClockQuality, DbManager, Scope};
use nasnet_events::{
    ColdOptions, ColdState, Error, EventOptions, EventStore, Expected, FaultKind, FlushReason, Query, Recorded, Span,
    prepare_cold_dir,
};
use support::{NOW_MS, Site, empty_hot, empty_warm, normal, read_ids, router, stream};
use ulid::Ulid;

const YEAR_MS: i64 = 365 * 86_400_000;

async fn open(site: &Site) -> (DbManager, EventStore) {
    let options = EventOptions::default().cold(ColdOptions::new(site.cold()).allow_same_device());
    let (manager, store) = site.open_with(options).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    (manager, store)
}

async fn append(manager: &DbManager, store: &EventStore, scope: &Scope, count: usize) -> Vec<Ulid> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let event = normal(manager);
        ids.push(event.id);
        store.append(scope, &stream("s"), Expected::Any, vec![event]).await.unwrap();
    }
    ids
}

fn files(site: &Site, scope: &str) -> Vec<String> {
    let entries = std::fs::read_dir(site.cold().join(scope)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn file(site: &Site) -> PathBuf {
    site.cold().join("r1/events-2026-11.jsonl.zst")
}

/// Three frames of one event each, archived one after the other; the ends of the frames.
async fn three_frames(site: &Site, manager: &DbManager, store: &EventStore) -> (Vec<Ulid>, Vec<usize>) {
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        ids.extend(append(manager, store, &router("r1"), 1).await);
        store.archive().await.unwrap();
        ends.push(std::fs::read(file(site)).unwrap().len());
    }
    (ids, ends)
}

async fn forget_warm(manager: &DbManager) {
    empty_hot(manager).await;
    empty_warm(manager, &router("r1")).await;
}

fn zstd_dc(path: &Path) -> Option<Output> {
    match Command::new("zstd").arg("-dc").arg(path).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: the zstd command cannot be run: {error}");
            None
        }
    }
}

fn lines(text: &[u8]) -> Vec<Recorded> {
    String::from_utf8_lossy(text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn zstd_prints_every_whole_frame_of_a_torn_file_and_reports_the_torn_one() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (ids, ends) = three_frames(&site, &manager, &store).await;
    let whole = std::fs::read(file(&site)).unwrap();
    for length in [ends[1] + 3, ends[1] + 30, ends[2] - 1] {
        std::fs::write(file(&site), &whole[..length]).unwrap();
        let Some(output) = zstd_dc(&file(&site)) else { return };
        let printed: Vec<Ulid> = lines(&output.stdout).iter().map(|event| event.id).collect();
        assert_eq!(printed, ids[..2], "torn at {length}");
        assert!(!output.status.success() && !output.stderr.is_empty(), "torn at {length}: {output:?}");

        // The next mount cuts it, and nobody is in doubt any more. What was confirmed and is torn nevertheless is
        // written again as long as it is in another tier.
        let report = store.archive().await.unwrap();
        assert_eq!((report.events, report.failed.len()), (1, 0));
        let output = zstd_dc(&file(&site)).unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(lines(&output.stdout).iter().map(|event| event.id).collect::<Vec<_>>(), ids);
        assert_eq!(std::fs::read(file(&site)).unwrap(), whole);
    }
}

#[tokio::test]
async fn a_last_frame_with_a_damaged_description_is_set_aside_and_never_cut_as_torn() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (ids, ends) = three_frames(&site, &manager, &store).await;
    let whole = std::fs::read(file(&site)).unwrap();
    // A bit of the magic number, of the length (now beyond the end of the file), of the description, of its checksum.
    let length_byte = ends[1] + 5;
    for damaged in [ends[1], length_byte, ends[1] + 9, ends[1] + 40] {
        let mut bytes = whole.clone();
        bytes[damaged] ^= 0x10;
        std::fs::write(file(&site), &bytes).unwrap();
        let items: Vec<_> = store.read(Query::all()).collect().await;
        let found = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(found, ids, "byte {damaged}: other tiers still have it");

        let report = store.archive().await.unwrap();
        assert_eq!((report.frames, report.failed.len()), (1, 0), "byte {damaged}: {report:?}");
        assert_eq!(std::fs::read(file(&site)).unwrap(), whole, "byte {damaged}: written again from the warm tier");
        let aside = site.cold().join(format!("r1/events-2026-11.jsonl.zst.damaged-{}", ends[1]));
        assert_eq!(std::fs::read(&aside).unwrap(), bytes[ends[1]..], "byte {damaged}: nothing is thrown away");
        let findings = store.status().await.unwrap().cold_findings;
        assert_eq!(findings.damaged, std::slice::from_ref(&aside), "byte {damaged}");
        std::fs::remove_file(aside).unwrap();
    }

    // With nothing left to write it again from, it is told as damage and hides no other frame.
    forget_warm(&manager).await;
    let mut bytes = whole.clone();
    bytes[ends[1] + 9] ^= 0x10;
    std::fs::write(file(&site), &bytes).unwrap();
    let items: Vec<_> = store.read(Query::all()).collect().await;
    let found = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect::<Vec<_>>();
    assert_eq!(found, ids[..2]);
    assert!(items.iter().any(|item| matches!(item, Err(Error::Corrupt { .. }))));
}

#[tokio::test]
async fn one_flipped_bit_hides_at_most_its_own_frame() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (ids, ends) = three_frames(&site, &manager, &store).await;
    forget_warm(&manager).await;
    let whole = std::fs::read(file(&site)).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(file(&site), &bytes).unwrap();
        let items: Vec<_> = store.read(Query::all()).collect().await;
        let found = items.iter().filter_map(|item| item.as_ref().ok()).map(|event| event.id).collect::<Vec<_>>();
        let hit = ends.iter().position(|end| at < *end).unwrap();
        let others: Vec<Ulid> = ids.iter().enumerate().filter(|(frame, _)| *frame != hit).map(|(_, id)| *id).collect();
        // zstd does not check every bit of its own headers; what is decoded is right nevertheless.
        assert!(found == others || found == ids, "bit at {at}: {found:?}");
        assert!(found == ids || items.iter().any(|item| matches!(item, Err(Error::Corrupt { .. }))), "bit at {at}");
    }
}

#[tokio::test]
async fn files_of_others_are_left_alone_and_told() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    std::fs::create_dir_all(site.cold().join("r1")).unwrap();
    let notes = b"holiday pictures, not events".as_slice();
    let others = ["holiday.txt", "r1/notes.md", "r1/events-2026-11.jsonl.zst"];
    for name in others {
        std::fs::write(site.cold().join(name), notes).unwrap();
    }
    let ids = append(&manager, &store, &router("r1"), 3).await;
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (3, 0), "{report:?}");
    for name in others {
        assert_eq!(std::fs::read(site.cold().join(name)).unwrap(), notes, "{name}");
    }
    assert_eq!(files(&site, "r1"), ["events-2026-11.2.jsonl.zst", "events-2026-11.jsonl.zst", "notes.md"]);
    let foreign = store.status().await.unwrap().cold_findings.foreign;
    let told = ["holiday.txt", "r1/events-2026-11.jsonl.zst", "r1/notes.md"].map(|name| site.cold().join(name));
    assert_eq!(foreign, told);
    forget_warm(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
    assert_eq!(store.archive().await.unwrap().frames, 0);
}

#[tokio::test]
async fn a_clock_that_was_73_years_ahead_names_no_later_file() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let scope = router("r1");
    append(&manager, &store, &scope, 1).await;
    store.archive().await.unwrap();
    site.clock.set_wall_ms(NOW_MS + 73 * YEAR_MS);
    append(&manager, &store, &scope, 1).await;
    // Not archived before the clock is right again: the month is that of the events before.
    site.clock.set_wall_ms(NOW_MS + 1);
    store.archive().await.unwrap();
    assert_eq!(files(&site, "r1"), ["events-2026-11.jsonl.zst"]);
    // Archived while it was wrong: a file of that name, which is not gone on with.
    site.clock.set_wall_ms(NOW_MS + 73 * YEAR_MS);
    append(&manager, &store, &scope, 1).await;
    store.archive().await.unwrap();
    site.clock.set_wall_ms(NOW_MS + 2);
    append(&manager, &store, &scope, 1).await;
    store.archive().await.unwrap();
    let names = files(&site, "r1");
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[1].starts_with("events-2099"), "{names:?}");
    let all = read_ids(&store, Query::scope(scope.clone())).await;
    let november = zstd::stream::decode_all(std::fs::File::open(file(&site)).unwrap()).unwrap();
    assert_eq!(lines(&november).len(), 3);
    forget_warm(&manager).await;
    assert_eq!(read_ids(&store, Query::scope(scope)).await, all, "the order is that of positions, whatever the names");
}

#[tokio::test]
async fn one_store_at_a_time_writes_to_a_medium() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    append(&manager, &store, &router("r1"), 2).await;
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(site.cold().join(".nasnet-cold.lock"))
        .unwrap();
    lock.lock().unwrap();
    let own = store.clone();
    let mut waiting = tokio::spawn(async move { own.archive().await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err(), "it waits for the other");
    assert!(!site.cold().join("r1").exists());
    assert_eq!(store.status().await.unwrap().cold_state, ColdState::Present);
    drop(lock);
    assert_eq!(waiting.await.unwrap().unwrap().events, 2);
}

/// The only file of `r1`.
fn only_file(site: &Site) -> PathBuf {
    let names = files(site, "r1");
    assert_eq!(names.len(), 1, "{names:?}");
    site.cold().join("r1").join(&names[0])
}

#[tokio::test]
async fn a_damaged_file_of_one_frame_is_not_taken_for_somebody_elses() {
    for quality in [ClockQuality::Synced, ClockQuality::Unsynced] {
        let site = Site::new();
        site.clock.set_quality(quality);
        let (manager, store) = open(&site).await;
        let ids = append(&manager, &store, &router("r1"), 1).await;
        store.archive().await.unwrap();
        let path = only_file(&site);
        let whole = std::fs::read(&path).unwrap();
        for byte in 0..12 {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << (byte % 8);
            std::fs::write(&path, &bytes).unwrap();
            let findings = store.status().await.unwrap().cold_findings;
            assert_eq!((findings.foreign.len(), findings.damaged.len()), (0, 1), "byte {byte} of {path:?}");
            assert!(!store.verify(Span::all()).await.unwrap().is_sound(), "byte {byte} of {path:?}");
        }
        // Written again as long as it is in another tier, and nothing is thrown away.
        let mut bytes = whole.clone();
        bytes[9] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let report = store.archive().await.unwrap();
        assert_eq!((report.frames, report.failed.len()), (1, 0), "{report:?}");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(std::fs::read(format!("{}.damaged-0", path.display())).unwrap(), bytes);

        forget_warm(&manager).await;
        assert_eq!(read_ids(&store, Query::all()).await, ids);
        for at in (0..whole.len()).step_by(9) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            let items: Vec<_> = store.read(Query::all()).collect().await;
            let is_told = items.iter().any(|item| matches!(item, Err(Error::Corrupt { .. })));
            // zstd does not check every bit of its own headers; what is decoded is right nevertheless.
            assert!(is_told || items.len() == 1, "bit at {at}: {items:?}");
        }
    }
}

#[tokio::test]
async fn a_file_of_somebody_else_with_the_name_of_an_epoch_stops_no_archive() {
    let site = Site::new();
    site.clock.set_quality(ClockQuality::Unsynced);
    let (manager, store) = open(&site).await;
    let ids = append(&manager, &store, &router("r1"), 2).await;
    std::fs::create_dir_all(site.cold().join("r1")).unwrap();
    std::fs::write(site.cold().join("r1/events-unsynced-1.jsonl.zst"), b"holiday pictures, not events").unwrap();
    let report = store.archive().await.unwrap();
    assert_eq!((report.events, report.failed.len()), (2, 0), "{report:?}");
    assert_eq!(files(&site, "r1"), ["events-unsynced-1.2.jsonl.zst", "events-unsynced-1.jsonl.zst"]);
    forget_warm(&manager).await;
    assert_eq!(read_ids(&store, Query::all()).await, ids);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

/// An image of the flash is written back, and the stick has what came later.
#[tokio::test]
async fn an_archive_of_another_history_confirms_nothing() {
    let site = Site::new();
    let scope = router("r1");
    let confirmed = async |store: &EventStore| {
        let status = store.status().await.unwrap().warm;
        let of_scope = status.into_iter().map(Result::unwrap).find(|warm| warm.scope == scope).unwrap();
        (of_scope.archived_through, of_scope.unarchived)
    };
    let mut before = None;
    for round in 0..3 {
        let (manager, store) = open(&site).await;
        append(&manager, &store, &scope, 3).await;
        let report = store.archive().await.unwrap();
        if round < 2 {
            assert!(report.failed.is_empty(), "{report:?}");
        } else {
            let [(of, why)] = &report.failed[..] else { panic!("{report:?}") };
            assert!(*of == scope && matches!(why, Error::Corrupt { .. }) && why.to_string().contains("older"), "{why}");
            let (through, waiting) = confirmed(&store).await;
            assert_eq!((through, waiting), (before, Some(3)), "what was appended since waits");
        }
        if round == 0 {
            before = confirmed(&store).await.0;
        }
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
        drop((manager, store));
        std::fs::remove_dir_all(site.run()).unwrap();
        site.clock.reboot();
        let image = site.dir.path().join("image");
        match round {
            0 => copy_dir(&site.data(), &image),
            1 => {
                // Two more boots leave the epoch of the image behind for good.
                let (manager, store) = open(&site).await;
                append(&manager, &store, &scope, 3).await;
                store.archive().await.unwrap();
                store.shutdown().await.unwrap();
                manager.shutdown().await.unwrap();
                drop((manager, store));
                std::fs::remove_dir_all(site.run()).unwrap();
                std::fs::remove_dir_all(site.data()).unwrap();
                copy_dir(&image, &site.data());
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_medium_that_takes_nothing_costs_no_flush() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    // As one that is mounted for reading only.
    std::fs::create_dir(site.cold().join(".nasnet-cold.lock")).unwrap();
    append(&manager, &store, &router("r1"), 3).await;
    for _ in 0..3 {
        let refused = store.archive().await;
        assert!(matches!(refused, Err(Error::ColdAbsent { .. } | Error::Io { .. })), "{refused:?}");
        assert_eq!(store.status().await.unwrap().unflushed, 3);
    }
}

/// A directory in the place of a file: it is there, and cannot be read.
fn make_unreadable(path: &Path) {
    std::fs::rename(path, path.with_extension("away")).unwrap();
    std::fs::create_dir(path).unwrap();
}

fn make_readable(path: &Path) {
    std::fs::remove_dir(path).unwrap();
    std::fs::rename(path.with_extension("away"), path).unwrap();
}

#[tokio::test]
async fn a_file_that_is_never_given_back_is_told_and_the_archive_goes_on_in_another() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (scope, november) = (router("r1"), file(&site));
    let december = november.with_file_name("events-2026-12.jsonl.zst");
    let mut ids = append(&manager, &store, &scope, 3).await;
    store.archive().await.unwrap();
    site.clock.set_wall_ms(NOW_MS + 31 * 86_400_000);
    ids.extend(append(&manager, &store, &scope, 3).await);
    store.archive().await.unwrap();
    assert!(december.exists());
    let archived = async || {
        let warm = store.status().await.unwrap().warm.into_iter().flatten();
        warm.filter(|warm| warm.scope == router("r1")).find_map(|warm| warm.archived_through)
    };
    let before = archived().await;
    let is_told = |error: &Error| matches!(error, Error::Io { path, .. } if *path == november);

    // An old one: waited for, for it may come back.
    make_unreadable(&november);
    ids.extend(append(&manager, &store, &scope, 1).await);
    append(&manager, &store, &router("r2"), 1).await;
    for _ in 0..2 {
        let report = store.archive().await.unwrap();
        assert!(matches!(&report.failed[..], [(failed, error)] if *failed == scope && is_told(error)), "{report:?}");
        assert!(report.unreadable.is_empty());
    }
    assert_eq!((archived().await, files(&site, "r2").len()), (before, 1), "others go on");
    site.clock.advance(EventOptions::default().stall_after);
    let report = store.archive().await.unwrap();
    assert!(matches!(&report.unreadable[..], [(told, error)] if *told == scope && is_told(error)), "{report:?}");
    assert_eq!((report.failed.len(), report.frames), (0, 1), "{report:?}");
    assert!(archived().await > before);
    let found = store.status().await.unwrap().cold_findings;
    assert_eq!((&found.unreadable[..], found.damaged.len()), (&[november.clone()][..], 0));
    let verification = store.verify(Span::scope(scope.clone())).await.unwrap();
    let [fault] = &verification.faults[..] else { panic!("{:?}", verification.faults) };
    assert_eq!(fault.kind, FaultKind::Unreadable);
    assert!(fault.detail.contains("events-2026-11"), "{}", fault.detail);
    // What it held is not there, and reads say so.
    forget_warm(&manager).await;
    let items: Vec<_> = store.read(Query::scope(scope.clone())).collect().await;
    assert_eq!(items.iter().flatten().map(|event| event.id).collect::<Vec<_>>(), ids[3..]);
    assert!(items.iter().any(|item| item.as_ref().is_err_and(is_told)));
    make_readable(&november);
    assert_eq!(read_ids(&store, Query::scope(scope.clone())).await, ids, "nothing was done to it");
    let verification = store.verify(Span::all()).await.unwrap();
    assert!(verification.is_sound(), "{:?}", verification.faults);
    assert!(store.archive().await.unwrap().unreadable.is_empty());
}

#[tokio::test]
async fn what_is_warm_is_archived_again_where_the_newest_file_is_not_given_back() {
    let site = Site::new();
    let (manager, store) = open(&site).await;
    let (scope, november) = (router("r1"), file(&site));
    let ids = append(&manager, &store, &scope, 3).await;
    store.archive().await.unwrap();
    for is_link in [false, true] {
        let path = if is_link { november.with_file_name("events-2026-11.2.jsonl.zst") } else { november.clone() };
        if is_link {
            std::fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("nowhere", &path).unwrap();
        } else {
            make_unreadable(&path);
        }
        assert_eq!(store.archive().await.unwrap().failed.len(), 1);
        site.clock.advance(EventOptions::default().stall_after);
        let report = store.archive().await.unwrap();
        assert_eq!((report.failed.len(), report.events), (0, 3), "{report:?}");
        assert!(
            report.unreadable.iter().any(|(_, error)| matches!(error, Error::Io { path: told, .. } if *told == path))
        );
        let report = store.archive().await.unwrap();
        assert_eq!((report.failed.len(), report.events), (0, 0), "{report:?}");
    }
    assert!(!site.cold().join("r1/nowhere").exists(), "nothing is written through a link that leads nowhere");
    forget_warm(&manager).await;
    let found: Vec<_> = store.read(Query::scope(scope)).collect::<Vec<_>>().await.into_iter().flatten().collect();
    assert_eq!(found.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn a_damaged_last_frame_stays_where_it_is_unless_all_of_it_can_be_written_again() {
    for lost in ["nothing", "a segment", "both segments", "low events"] {
        let site = Site::new();
        let (manager, store) = open(&site).await;
        let scope = router("r1");
        let mut ids = append(&manager, &store, &scope, 1).await;
        store.archive().await.unwrap();
        let first_ends = std::fs::metadata(file(&site)).unwrap().len();
        // A frame of two segments and, in one case, an event that is nowhere else.
        for _ in 0..2 {
            ids.extend(append(&manager, &store, &scope, 1).await);
            store.flush(FlushReason::Requested).await.unwrap();
        }
        if lost == "low events" {
            let low = support::event(&manager, "metric.updated");
            store.append(&scope, &stream("s"), Expected::Any, vec![low]).await.unwrap();
        }
        store.archive().await.unwrap();
        let whole = std::fs::read(file(&site)).unwrap();
        empty_hot(&manager).await;
        match lost {
            "a segment" => {
                let retire = "INSERT INTO event_retained (what, through_pos) SELECT 0, last_pos FROM event_segments
                        ORDER BY first_pos LIMIT 1 OFFSET 1;
                     DELETE FROM event_segments WHERE last_pos <= (SELECT MAX(through_pos) FROM event_retained)";
                support::on_scope(&manager, &scope, retire).await;
            }
            "both segments" => empty_warm(&manager, &scope).await,
            _ => {}
        }
        let mut damaged = whole.clone();
        let length = damaged.len();
        damaged[length - 20..].fill(0);
        // Another file, so that the store notices however coarse the times of files are.
        std::fs::write(site.dir.path().join("damaged"), &damaged).unwrap();
        std::fs::rename(site.dir.path().join("damaged"), file(&site)).unwrap();

        let report = store.archive().await.unwrap();
        let aside = format!("{}.damaged-{first_ends}", file(&site).display());
        assert_eq!(Path::new(&aside).exists(), lost == "nothing", "{lost}");
        if lost == "nothing" {
            assert_eq!((report.failed.len(), report.frames), (0, 1), "{report:?}");
            assert_eq!(std::fs::read(file(&site)).unwrap(), whole);
            continue;
        }
        assert!(matches!(&report.failed[..], [(_, Error::Corrupt { .. })]), "{lost}: {report:?}");
        assert_eq!(report.frames, 0, "{lost}");
        assert!(store.archive().await.unwrap().failed.is_empty(), "{lost}: it is told once");
        ids.extend(append(&manager, &store, &scope, 1).await);
        let report = store.archive().await.unwrap();
        assert_eq!((report.failed.len(), report.frames), (0, 1), "{lost}: {report:?}");
        assert_eq!(std::fs::read(file(&site)).unwrap(), damaged, "{lost}");
        assert_eq!(files(&site, "r1"), ["events-2026-11.2.jsonl.zst", "events-2026-11.jsonl.zst"], "{lost}");
        assert_eq!(store.status().await.unwrap().cold_findings.damaged, [file(&site)], "{lost}");
        let verification = store.verify(Span::scope(scope.clone())).await.unwrap();
        let [fault] = &verification.faults[..] else { panic!("{lost}: {:?}", verification.faults) };
        assert_eq!(fault.kind, FaultKind::Damaged, "{lost}");
        // The other frames are read, and the damaged one is told.
        forget_warm(&manager).await;
        let items: Vec<_> = store.read(Query::scope(scope)).collect().await;
        let found: Vec<_> = items.iter().flatten().map(|event| event.id).collect();
        assert_eq!(found, [ids[0], ids[3]], "{lost}");
        assert!(items.iter().any(Result::is_err), "{lost}");
    }
}
