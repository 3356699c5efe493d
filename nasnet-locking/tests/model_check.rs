//! The rules of leases and fences under many interleavings of their steps, explored by shuttle.
//!
//! The two databases are mutexes, since a write transaction excludes every other one; everything that decides is the
//! crate's own code ([`nasnet_locking::lease`]). Between two steps any other session may run, the clock may jump past
//! every deadline (a paused holder is one that is not scheduled), and a session may die.
//!
//! Each planted fault must be caught: a model that catches nothing checks nothing.
//!
//! Run it with `just model`.
#![cfg(nasnet_model)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nasnet_dbmanager::{BootId, ClockQuality, Now};
use nasnet_locking::lease::{Deadline, Lease, LockInfo, Mode, Ticket, Verdict, Want, judge};
use nasnet_locking::{FencingToken, KeySet, LockKey};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Arc, Mutex};
use shuttle::{Config, Runner, thread};
use ulid::Ulid;

const SESSIONS: u128 = 3;
const TURNS: usize = 2;
const LOOKS: usize = 6;
const TTL: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(1_000);
const SEED: u64 = 5;

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Writes are not fenced.
    NoFence,
    /// The fence is checked in a transaction of its own, before the one that writes.
    FenceBefore,
    /// The fence knows tokens alone and does not look at the lease.
    TokensOnly,
    /// The fence looks at the keys themselves, not above and below them.
    NoHierarchy,
    /// A grant is decided in a transaction of its own, before the one that stores it.
    JudgedBefore,
    /// A renewal does not ask whether the lease still stands.
    RenewsTheDead,
    /// A waiter forgets its place when it looks.
    NoQueue,
}

/// `locks.db` and what every process can see of the others.
#[derive(Debug, Default)]
struct Locks {
    leases: Vec<Lease>,
    tickets: Vec<Ticket>,
    dead: BTreeSet<Ulid>,
    next_token: u64,
    next_ticket: u64,
    boottime_ms: u64,
    /// Tokens a look found lost: the model's memory, not the store's.
    seen_lost: BTreeSet<FencingToken>,
}

impl Locks {
    fn now(&self) -> Now {
        // The wall clock takes part in nothing.
        Now {
            wall_ms: 0,
            quality: ClockQuality::Unsynced,
            boot: BootId::from_bytes([1; 16]),
            boottime_ms: self.boottime_ms,
        }
    }

    fn judge(&self, keys: &KeySet, ticket: Option<u64>) -> Verdict {
        let want = Want { keys, mode: Mode::Exclusive, ticket };
        judge(want, &self.leases, &self.tickets, &self.now(), Duration::ZERO, |id| self.dead.contains(&id))
    }

    fn stands(&self, token: FencingToken) -> bool {
        let lease = self.leases.iter().find(|lease| lease.token == token);
        lease.is_some_and(|lease| lease.standing(&self.now(), |id| self.dead.contains(&id)).is_ok())
    }

    /// Looks as a holder does. What was lost once stays lost.
    fn look(&mut self, token: FencingToken) -> bool {
        let stands = self.stands(token);
        if !stands {
            self.seen_lost.insert(token);
        }
        assert!(!(stands && self.seen_lost.contains(&token)), "the lease of token {token} came back");
        stands
    }

    fn grant(&mut self, session: Ulid, keys: &KeySet, ticket: Option<u64>, verdict: Verdict) -> Option<FencingToken> {
        let Verdict::Grant { leases, tickets } = verdict else { return None };
        self.leases.retain(|lease| !leases.contains(&lease.token));
        self.tickets.retain(|ticket| !tickets.contains(&ticket.number));
        let now = self.now();
        let overtaken = self.tickets.iter().find(|other| {
            ticket.is_none_or(|mine| other.number < mine)
                && other.keys.overlap(keys).is_some()
                && other.stands(&now, |id| self.dead.contains(&id))
        });
        assert!(overtaken.is_none(), "{overtaken:?} was overtaken");
        self.tickets.retain(|other| Some(other.number) != ticket);
        let token = FencingToken::new(self.next_token).unwrap();
        self.next_token += 1;
        self.leases.push(Lease {
            id: Ulid(u128::from(token.get())),
            token,
            session,
            keys: keys.clone(),
            mode: Mode::Exclusive,
            info: LockInfo::default(),
            since_ms: 0,
            ttl: TTL,
            deadline: Deadline::after(&now, TTL),
            hold_until_ms: None,
            broken: None,
        });
        self.assert_exclusion();
        Some(token)
    }

