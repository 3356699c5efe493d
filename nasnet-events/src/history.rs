//! What was known at some time: the events of a stream up to a position or an instant, for folding.

use futures_core::Stream;
use futures_util::StreamExt;
use nasnet_dbmanager::{BootId, Cause, ClockQuality, Scope};

use crate::error::Error;
use crate::event::Recorded;
use crate::name::StreamName;
use crate::position::Position;
use crate::query::Query;
use crate::retain::horizon::{self, Removed};
use crate::store::EventStore;

const HORIZON: Cause = Cause::new("event-horizon");

/// Up to where a history goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Up to a position, which is included.
    Position(Position),
    /// Up to an instant of the wall clock in milliseconds, which is included: through the last event whose clock was
    /// trusted and had not passed it, and through the events of the same boot after that which had not by the time since
    /// the boot. Events before the first trusted clock belong to whatever comes after them.
    WallMs(i64),
}

/// Where a snapshot of what is folded from a stream stands: every event up to here is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Place of the last event that is in it.
    pub position: Position,
    /// Version of the stream after that event.
    pub version: u64,
}

impl Snapshot {
    /// Before the first event: nothing is in it.
    pub const NOTHING: Self = Self { position: Position::START, version: 0 };

    /// What is folded up to this event, which is in it.
    #[must_use]
    pub const fn at(event: &Recorded) -> Self {
        Self { position: event.position, version: event.version }
    }
}

/// Reads the events of a stream up to a position or an instant, oldest first, from its very first one: what is folded from
/// a part of them would be a guess, so a hole is an item of its own, and what follows it comes behind. So is a place that
/// cannot be read, also one behind the last event that may belong to an instant.
///
/// # Errors
/// [`Error::BeyondHorizon`] when retention has removed a part of the history and no tier that can be read now has it; as an
/// item of the stream when that part is not its beginning, its last one when the end is missing. [`Error::VersionGap`] as an
/// item where versions are missing for another reason. [`Error::Storage`] when the place of an instant cannot be found.
///
/// # Cancel safety
/// Safe.
pub async fn events_until(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    until: Until,
) -> Result<impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static, Error> {
    events_after(store, scope, stream, Snapshot::NOTHING, until).await
}

/// Reads the events of a stream that a snapshot does not have, up to a position or an instant, oldest first. As
/// [`events_until`], but what comes first is the version behind the snapshot, so what retention removed before it is not
/// missed.
///
/// # Errors
/// Those of [`events_until`], with [`Error::VersionGap`] as the first item when the snapshot is of a tail that was lost and its
/// version was given again; [`Error::Invalid`] when the snapshot has events that are behind the end.
///
/// # Cancel safety
/// Safe.
pub async fn events_after(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    snapshot: Snapshot,
    until: Until,
) -> Result<impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static, Error> {
    let whole = Query::scope(scope.clone()).stream(stream.clone());
    let query = whole.clone().after(snapshot.position);
    let removed = removed_of(store, scope, stream)
        .await?
        .filter(|removed| removed.versions.any_between(snapshot.version, u64::MAX));
    let (last, at) = (Some(snapshot.version), snapshot.position);
    let mut gaps = Gaps { scope: scope.clone(), stream: stream.clone(), removed, is_exact: false, last, at };
    let place = async || match until {
        Until::Position(position) => Ok(Place { last: position, unread: Vec::new() }),
        Until::WallMs(wall_ms) => place_of(store, whole, wall_ms).await,
    };
    let Place { last, unread } = if snapshot == Snapshot::NOTHING {
        gaps.check_beginning(store, query.clone()).await?;
        place().await?
    } else {
        let mut place = place().await?;
        let last = place.last;
        if last < snapshot.position {
            if let Some(error) = place.unread.pop() {
                return Err(error);
            }
            let value = format!("{} for a history up to {last}", snapshot.position);
            return Err(Error::Invalid { what: "snapshot", value, why: "it has events that are behind the end" });
        }
        // Up to the snapshot itself nothing can be missing.
        if last > snapshot.position {
            gaps.check_beginning(store, query.clone()).await?;
        }
        place
    };
    let events = store.read(query.clone().until(last)).fuse();
    let telling = Telling {
        events,
        unread,
        snapshot: Some(snapshot),
        waiting: None,
        ended: false,
        gaps,
        store: store.clone(),
        query,
        until,
    };
    Ok(futures_util::stream::unfold(telling, |mut telling| async move { Some((telling.next().await?, telling)) })
        .boxed())
}

/// A history that is being read.
struct Telling<S> {
    events: S,
    /// What could not be read behind the last event and may belong to the history, newest first.
    unread: Vec<Error>,
    /// Until the first event behind it was compared with it.
    snapshot: Option<Snapshot>,
    /// The event behind a gap that was told.
    waiting: Option<Result<Recorded, Error>>,
    ended: bool,
    gaps: Gaps,
    store: EventStore,
    query: Query,
    until: Until,
}

