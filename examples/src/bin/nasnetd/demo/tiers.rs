//! Step 7: events move from tmpfs to flash to the archive, and one query returns them all once and in order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt as _;
use nasnet_dbmanager::Scope;
use nasnet_events::{Achieved, Class, Expected, FlushReason, Level, NewEvent, Query, StreamName, types};
use serde_json::{Value, json};
use ulid::Ulid;

use super::checks::Checks;
use super::{Demo, Failure};
use crate::summary::TierFigures;

/// Log lines of each level: enough for more than one compressed page.
const LINES: u64 = 120;

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let mut own = append_log(demo, Level::Info, checks, Class::Low).await?;
    own.extend(append_log(demo, Level::Warning, checks, Class::Normal).await?);

    let flushed = demo.events.flush(FlushReason::Requested).await?;
    checks.that(
        "the flush made segments on flash",
        flushed.segments > 0 && flushed.events >= LINES,
        format!("{} events in {} segments", flushed.events, flushed.segments),
    );
    checks.equal("no scope failed to flush", &flushed.failed.len(), &0);
    let archived = demo.events.archive().await?;
    checks.that(
        "the archive grew by frames that were read back",
        archived.frames > 0,
        format!("{} events in {} frames", archived.events, archived.frames),
    );
    checks.equal("no scope failed to archive", &archived.failed.len(), &0);

    let lines = read_with_plain_zstd(&demo.cold)?;
    let in_archive: BTreeSet<String> =
        lines.iter().filter_map(|line| Some(line.get("id")?.as_str()?.to_owned())).collect();
    let missing = own.iter().filter(|id| !in_archive.contains(&id.to_string())).count();
    checks.equal("plain zstd reads every archived event as a JSON line", &missing, &0);
    checks.equal("no line stands twice in the archive", &in_archive.len(), &lines.len());

    let all: Vec<_> = demo.events.read(Query::all()).try_collect().await?;
    let ordered = all.windows(2).all(|pair| pair[0].position < pair[1].position);
    checks.that(
        "one query over the tiers returns every position once, in order",
        ordered,
        format!("{} events", all.len()),
    );
    let ids: BTreeSet<Ulid> = all.iter().map(|event| event.id).collect();
    checks.equal("every event of this step is among them", &own.iter().filter(|id| !ids.contains(id)).count(), &0);
    checks.equal("no event stands twice", &ids.len(), &all.len());
    let backwards: Vec<_> = demo.events.read(Query::all().backwards()).try_collect().await?;
    let mirrored = backwards.iter().rev().map(|event| event.position).eq(all.iter().map(|event| event.position));
    checks.that("backwards gives the same", mirrored, format!("{} events", backwards.len()));

    let status = demo.events.status().await?;
    checks.equal("no position waits for its transaction", &status.unresolved, &0);
    let mut warm = [TierFigures::default(), TierFigures::default()];
    for scope in status.warm {
        let scope = scope?;
        for (sum, held) in warm.iter_mut().zip([scope.rows, scope.segments]) {
            sum.events += held.events;
            sum.bytes += held.bytes;
        }
    }
    let [rows, segments] = warm;
    let figures = |held: nasnet_events::Held| TierFigures { events: held.events, bytes: held.bytes };
    demo.summary.tiers.extend([
        ("1 hot (tmpfs)", figures(status.hot)),
        ("2 warm, durable rows (flash)", rows),
        ("3 warm, segments (flash)", segments),
        ("4 cold (archive)", figures(status.cold)),
    ]);
    Ok(())
}

/// Appends log lines of one level and checks their class and receipts.
async fn append_log(demo: &Demo, level: Level, checks: &mut Checks, class: Class) -> Result<Vec<Ulid>, Failure> {
    let scope = Scope::Router(demo.router_id.clone());
    let stream = StreamName::parse(&format!("log/{level:?}").to_lowercase())?;
    let mut ids = Vec::new();
    let mut achieved = BTreeSet::new();
    for batch in 0..LINES / 20 {
        let mut events = Vec::new();
        for line in 0..20 {
            let id = demo.manager.next_ulid();
            let body = json!({ "topics": "dhcp,info", "message": format!("lan assigned 192.168.88.{} to 02:00:00:00:00:{line:02X}", batch * 20 + line) });
            events.push(NewEvent::new(id, types::LOG_APPENDED, &body)?.level(level));
            ids.push(id);
        }
        let receipt = demo.events.append(&scope, &stream, Expected::Any, events).await?;
        achieved.insert(format!("{:?}", receipt.achieved));
    }
    checks.equal(
        format!("receipts of {class:?} events say that they are in tmpfs, and no more"),
        &achieved,
        &BTreeSet::from([format!("{:?}", Achieved::Hot)]),
    );
    let first = ids.first().copied().ok_or_else(|| Failure::new("nothing was appended"))?;
    let found: Vec<_> = demo.events.read(Query::by_id(first)).try_collect().await?;
    checks.equal(
        format!("a log line of level {level:?} is {class:?}"),
        &found.first().map(|event| event.class),
        &Some(class),
    );
    Ok(ids)
}

/// Reads the archive the way `zstd -dc | jq` does: a plain decoder, one JSON document a line.
fn read_with_plain_zstd(cold: &Path) -> Result<Vec<Value>, Failure> {
    let mut lines = Vec::new();
    for file in archive_files(cold)? {
        let text = zstd::decode_all(std::fs::File::open(&file)?)?;
        for line in String::from_utf8(text)?.lines() {
            lines.push(serde_json::from_str(line)?);
        }
    }
    Ok(lines)
}

fn archive_files(cold: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for scope in std::fs::read_dir(cold)? {
        let scope = scope?.path();
        if scope.is_dir() {
            for file in std::fs::read_dir(&scope)? {
                let file = file?.path();
                if file.to_string_lossy().ends_with(".jsonl.zst") {
                    files.push(file);
                }
            }
        }
    }
    Ok(files)
}
