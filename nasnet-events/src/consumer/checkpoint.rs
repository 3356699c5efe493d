//! How far a consumer has come, in memory: what was handed out, what was acknowledged, what is on flash. Pure.

use std::time::Duration;

use nasnet_dbmanager::Now;

use crate::consumer::marker::{Mark, Placed};
use crate::position::Position;

/// Longest time an acknowledged position stays in tmpfs only.
pub(crate) const SAVE_AFTER: Duration = Duration::from_secs(15 * 60);
/// Events after which it is saved without waiting for that.
pub(crate) const SAVE_EVENTS: u64 = 1_000;
/// Longest time when nothing was acknowledged and the consumer merely looked past events it does not want.
pub(crate) const SAVE_LOOKED_AFTER: Duration = Duration::from_secs(60 * 60);

#[derive(Debug)]
pub(crate) struct Checkpoint {
    acked: Mark,
    /// Last position handed out.
    delivered: Position,
    /// Nothing the consumer wants is between `delivered` and here.
    looked: Position,
    /// Removals handed out and not acknowledged: the marker's position, and what it tells.
    handed: Vec<(Position, Position)>,
    events: u64,
    saved: Mark,
    saved_at: Now,
    saved_events: u64,
    /// The acknowledged position on flash; `saved` may have looked further.
    saved_acked: Position,
}

impl Checkpoint {
    /// A consumer that begins at `mark` and of which flash knows `saved`.
    pub(crate) const fn new(mark: Mark, saved: Mark, now: Now) -> Self {
        Self {
            acked: mark,
            delivered: mark.position,
            looked: mark.position,
            handed: Vec::new(),
            events: 0,
            saved,
            saved_at: now,
            saved_events: 0,
            saved_acked: saved.position,
        }
    }

    /// Takes note that an item leaves for the consumer.
    pub(crate) fn hand_out(&mut self, placed: &Placed) {
        let position = placed.item.position();
        self.delivered = self.delivered.max(position);
        self.events += u64::from(placed.item.event().is_some());
        if let Some(tells) = placed.tells {
            self.handed.push((position, tells));
        }
    }

    /// Takes note that nothing is waiting to be handed out up to here.
    pub(crate) fn look(&mut self, position: Position) {
        self.looked = self.looked.max(position);
    }

    /// Takes an acknowledgement; false when that position was never handed out.
    pub(crate) fn ack(&mut self, position: Position) -> bool {
        if position > self.delivered.max(self.looked) {
            return false;
        }
        self.acked.position = self.acked.position.max(position);
        let (acked, mut told) = (self.acked.position, self.acked.told.max(self.acked.position));
        self.handed.retain(|(at, tells)| {
            let is_told = *at <= acked;
            if is_told {
                told = told.max(*tells);
            }
            !is_told
        });
        self.acked.told = told;
        true
    }

    /// What the consumer has behind it: with everything acknowledged, also what it had no interest in.
    pub(crate) fn mark(&self) -> Mark {
        if self.acked.position >= self.delivered && self.handed.is_empty() {
            let position = self.acked.position.max(self.looked);
            Mark { position, told: self.acked.told.max(position) }
        } else {
            self.acked
        }
    }

    /// True when flash does not know where the consumer stands.
    pub(crate) fn is_moved(&self) -> bool {
        self.mark() > self.saved
    }

    /// True when it is time to tell it.
    pub(crate) fn is_due(&self, now: &Now) -> bool {
        if !self.is_moved() {
            return false;
        }
        let age = now.age_of(self.saved_at.boot, self.saved_at.boottime_ms).unwrap_or(Duration::MAX);
        if self.acked.position <= self.saved_acked {
            return age >= SAVE_LOOKED_AFTER;
        }
        age >= SAVE_AFTER || self.events - self.saved_events >= SAVE_EVENTS
    }

    /// Takes note of what was written to flash.
    pub(crate) fn saved(&mut self, mark: Mark, now: Now) {
        self.saved = self.saved.max(mark);
        self.saved_acked = self.saved_acked.max(self.acked.position.min(mark.position));
        self.saved_at = now;
        self.saved_events = self.events;
    }
}

#[cfg(test)]
mod tests {
    use nasnet_dbmanager::{Clock, ManualClock};

    use super::*;
    use crate::consumer::Item;

    fn item(seq: u64) -> Placed {
        Placed { item: Item::CaughtUp { position: Position::new(1, seq) }, tells: None }
    }

    #[test]
    fn a_position_is_saved_after_a_quarter_of_an_hour_and_only_if_it_moved() {
        let clock = ManualClock::new(0);
        let mut checkpoint = Checkpoint::new(Mark::at(Position::START), Mark::at(Position::START), clock.now());
        clock.advance(SAVE_AFTER * 10);
        assert!(!checkpoint.is_due(&clock.now()), "it has not moved");
        checkpoint.saved(checkpoint.mark(), clock.now());
        checkpoint.hand_out(&item(5));
        assert!(!checkpoint.is_moved(), "nothing was acknowledged");
        assert!(!checkpoint.ack(Position::new(1, 6)), "this was never handed out");
        assert!(checkpoint.ack(Position::new(1, 5)));
        assert!(!checkpoint.is_due(&clock.now()));
        clock.set_wall_ms(i64::MAX / 2);
        assert!(!checkpoint.is_due(&clock.now()), "the wall clock does not matter");
        clock.advance(SAVE_AFTER);
        assert!(checkpoint.is_due(&clock.now()));
        checkpoint.saved(checkpoint.mark(), clock.now());
        assert!(!checkpoint.is_due(&clock.now()));
    }

    #[test]
    fn what_a_consumer_does_not_want_moves_it_once_everything_else_is_acknowledged() {
        let clock = ManualClock::new(0);
        let mut checkpoint = Checkpoint::new(Mark::at(Position::START), Mark::at(Position::START), clock.now());
        checkpoint.hand_out(&item(5));
        checkpoint.look(Position::new(1, 9));
        assert_eq!(checkpoint.mark().position, Position::START);
        assert!(checkpoint.ack(Position::new(1, 5)));
        assert_eq!(checkpoint.mark(), Mark::at(Position::new(1, 9)));
        checkpoint.saved(checkpoint.mark(), clock.now());
        checkpoint.look(Position::new(1, 20));
        clock.advance(SAVE_AFTER);
        assert!(!checkpoint.is_due(&clock.now()), "nothing was handled since");
        clock.advance(SAVE_LOOKED_AFTER);
        assert!(checkpoint.is_due(&clock.now()));
    }
}