impl<S: Stream<Item = Result<Recorded, Error>> + Unpin> Telling<S> {
    async fn next(&mut self) -> Option<Result<Recorded, Error>> {
        if let Some(item) = self.waiting.take() {
            return Some(item);
        }
        if self.ended {
            return None;
        }
        let Some(item) = self.events.next().await else {
            if let Some(error) = self.unread.pop() {
                return Some(Err(error));
            }
            self.ended = true;
            return self.gaps.at_the_end(&self.store, self.query.clone(), self.until).await.map(Err);
        };
        if let Ok(event) = &item
            && let Some(snapshot) = self.snapshot.take()
            && let Err(error) =
                check_snapshot(&self.store, &self.gaps.scope, &self.gaps.stream, snapshot, event.version).await
        {
            drop(self.gaps.before(&item));
            self.waiting = Some(item);
            return Some(Err(error));
        }
        if self.gaps.suspects(&item) {
            self.gaps.look_for_removed(&self.store, self.query.clone()).await;
        }
        match self.gaps.before(&item) {
            Some(hole) => {
                self.waiting = Some(item);
                Some(Err(hole))
            }
            None => Some(item),
        }
    }
}

/// What to say of a history that goes on from version `after` with `next`.
pub(crate) async fn hole_of(store: &EventStore, scope: &Scope, stream: &StreamName, after: u64, next: u64) -> Error {
    match removed_between(store, scope, stream, after, next).await {
        Err(error) | Ok(Some(error)) => error,
        Ok(None) => Error::VersionGap { scope: scope.clone(), stream: stream.clone(), after, next },
    }
}

/// Checks that what a snapshot has in it is not the lost tail of its stream, of which the next version is given again. That of
/// an event which nobody lost is given again only where Low events were lost that the archive has.
pub(crate) async fn check_snapshot(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    snapshot: Snapshot,
    next: u64,
) -> Result<(), Error> {
    let after = snapshot.version;
    if snapshot == Snapshot::NOTHING || next > after {
        return Ok(());
    }
    let own = Query::scope(scope.clone()).stream(stream.clone()).after(snapshot.position.before());
    let found = store.read_stored(own.until(snapshot.position)).next().await.transpose()?;
    let is_there = found.is_some_and(|event| event.version == after);
    if is_there || removed_between(store, scope, stream, after.saturating_sub(1), after + 1).await?.is_some() {
        return Ok(());
    }
    Err(Error::VersionGap { scope: scope.clone(), stream: stream.clone(), after, next })
}

/// What to say of a history that ends with version `after`, when retention removed later ones.
pub(crate) async fn removed_after(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    after: u64,
) -> Result<Option<Error>, Error> {
    removed_between(store, scope, stream, after, u64::MAX).await
}

async fn removed_between(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    after: u64,
    before: u64,
) -> Result<Option<Error>, Error> {
    let removed = removed_of(store, scope, stream).await?.filter(|removed| removed.versions.any_between(after, before));
    Ok(removed.map(|removed| Error::BeyondHorizon {
        scope: scope.clone(),
        stream: stream.clone(),
        oldest: removed.through,
    }))
}

/// What retention removed of a stream. A router that is gone has no warm tier it could have been removed from.
async fn removed_of(store: &EventStore, scope: &Scope, stream: &StreamName) -> Result<Option<Removed>, Error> {
    let database = match store.shared().manager.scope(scope).await {
        Err(nasnet_dbmanager::Error::RouterNotFound { .. }) => return Ok(None),
        found => found?,
    };
    let stream = stream.clone();
    database.read(HORIZON, move |conn| Box::pin(async move { horizon::of_stream(conn, &stream).await })).await
}

/// Looks for versions that are missing. Versions of a stream count up from 1, and those retention removed may be read from
/// the cold tier all the same.
struct Gaps {
    scope: Scope,
    stream: StreamName,
    removed: Option<Removed>,
    /// Those of them that can be read were looked for, and do not count.
    is_exact: bool,
    /// The version read last, `None` behind a place that cannot be read, where any may follow.
    last: Option<u64>,
    /// The position of the event read last.
    at: Position,
}

impl Gaps {
    fn beyond(&self) -> Error {
        let (scope, stream) = (self.scope.clone(), self.stream.clone());
        let oldest = self.removed.as_ref().map_or(Position::START, |removed| removed.through);
        Error::BeyondHorizon { scope, stream, oldest }
    }

    /// True when retention removed a version between the two.
    fn has_removed(&self, after: u64, before: u64) -> bool {
        self.removed.as_ref().is_some_and(|removed| removed.versions.any_between(after, before))
    }

