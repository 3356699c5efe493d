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

/// Reads the events of a stream up to a position or an instant, oldest first, from its very first one: what is folded from
/// a part of them would be a guess.
///
/// # Errors
/// [`Error::BeyondHorizon`] when retention has removed a part of the history and no tier that can be read now has it; as an
/// item of the stream when that part is not its beginning, as its last item when nothing of the stream is left behind it. [`Error::Storage`] when the place of an instant cannot be found.
///
/// # Cancel safety
/// Safe.
pub async fn events_until(
    store: &EventStore,
    scope: &Scope,
    stream: &StreamName,
    until: Until,
) -> Result<impl Stream<Item = Result<Recorded, Error>> + Send + Unpin + 'static, Error> {
    let query = Query::scope(scope.clone()).stream(stream.clone());
    let gaps = match removed_of(store, scope, stream).await? {
        Some(removed) => {
            let gaps =
                Gaps { scope: scope.clone(), stream: stream.clone(), removed, last: Some(0), at: Position::START };
            gaps.check_beginning(store, query.clone()).await?;
            Some(gaps)
        }
        None => None,
    };
    let last = match until {
        Until::Position(position) => position,
        Until::WallMs(wall_ms) => place_of(store, query.clone(), wall_ms).await?,
    };
    let events = store.read(query.clone().until(last));
    let telling = Telling { events, gaps, store: store.clone(), query, until };
    Ok(futures_util::stream::unfold(telling, |mut telling| async move { Some((telling.next().await?, telling)) })
        .boxed())
}

/// A history that is being read.
struct Telling<S> {
    events: S,
    /// `None` when nothing was removed, or all there is to say was said.
    gaps: Option<Gaps>,
    store: EventStore,
    query: Query,
    until: Until,
}

impl<S: Stream<Item = Result<Recorded, Error>> + Unpin> Telling<S> {
    async fn next(&mut self) -> Option<Result<Recorded, Error>> {
        match (self.events.next().await, &mut self.gaps) {
            (Some(item), Some(gaps)) => Some(gaps.tell(item)),
            (Some(item), None) => Some(item),
            (None, _) => {
                let gaps = self.gaps.take()?;
                gaps.check_end(&self.store, self.query.clone(), self.until).await.err().map(Err)
            }
        }
    }
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

/// Looks for versions that retention has removed. Versions of a stream count up from 1, and those it removed may be read
/// from the cold tier all the same.
struct Gaps {
    scope: Scope,
    stream: StreamName,
    removed: Removed,
    /// The version read last, `None` behind a place that cannot be read, where any may follow.
    last: Option<u64>,
    /// Its position.
    at: Position,
}

impl Gaps {
    fn beyond(&self) -> Error {
        let (scope, stream) = (self.scope.clone(), self.stream.clone());
        Error::BeyondHorizon { scope, stream, oldest: self.removed.through }
    }

    /// A history that does not begin at the beginning is refused before anything of it is read.
    async fn check_beginning(&self, store: &EventStore, query: Query) -> Result<(), Error> {
        match store.read_stored(query.limit(1)).next().await {
            None => Err(self.beyond()),
            Some(Ok(event)) if event.version > 1 => Err(self.beyond()),
            // The reading of the history tells of what is damaged.
            Some(_) => Ok(()),
        }
    }

    /// A history is not whole when what was removed came behind its last event and within its end. Where that was is not
    /// known any more, so it is whole only if it ends with that event, or the next one that is left follows it.
    async fn check_end(&self, store: &EventStore, query: Query, until: Until) -> Result<(), Error> {
        let Some(last) = self.last.filter(|last| *last < self.removed.version) else { return Ok(()) };
        if until == Until::Position(self.at) {
            return Ok(());
        }
        match store.read_stored(query.after(self.at).limit(1)).next().await {
            Some(Ok(event)) if event.version == last + 1 => Ok(()),
            _ => Err(self.beyond()),
        }
    }

    fn tell(&mut self, item: Result<Recorded, Error>) -> Result<Recorded, Error> {
        let last = self.last;
        self.last = item.as_ref().ok().map(|event| event.version);
        self.at = item.as_ref().map_or(self.at, |event| event.position);
        match (last, &item) {
            (Some(last), Ok(event)) if event.version > last + 1 && last < self.removed.version => Err(self.beyond()),
            _ => item,
        }
    }
}

/// An event whose clock was not trusted.
struct Untrusted {
    position: Position,
    boot: BootId,
    boottime_ms: u64,
}

/// The position of the last event of a history up to an instant.
async fn place_of(store: &EventStore, query: Query, wall_ms: i64) -> Result<Position, Error> {
    let mut newest_first = store.read_stored(query.backwards());
    // Those after the event that was looked at last, newest first, up to the next trusted clock.
    let mut later: Vec<Untrusted> = Vec::new();
    while let Some(item) = newest_first.next().await {
        let event = match item {
            Ok(event) => event,
            // The reading of the history tells of it.
            Err(Error::Corrupt { .. } | Error::Unreadable { .. }) => continue,
            Err(error) => return Err(error),
        };
        if event.quality != ClockQuality::Synced {
            later.push(Untrusted { position: event.position, boot: event.boot, boottime_ms: event.boottime_ms });
        } else if event.wall_ms > wall_ms {
            later.clear();
        } else {
            return Ok(through(&event, &later, wall_ms));
        }
    }
    Ok(Position::START)
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
