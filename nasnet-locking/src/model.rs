//! The lease table as a plain value, and the check that the SQL store is the same machine.

use std::collections::BTreeSet;
use std::time::Duration;

use nasnet_dbmanager::{BootId, ClockQuality, DbManager, Now, Options};
use proptest::prelude::*;
use ulid::Ulid;

use crate::error::{LostReason, StaleView};
use crate::key::{KeySet, LockKey};
use crate::lease::{self, Broken, Deadline, Lease, LockInfo, Mode, Obstacle, Ticket, Verdict, Want};
use crate::session::{Session, Sessions};
use crate::store::sqlite::{Attempt, Queue, Request, SqliteStore};
use crate::token::FencingToken;

const DELAY: Duration = Duration::from_millis(300);
const WAIT: Duration = Duration::from_millis(3_000);

/// Every lease and ticket, nothing left out: what the store loads selectively.
#[derive(Debug, Default)]
struct Model {
    leases: Vec<Lease>,
    tickets: Vec<Ticket>,
    last_ticket: u64,
    next_token: u64,
    dead: BTreeSet<Ulid>,
}

impl Model {
    fn attempt(
        &mut self,
        request: &Request,
        own: Ulid,
        queue: Queue,
        now: &Now,
    ) -> Result<Lease, (Box<Obstacle>, Option<u64>)> {
        let mine = if let Queue::Keep(number) = queue { Some(number) } else { None };
        let want = Want { keys: &request.keys, mode: request.mode, ticket: mine };
        let dead = &self.dead;
        match lease::judge(want, &self.leases, &self.tickets, now, DELAY, |id| dead.contains(&id)) {
            Verdict::Grant { leases, tickets } => {
                self.leases.retain(|lease| !leases.contains(&lease.token));
                self.tickets.retain(|ticket| !tickets.contains(&ticket.number) && Some(ticket.number) != mine);
                let lease = Lease {
                    id: request.id,
                    token: FencingToken::new(self.next_token).unwrap(),
                    session: own,
                    keys: request.keys.clone(),
                    mode: request.mode,
                    info: request.info.clone(),
                    since_ms: now.wall_ms,
                    ttl: request.ttl,
                    deadline: Deadline::after(now, request.ttl),
                    hold_until_ms: None,
                    broken: None,
                };
                self.next_token += 1;
                self.leases.push(lease.clone());
                Ok(lease)
            }
            Verdict::Blocked(obstacle) => {
                let ticket = if let Queue::Join(deadline) = queue {
                    self.last_ticket += 1;
                    self.tickets.push(Ticket {
                        number: self.last_ticket,
                        id: request.id,
                        session: own,
                        keys: request.keys.clone(),
                        mode: request.mode,
                        info: request.info.clone(),
                        since_ms: now.wall_ms,
                        deadline,
                    });
                    Some(self.last_ticket)
                } else {
                    mine
                };
                Err((obstacle, ticket))
            }
        }
    }

    fn find(&mut self, id: Ulid) -> Option<&mut Lease> {
        self.leases.iter_mut().find(|lease| lease.id == id)
    }

    fn renew(&mut self, id: Ulid, now: &Now) -> Result<Deadline, LostReason> {
        let lease = self.find(id).ok_or(LostReason::Ended)?;
        lease.deadline = lease.renewal(now)?;
        Ok(lease.deadline)
    }

    fn release(&mut self, id: Ulid, now: &Now) -> Result<(), LostReason> {
        self.tickets.retain(|ticket| ticket.id != id);
        let at = self.leases.iter().position(|lease| lease.id == id).ok_or(LostReason::Ended)?;
        self.leases.remove(at).standing(now, |_| false)
    }

    fn break_lease(&mut self, id: Ulid, broken: &Broken, now: &Now) -> Result<(), StaleView> {
        let lease = self.find(id).filter(|lease| lease.standing(now, |_| false).is_ok()).ok_or(StaleView::Gone)?;
        lease.broken = Some(broken.clone());
        lease.deadline.boottime_ms = now.boottime_ms;
        self.next_token += 1;
        Ok(())
    }

