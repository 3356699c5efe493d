//! Events as evidence: a bundle that shows, without the store, that they are what was recorded.

use std::collections::BTreeMap;

use nasnet_dbmanager::Scope;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use crate::chain::{self, Digest};
use crate::error::Error;
use crate::event::Recorded;
use crate::flush::FlushReason;
use crate::head::{ChainHead, Lane};
use crate::position::Position;
use crate::store::EventStore;
use crate::verify::Span;
use crate::walk::{Step, Stretch};

const KIND: &str = "nasnet-events evidence";
const VERSION: u8 = 1;

/// One link of a chain: an event, or only the digest of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Link {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    event: Option<Recorded>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    leaf: Option<Digest>,
}

/// A part of one chain, from before its first event to the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LaneProof {
    scope: Scope,
    lane: Lane,
    start: Digest,
    links: Vec<Link>,
}

/// Events with the proof that they belong to the record of a fleet. Carried by value, and verified without the store.
///
/// Bodies of events with a subject are in it as they are stored, sealed: a shredded event proves that it happened and
/// shows nothing more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    version: u8,
    #[serde(rename = "type")]
    kind: String,
    controls: Vec<String>,
    fleet: Ulid,
    made_ms: i64,
    after: Position,
    until: Position,
    lanes: Vec<LaneProof>,
    head: ChainHead,
    digest: Digest,
}

/// What a bundle was shown to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven {
    /// Events that are proven to be part of the record.
    pub events: u64,
    /// Of them, events whose facts are sealed.
    pub sealed: u64,
    /// Chains they come from.
    pub lanes: u64,
}

/// Collects events and what proves them: the chains of the warm tier where they are whole, else those of the cold tier.
/// Flushes before. `controls` names what the evidence is for; it is kept as given.
///
/// Events that are in no chain are not in the bundle: Low ones that were not archived.
///
/// # Errors
/// [`Error::Unproven`] when no tier holds the span without a gap, [`Error::Corrupt`] when a part of it is damaged;
/// and those of [`EventStore::flush`] and [`EventStore::export_head`].
///
/// # Cancel safety
/// Safe: it only flushes and reads.
pub async fn export(store: &EventStore, span: Span, controls: Vec<String>) -> Result<Bundle, Error> {
    let flushed = store.flush(FlushReason::Requested).await?;
    let scopes = span.scopes(store).await?;
    // What was lost with a damaged block may have been of any of them.
    let concerns = |failed: &Option<Scope>| failed.as_ref().is_none_or(|scope| scopes.contains(scope));
    if let Some((_, error)) = flushed.failed.into_iter().find(|(failed, _)| concerns(failed)) {
        return Err(error);
    }
    let head = store.export_head().await?;
    let mut lanes = Vec::new();
    for scope in scopes {
        lanes.extend(scope_proofs(store, &scope, span.stretch(), &head).await?);
    }
    let manager = &store.shared().manager;
    let mut bundle = Bundle {
        version: VERSION,
        kind: KIND.to_owned(),
        controls,
        fleet: manager.fleet_id(),
        made_ms: manager.now().wall_ms,
        after: span.after,
        until: span.until,
        lanes,
        head,
        digest: Digest::GENESIS,
    };
    bundle.digest = bundle.digested()?;
    Ok(bundle)
}

