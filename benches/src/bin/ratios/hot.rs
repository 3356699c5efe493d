//! P1-P7: appends to the hot tier against event stores, key-value stores with indexes, rows and a bare log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nasnet_benches::events::Generator;
use nasnet_benches::hot::Hot;
use nasnet_benches::measure::{BusyCore, Ratio, median};
use nasnet_benches::place::Place;
use nasnet_benches::rows::Rows;
use nasnet_events::EventOptions;

use crate::Failure;
use crate::peers::Peers;

/// How long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Interleaved rounds, once with an idle and once with a busy second core.
    pub(crate) rounds: usize,
    /// Events of a round, the same for every store: small runs flatter everybody, and a peer with a tenth of the events
    /// is flattered most.
    pub(crate) events: usize,
}

impl Size {
    /// Events of a round of single appends, ours and the peer's.
    const fn single(self) -> usize {
        self.events / 5
    }
}

/// Callers of a group commit.
const CALLERS: usize = 256;

/// One thing that is measured in every round.
type Key = (&'static str, usize);

pub(crate) async fn rows(
    peers: Option<&Peers>,
    size: Size,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Ratio>, Failure> {
    let wanted_any = |ids: &[&str]| ids.iter().any(|id| wanted(id));
    let mut table = Vec::new();
    let mut ratios: BTreeMap<(&str, &str), (Vec<f64>, f64)> = BTreeMap::new();
    for busy in [false, true] {
        let _core = busy.then(BusyCore::start);
        let mut times: BTreeMap<Key, Vec<Duration>> = BTreeMap::new();
        let mut note = |key: Key, time: Duration| times.entry(key).or_default().push(time);
        for _ in 0..size.rounds {
            if wanted_any(&["P1", "P5", "P6", "P7"]) {
                note(("ours", 1_000), ours(1_000, size.events).await?);
            }
            if wanted("P2") {
                note(("ours", 100), ours(100, size.events).await?);
            }
            if wanted("P3") {
                note(("callers", 1), callers(CALLERS, size.single()).await?);
            }
            if wanted("P5") {
                note(("rusqlite", 1_000), rusqlite(1_000, size.events)?);
            }
            if wanted("P6") {
                note(("log", 1_000), log(1_000, size.events)?);
            }
            let Some(peers) = peers else { continue };
            if wanted("P1") {
                note(("sqlite-es", 1_000), peers.round("sqlite-es", 1_000, size.events)?);
            }
            if wanted("P2") {
                note(("sqlite-es", 100), peers.round("sqlite-es", 100, size.events)?);
            }
            if wanted("P3") {
                note(("sqlite-es-tasks", 1), peers.round("sqlite-es-tasks", 1, size.single())?);
            }
            if wanted("P7") {
                for engine in ["umadb", "fjall", "redb"] {
                    note((engine, 1_000), peers.round(engine, 1_000, size.events)?);
                }
            }
        }
        let time = |key: Key| times.get(&key).cloned().map(median);
        for (id, what, ours, peer, target) in GOALS {
            let (Some(ours), Some(peer)) = (time(ours), time(peer)) else { continue };
            if wanted(id) {
                let ratio = peer.as_secs_f64() / ours.as_secs_f64();
                ratios.entry((id, what)).or_insert((Vec::new(), target)).0.push(ratio);
            }
        }
    }
    for ((id, what), (ratios, target)) in ratios {
        let [idle, busy] = ratios[..] else { return Err(format!("{id} was not measured twice").into()) };
        table.push(Ratio::both_at_least(id, what, [idle, busy], target));
    }
    Ok(table)
}

const GOALS: [(&str, &str, Key, Key, f64); 8] = [
    ("P1", "hot append, batch 1000, vs sqlite-es persist(1000)", ("ours", 1_000), ("sqlite-es", 1_000), 15.0),
    ("P2", "hot append, batch 100, vs sqlite-es persist(100)", ("ours", 100), ("sqlite-es", 100), 8.0),
    ("P3", "group commit, 256 callers, vs sqlite-es with 8 tasks", ("callers", 1), ("sqlite-es-tasks", 1), 20.0),
    ("P5", "hot append, batch 1000, vs rusqlite rows in a transaction", ("ours", 1_000), ("rusqlite", 1_000), 3.5),
    ("P6", "hot append, batch 1000, vs a bare log with length and CRC", ("ours", 1_000), ("log", 1_000), 0.15),
    ("P7", "hot append, batch 1000, vs umadb", ("ours", 1_000), ("umadb", 1_000), 1.3),
    ("P7", "hot append, batch 1000, vs fjall with two index keyspaces", ("ours", 1_000), ("fjall", 1_000), 1.2),
    ("P7", "hot append, batch 1000, vs redb with two index tables", ("ours", 1_000), ("redb", 1_000), 2.0),
];

/// A store whose hot tier holds a whole round.
fn roomy() -> EventOptions {
    let mut options = EventOptions::default();
    options.hot_bytes_max = Some(1 << 30);
    options
}

/// Time of one event in batches over all streams. The events are made before, as a caller makes them: their bodies are
/// JSON already, as the peers' are what those take.
async fn ours(batch: usize, events: usize) -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let hot = Hot::open(&place, roomy()).await?;
    let mut generator = Generator::new(1);
    let mut spent = Duration::ZERO;
    for _ in 0..events / batch {
        let appends = hot.appends(generator.samples(batch))?;
        let start = Instant::now();
        hot.append_each(appends).await?;
        spent += start.elapsed();
    }
    drop(hot);
    Ok(spent / u32::try_from(events)?)
}

/// Time of one event when so many callers append one at a time and wait for it.
async fn callers(callers: usize, events: usize) -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let hot = Arc::new(Hot::open(&place, roomy()).await?);
    let mut generator = Generator::new(1);
    let shares =
        (0..callers).map(|_| hot.appends(generator.samples(events / callers))).collect::<Result<Vec<_>, _>>()?;
    Ok(hot.append_singly(shares).await? / u32::try_from(events / callers * callers)?)
}

fn rusqlite(batch: usize, events: usize) -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let mut rows = Rows::open(place.tmpfs.path())?;
    let mut generator = Generator::new(1);
    let mut spent = Duration::ZERO;
    for _ in 0..events / batch {
        let samples = generator.samples(batch);
        let start = Instant::now();
        rows.append(&samples)?;
        spent += start.elapsed();
    }
    Ok(spent / u32::try_from(events)?)
}

/// The floor: length, CRC32C, stream, type and body, one write for a batch, no index at all.
fn log(batch: usize, events: usize) -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let mut file = File::create_new(place.tmpfs.path().join("log"))?;
    let mut generator = Generator::new(1);
    let mut spent = Duration::ZERO;
    let mut bytes = Vec::new();
    for _ in 0..events / batch {
        let samples = generator.samples(batch);
        let start = Instant::now();
        bytes.clear();
        for sample in &samples {
            let from = bytes.len();
            bytes.extend_from_slice(&[0; 8]);
            for field in [sample.stream.as_bytes(), sample.kind.as_bytes(), sample.body.as_bytes()] {
                bytes.extend_from_slice(&u16::try_from(field.len())?.to_le_bytes());
                bytes.extend_from_slice(field);
            }
            let (head, record) = bytes[from..].split_at_mut(8);
            head[..4].copy_from_slice(&u32::try_from(record.len())?.to_le_bytes());
            head[4..].copy_from_slice(&crc32c::crc32c(record).to_le_bytes());
        }
        file.write_all(&bytes)?;
        spent += start.elapsed();
    }
    Ok(spent / u32::try_from(events)?)
}
