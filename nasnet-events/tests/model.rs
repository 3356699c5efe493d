//! Random histories against a list: appends by two stores, transactions that commit, roll back or lose their receipt,
//! flushes, seals, archives, retention, restarts, reboots, wall clocks that jump by 56 years, flash without space, and a hot
//! tier that is wiped, also under the open stores. Every event that was promised is read once and in order, also while all
//! of it moves from tier to tier, and every position of the epoch is an event or a void.
#![cfg(feature = "fault-injection")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nasnet_dbmanager::vfs::fault::{Fault, Operation};
use nasnet_dbmanager::{DbManager, Scope};
use nasnet_events::{
    Achieved, Class, ColdOptions, Error, EventStore, Expected, FlushReason, NewEvent, Position, Query, Receipt,
    StreamAppend, prepare_cold_dir,
};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Site, event, keep_nothing, on_hot, read_ids, router, stream, transaction};
use ulid::Ulid;

const KINDS: [(&str, Class); 3] =
    [("metric.updated", Class::Low), ("resource.updated", Class::Normal), ("config.applied", Class::Critical)];

#[derive(Debug, Clone)]
enum Op {
    /// By which store, in which scope and stream, of which kinds, and whether the expectation is right.
    Append {
        by: usize,
        scope: usize,
        stream: usize,
        kinds: Vec<usize>,
        expected: Guess,
    },
    Transaction {
        by: usize,
        scope: usize,
        streams: Vec<(usize, usize)>,
        fate: Fate,
    },
    /// Appends an event again that was appended before.
    Again {
        by: usize,
        which: prop::sample::Index,
    },
    Flush {
        by: usize,
    },
    Archive {
        by: usize,
    },
    Seal {
        by: usize,
    },
    /// One store reads again and again while the other moves everything as far as it goes.
    Beside {
        by: usize,
    },
    /// The wall clock shows another time from here on.
    Jump {
        years: i64,
    },
    /// An event for flash finds no space after so many writes, and comes again once there is some.
    NoSpace {
        by: usize,
        scope: usize,
        stream: usize,
        after: u64,
    },
    /// Small rows of the hot log are joined.
    Compact {
        by: usize,
    },
    /// Archived events leave the hot log.
    Expire,
    /// A day passes: what is on flash or archived leaves the rows of the hot log, and holds no others.
    Age {
        by: usize,
    },
    /// Archived events leave the warm tier, whatever their age.
    Retain {
        by: usize,
    },
    /// tmpfs is wiped under the open stores.
    Wipe,
    Reopen {
        clean: bool,
        wipe: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Guess {
    Any,
    Right,
    Wrong,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Published,
    ReceiptDropped,
    RolledBack,
    /// The last of its streams is not as expected.
    Refused,
}

fn op() -> impl Strategy<Value = Op> {
    let guess = prop_oneof![Just(Guess::Any), Just(Guess::Right), Just(Guess::Wrong)];
    let fate = prop_oneof![
        3 => Just(Fate::Published),
        1 => Just(Fate::ReceiptDropped),
        1 => Just(Fate::RolledBack),
        1 => Just(Fate::Refused),
    ];
    prop_oneof![
        8 => (0..2_usize, 0..3_usize, 0..3_usize, vec(0..3_usize, 1..4), guess).prop_map(
            |(by, scope, stream, kinds, expected)| Op::Append { by, scope, stream, kinds, expected }
        ),
        4 => (0..2_usize, 0..3_usize, vec((0..3_usize, 0..3_usize), 1..4), fate).prop_map(
            |(by, scope, streams, fate)| Op::Transaction { by, scope, streams, fate }
        ),
        2 => (0..2_usize, any::<prop::sample::Index>()).prop_map(|(by, which)| Op::Again { by, which }),
        2 => (0..2_usize).prop_map(|by| Op::Flush { by }),
        1 => (0..2_usize).prop_map(|by| Op::Archive { by }),
        1 => (0..2_usize).prop_map(|by| Op::Seal { by }),
        1 => (0..2_usize).prop_map(|by| Op::Beside { by }),
        1 => prop_oneof![Just(-56), Just(0), Just(56)].prop_map(|years| Op::Jump { years }),
        1 => (0..2_usize, 0..3_usize, 0..3_usize, 1..4_u64).prop_map(
            |(by, scope, stream, after)| Op::NoSpace { by, scope, stream, after }
        ),
        2 => (0..2_usize).prop_map(|by| Op::Compact { by }),
        1 => Just(Op::Expire),
        1 => (0..2_usize).prop_map(|by| Op::Age { by }),
        2 => (0..2_usize).prop_map(|by| Op::Retain { by }),
        1 => Just(Op::Wipe),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(clean, wipe)| Op::Reopen { clean, wipe }),
    ]
}

/// An event that was acknowledged.
#[derive(Debug, Clone)]
struct Acked {
    event: NewEvent,
    scope: usize,
    stream: usize,
    version: u64,
    position: Position,
    class: Class,
    synced: bool,
    in_hot: bool,
    in_segment: bool,
    in_cold: bool,
    /// Its row may be gone, and its id with it.
    may_be_forgotten: bool,
}

impl Acked {
    fn is_somewhere(&self) -> bool {
        self.synced || self.in_hot || self.in_segment || self.in_cold
    }
}

struct World {
    site: Site,
    opened: Option<(DbManager, [EventStore; 2])>,
    acked: Vec<Acked>,
    /// Highest version of each stream as the stores know it.
    heads: [[u64; 3]; 3],
    epoch: u32,
    /// Positions of this epoch that were acknowledged, and those that were rolled back.
    given: u64,
    voids: u64,
}

fn scope_of(number: usize) -> Scope {
    [Scope::System, router("r1"), router("r2")][number].clone()
}

fn stream_of(number: usize) -> nasnet_events::StreamName {
    stream(&format!("resource/{number}"))
}

/// A stream read page by page.
async fn pages(store: &EventStore, scope: usize, name: usize, backwards: bool, limit: u64) -> Vec<Ulid> {
    let (mut ids, mut last) = (Vec::new(), None::<Position>);
    loop {
        let query = Query::scope(scope_of(scope)).stream(stream_of(name)).limit(limit);
        let query = match last {
            None if backwards => query.backwards(),
            None => query,
            // What is asked for are numbers of this incarnation or of earlier ones.
            Some(last) if backwards && last.seq > 1 => query.backwards().until(Position::new(last.epoch, last.seq - 1)),
            Some(last) if backwards => query.backwards().until(Position::new(last.epoch - 1, u64::from(u32::MAX))),
            Some(last) => query.after(last),
        };
        let page = support::read(store, query).await;
        let Some(event) = page.last() else { return ids };
        last = Some(event.position);
        ids.extend(page.iter().map(|event| event.id));
    }
}

async fn open(site: &Site) -> (DbManager, [EventStore; 2]) {
    let options = keep_nothing().cold(ColdOptions::new(site.cold()).allow_same_device());
    let (manager, first) = site.open_with(options.clone()).await;
    prepare_cold_dir(&manager, &site.cold()).unwrap();
    let second = EventStore::open(&manager, options).await.unwrap();
    (manager, [first, second])
}

impl World {
    async fn new() -> Self {
        let site = Site::new();
        let opened = Some(open(&site).await);
        Self { site, opened, acked: Vec::new(), heads: [[0; 3]; 3], epoch: 1, given: 0, voids: 0 }
    }