async fn scope_proofs(
    store: &EventStore,
    scope: &Scope,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Vec<LaneProof>, Error> {
    let mut warm = Vec::new();
    let mut gap = None;
    for lane in [Lane::Rows, Lane::Segments] {
        match lane_proof(store, scope, lane, stretch, head).await {
            Ok(proof) => warm.extend(proof),
            Err(error) if error.is_of_one_segment() || matches!(error, Error::Unproven { .. }) => gap = Some(error),
            Err(error) => return Err(error),
        }
    }
    let Some(gap) = gap else { return Ok(warm) };
    // The archive may hold what the warm tier has given up, or a whole copy of what is damaged there.
    match lane_proof(store, scope, Lane::Frames, stretch, head).await {
        Ok(Some(proof)) => Ok(vec![proof]),
        Ok(None) | Err(Error::ColdAbsent { .. }) => Err(gap),
        Err(error) => Err(error),
    }
}

async fn lane_proof(
    store: &EventStore,
    scope: &Scope,
    lane: Lane,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Option<LaneProof>, Error> {
    let Some(end) = head.lane(scope, lane).filter(|end| end.position > stretch.after) else { return Ok(None) };
    let mut collected =
        Collector { stretch, start: None, state: Digest::GENESIS, links: Vec::new(), events: 0, gap: None };
    let whole = Stretch { after: stretch.after, until: end.position };
    store.walk(scope, lane, whole, &mut |step| collected.see(step)).await?;
    let unproven = |why: &str| Error::Unproven { scope: scope.clone(), lane, why: why.to_owned() };
    match collected.gap {
        Some(Gap::Error(error)) => return Err(error),
        Some(Gap::Removed) => return Err(unproven("a part of the chain was removed")),
        None => {}
    }
    if collected.state != end.digest {
        return Err(unproven("the chain does not lead to the head"));
    }
    let LinkedFrom(start) = collected.start.ok_or_else(|| unproven("the chain has no beginning"))?;
    let proof = LaneProof { scope: scope.clone(), lane, start, links: collected.links };
    Ok((collected.events > 0).then_some(proof))
}

struct LinkedFrom(Digest);

enum Gap {
    Removed,
    Error(Error),
}

struct Collector {
    stretch: Stretch,
    start: Option<LinkedFrom>,
    state: Digest,
    links: Vec<Link>,
    events: u64,
    gap: Option<Gap>,
}

impl Collector {
    fn see(&mut self, step: Step) {
        match step {
            Step::At { position, digest, may_be_removed: is_removed } => match &self.start {
                // What stood before the first unit may have been removed, and may have been in the span.
                None if position > self.stretch.after && is_removed => {
                    self.gap.get_or_insert(Gap::Removed);
                }
                None => {
                    self.start = Some(LinkedFrom(digest));
                    self.state = digest;
                }
                Some(_) if digest != self.state => {
                    self.gap.get_or_insert(Gap::Removed);
                }
                Some(_) => {}
            },
            Step::Event(event) => {
                let leaf = chain::leaf(&event);
                self.state = chain::link(self.state, leaf);
                let is_wanted = event.position > self.stretch.after && event.position <= self.stretch.until;
                self.events += u64::from(is_wanted);
                self.links.push(match is_wanted {
                    true => Link { event: Some(*event), leaf: None },
                    false => Link { event: None, leaf: Some(leaf) },
                });
            }
            Step::After(digest) => {
                if digest != self.state {
                    self.gap.get_or_insert(Gap::Removed);
                }
            }
            Step::Damaged { error, .. } => {
                self.gap.get_or_insert(Gap::Error(error));
            }
        }
    }
}

impl Bundle {
    /// What the evidence is for, as given.
    #[must_use]
    pub fn controls(&self) -> &[String] {
        &self.controls
    }

    /// The head the chains were taken up to.
    #[must_use]
    pub const fn head(&self) -> &ChainHead {
        &self.head
    }

    /// A digest over the whole bundle.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The events, in the order of the record.
    #[must_use]
    pub fn events(&self) -> Vec<&Recorded> {
        let links = self.lanes.iter().flat_map(|lane| &lane.links);
        let events: BTreeMap<_, _> =
            links.filter_map(|link| link.event.as_ref()).map(|event| (event.position, event)).collect();
        events.into_values().collect()
    }

    /// Writes the bundle as JSON on one line. There is only this one spelling of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be written.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|error| Error::corrupt("bundle", error))
    }

    /// Reads what [`Bundle::to_json`] wrote, and checks its digest. Any other spelling is refused.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is anything else.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let bundle: Self = serde_json::from_str(text).map_err(|error| Error::corrupt("bundle", error))?;
        if bundle.to_json()? != text {
            return Err(Error::corrupt("bundle", "it is spelled in another way"));
        }
        bundle.check()?;
        Ok(bundle)
    }

    /// Shows that every event of the bundle belongs to the record that led to `head`: the one it was exported with, or
    /// one witnessed earlier or in between, which then is a point on its chains. Needs no store and no key.
    ///
    /// The digest of the bundle covers `controls` and times too, but only the chains are proven by the head.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the bundle does not check, [`Error::Unproven`] when an event is not proven by this head:
    /// it was changed, or it is newer, or the head is newer than the bundle.
    pub fn verify(&self, head: &ChainHead) -> Result<Proven, Error> {
        self.check()?;
        let mut proven = Proven { events: 0, sealed: 0, lanes: 0 };
        for proof in &self.lanes {
            let unproven =
                |why: &str| Error::Unproven { scope: proof.scope.clone(), lane: proof.lane, why: why.to_owned() };
            let end = head.lane(&proof.scope, proof.lane).filter(|_| head.fleet == self.fleet);
            let end = end.ok_or_else(|| unproven("the head does not name this chain"))?;
            let mut state = proof.start;
            let mut is_reached = false;
            let (mut waiting, mut sealed) = (0, 0);
            for link in &proof.links {
                let leaf = match (&link.event, link.leaf) {
                    (Some(event), None) => {
                        waiting += 1;
                        sealed += u64::from(event.body.is_sealed());
                        chain::leaf(event)
                    }
                    (None, Some(leaf)) => leaf,
                    _ => return Err(Error::corrupt("bundle", "a link is neither an event nor a digest")),
                };
                state = chain::link(state, leaf);
                if state == end.digest {
                    is_reached = true;
                    proven.events += std::mem::take(&mut waiting);
                    proven.sealed += std::mem::take(&mut sealed);
                }
            }
            if !is_reached {
                return Err(unproven("its chain does not lead through the head"));
            }
            if waiting > 0 {
                return Err(unproven("an event is newer than the head"));
            }
            proven.lanes += 1;
        }
        Ok(proven)
    }

    /// What can be checked of a bundle by itself.
    fn check(&self) -> Result<(), Error> {
        if self.version != VERSION || self.kind != KIND {
            return Err(Error::corrupt("bundle", "unknown version or type"));
        }
        if self.digested()? != self.digest {
            return Err(Error::corrupt("bundle", "digest differs"));
        }
        for proof in &self.lanes {
            let mut last = self.after;
            for event in proof.links.iter().filter_map(|link| link.event.as_ref()) {
                if event.scope != proof.scope || event.position <= last || event.position > self.until {
                    return Err(Error::corrupt("bundle", "an event stands where it does not belong"));
                }
                last = event.position;
            }
        }
        Ok(())
    }

    /// Reads a bundle whatever its digest and spelling, and gives it the right ones, so that damage gets past them.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn righted(text: &str) -> Option<Self> {
        let mut bundle: Self = serde_json::from_str(text).ok()?;
        bundle.digest = bundle.digested().ok()?;
        Some(bundle)
    }

    /// SHA-256 over its spelling without the digest.
    fn digested(&self) -> Result<Digest, Error> {
        let blank = Self { digest: Digest::GENESIS, ..self.clone() };
        let mut hash = Sha256::new();
        hash.update(b"nasnet-events bundle 1\0");
        hash.update(blank.to_json()?);
        Ok(Digest(hash.finalize().into()))
    }
}
