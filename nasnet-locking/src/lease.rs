//! The rules of leases, without I/O and without a clock.
//!
//! Everything a lease table decides follows from what it stores, the time it is told and which sessions are dead:
//! who is in the way ([`judge`]), whether a lease still stands ([`Lease::standing`]) and until when a renewal reaches
//! ([`Lease::renewal`]). The stores only load rows, ask these functions and write what they answer.

use std::fmt;
use std::time::Duration;

use nasnet_dbmanager::{BootId, Now};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::error::LostReason;
use crate::key::{KeySet, LockKey};
use crate::token::FencingToken;

/// Longest actor, purpose or origin kept, in characters; what is longer is cut.
pub const LOCK_INFO_CHARS_MAX: usize = 200;

/// How a lease shares its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// Alone on its keys, on everything above and below them. The only mode that carries a right to write.
    Exclusive,
    /// Beside other shared leases; keeps exclusive ones away.
    Shared,
}

impl Mode {
    /// Two leases whose keys overlap exclude each other unless both are shared. Taking a key implies an intent on
    /// everything above it: an overlap counts in both directions of the hierarchy.
    #[must_use]
    pub fn excludes(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who takes a lease and what for, as shown to whoever finds the keys taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LockInfo {
    /// The person or program.
    pub actor: String,
    /// What the lease is for.
    pub purpose: String,
    /// Where the request came from: a host, a request id, a command line.
    pub origin: String,
}

impl LockInfo {
    /// Names the actor and the purpose.
    #[must_use]
    pub fn new(actor: impl Into<String>, purpose: impl Into<String>) -> Self {
        Self { actor: actor.into(), purpose: purpose.into(), origin: String::new() }
    }

    /// Names where the request came from.
    #[must_use]
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    pub(crate) fn cut(mut self) -> Self {
        for text in [&mut self.actor, &mut self.purpose, &mut self.origin] {
            if let Some((end, _)) = text.char_indices().nth(LOCK_INFO_CHARS_MAX) {
                text.truncate(end);
            }
        }
        self
    }
}

/// The holder of a lease as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The lease.
    pub lease: Ulid,
    /// Its token; `None` while it waits for its turn.
    pub token: Option<FencingToken>,
    /// The session it lives in.
    pub session: Ulid,
    /// How it shares its keys.
    pub mode: Mode,
    /// Who, what for, from where.
    pub info: LockInfo,
    /// Wall clock of the grant, or of queuing up, in milliseconds; for people.
    pub since_ms: i64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {:?}", self.info.actor, self.info.purpose)
    }
}

/// A moment of one boot of the machine, comparable between its processes and independent of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// The boot.
    pub boot: BootId,
    /// CLOCK_BOOTTIME in milliseconds.
    pub boottime_ms: u64,
}

impl Deadline {
    /// Returns the moment `after` from now.
    #[must_use]
    pub fn after(now: &Now, after: Duration) -> Self {
        Self { boot: now.boot, boottime_ms: now.boottime_ms.saturating_add(millis(after)) }
    }