    /// No two leases that stand cover one key.
    fn assert_exclusion(&self) {
        let standing: Vec<&Lease> = self.leases.iter().filter(|lease| self.stands(lease.token)).collect();
        for (at, one) in standing.iter().enumerate() {
            for other in &standing[at + 1..] {
                assert!(one.keys.overlap(&other.keys).is_none(), "{one:?} and {other:?} stand");
            }
        }
    }
}

/// The database that holds what is guarded.
#[derive(Debug, Default)]
struct Router {
    fence: BTreeMap<LockKey, FencingToken>,
    committed: Vec<(LockKey, FencingToken)>,
}

impl Router {
    fn overtaken(&self, key: &LockKey, token: FencingToken, fault: Fault) -> bool {
        self.fence.iter().any(|(seen, higher)| {
            let concerns = if fault == Fault::NoHierarchy { seen == key } else { seen.overlaps(key) };
            concerns && *higher > token
        })
    }

    /// Invariant 7, judged by what has been committed and not by the fence.
    fn commit(&mut self, key: &LockKey, token: FencingToken) {
        let before = self.committed.iter().find(|(other, higher)| other.overlaps(key) && *higher > token);
        assert!(before.is_none(), "token {token} was committed on {key} after {before:?}");
        let raised = self.fence.entry(key.clone()).or_insert(token);
        *raised = (*raised).max(token);
        self.committed.push((key.clone(), token));
    }
}

struct World {
    locks: Mutex<Locks>,
    router: Mutex<Router>,
    fault: Fault,
}

impl World {
    fn acquire(&self, session: Ulid, keys: &KeySet) -> Option<FencingToken> {
        let mut ticket = None;
        for _ in 0..LOOKS {
            if self.fault == Fault::JudgedBefore {
                let verdict = self.locks.lock().unwrap().judge(keys, ticket);
                let token = self.locks.lock().unwrap().grant(session, keys, ticket, verdict);
                if token.is_some() {
                    return token;
                }
            }
            {
                let mut locks = self.locks.lock().unwrap();
                let asked = if self.fault == Fault::NoQueue { Some(0) } else { ticket };
                let verdict = locks.judge(keys, asked);
                if let Some(token) = locks.grant(session, keys, ticket, verdict) {
                    return Some(token);
                }
                if ticket.is_none() {
                    let number = locks.next_ticket;
                    locks.next_ticket += 1;
                    let deadline = Deadline::after(&locks.now(), WAIT);
                    locks.tickets.push(Ticket {
                        number,
                        id: Ulid(u128::from(number)),
                        session,
                        keys: keys.clone(),
                        mode: Mode::Exclusive,
                        info: LockInfo::default(),
                        since_ms: 0,
                        deadline,
                    });
                    ticket = Some(number);
                }
            }
            thread::yield_now();
        }
        self.locks.lock().unwrap().tickets.retain(|other| Some(other.number) != ticket);
        None
    }

    /// The guarded transaction; `None` when the fence rejected it.
    fn write(&self, key: &LockKey, token: FencingToken) -> Option<()> {
        if self.fault == Fault::FenceBefore {
            let router = self.router.lock().unwrap();
            if router.overtaken(key, token, self.fault) || !self.locks.lock().unwrap().look(token) {
                return None;
            }
        }
        let mut router = self.router.lock().unwrap();
        let lost_at_begin = !self.locks.lock().unwrap().look(token);
        if !matches!(self.fault, Fault::NoFence | Fault::FenceBefore) {
            if router.overtaken(key, token, self.fault) {
                return None;
            }
            if self.fault != Fault::TokensOnly && self.fault != Fault::NoHierarchy {
                let stands = self.locks.lock().unwrap().look(token);
                if !stands {
                    return None;
                }
            }
        }
        // A second look at the locks costs a step: others run between the check and the commit.
        thread::yield_now();
        assert!(
            self.fault == Fault::NoHierarchy || !lost_at_begin,
            "token {token} was committed though its lease was lost when the transaction began"
        );
        router.commit(key, token);
        Some(())
    }