    /// No two leases that stand exclude each other: the property everything here is for.
    fn assert_exclusion(&self, now: &Now) {
        let standing: Vec<&Lease> =
            self.leases.iter().filter(|lease| lease.standing(now, |id| self.dead.contains(&id)).is_ok()).collect();
        for (at, one) in standing.iter().enumerate() {
            for other in &standing[at + 1..] {
                assert!(!one.mode.excludes(other.mode) || one.keys.overlap(&other.keys).is_none(), "{one:?} {other:?}");
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Acquire { session: usize, keys: KeySet, mode: Mode, wait: bool, ttl_ms: u64 },
    Insist { request: usize },
    Renew { request: usize },
    Release { request: usize },
    Break { request: usize },
    Advance { ms: u64 },
    Reboot,
    Kill { session: usize },
}

fn any_keys() -> impl Strategy<Value = KeySet> {
    prop::collection::vec("[ab](/[xy]){0,2}", 1..3)
        .prop_map(|paths| KeySet::new(paths.into_iter().map(|path| LockKey::parse(path).unwrap())).unwrap())
}

fn any_step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![3 => Just(Mode::Exclusive), 2 => Just(Mode::Shared)];
    prop_oneof![
        8 => (0..3_usize, any_keys(), mode, any::<bool>(), 1..2_000_u64)
            .prop_map(|(session, keys, mode, wait, ttl_ms)| Step::Acquire { session, keys, mode, wait, ttl_ms }),
        4 => (0..64_usize).prop_map(|request| Step::Insist { request }),
        2 => (0..64_usize).prop_map(|request| Step::Renew { request }),
        3 => (0..64_usize).prop_map(|request| Step::Release { request }),
        1 => (0..64_usize).prop_map(|request| Step::Break { request }),
        4 => (1..900_u64).prop_map(|ms| Step::Advance { ms }),
        1 => Just(Step::Reboot),
        1 => (0..3_usize).prop_map(|session| Step::Kill { session }),
    ]
}

/// A request that was made: to be granted, renewed, released or broken later.
struct Made {
    request: Request,
    session: usize,
    ticket: Option<u64>,
    token: Option<FencingToken>,
}

struct Table {
    stores: Vec<SqliteStore>,
    sessions: Vec<Session>,
    model: Model,
    made: Vec<Made>,
    now: Now,
    ids: u128,
}

impl Table {
    async fn open(db: &DbManager) -> Self {
        let sessions = Sessions::open(db.run_dir()).unwrap();
        let now =
            Now { wall_ms: 1, quality: ClockQuality::Unsynced, boot: BootId::from_bytes([1; 16]), boottime_ms: 0 };
        let mut table =
            Self { stores: vec![], sessions: vec![], model: Model::default(), made: vec![], now, ids: 1_000 };
        for number in 0..3 {
            let session = sessions.begin(Ulid(number)).unwrap();
            let (db, sessions) = (db.locks().clone(), sessions.clone());
            table.stores.push(SqliteStore { db, sessions, own: session.id, delay: DELAY });
            table.sessions.push(session);
        }
        assert_eq!(table.stores[0].add_block(1, 1_000_000).await.unwrap(), None);
        table.model.next_token = 1;
        table
    }

    async fn attempt(&mut self, mut made: Made, queue: Queue) {
        let (store, now) = (&self.stores[made.session], self.now);
        let expected = self.model.attempt(&made.request, store.own, queue, &now);
        match (store.attempt(made.request.clone(), queue, now).await.unwrap(), expected) {
            (Attempt::Granted(granted), Ok(lease)) => {
                assert_eq!(*granted, lease);
                (made.token, made.ticket) = (Some(lease.token), None);
            }
            (Attempt::Blocked { obstacle, ticket }, Err((expected, expected_ticket))) => {
                assert_eq!((obstacle, ticket), (expected, expected_ticket));
                made.ticket = ticket;
            }
            other => panic!("SQL and model disagree: {other:?}"),
        }
        self.made.push(made);
    }

    async fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Acquire { session, keys, mode, wait, ttl_ms } => {
                self.ids += 1;
                let request = Request {
                    id: Ulid(self.ids),
                    keys,
                    mode,
                    info: LockInfo::new("model", "test"),
                    ttl: Duration::from_millis(ttl_ms),
                    max_hold: None,
                };
                let queue = if wait { Queue::Join(Deadline::after(&now, WAIT)) } else { Queue::Stay };
                self.attempt(Made { request, session, ticket: None, token: None }, queue).await;
            }
            Step::Insist { request } => {
                let waits = |made: &Made| made.ticket.is_some();
                let Some(at) = self.made.iter().skip(request % (self.made.len() + 1)).position(waits) else { return };
                let made = self.made.remove(request % (self.made.len() + 1) + at);
                let ticket = made.ticket.unwrap();
                // Who has given up, died or lost the ticket with the boot does not come back with it.
                if self.model.tickets.iter().any(|standing| standing.number == ticket) {
                    self.attempt(made, Queue::Keep(ticket)).await;
                }
            }
            Step::Renew { request } => {
                let Some((id, token, store)) = self.granted(request) else { return };
                let expected = self.model.renew(id, &now);
                assert_eq!(store.renew(id, token, now).await.unwrap(), expected);
                assert_eq!(store.standing(id, token, now).await.unwrap(), expected.map(|_| ()));
            }
            Step::Release { request } => {
                let Some(made) = (!self.made.is_empty()).then(|| self.made.remove(request % self.made.len())) else {
                    return;
                };
                let expected = self.model.release(made.request.id, &now);
                assert_eq!(self.stores[made.session].release(made.request.id, now).await.unwrap(), expected);
            }
            Step::Break { request } => {
                let Some((id, token, store)) = self.granted(request) else { return };
                let broken = Broken { by: "ops".into(), reason: "test".into() };
                let expected = self.model.break_lease(id, &broken, &now);
                assert_eq!(store.break_lease(id, token, broken, now).await.unwrap().map(|_| ()), expected);
            }
            Step::Advance { ms } => self.now.boottime_ms += ms,
            Step::Reboot => {
                let mut boot = *self.now.boot.as_bytes();
                boot[0] = boot[0].wrapping_add(1);
                (self.now.boot, self.now.boottime_ms, self.now.wall_ms) = (BootId::from_bytes(boot), 0, 0);
            }
            Step::Kill { session } => {
                let next = Ulid(self.sessions.iter().map(|session| session.id.0).max().unwrap() + 1);
                let begun = self.stores[session].sessions.begin(next).unwrap();
                let dead = std::mem::replace(&mut self.sessions[session], begun);
                self.model.dead.insert(dead.id);
                self.stores[session].own = next;
                self.made.retain(|made| made.session != session);
            }
        }
    }

    fn granted(&self, request: usize) -> Option<(Ulid, FencingToken, SqliteStore)> {
        let granted: Vec<&Made> = self.made.iter().filter(|made| made.token.is_some()).collect();
        let made = granted.get(request % granted.len().max(1))?;
        Some((made.request.id, made.token?, self.stores[made.session].clone()))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_sql_store_and_the_rules_are_the_same_machine(steps in prop::collection::vec(any_step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let options = Options::new(data.path()).run_dir(run.path()).schemas(crate::schema_sets());
            let db = DbManager::open(options).await.unwrap();
            let mut table = Table::open(&db).await;
            for step in steps {
                table.step(step).await;
                table.model.assert_exclusion(&table.now);
                let (leases, tickets) = table.stores[0].all().await.unwrap();
                assert_eq!((&leases, &tickets), (&table.model.leases, &table.model.tickets));
            }
            drop(table);
            db.shutdown().await.unwrap();
        });
    }
}