    /// Returns the time left; nothing in another boot.
    #[must_use]
    pub fn remaining(&self, now: &Now) -> Duration {
        if self.boot == now.boot {
            Duration::from_millis(self.boottime_ms.saturating_sub(now.boottime_ms))
        } else {
            Duration::ZERO
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Who broke a lease, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// One granted lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: Ulid,
    /// Its token.
    pub token: FencingToken,
    /// The session that took it.
    pub session: Ulid,
    /// What it covers.
    pub keys: KeySet,
    /// How it shares its keys.
    pub mode: Mode,
    /// Who, what for, from where.
    pub info: LockInfo,
    /// Wall clock of the grant in milliseconds; for people.
    pub since_ms: i64,
    /// How far a renewal reaches.
    pub ttl: Duration,
    /// When it ends unless it is renewed. A break moves it to the moment of the break.
    pub deadline: Deadline,
    /// CLOCK_BOOTTIME in milliseconds no renewal reaches past.
    pub hold_until_ms: Option<u64>,
    /// Set once somebody broke it.
    pub broken: Option<Broken>,
}

impl Lease {
    /// Tells whether the lease still stands, or how it ended.
    ///
    /// # Errors
    /// The reason it ended.
    pub fn standing(&self, now: &Now, is_dead: impl Fn(Ulid) -> bool) -> Result<(), LostReason> {
        if self.deadline.boot != now.boot {
            return Err(LostReason::OtherBoot);
        }
        if let Some(Broken { by, reason }) = &self.broken {
            return Err(LostReason::Broken { by: by.clone(), reason: reason.clone() });
        }
        if now.boottime_ms >= self.deadline.boottime_ms {
            return Err(LostReason::Expired);
        }
        if is_dead(self.session) {
            return Err(LostReason::SessionEnded);
        }
        Ok(())
    }

    /// Returns how long the lease keeps others off its keys, `None` when it does not.
    ///
    /// An expired or broken lease goes on blocking for `delay`, unless its session is dead: its holder may be in the
    /// middle of work that no fence sees.
    #[must_use]
    pub fn blocks_for(&self, now: &Now, delay: Duration, is_dead: impl Fn(Ulid) -> bool) -> Option<Duration> {
        if self.deadline.boot != now.boot {
            return None;
        }
        let until_ms = self.deadline.boottime_ms.saturating_add(
            // A lease that still stands is expected to be released, and then there is no delay.
            if self.standing(now, |_| false).is_ok() { 0 } else { millis(delay) },
        );
        if now.boottime_ms >= until_ms || is_dead(self.session) {
            return None;
        }
        Some(Duration::from_millis(until_ms - now.boottime_ms))
    }

    /// Returns until when the lease reaches if it is renewed now. Renewing never shortens a lease and is idempotent: a
    /// holder that did not hear the answer asks again.
    ///
    /// # Errors
    /// The reason the lease is lost; a lease whose time ran out is lost even if nobody took it over.
    pub fn renewal(&self, now: &Now) -> Result<Deadline, LostReason> {
        self.standing(now, |_| false)?;
        Ok(Deadline {
            boot: now.boot,
            boottime_ms: reach_ms(now, self.ttl, self.hold_until_ms).max(self.deadline.boottime_ms),
        })
    }

    /// Returns the lease as others see it.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder {
            lease: self.id,
            token: Some(self.token),
            session: self.session,
            mode: self.mode,
            info: self.info.clone(),
            since_ms: self.since_ms,
        }
    }
}

/// Returns how far a lease granted or renewed now reaches.
pub(crate) fn reach_ms(now: &Now, ttl: Duration, hold_until_ms: Option<u64>) -> u64 {
    now.boottime_ms.saturating_add(millis(ttl)).min(hold_until_ms.unwrap_or(u64::MAX))
}

/// One place in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Its place: lower numbers queued up earlier.
    pub number: u64,
    /// The lease that will be granted.
    pub id: Ulid,
    /// The session that waits.
    pub session: Ulid,
    /// What it waits for.
    pub keys: KeySet,
    /// How it will share its keys.
    pub mode: Mode,
    /// Who, what for, from where.
    pub info: LockInfo,
    /// Wall clock of queuing up in milliseconds; for people.
    pub since_ms: i64,
    /// When it stops waiting.
    pub deadline: Deadline,
}

impl Ticket {
    /// Tells whether somebody still waits behind this ticket.
    #[must_use]
    pub fn stands(&self, now: &Now, is_dead: impl Fn(Ulid) -> bool) -> bool {
        self.deadline.remaining(now) > Duration::ZERO && !is_dead(self.session)
    }

    /// Returns who waits as others see it.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder {
            lease: self.id,
            token: None,
            session: self.session,
            mode: self.mode,
            info: self.info.clone(),
            since_ms: self.since_ms,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The keys, all or nothing.
    pub keys: &'a KeySet,
    /// How they are to be shared.
    pub mode: Mode,
    /// The place in the queue, if there is one.
    pub ticket: Option<u64>,
}

/// What is in the way of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The key asked for that is not free.
    pub key: LockKey,
    /// Who is in the way; of several the one that stays longest.
    pub holder: Holder,
    /// How long it stays unless it renews or releases.
    pub expires_in: Duration,
    /// Earlier tickets that have to be served first.
    pub ahead: usize,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Granted, once the leases with these tokens and these tickets are removed: all of them have ended.
    Grant {
        /// Leases taken over.
        leases: Vec<FencingToken>,
        /// Tickets nobody waits behind.
        tickets: Vec<u64>,
    },
    /// Not granted.
    Blocked(Box<Obstacle>),
}