    fn renew(&self, token: FencingToken) {
        let mut locks = self.locks.lock().unwrap();
        let now = locks.now();
        let fault = self.fault;
        let Some(lease) = locks.leases.iter_mut().find(|lease| lease.token == token) else { return };
        match lease.renewal(&now) {
            Ok(deadline) => {
                assert!(deadline.boottime_ms >= lease.deadline.boottime_ms);
                lease.deadline = deadline;
            }
            Err(_) if fault == Fault::RenewsTheDead => lease.deadline = Deadline::after(&now, TTL),
            Err(_) => {}
        }
        locks.assert_exclusion();
    }

    fn release(&self, token: FencingToken) {
        self.locks.lock().unwrap().leases.retain(|lease| lease.token != token);
    }

    fn die(&self, session: Ulid) {
        self.locks.lock().unwrap().dead.insert(session);
    }
}

/// One process: takes a key, writes under it twice, renews in between, releases; sometimes it dies instead.
fn session(world: &World, id: Ulid) {
    let keys = ["r", "r/a", "r/b"].map(|path| LockKey::parse(path).unwrap());
    for _ in 0..TURNS {
        let key = &keys[thread_rng().gen_range(0..keys.len())];
        let Some(token) = world.acquire(id, &KeySet::from(key.clone())) else { continue };
        world.write(key, token);
        world.renew(token);
        world.write(key, token);
        if thread_rng().gen_range(0..8) == 0 {
            world.die(id);
            // A dead process may have had a write under way: it is fenced like any other.
            world.write(key, token);
            return;
        }
        world.release(token);
        world.write(key, token);
    }
}

fn scenario(fault: Fault) {
    let locks = Locks { next_token: 1, next_ticket: 1, ..Locks::default() };
    let world = Arc::new(World { locks: Mutex::new(locks), router: Mutex::default(), fault });
    let mut threads: Vec<_> = (1..=SESSIONS)
        .map(|id| {
            let world = Arc::clone(&world);
            thread::spawn(move || session(&world, Ulid(id)))
        })
        .collect();
    let clock = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for _ in 0..3 {
            clock.locks.lock().unwrap().boottime_ms += if thread_rng().gen_bool(0.5) { 11_000 } else { 4_000 };
            thread::yield_now();
        }
    }));
    for thread in threads {
        thread.join().unwrap();
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config.silence_warnings = true;
    config
}

/// Explores interleavings at random and with few, well-placed switches; returns how many.
fn explore(fault: Fault, schedules: usize) -> usize {
    let random = RandomScheduler::new_from_seed(SEED, schedules / 2);
    let few_switches = PctScheduler::new_from_seed(SEED, 4, schedules - schedules / 2);
    Runner::new(random, config()).run(move || scenario(fault))
        + Runner::new(few_switches, config()).run(move || scenario(fault))
}

fn schedules() -> usize {
    std::env::var("NASNET_MODEL_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000)
}

#[test]
fn no_interleaving_commits_a_stale_write_or_lets_two_leases_stand() {
    let explored = explore(Fault::None, schedules());
    println!("model: {explored} schedules explored, 0 violations");
    assert_eq!(explored, schedules());
}

#[test]
fn every_planted_fault_is_caught() {
    for (fault, expected) in [
        (Fault::NoFence, "was committed"),
        (Fault::FenceBefore, "was committed"),
        (Fault::TokensOnly, "lost when the transaction began"),
        (Fault::NoHierarchy, "was committed on"),
        (Fault::JudgedBefore, "stand"),
        (Fault::RenewsTheDead, "came back"),
        (Fault::NoQueue, "overtaken"),
    ] {
        let said = catch_unwind(AssertUnwindSafe(|| explore(fault, 20_000)));
        let panic = said.expect_err(&format!("{fault:?} was not caught"));
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        println!("model: control {fault:?} caught: {}", message.lines().next().unwrap_or_default());
        assert!(message.is_empty() || message.contains(expected), "{fault:?}: {message}");
    }
}
