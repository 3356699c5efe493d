//! Whoever reads while the tiers move: a consumer that comes back now and then, reads of everything beside the moves, and
//! the history of a stream.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::StreamExt;
use nasnet_events::history::{Until, events_until};
use nasnet_events::{Consumer, ConsumerName, Error, GuardLimits, Item, Position, StreamName, Subscription, Truncated};

use super::Round;
use super::retention::DAY;
use crate::Failure;
use crate::events::{self, Open, Promises, SCOPES, STREAMS, Seen};

const NAME: &str = "follower";
/// Whoever has not caught up after so long hangs.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A consumer that subscribes, reads what there is, and goes again.
#[derive(Debug)]
pub(super) struct Follower {
    /// Everything up to here was acknowledged.
    position: Position,
    /// Removals it has acknowledged, and of each its scope, why, and through where.
    removed: Vec<Truncated>,
    told: HashSet<String>,
    losses: HashSet<u32>,
}

fn consumer() -> Result<Consumer, Error> {
    // Bytes never end this guard, so that what does can be told from the time alone.
    let limits = GuardLimits { max_age: 10 * DAY, bytes_max: 1 << 40 };
    Ok(Consumer::new(ConsumerName::parse(NAME)?).guard(limits))
}

/// What a consumer was shown until it had caught up.
async fn shown(subscription: &mut Subscription) -> Result<(Vec<Item>, Position), String> {
    let mut items = Vec::new();
    let reading = async {
        while let Some(item) = subscription.next().await {
            match item {
                Ok(Item::CaughtUp { position }) => return Ok(position),
                Ok(item) => items.push(item),
                Err(error) => return Err(format!("it is shown {error}")),
            }
        }
        Err("its stream ends".to_owned())
    };
    let caught_up = tokio::time::timeout(CATCH_UP, reading).await;
    let position = caught_up.map_err(|_| "it does not catch up".to_owned())??;
    Ok((items, position))
}

/// What is told of a removal to tell it from others.
fn key(removed: &Truncated) -> String {
    format!("{:?} {:?} {}", removed.scope, removed.by, removed.through)
}

impl Follower {
    pub(super) fn new() -> Self {
        Self { position: Position::START, removed: Vec::new(), told: HashSet::new(), losses: HashSet::new() }
    }

    /// Reads what is new and acknowledges it, or with `part` only the first of so many parts of it; with `deaf` it does not
    /// hear of removals. Each event that was promised is shown, or one marker that covers it, and no marker comes twice.
    pub(super) async fn follow(
        &mut self,
        open: &Open,
        promises: &Promises,
        part: Option<usize>,
        deaf: bool,
    ) -> Result<Option<String>, Failure> {
        events::settle(open).await?;
        let mut subscription = open.store.subscribe(consumer()?).await?;
        let (mut items, caught_up) = match shown(&mut subscription).await {
            Ok(shown) => shown,
            Err(what) => return Ok(Some(format!("the consumer behind {}: {what}", self.position))),
        };
        if deaf {
            items.retain(|item| !matches!(item, Item::Truncated { .. }));
        }
        let mut seen = Seen::default();
        for item in &items {
            match item {
                Item::Event(event) => seen.take(event),
                Item::TailLost { lost, .. } => seen.losses.push(*lost),
                Item::Truncated { removed, .. } => seen.removed.push(removed.clone()),
                other => return Ok(Some(format!("the consumer is shown {other:?}"))),
            }
        }
        // What it acknowledged before is no matter of this reading.
        let after = self.position;
        let mut promises = promises.clone();
        promises.told.retain(|told| told.position > after);
        if let Some((number, position)) = seen.events.first().filter(|(_, position)| *position <= after) {
            return Ok(Some(format!("the consumer behind {after} is shown event {number} at {position}")));
        }
        seen.removed.extend(self.removed.iter().cloned());
        if let Some(wrong) = seen.judge(&promises) {
            return Ok(Some(format!("the consumer behind {after}: {wrong}")));
        }
        // Acknowledged up to an event, with the markers that stand at its position, or everything.
        let ends: Vec<Position> = items.iter().filter_map(Item::event).map(|event| event.position).collect();
        let kept = part.and_then(|part| ends.get(ends.len() / part.max(1))).copied();
        let through = kept.unwrap_or(caught_up);
        for item in items.iter().filter(|item| item.position() <= through) {
            let again = match item {
                Item::TailLost { lost, .. } => !self.losses.insert(lost.epoch),
                Item::Truncated { removed, .. } => {
                    self.removed.push(removed.clone());
                    !self.told.insert(key(removed))
                }
                _ => false,
            };
            if again {
                return Ok(Some(format!("the consumer behind {after} is told {item:?} once more")));
            }
        }
        subscription.ack(through).await?;
        subscription.close().await?;
        self.position = through.max(after);
        Ok(None)
    }
}