/// Decides a request: it is granted when no standing lease and no earlier standing ticket excludes it on any key.
///
/// Tickets are totally ordered and a request looks only at earlier ones, so nobody is overtaken and no circle of waiters
/// can form. Rows that do not overlap the request may be left out: they do not change the answer.
pub fn judge<'r>(
    want: Want<'_>,
    leases: impl IntoIterator<Item = &'r Lease>,
    tickets: impl IntoIterator<Item = &'r Ticket>,
    now: &Now,
    delay: Duration,
    is_dead: impl Fn(Ulid) -> bool,
) -> Verdict {
    let mut ended = (Vec::new(), Vec::new());
    let mut obstacle: Option<Obstacle> = None;
    for lease in leases {
        let Some(key) = contested(want, &lease.keys, lease.mode) else { continue };
        match lease.blocks_for(now, delay, &is_dead) {
            None => ended.0.push(lease.token),
            Some(expires_in) if obstacle.as_ref().is_none_or(|other| other.expires_in < expires_in) => {
                obstacle = Some(Obstacle { key: key.clone(), holder: lease.holder(), expires_in, ahead: 0 });
            }
            Some(_) => {}
        }
    }
    let mut ahead = 0;
    for ticket in tickets {
        if want.ticket.is_some_and(|mine| ticket.number >= mine) {
            continue;
        }
        let Some(key) = contested(want, &ticket.keys, ticket.mode) else { continue };
        if !ticket.stands(now, &is_dead) {
            ended.1.push(ticket.number);
            continue;
        }
        ahead += 1;
        obstacle.get_or_insert_with(|| Obstacle {
            key: key.clone(),
            holder: ticket.holder(),
            expires_in: ticket.deadline.remaining(now),
            ahead: 0,
        });
    }
    match obstacle {
        None => Verdict::Grant { leases: ended.0, tickets: ended.1 },
        Some(obstacle) => Verdict::Blocked(Box::new(Obstacle { ahead, ..obstacle })),
    }
}

