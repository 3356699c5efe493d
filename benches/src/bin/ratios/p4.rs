//! P4: the wait of 64 callers for a group commit, against a group commit with one `execute` per event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nasnet_benches::events::{Generator, Sample};
use nasnet_benches::hot::Hot;
use nasnet_benches::measure::{BusyCore, Ratio, percentile};
use nasnet_benches::place::Place;
use nasnet_events::EventOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use crate::Failure;

const CALLERS: usize = 64;
const EVENTS: usize = 20_000;
const ROUNDS: usize = 5;

const SCHEMA: &str = "
CREATE TABLE event (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      BLOB NOT NULL UNIQUE,
    stream  TEXT NOT NULL,
    kind    TEXT NOT NULL,
    body    TEXT NOT NULL
) STRICT";

pub(crate) async fn rows() -> Result<Vec<Ratio>, Failure> {
    let mut medians = [0.0; 2];
    for (median, busy) in medians.iter_mut().zip([false, true]) {
        let _core = busy.then(BusyCore::start);
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            let (ours, theirs) = (ours().await?, theirs().await?);
            ratios.push(ours.as_secs_f64() / theirs.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        *median = ratios[ROUNDS / 2];
    }
    let what = "group commit, 64 callers, p99 vs a group commit that executes once per event";
    Ok(vec![Ratio::both_at_most("P4", what, medians, 0.5)])
}

/// Splits the events among the callers.
fn shares() -> Vec<Vec<Sample>> {
    let mut generator = Generator::new(1);
    (0..CALLERS).map(|_| generator.samples(EVENTS / CALLERS)).collect()
}

async fn ours() -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let hot = Arc::new(Hot::open(&place, EventOptions::default()).await?);
    // The events are made before, as the other's samples are.
    let shares = shares().into_iter().map(|share| hot.appends(share)).collect::<Result<Vec<_>, _>>()?;
    let tasks: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let hot = Arc::clone(&hot);
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(share.len());
                for append in share {
                    let start = Instant::now();
                    hot.store.append(&hot.scope, &append.stream, append.expected, append.events).await?;
                    waits.push(start.elapsed());
                }
                Ok::<_, Failure>(waits)
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    Ok(percentile(waits, 99))
}

type Job = (Sample, oneshot::Sender<()>);

async fn theirs() -> Result<Duration, Failure> {
    let place = Place::new(None)?;
    let mut conn = SqliteConnectOptions::new()
        .filename(place.tmpfs.path().join("rows.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Off)
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::query(SCHEMA).execute(&mut conn).await?;
    let (queue, jobs) = mpsc::unbounded_channel();
    let writer = tokio::spawn(write(conn, jobs));
    let tasks: Vec<_> = shares()
        .into_iter()
        .map(|share| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(share.len());
                for sample in share {
                    let (reply, answer) = oneshot::channel();
                    let start = Instant::now();
                    queue.send((sample, reply)).map_err(|_| "the writer ended")?;
                    answer.await?;
                    waits.push(start.elapsed());
                }
                Ok::<_, Failure>(waits)
            })
        })
        .collect();
    drop(queue);
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    writer.await??;
    Ok(percentile(waits, 99))
}

async fn write(mut conn: SqliteConnection, mut jobs: mpsc::UnboundedReceiver<Job>) -> Result<(), Failure> {
    let mut group = Vec::new();
    let mut made = 0_u128;
    while jobs.recv_many(&mut group, 1_000).await > 0 {
        let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
        for (sample, _) in &group {
            made += 1;
            sqlx::query("INSERT INTO event (id, stream, kind, body) VALUES (?1, ?2, ?3, ?4)")
                .bind(made.to_be_bytes().to_vec())
                .bind(&sample.stream)
                .bind(sample.kind)
                .bind(&sample.body)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        for (_, reply) in group.drain(..) {
            // Whoever gave up waiting has failed already.
            let _ = reply.send(());
        }
    }
    Ok(())
}
