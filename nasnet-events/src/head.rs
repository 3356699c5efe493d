//! Where the chains of a fleet stand, to be kept by somebody else.

use std::fmt;

use nasnet_dbmanager::{Cause, Scope};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::SqliteConnection;
use ulid::Ulid;

use crate::chain::Digest;
use crate::epoch;
use crate::error::Error;
use crate::position::Position;
use crate::store::{EventStore, blocking};
use crate::warm::{rows, segment};

const HEAD: Cause = Cause::new("event-head");
const VERSION: u8 = 1;

/// One chain of a scope. Each goes on in the order of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Events that committed with their state, in the warm tier.
    Rows,
    /// Flushed events, in the warm tier.
    Segments,
    /// Archived events, on one medium of the cold tier.
    Frames,
}

impl Lane {
    /// The word used in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Segments => "segments",
            Self::Frames => "frames",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where one chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneHead {
    /// The scope.
    pub scope: Scope,
    /// The chain.
    pub lane: Lane,
    /// Its last event.
    pub position: Position,
    /// The digest over all of its events.
    pub digest: Digest,
}

/// Where the chains of a fleet stood once.
///
/// Kept by an outside party it witnesses everything before it: [`EventStore::verify_against`] and
/// [`crate::evidence::Bundle::verify`] show whether anything was changed or cut off since. Whoever can write the
/// databases can write another history with other heads, but not one that leads to this head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    version: u8,
    /// The fleet.
    pub fleet: Ulid,
    /// When it was made, by the wall clock.
    pub made_ms: i64,
    /// The chains, by scope and lane.
    pub lanes: Vec<LaneHead>,
    /// A fingerprint under a key of the fleet: [`EventStore::has_issued`] checks it.
    fingerprint: String,
}

impl ChainHead {
    /// A digest over the whole head, short enough to be printed or published.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(b"nasnet-events head 1\0");
        hash.update(self.spelled());
        Digest(hash.finalize().into())
    }

    /// Where a chain stands.
    #[must_use]
    pub fn lane(&self, scope: &Scope, lane: Lane) -> Option<&LaneHead> {
        self.lanes.iter().find(|head| head.scope == *scope && head.lane == lane)
    }

    /// Everything but the fingerprint, in one spelling.
    fn spelled(&self) -> Vec<u8> {
        let mut text = format!("{} {} {}", self.version, self.fleet, self.made_ms);
        for LaneHead { scope, lane, position, digest } in &self.lanes {
            text.push_str(&format!("\n{} {lane} {position} {digest}", scope.as_str()));
        }
        text.into_bytes()
    }
}

impl EventStore {
    /// Tells where all chains stand. Unflushed events are in none of them: flush first when they should be.
    ///
    /// # Errors
    /// [`Error::Unreadable`] when the database of a scope cannot be read: a head that leaves a scope out would witness
    /// nothing of it. An absent cold tier is left out.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn export_head(&self) -> Result<ChainHead, Error> {
        self.head_of(epoch::scopes(&self.shared().manager).await?).await
    }

    /// As [`EventStore::export_head`], of some scopes.
    pub(crate) async fn head_of(&self, scopes: Vec<Scope>) -> Result<ChainHead, Error> {
        let manager = &self.shared().manager;
        let mut lanes = Vec::new();
        for scope in scopes {
            let unreadable = |error| Error::Unreadable {
                scope: scope.clone(),
                after: Position::START,
                through: Position::END,
                source: Box::new(error),
            };
            let database = manager.scope(&scope).await.map_err(|error| unreadable(error.into()))?;
            let own = scope.clone();
            let found = database
                .read(HEAD, move |conn| Box::pin(async move { warm_heads(conn, &own).await }))
                .await
                .map_err(unreadable)?;
            lanes.extend(found);
            lanes.extend(self.cold_head(&scope).await?);
        }
        let (fleet, made_ms) = (manager.fleet_id(), manager.now().wall_ms);
        let mut head = ChainHead { version: VERSION, fleet, made_ms, lanes, fingerprint: String::new() };
        head.fingerprint = self.fingerprint(&head);
        Ok(head)
    }

    /// True when this fleet has made the head as it is.
    #[must_use]
    pub fn has_issued(&self, head: &ChainHead) -> bool {
        head.version == VERSION
            && head.fleet == self.shared().manager.fleet_id()
            && head.fingerprint == self.fingerprint(head)
    }

    fn fingerprint(&self, head: &ChainHead) -> String {
        let bytes = self.shared().manager.sealer().fingerprint("nasnet-events head", &head.spelled());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    async fn cold_head(&self, scope: &Scope) -> Result<Option<LaneHead>, Error> {
        let Some(cold) = self.shared().cold.clone() else { return Ok(None) };
        let own = scope.clone();
        let newest = blocking(move || {
            let mut cold = cold.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            cold.frames(&own)
                .map(|frames| frames.places.last().map(|(_, place)| (place.header.last, place.header.chain.1)))
        });
        match newest.await {
            Ok(newest) => Ok(newest.map(|(position, digest)| LaneHead {
                scope: scope.clone(),
                lane: Lane::Frames,
                position,
                digest,
            })),
            Err(Error::ColdAbsent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn warm_heads(conn: &mut SqliteConnection, scope: &Scope) -> Result<Vec<LaneHead>, Error> {
    let mut lanes = Vec::new();
    let of = |lane, (position, digest)| LaneHead { scope: scope.clone(), lane, position, digest };
    lanes.extend(rows::chained_at(conn, Position::END).await?.map(|at| of(Lane::Rows, at)));
    lanes.extend(segment::chained(conn, scope).await?.map(|at| of(Lane::Segments, at)));
    Ok(lanes)
}