fn contested<'a>(want: Want<'a>, keys: &KeySet, mode: Mode) -> Option<&'a LockKey> {
    if want.mode.excludes(mode) { want.keys.overlap(keys) } else { None }
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::ClockQuality;

    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn at(boot: u8, boottime_ms: u64) -> Now {
        Now { wall_ms: 0, quality: ClockQuality::Unsynced, boot: BootId::from_bytes([boot; 16]), boottime_ms }
    }

    fn keys(path: &str) -> KeySet {
        LockKey::parse(path).unwrap().into()
    }

    fn lease(path: &str, mode: Mode, now: &Now) -> Lease {
        Lease {
            id: Ulid(1),
            token: FencingToken::new(7).unwrap(),
            session: Ulid(10),
            keys: keys(path),
            mode,
            info: LockInfo::new("ann", "test"),
            since_ms: 0,
            ttl: TTL,
            deadline: Deadline::after(now, TTL),
            hold_until_ms: None,
            broken: None,
        }
    }

    fn ticket(number: u64, path: &str, mode: Mode, now: &Now) -> Ticket {
        Ticket {
            number,
            id: Ulid(u128::from(number)),
            session: Ulid(20),
            keys: keys(path),
            mode,
            info: LockInfo::new("bob", "wait"),
            since_ms: 0,
            deadline: Deadline::after(now, TTL),
        }
    }

    fn granted(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Grant { .. })
    }

    #[test]
    fn a_lease_covers_what_is_above_and_below_it_but_not_beside_it() {
        let now = at(1, 0);
        let held = [lease("router/r1/resource/a", Mode::Exclusive, &now)];
        for (path, free) in [
            ("router/r1/resource/a", false),
            ("router/r1", false),
            ("router/r1/resource/a/field", false),
            ("router/r1/resource/b", true),
            ("router/r2", true),
        ] {
            let set = keys(path);
            let want = Want { keys: &set, mode: Mode::Shared, ticket: None };
            assert_eq!(granted(&judge(want, &held, [], &now, Duration::ZERO, |_| false)), free, "{path}");
        }
    }

    #[test]
    fn shared_leases_live_together_and_keep_exclusive_ones_away() {
        let now = at(1, 0);
        let held = [lease("router/r1", Mode::Shared, &now)];
        let set = keys("router/r1/resource/a");
        let shared = Want { keys: &set, mode: Mode::Shared, ticket: None };
        let exclusive = Want { mode: Mode::Exclusive, ..shared };
        assert!(granted(&judge(shared, &held, [], &now, Duration::ZERO, |_| false)));
        assert!(!granted(&judge(exclusive, &held, [], &now, Duration::ZERO, |_| false)));
    }

    #[test]
    fn a_silent_live_session_is_waited_out_a_dead_one_is_not() {
        let now = at(1, 0);
        let held = [lease("router/r1", Mode::Exclusive, &now)];
        let set = keys("router/r1");
        let want = Want { keys: &set, mode: Mode::Exclusive, ticket: None };
        let last_ms = millis(TTL) - 1;
        assert!(!granted(&judge(want, &held, [], &at(1, last_ms), Duration::ZERO, |_| false)));
        assert!(granted(&judge(want, &held, [], &at(1, last_ms + 1), Duration::ZERO, |_| false)));
        assert!(granted(&judge(want, &held, [], &now, Duration::ZERO, |session| session == Ulid(10))));
        assert!(granted(&judge(want, &held, [], &at(2, 0), Duration::ZERO, |_| false)), "another boot");
    }

    #[test]
    fn the_delay_after_expiry_spares_no_live_session_and_no_dead_one() {
        let now = at(1, 0);
        let delay = Duration::from_secs(10);
        let held = lease("router/r1", Mode::Exclusive, &now);
        let ttl_ms = millis(TTL);
        assert_eq!(held.blocks_for(&now, delay, |_| false), Some(TTL));
        assert_eq!(held.blocks_for(&at(1, ttl_ms), delay, |_| false), Some(delay));
        assert_eq!(held.blocks_for(&at(1, ttl_ms), delay, |_| true), None);
        assert_eq!(held.blocks_for(&at(1, ttl_ms + 10_000), delay, |_| false), None);
    }

    #[test]
    fn renewing_after_expiry_returns_lease_lost() {
        let held = lease("router/r1", Mode::Exclusive, &at(1, 0));
        assert_eq!(held.renewal(&at(1, millis(TTL))), Err(LostReason::Expired));
        assert_eq!(held.renewal(&at(2, 0)), Err(LostReason::OtherBoot));
        let broken = Broken { by: "op".into(), reason: "stuck".into() };
        let held = Lease { broken: Some(broken), ..held };
        assert!(matches!(held.renewal(&at(1, 0)), Err(LostReason::Broken { .. })));
    }

    #[test]
    fn renewing_is_idempotent_never_shortens_and_stops_at_the_longest_hold() {
        let held = Lease { hold_until_ms: Some(400_000), ..lease("router/r1", Mode::Exclusive, &at(1, 0)) };
        let once = held.renewal(&at(1, 50_000)).unwrap();
        assert_eq!(once.boottime_ms, 350_000);
        let again = Lease { deadline: once, ..held.clone() }.renewal(&at(1, 50_000)).unwrap();
        assert_eq!(again, once);
        let earlier = Lease { deadline: once, ..held.clone() }.renewal(&at(1, 10_000)).unwrap();
        assert_eq!(earlier, once);
        assert_eq!(held.renewal(&at(1, 200_000)).unwrap().boottime_ms, 400_000);
    }

    #[test]
    fn nobody_passes_an_earlier_ticket_that_still_stands() {
        let now = at(1, 0);
        let queue = [ticket(1, "router/r1", Mode::Exclusive, &now), ticket(2, "router/r1", Mode::Exclusive, &now)];
        let set = keys("router/r1");
        let second = Want { keys: &set, mode: Mode::Exclusive, ticket: Some(2) };
        match judge(second, [], &queue, &now, Duration::ZERO, |_| false) {
            Verdict::Blocked(obstacle) => assert_eq!((obstacle.ahead, obstacle.holder.token), (1, None)),
            grant => panic!("{grant:?}"),
        }
        assert!(granted(&judge(Want { ticket: Some(1), ..second }, [], &queue, &now, Duration::ZERO, |_| false)));
        assert!(!granted(&judge(Want { ticket: None, ..second }, [], &queue, &now, Duration::ZERO, |_| false)));
        match judge(second, [], &queue, &now, Duration::ZERO, |session| session == Ulid(20)) {
            Verdict::Grant { tickets, .. } => assert_eq!(tickets, [1]),
            blocked => panic!("{blocked:?}"),
        }
    }

    #[test]
    fn texts_of_the_holder_are_cut_between_characters() {
        let info = LockInfo::new("ü".repeat(500), "x").cut();
        assert_eq!(info.actor.chars().count(), LOCK_INFO_CHARS_MAX);
    }
}