/// Reads everything over and over until a round of moves is over; with each read, the moves it was beside.
pub(super) async fn read_beside(open: Open, round: &Round) -> Vec<(Seen, RangeInclusive<usize>)> {
    let mut all = Vec::new();
    while all.is_empty() || !round.is_over.get() {
        let first = round.at.get();
        let seen = events::look(&open).await;
        all.push((seen, first..=round.at.get()));
        tokio::task::yield_now().await;
    }
    all
}

/// What a walk did that leaves holes in histories.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holes {
    /// Calls that failed may have taken versions.
    pub(super) some_failed: bool,
    /// Events that nobody was told of may have been removed for good.
    pub(super) some_unknown: bool,
}

/// Reads the history of each stream. It is whole, or it is refused where retention has removed a part of it for good; versions
/// that were lost or that calls which failed have taken are told as missing.
pub(super) async fn histories(open: &Open, promises: &Promises, holes: Holes) -> Result<Option<String>, Failure> {
    let everything = events::look(open).await;
    let there: HashSet<u64> = everything.events.iter().map(|(number, _)| *number).collect();
    for of in 0..SCOPES {
        for stream in 0..STREAMS.len() {
            if let Some(what) = history(open, promises, (of, stream), &there, holes).await? {
                return Ok(Some(what));
            }
        }
    }
    Ok(None)
}

/// Reads one history, and compares it with what is there of it.
async fn history(
    open: &Open,
    promises: &Promises,
    (of, stream): (u64, usize),
    there: &HashSet<u64>,
    holes: Holes,
) -> Result<Option<String>, Failure> {
    let (scope, name) = (events::scope(of)?, StreamName::parse(STREAMS[stream])?);
    let told = || promises.told.iter().filter(|told| told.scope == of && told.stream == stream);
    let lost = told().any(|told| !there.contains(&told.number));
    let gone = told().find(|told| told.retained && !there.contains(&told.number));
    let mut read = Seen::default();
    let mut refused = None;
    match events_until(&open.store, &scope, &name, Until::Position(Position::END)).await {
        Err(error) => refused = Some(error),
        Ok(mut events) => {
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => read.take(&event),
                    Err(Error::VersionGap { .. }) if lost || holes.some_failed => {}
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
        }
    }
    let read: HashSet<u64> = read.events.iter().map(|(number, _)| *number).collect();
    let what = match (refused, gone) {
        (Some(Error::BeyondHorizon { .. }), gone) if gone.is_some() || holes.some_unknown => None,
        (None, None) => {
            let lacks = told().find(|told| there.contains(&told.number) && !read.contains(&told.number));
            lacks.map(|lacks| format!("it lacks {lacks:?}"))
        }
        (None, Some(gone)) => Some(format!("it is told without {gone:?}")),
        (Some(error), gone) => Some(format!("it is refused: {error}; gone is {gone:?}")),
    };
    Ok(what.map(|what| format!("the history of {name} of {scope}: {what}")))
}
