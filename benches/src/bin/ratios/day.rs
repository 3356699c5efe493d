//! S3, S4, S6: a day of ten routers polled every five seconds: whether the hot tier holds it, how long flash lasts, how
//! fast it answers and how many of the questions of a dashboard it answers alone.

use std::path::Path;
use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt};
use nasnet_benches::day::{ACTORS, BEGINS_MS, Day, EVENTS, RESOURCES, ROUTERS, stream_of};
use nasnet_benches::events::Random;
use nasnet_benches::measure::{BusyCore, Ratio, exact, percentile};
use nasnet_dbmanager::Scope;
use nasnet_events::{Class, Level, Query, Recorded};
use ulid::Ulid;

use crate::Failure;

/// Queries by each key, once with an idle and once with a busy second core.
const QUERIES: usize = 400;
/// Refreshes of the dashboard.
const REFRESHES: u64 = 200;
const DAY_MS: i64 = 86_400_000;
const MIB: f64 = 1_048_576.0;
/// A data area of 64 MiB, of which the file system and garbage collection write three times what is dirtied.
const AREA_BYTES: f64 = 64.0 * MIB;
const AMPLIFICATION: f64 = 3.0;
const KINDS: [&str; 3] = ["resource.updated", "route.changed", "dhcp.lease_assigned"];

pub(crate) async fn rows(disk: Option<&Path>, wanted: impl Fn(&str) -> bool) -> Result<Vec<Ratio>, Failure> {
    let mut day = Day::begin(disk).await?;
    let lived = day.live().await?;
    let mut rows = Vec::new();
    if wanted("S6") {
        let status = day.store.status().await?;
        let mib = exact(status.hot_bytes.0) / MIB;
        rows.push(Ratio::at_most("S6", "MiB of tmpfs for 24 h of 10 routers polled every 5 s", mib, 64.0));
        let held = exact(status.hot.events);
        rows.push(Ratio::at_least("S6", "events of these 24 h in the hot tier", held, exact(EVENTS)));
        let gone = exact(status.shed + status.lost);
        rows.push(Ratio::at_most("S6", "events shed for want of room", gone, 0.0));
        let years = AREA_BYTES * 10_000.0 / AMPLIFICATION / exact(lived.dirty_4k_bytes) / 365.0;
        let what = format!(
            "years 64 MiB of flash last at 10,000 cycles and {:.1} MB a day ({:.1} of them system.db; {} flushes, {:.0} bytes an event)",
            exact(lived.dirty_4k_bytes) / 1e6,
            exact(lived.system_4k_bytes) / 1e6,
            lived.flushes,
            exact(lived.dirty_4k_bytes) / exact(EVENTS),
        );
        rows.push(Ratio::at_least("S6", what, years, 10.0));
    }
    let seen = sampled(&day).await?;
    if wanted("S3") {
        rows.extend(by_every_key(&day, &seen).await?);
    }
    if wanted("S4") {
        rows.push(dashboard(&day).await?);
    }
    day.close().await?;
    Ok(rows)
}

/// Events spread over the day, whose ids and runs are asked for.
async fn sampled(day: &Day) -> Result<Vec<Recorded>, Failure> {
    let since = Query::all().wall_ms(BEGINS_MS..=BEGINS_MS + DAY_MS);
    // Not all of them at once: what they leave behind in the heap would be cleaned up in the queries that follow.
    let each = day.store.read(since).enumerate();
    let sample = each.filter_map(|(number, event)| {
        let is_kept = event.is_err() || number.is_multiple_of(997);
        std::future::ready(is_kept.then_some(event))
    });
    Ok(sample.try_collect().await?)
}

/// What is asked for, always the newest hundred of the last 24 hours.
#[derive(Debug, Clone, Copy)]
enum Key {
    Time,
    Moment,
    Router,
    Stream,
    StreamPrefix,
    Kind,
    Class,
    Level,
    Actor,
    Run,
    Id,
}

const KEYS: [(Key, &str); 11] = [
    (Key::Time, "time"),
    (Key::Moment, "time, up to a moment of the day"),
    (Key::Router, "router"),
    (Key::Stream, "stream"),
    (Key::StreamPrefix, "stream prefix"),
    (Key::Kind, "type"),
    (Key::Class, "class"),
    (Key::Level, "level"),
    (Key::Actor, "actor"),
    (Key::Run, "correlation"),
    (Key::Id, "id"),
];