    /// Leaves out of what was removed the versions that can be read. They may stand anywhere: where a hot tier was lost,
    /// versions of Low events are given again, so a history may begin with a later one.
    async fn look_for_removed(&mut self, store: &EventStore, query: Query) {
        let Some(removed) = self.removed.as_mut().filter(|_| !self.is_exact) else { return };
        let mut events = store.read_stored(query.until(removed.through));
        while let Some(item) = events.next().await {
            // What cannot be read is missing; the reading of the history tells why.
            if let Ok(event) = item {
                removed.versions.remove(event.version);
            }
        }
        self.is_exact = true;
    }

    /// A history that does not begin where it should because that was removed is refused before anything of it is read.
    async fn check_beginning(&mut self, store: &EventStore, query: Query) -> Result<(), Error> {
        let first = match store.read_stored(query.clone().limit(1)).next().await {
            None => u64::MAX,
            Some(Ok(event)) => event.version,
            // The reading of the history tells of what is damaged.
            Some(Err(_)) => return Ok(()),
        };
        let before = self.last.unwrap_or(0);
        if self.has_removed(before, first) {
            self.look_for_removed(store, query).await;
        }
        if self.has_removed(before, first) { Err(self.beyond()) } else { Ok(()) }
    }

    /// What is missing behind the last event and within the end of the history. Where removed events were is not known any
    /// more, so nothing is missing only if it ends with that event, or none was removed before the next one that is left.
    async fn at_the_end(&mut self, store: &EventStore, query: Query, until: Until) -> Option<Error> {
        let last = self.last.filter(|last| self.has_removed(*last, u64::MAX))?;
        if until == Until::Position(self.at) {
            return None;
        }
        self.look_for_removed(store, query.clone()).await;
        let next = match store.read_stored(query.after(self.at).limit(1)).next().await {
            Some(Ok(event)) => event.version,
            _ => u64::MAX,
        };
        self.has_removed(last, next).then(|| self.beyond())
    }

    /// True when a removed version seems to be missing directly before an item.
    fn suspects(&self, item: &Result<Recorded, Error>) -> bool {
        let next = item.as_ref().ok().map(|event| event.version);
        self.last.zip(next).is_some_and(|(after, next)| self.has_removed(after, next))
    }

    /// What is missing directly before an item.
    fn before(&mut self, item: &Result<Recorded, Error>) -> Option<Error> {
        let next = item.as_ref().ok().map(|event| event.version);
        self.at = item.as_ref().map_or(self.at, |event| event.position);
        let after = std::mem::replace(&mut self.last, next)?;
        let next = next.filter(|next| *next > after.saturating_add(1))?;
        if self.has_removed(after, next) {
            return Some(self.beyond());
        }
        let (scope, stream) = (self.scope.clone(), self.stream.clone());
        Some(Error::VersionGap { scope, stream, after, next })
    }
}

/// An event whose clock was not trusted.
struct Untrusted {
    position: Position,
    boot: BootId,
    boottime_ms: u64,
}

/// Where a history ends.
struct Place {
    /// Its last event.
    last: Position,
    /// Places behind that which cannot be read, newest first: what they hold may belong to it.
    unread: Vec<Error>,
}

/// Where a history up to an instant ends.
async fn place_of(store: &EventStore, query: Query, wall_ms: i64) -> Result<Place, Error> {
    let mut newest_first = store.read_stored(query.clone().backwards());
    // Those after the event that was looked at last, newest first, up to the next trusted clock.
    let mut later: Vec<Untrusted> = Vec::new();
    let (mut last, mut past, mut is_whole) = (Position::START, Position::END, true);
    while let Some(item) = newest_first.next().await {
        let event = match item {
            Ok(event) => event,
            Err(error) if is_passed(&error) => {
                is_whole = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        if event.quality != ClockQuality::Synced {
            later.push(Untrusted { position: event.position, boot: event.boot, boottime_ms: event.boottime_ms });
        } else if event.wall_ms > wall_ms {
            later.clear();
            past = event.position;
        } else {
            last = through(&event, &later, wall_ms);
            break;
        }
    }
    if is_whole {
        return Ok(Place { last, unread: Vec::new() });
    }
    // What comes behind an event that is past the instant does not belong to the history, whatever it is.
    let between = store.read_stored(query.after(last).until(past));
    let mut unread: Vec<Error> = between.filter_map(async |item| item.err()).collect().await;
    unread.reverse();
    Ok(Place { last, unread })
}

/// Whether an error is of one place, so that what is beside it can be read.
fn is_passed(error: &Error) -> bool {
    error.is_of_one_place() || error.is_of_one_segment() || matches!(error, Error::Unreadable { .. })
}

/// How far the untrusted events after `trusted` still belong to the history, by the time since their common boot.
fn through(trusted: &Recorded, later: &[Untrusted], wall_ms: i64) -> Position {
    let mut last = trusted.position;
    for event in later.iter().rev() {
        let since = i64::try_from(event.boottime_ms.saturating_sub(trusted.boottime_ms)).unwrap_or(i64::MAX);
        if event.boot != trusted.boot || trusted.wall_ms.saturating_add(since) > wall_ms {
            break;
        }
        last = event.position;
    }
    last
}