    fn manager(&self) -> &DbManager {
        &self.opened.as_ref().unwrap().0
    }

    fn stores(&self) -> &[EventStore; 2] {
        &self.opened.as_ref().unwrap().1
    }

    fn record(&mut self, receipt: &Receipt, events: &[(NewEvent, Class)], scope: usize, stream: usize) {
        assert!(!receipt.deduplicated);
        assert_eq!(receipt.first.epoch, self.epoch);
        assert_eq!(receipt.last.seq - receipt.first.seq + 1, events.len() as u64);
        assert_eq!(receipt.version, self.heads[scope][stream] + events.len() as u64);
        for ((event, class), offset) in events.iter().zip(0..) {
            self.heads[scope][stream] += 1;
            self.given += 1;
            self.acked.push(Acked {
                event: event.clone(),
                scope,
                stream,
                version: self.heads[scope][stream],
                position: Position::new(self.epoch, receipt.first.seq + offset),
                class: *class,
                synced: receipt.achieved == Achieved::Synced,
                in_hot: true,
                in_segment: false,
                in_cold: false,
                may_be_forgotten: false,
            });
        }
    }

    fn make(&self, kind: usize) -> (NewEvent, Class) {
        let (name, class) = KINDS[kind];
        (event(self.manager(), name), class)
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Append { by, scope, stream, kinds, expected } => {
                let events: Vec<_> = kinds.into_iter().map(|kind| self.make(kind)).collect();
                let head = self.heads[scope][stream];
                let expectation = match expected {
                    Guess::Any => Expected::Any,
                    Guess::Right => Expected::Exact(head),
                    Guess::Wrong => Expected::Exact(head + 1),
                };
                let new = events.iter().map(|(event, _)| event.clone()).collect();
                let result = self.stores()[by].append(&scope_of(scope), &stream_of(stream), expectation, new).await;
                match (result, expected) {
                    (Err(Error::Conflict(conflict)), Guess::Wrong) => assert_eq!(conflict.actual, head),
                    (Ok(receipt), Guess::Any | Guess::Right) => {
                        let critical = events.iter().any(|(_, class)| *class == Class::Critical);
                        assert_eq!(receipt.achieved == Achieved::Synced, critical);
                        self.record(&receipt, &events, scope, stream);
                    }
                    (result, _) => panic!("{result:?}"),
                }
            }
            Op::Transaction { by, scope, streams, fate } => {
                let events: Vec<_> = streams.iter().map(|(_, kind)| self.make(*kind)).collect();
                let appends = streams.iter().zip(&events).enumerate().map(|(number, ((stream, _), (event, _)))| {
                    let is_wrong = fate == Fate::Refused && number + 1 == streams.len();
                    let expected = if is_wrong { Expected::Exact(u64::from(u32::MAX)) } else { Expected::Any };
                    StreamAppend::new(stream_of(*stream), expected, vec![event.clone()])
                });
                let (store, commit) = (self.stores()[by].clone(), fate != Fate::RolledBack);
                let pending = transaction(self.manager(), &store, &scope_of(scope), appends.collect(), commit).await;
                let receipts = match fate {
                    Fate::RolledBack => {
                        pending.unwrap_err();
                        self.voids += events.len() as u64;
                        Vec::new()
                    }
                    Fate::Refused => {
                        assert!(matches!(pending, Err(Error::Conflict(_))), "{pending:?}");
                        Vec::new()
                    }
                    Fate::Published => store.published(pending.unwrap()).await,
                    Fate::ReceiptDropped => pending.unwrap().receipts().to_vec(),
                };
                for ((receipt, (stream, _)), event) in receipts.iter().zip(&streams).zip(events) {
                    assert_eq!(receipt.achieved, Achieved::Synced);
                    self.record(receipt, &[event], scope, *stream);
                }
                self.settle().await;
            }
            Op::Again { by, which } => {
                // The window: what is in hot, and durable rows.
                let is_known = |acked: &&Acked| acked.in_hot || (acked.synced && !acked.may_be_forgotten);
                let known: Vec<Acked> = self.acked.iter().filter(is_known).cloned().collect();
                if known.is_empty() {
                    return;
                }
                let acked = which.get(&known);
                let (scope, name) = (scope_of(acked.scope), stream_of(acked.stream));
                let result = self.stores()[by].append(&scope, &name, Expected::Any, vec![acked.event.clone()]).await;
                match result {
                    Ok(receipt) => {
                        assert!(receipt.deduplicated);
                        assert_eq!((receipt.first, receipt.version), (acked.position, acked.version));
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            Op::Flush { by } => {
                let report = self.stores()[by].flush(FlushReason::Requested).await.unwrap();
                assert!(report.failed.is_empty(), "{report:?}");
                self.flushed(report.through);
            }
            Op::Archive { by } => {
                let report = self.stores()[by].archive().await.unwrap();
                assert!(report.failed.is_empty(), "{report:?}");
                self.flushed(report.through);
                for acked in self.acked.iter_mut().filter(|acked| acked.is_somewhere()) {
                    acked.in_cold = true;
                }
            }
            Op::Seal { by } => self.seal(by).await,
            Op::Beside { by } => self.beside(by).await,
            Op::Jump { years } => self.site.clock.set_wall_ms(support::NOW_MS + years * 365 * 86_400_000),
            Op::NoSpace { by, scope, stream, after } => self.no_space(by, scope, stream, after).await,
            Op::Compact { by } => drop(self.stores()[by].compact().await.unwrap()),
            Op::Expire => self.expire().await,
            Op::Age { by } => self.age(by).await,
            Op::Retain { by } => self.retain(by).await,
            Op::Wipe => self.wipe().await,
            Op::Reopen { clean, wipe } => self.reopen(clean, wipe).await,
        }
    }

    async fn seal(&mut self, by: usize) {
        let report = self.stores()[by].seal().await.unwrap();
        assert!(report.failed.is_empty(), "{report:?}");
        for acked in self.acked.iter_mut().filter(|acked| acked.synced) {
            acked.may_be_forgotten = true;
        }
    }

    fn expected(&self) -> Vec<Ulid> {
        self.acked.iter().filter(|acked| acked.is_somewhere()).map(|acked| acked.event.id).collect()
    }

    async fn beside(&mut self, by: usize) {
        self.settle().await;
        let expected = self.expected();
        let (mover, reader) = (&self.stores()[by], &self.stores()[1 - by]);
        let moved = std::cell::Cell::new(None);
        let moving = async {
            mover.flush(FlushReason::Requested).await.unwrap();
            mover.seal().await.unwrap();
            let report = mover.archive().await.unwrap();
            mover.mark_age().await.unwrap();
            mover.retain(mover.retention_plan().await.unwrap()).await.unwrap();
            assert!(report.failed.is_empty(), "{report:?}");
            moved.set(Some(report.through));
        };
        let reading = async {
            while moved.get().is_none() {
                // Reads of the hot tier wait for nobody.
                tokio::task::yield_now().await;
                assert_eq!(read_ids(reader, Query::all()).await, expected, "beside the moves");
                let mut found = read_ids(reader, Query::all().backwards()).await;
                found.reverse();
                assert_eq!(found, expected, "backwards, beside the moves");
            }
        };
        tokio::join!(moving, reading);
        self.flushed(moved.get().unwrap());
        for acked in self.acked.iter_mut().filter(|acked| acked.is_somewhere()) {
            acked.in_cold = true;
            acked.may_be_forgotten = true;
        }
    }

    async fn no_space(&mut self, by: usize, scope: usize, stream: usize, after: u64) {
        self.settle().await;
        let (event, class) = self.make(2);
        let store = self.stores()[by].clone();
        let append =
            async || store.append(&scope_of(scope), &stream_of(stream), Expected::Any, vec![event.clone()]).await;
        let armed = Fault::fail(Operation::Write, after, Fault::FULL).times(3).arm(&self.site.data()).unwrap();
        let first = append().await;
        let fired = armed.fired();
        drop(armed);
        let receipt = match first {
            Ok(receipt) => receipt,
            Err(error) => {
                assert!(fired > 0 && error.is_retryable(), "{error:?}");
                append().await.unwrap()
            }
        };
        assert_eq!(receipt.achieved, Achieved::Synced);
        // What was refused may be there: then this is its receipt.
        self.record(&Receipt { deduplicated: false, ..receipt }, &[(event, class)], scope, stream);
        self.settle().await;
        self.voids = self.stores()[0].status().await.unwrap().end.seq - self.given;
    }

    fn flushed(&mut self, through: Position) {
        let unflushed = self
            .acked
            .iter_mut()
            .filter(|acked| acked.in_hot && !acked.synced && acked.class == Class::Normal && acked.position <= through);
        unflushed.for_each(|acked| acked.in_segment = true);
    }

    /// Lets the background finish: both stores know what the other did, and nothing is unresolved.
    async fn settle(&self) {
        let began = Instant::now();
        loop {
            for store in self.stores() {
                store.resolve().await.unwrap();
            }
            if self.stores()[0].status().await.unwrap().unresolved == 0 {
                return;
            }
            assert!(began.elapsed() < support::PATIENCE, "a reservation is never resolved");
            tokio::task::yield_now().await;
        }
    }

    async fn expire(&mut self) {
        self.settle().await;
        let kept = self.acked.iter().filter(|acked| acked.in_hot && !acked.in_cold).map(|acked| acked.position.seq);
        let end = self.stores()[0].status().await.unwrap().end.seq;
        let first_kept = kept.min().unwrap_or(end);
        // Whole rows only, and never the newest: what the statement removes is what the list forgets.
        let rows: Vec<(i64, i64)> = self
            .manager()
            .hot()
            .read(support::TEST, |conn| {
                Box::pin(async move {
                    let rows = sqlx::query_as("SELECT first_seq, first_seq + count FROM hot_log ORDER BY first_seq")
                        .fetch_all(conn)
                        .await?;
                    Ok::<_, Error>(rows)
                })
            })
            .await
            .unwrap();
        let mut through = 0;
        for (first_seq, after) in rows.iter().take(rows.len().saturating_sub(1)) {
            if after.cast_unsigned() > first_kept {
                break;
            }
            assert!(first_seq.cast_unsigned() > through);
            through = after.cast_unsigned() - 1;
            on_hot(self.manager(), "DELETE FROM hot_log WHERE first_seq = (SELECT MIN(first_seq) FROM hot_log)").await;
        }
        for acked in self.acked.iter_mut().filter(|acked| acked.position.epoch == self.epoch) {
            acked.in_hot &= acked.position.seq > through;
        }
    }

    async fn age(&mut self, by: usize) {
        self.settle().await;
        self.site.clock.advance(Duration::from_secs(25 * 60 * 60));
        assert_eq!(self.stores()[by].expire().await.unwrap(), 0, "Low events wait for the archive");
        for acked in self.acked.iter_mut().filter(|acked| acked.synced || acked.in_segment || acked.in_cold) {
            acked.in_hot = false;
        }
    }

    async fn retain(&mut self, by: usize) {
        self.settle().await;
        let store = &self.stores()[by];
        store.mark_age().await.unwrap();
        let report = store.retain(store.retention_plan().await.unwrap()).await.unwrap();
        assert!(report.failed.is_empty() && report.skipped == 0, "{report:?}");
        for warm in store.status().await.unwrap().warm {
            let warm = warm.unwrap();
            let archived = warm.archived_through.unwrap_or(Position::START);
            assert!(warm.rows.oldest.is_none_or(|oldest| oldest > archived), "{warm:?}");
            assert!(warm.segments.oldest.is_none_or(|oldest| oldest > archived || warm.segment_count == 1), "{warm:?}");
        }
        for acked in self.acked.iter_mut().filter(|acked| acked.in_cold) {
            acked.may_be_forgotten = true;
        }
    }

    async fn reopen(&mut self, clean: bool, wipe: bool) {
        self.settle().await;
        if clean {
            for store in self.stores() {
                store.shutdown().await.unwrap();
            }
            let end = self.stores()[0].status().await.unwrap().end;
            self.flushed(end);
        }
        let (manager, stores) = self.opened.take().unwrap();
        drop(stores);
        manager.shutdown().await.unwrap();
        drop(manager);
        if wipe {
            self.site.clock.reboot();
            self.site.wipe_hot();
            self.acked.iter_mut().for_each(|acked| acked.in_hot = false);
        }
        self.opened = Some(open(&self.site).await);
        if wipe {
            self.lost(clean);
        }
        self.recount_heads();
    }

    /// tmpfs is wiped while both stores are open.
    async fn wipe(&mut self) {
        self.settle().await;
        self.site.wipe_hot();
        self.acked.iter_mut().for_each(|acked| acked.in_hot = false);
        for store in self.stores() {
            assert_eq!(store.status().await.unwrap().epoch, self.epoch + 1);
        }
        self.lost(false);
        self.recount_heads();
    }

    /// Checks what is told of a hot tier that is gone.
    fn lost(&mut self, clean: bool) {
        let losses = self.stores()[0].losses();
        let loss = losses.iter().find(|loss| loss.epoch == self.epoch);
        let gone = self.acked.iter().filter(|acked| acked.position.epoch == self.epoch && !acked.is_somewhere());
        for acked in gone.filter(|acked| acked.class != Class::Low) {
            let loss = loss.expect("a loss is told");
            assert!(acked.position.seq > loss.after_seq, "{acked:?} is lost, told was {loss:?}");
        }
        assert!(!clean || loss.is_none(), "nothing is lost after a clean end");
        (self.epoch, self.given, self.voids) = (self.epoch + 1, 0, 0);
    }

    fn recount_heads(&mut self) {
        // Versions go on from what hot and warm hold.
        for (scope, heads) in self.heads.iter_mut().enumerate() {
            for (stream, head) in heads.iter_mut().enumerate() {
                let held = self.acked.iter().filter(|acked| acked.scope == scope && acked.stream == stream);
                let held = held.filter(|acked| acked.synced || acked.in_hot || acked.in_segment);
                *head = held.map(|acked| acked.version).max().unwrap_or(0);
            }
        }
    }

    async fn check(&self) {
        let expected = self.expected();
        for store in self.stores() {
            let mut found = read_ids(store, Query::all()).await;
            assert_eq!(found, expected, "forwards");
            found.reverse();
            assert_eq!(read_ids(store, Query::all().backwards()).await, found, "backwards");
        }
        for (number, store) in self.stores().iter().enumerate() {
            for (scope, stream) in (0..3).flat_map(|scope| (0..3).map(move |stream| (scope, stream))) {
                let of_stream = |acked: &&Acked| acked.is_somewhere() && (acked.scope, acked.stream) == (scope, stream);
                let mut expected: Vec<Ulid> = self.acked.iter().filter(of_stream).map(|acked| acked.event.id).collect();
                let limit = u64::try_from(number).unwrap() * 4 + 1;
                assert_eq!(pages(store, scope, stream, false, limit).await, expected, "pages of {limit}");
                expected.reverse();
                assert_eq!(pages(store, scope, stream, true, limit).await, expected, "pages of {limit}, backwards");
            }
        }
        let unique: HashSet<Position> = self.acked.iter().map(|acked| acked.position).collect();
        assert_eq!(unique.len(), self.acked.len(), "a position was given twice");
        let status = self.stores()[0].status().await.unwrap();
        assert_eq!(status.end.seq, self.given + self.voids, "a position is unaccounted for");
        assert_eq!(status.stable, status.end);
    }
}

/// Few cases by default, since each opens real databases; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24);
    ProptestConfig { cases, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_promised_event_is_read_once_and_in_order(ops in vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for op in ops {
                world.apply(op).await;
            }
            world.check().await;
            world.apply(Op::Reopen { clean: false, wipe: true }).await;
            world.check().await;
        });
    }
}