impl Key {
    fn query(self, day: &Day, seen: &[Recorded], random: &mut Random) -> Result<Query, Failure> {
        let ends_ms = BEGINS_MS + DAY_MS;
        let newest = Query::all().backwards().limit(100).wall_ms(BEGINS_MS..=ends_ms);
        let router = random.below(ROUTERS);
        let scope = day.scopes.get(usize::try_from(router)?).cloned().unwrap_or(Scope::System);
        let event = &seen[usize::try_from(random.below(seen.len() as u64))?];
        Ok(match self {
            Self::Time => newest,
            Self::Moment => newest.wall_ms(BEGINS_MS..=event.wall_ms),
            Self::Router => Query::scope(scope).backwards().limit(100).wall_ms(BEGINS_MS..=ends_ms),
            Self::Stream => Query::scope(scope)
                .backwards()
                .limit(100)
                .wall_ms(BEGINS_MS..=ends_ms)
                .stream(stream_of(router, random.below(RESOURCES))?),
            Self::StreamPrefix => {
                // A hundred streams of the two thousand.
                let stream = stream_of(router, random.below(RESOURCES))?;
                let name = stream.as_str();
                newest.stream_prefix(&name[..name.len().saturating_sub(2)])
            }
            Self::Kind => newest.kind_prefix(KINDS[usize::try_from(random.below(3))?]),
            Self::Class => newest.class(Class::Low),
            Self::Level => newest.level_min(Level::Warning),
            Self::Actor => newest.actor(ACTORS[usize::try_from(random.below(ACTORS.len() as u64))?]),
            Self::Run => newest.correlation_id(event.correlation_id.unwrap_or(Ulid::nil())),
            Self::Id => Query::by_id(event.id),
        })
    }
}

async fn by_every_key(day: &Day, seen: &[Recorded]) -> Result<Vec<Ratio>, Failure> {
    let mut rows = Vec::new();
    for (key, name) in KEYS {
        let mut slowest_ms = [0.0; 2];
        for (slowest_ms, busy) in slowest_ms.iter_mut().zip([false, true]) {
            let _core = busy.then(BusyCore::start);
            let mut random = Random::new(3);
            let mut times = Vec::new();
            for _ in 0..QUERIES {
                let query = key.query(day, seen, &mut random)?;
                let start = Instant::now();
                let found: Vec<Recorded> = day.store.read(query).try_collect().await?;
                times.push(start.elapsed());
                if found.is_empty() {
                    return Err(format!("nothing found by {name}").into());
                }
            }
            *slowest_ms = percentile(times, 99).as_secs_f64() * 1_000.0;
        }
        let what = format!("newest 100 of 24 h ({EVENTS} events) by {name}, p99 in ms");
        rows.push(Ratio::both_at_most("S3", what, slowest_ms, 10.0));
    }
    Ok(rows)
}

/// Each refresh asks for what a page shows: the newest of the fleet, of a router, of a resource, of a type, the newest
/// warnings, the last quarter of an hour, and one event somebody clicked on; each third also for the history of a
/// resource in 30 days.
async fn dashboard(day: &Day) -> Result<Ratio, Failure> {
    let ends_ms = BEGINS_MS + DAY_MS;
    let before = day.store.status().await?.reads;
    let mut random = Random::new(4);
    for refresh in 0..REFRESHES {
        let router = random.below(ROUTERS);
        let scope = day.scopes.get(usize::try_from(router)?).cloned().unwrap_or(Scope::System);
        let of_fleet = || Query::all().backwards();
        let of_router = || Query::scope(scope.clone()).backwards();
        let stream = stream_of(router, random.below(RESOURCES))?;
        let newest: Vec<Recorded> = day.store.read(of_fleet().limit(50)).try_collect().await?;
        let clicked = newest.get(usize::try_from(random.below(50))?).map_or(Ulid::nil(), |event| event.id);
        let mut queries = vec![
            of_router().limit(50),
            of_router().stream(stream.clone()).limit(20),
            of_fleet().kind_prefix(KINDS[usize::try_from(random.below(3))?]).limit(50),
            of_fleet().level_min(Level::Warning).limit(50),
            of_fleet().wall_ms(ends_ms - 900_000..=ends_ms).limit(200),
            Query::by_id(clicked),
        ];
        if refresh.is_multiple_of(3) {
            queries.push(of_router().stream(stream).wall_ms(ends_ms - 30 * DAY_MS..=ends_ms));
        }
        for query in queries {
            let _shown: Vec<Recorded> = day.store.read(query).try_collect().await?;
        }
    }
    let after = day.store.status().await?.reads;
    let (asked, went_on) = (after.hot - before.hot, after.warm - before.warm);
    let what = format!("percent of {asked} queries of a dashboard that the hot tier answers alone");
    Ok(Ratio::at_least("S4", what, 100.0 * exact(asked - went_on) / exact(asked), 90.0))
}
