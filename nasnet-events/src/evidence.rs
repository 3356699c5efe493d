//! Events as evidence: a bundle that shows, without the store, that they are what was recorded.

use std::collections::{BTreeMap, BTreeSet};

use nasnet_dbmanager::Scope;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use crate::chain::{self, Digest};
use crate::class::Class;
use crate::error::Error;
use crate::event::{NewEvent, Recorded};
use crate::flush::FlushReason;
use crate::head::{ChainHead, Lane};
use crate::position::Position;
use crate::store::EventStore;
use crate::types;
use crate::verify::Span;
use crate::walk::{Step, Stretch};

const KIND: &str = "nasnet-events evidence";
const VERSION: u8 = 1;

/// The chains of the warm tier.
const WARM: [Lane; 2] = [Lane::Rows, Lane::Segments];

/// One link of a chain: an event, or only the digest of one. Boxed, for a bundle has a link for each event up to the head,
/// and most of them may be digests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Link {
    Event(Box<Recorded>),
    Leaf(Digest),
}

impl Link {
    fn event(&self) -> Option<&Recorded> {
        match self {
            Self::Event(event) => Some(event),
            Self::Leaf(_) => None,
        }
    }
}

/// A part of one chain, from before its first event to the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LaneProof {
    scope: Scope,
    lane: Lane,
    start: Digest,
    links: Vec<Link>,
}

impl LaneProof {
    fn events(&self) -> impl Iterator<Item = &Recorded> {
        self.links.iter().filter_map(Link::event)
    }
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

/// The body of an event that carries a bundle. The bundle is a text in it: there is only one spelling of a bundle, and
/// whoever takes JSON apart and puts it together again keeps texts and nothing else as they were.
#[derive(Serialize, Deserialize)]
struct Carried {
    controls: Vec<String>,
    events: usize,
    digest: Digest,
    bundle: String,
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

/// Collects events and what proves them: the chains of the warm tier where they are whole, else that of the cold tier, and
/// those of the warm tier behind it. Flushes before. `controls` names what the evidence is for; it is kept as given.
///
/// Events that are in no chain are not in the bundle: Low ones that were not archived.
///
/// # Errors
/// [`Error::Unproven`] when the tiers do not hold the span without a gap, [`Error::Corrupt`] when a part of it is damaged;
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
    let head = store.head_of(scopes.clone()).await?;
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
    for lane in WARM {
        match lane_proof(store, scope, lane, stretch, head).await {
            Ok(proof) => warm.extend(proof),
            Err(error) if error.is_of_one_segment() || matches!(error, Error::Unproven { .. }) => gap = Some(error),
            Err(error) => return Err(error),
        }
    }
    let Some(gap) = gap else { return Ok(warm) };
    // The archive may hold what the warm tier has given up, or a whole copy of what is damaged there.
    match archived_proofs(store, scope, stretch, head).await {
        Ok(Some(proofs)) => Ok(proofs),
        Ok(None) | Err(Error::ColdAbsent { .. }) => Err(gap),
        Err(error) => Err(error),
    }
}

/// What the archive holds of a span, and what the warm tier has behind its end; `None` when that is not all of it. The chain
/// of the frames leads to their head whatever is missing before, between and behind them, so it shows nothing of that: the
/// medium may have been begun later, damaged events were passed over, and new ones wait for the next archive.
async fn archived_proofs(
    store: &EventStore,
    scope: &Scope,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Option<Vec<LaneProof>>, Error> {
    let Some(end) = head.lane(scope, Lane::Frames).map(|end| end.position) else { return Ok(None) };
    let mut followed = Vec::new();
    for lane in WARM {
        followed.push(followed_to(store, scope, lane, end).await?);
    }
    let Some(collected) = collect(store, scope, Lane::Frames, stretch, head, followed).await? else { return Ok(None) };
    let reaches_back = collected.start.as_ref().is_some_and(|start| start.position <= stretch.after);
    // The first frame of a medium stands at the beginning of the record when both chains lead from there to where they are.
    if !reaches_back && !collected.followed.iter().all(|lane| lane.state == lane.digest) {
        return Ok(None);
    }
    let Some(archived) = collected.into_proof(scope, Lane::Frames) else { return Ok(None) };
    if lacks_events(store, scope, &archived, Stretch { until: end.min(stretch.until), ..stretch }).await? {
        return Ok(None);
    }
    let mut proofs = vec![archived];
    // Behind the archive, and that nothing was removed there: else nobody knows where the chains stood at its end.
    if stretch.until > end || !reaches_back {
        for lane in WARM {
            proofs.extend(lane_proof(store, scope, lane, Stretch { after: end, ..stretch }, head).await?);
        }
    }
    Ok(Some(proofs))
}

/// Where a chain of the warm tier stands at a position, to be followed there from the beginning.
async fn followed_to(store: &EventStore, scope: &Scope, lane: Lane, at: Position) -> Result<Followed, Error> {
    let mut followed = Followed { lane, through: Position::START, digest: Digest::GENESIS, state: Digest::GENESIS };
    let nothing = Stretch { after: at, until: at };
    let mut see = |step| {
        if let Step::At { position, digest, .. } = step {
            (followed.through, followed.digest) = (position, digest);
        }
    };
    store.walk(scope, lane, nothing, &mut see).await?;
    Ok(followed)
}

/// True when the warm tier has an event in the stretch, or a damaged place, that is not in the proof.
async fn lacks_events(
    store: &EventStore,
    scope: &Scope,
    archived: &LaneProof,
    stretch: Stretch,
) -> Result<bool, Error> {
    let held: BTreeSet<Position> = archived.events().map(|event| event.position).collect();
    let mut is_lacking = false;
    let mut need = |position: Position| {
        is_lacking |= position > stretch.after && position <= stretch.until && !held.contains(&position);
    };
    for lane in WARM {
        let mut see = |step| match step {
            Step::Event(event) => need(event.position),
            // Both ends of a segment are events of it.
            Step::Damaged { position, through, .. } => position.into_iter().chain(through).for_each(&mut need),
            Step::At { .. } | Step::After(_) => {}
        };
        store.walk(scope, lane, stretch, &mut see).await?;
    }
    Ok(is_lacking)
}

async fn lane_proof(
    store: &EventStore,
    scope: &Scope,
    lane: Lane,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Option<LaneProof>, Error> {
    let collected = collect(store, scope, lane, stretch, head, Vec::new()).await?;
    Ok(collected.and_then(|collected| collected.into_proof(scope, lane)))
}

/// Walks one chain from the beginning of a stretch to the head, `None` when it has nothing behind that beginning.
async fn collect(
    store: &EventStore,
    scope: &Scope,
    lane: Lane,
    stretch: Stretch,
    head: &ChainHead,
    followed: Vec<Followed>,
) -> Result<Option<Collector>, Error> {
    let Some(end) = head.lane(scope, lane).filter(|end| end.position > stretch.after) else { return Ok(None) };
    let mut collected =
        Collector { stretch, start: None, state: Digest::GENESIS, links: Vec::new(), events: 0, gap: None, followed };
    let whole = Stretch { after: stretch.after, until: end.position };
    store.walk(scope, lane, whole, &mut |step| collected.see(step)).await?;
    let unproven = |why: &str| Error::Unproven { scope: scope.clone(), lane, why: why.to_owned() };
    match collected.gap.take() {
        Some(Gap::Error(error)) => return Err(error),
        Some(Gap::Removed) => return Err(unproven("a part of the chain was removed")),
        None => {}
    }
    if collected.state != end.digest {
        return Err(unproven("the chain does not lead to the head"));
    }
    if collected.start.is_none() {
        return Err(unproven("the chain has no beginning"));
    }
    Ok(Some(collected))
}

/// Where a walk began.
struct LinkedFrom {
    position: Position,
    digest: Digest,
}

/// A chain of the warm tier, followed along the events of another one.
struct Followed {
    lane: Lane,
    /// Where it is known, and its digest there.
    through: Position,
    digest: Digest,
    state: Digest,
}

impl Followed {
    fn see(&mut self, event: &Recorded, leaf: Digest) {
        let is_own = match self.lane {
            Lane::Rows => event.synced,
            Lane::Segments => !event.synced && event.class != Class::Low,
            Lane::Frames => false,
        };
        if is_own && event.position <= self.through {
            self.state = chain::link(self.state, leaf);
        }
    }
}

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
    followed: Vec<Followed>,
}

impl Collector {
    /// The proof of the events of the stretch, `None` when there are none.
    fn into_proof(self, scope: &Scope, lane: Lane) -> Option<LaneProof> {
        let start = self.start.filter(|_| self.events > 0)?.digest;
        Some(LaneProof { scope: scope.clone(), lane, start, links: self.links })
    }

    fn see(&mut self, step: Step) {
        match step {
            Step::At { position, digest, may_be_removed: is_removed } => match &self.start {
                // What stood before the first unit may have been removed, and may have been in the span.
                None if position > self.stretch.after && is_removed => {
                    self.gap.get_or_insert(Gap::Removed);
                }
                None => {
                    self.start = Some(LinkedFrom { position, digest });
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
                self.followed.iter_mut().for_each(|followed| followed.see(&event, leaf));
                let is_wanted = event.position > self.stretch.after && event.position <= self.stretch.until;
                self.events += u64::from(is_wanted);
                self.links.push(if is_wanted { Link::Event(event) } else { Link::Leaf(leaf) });
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

    /// The head the chains were taken up to: of the scopes of the span.
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
        let events = self.lanes.iter().flat_map(LaneProof::events);
        let events: BTreeMap<_, _> = events.map(|event| (event.position, event)).collect();
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
        let bundle: Self = serde_json::from_str(text).map_err(|error| Error::corrupt("bundle", Error::form(&error)))?;
        if bundle.to_json()? != text {
            return Err(Error::corrupt("bundle", "it is spelled in another way"));
        }
        bundle.check()?;
        Ok(bundle)
    }

    /// Makes an event of type [`types::EVIDENCE_EXPORTED`] that carries the bundle by value, so that a
    /// [`crate::forward::Forwarder`] takes it wherever it takes events. With the text of the bundle are its controls, its
    /// digest and how many events it has, for whoever lists it.
    ///
    /// The body is about as long as [`Bundle::to_json`]: appending one that is longer than
    /// [`crate::EventOptions::body_bytes_max`] is refused with [`Error::TooLarge`]. Smaller spans make smaller bundles.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be written.
    pub fn to_event(&self, id: Ulid) -> Result<NewEvent, Error> {
        let events = self.lanes.iter().flat_map(LaneProof::events).count();
        let (controls, digest, bundle) = (self.controls.clone(), self.digest, self.to_json()?);
        NewEvent::new(id, types::EVIDENCE_EXPORTED, &Carried { controls, events, digest, bundle })
    }

    /// Takes the bundle out of the body of an event that [`Bundle::to_event`] made, wherever that has been since: what a
    /// receiver got as JSON. Checks what [`Bundle::from_json`] checks; [`Bundle::verify`] shows the rest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is anything else.
    pub fn from_body(body: &str) -> Result<Self, Error> {
        let carried: Carried =
            serde_json::from_str(body).map_err(|error| Error::corrupt("body with a bundle", Error::form(&error)))?;
        let bundle = Self::from_json(&carried.bundle)?;
        if bundle.digest != carried.digest {
            return Err(Error::corrupt("body with a bundle", "it names another digest"));
        }
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
                let leaf = match link {
                    Link::Event(event) => {
                        waiting += 1;
                        sealed += u64::from(event.body.is_sealed());
                        chain::leaf(event)
                    }
                    Link::Leaf(leaf) => *leaf,
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
        let mut chains = BTreeSet::new();
        for proof in &self.lanes {
            if !chains.insert((&proof.scope, proof.lane)) {
                return Err(Error::corrupt("bundle", "a chain stands in it twice"));
            }
            // The events of a span are neighbours in their chain: one that only its digest is shown of was withheld.
            let runs = proof.links.chunk_by(|one, next| one.event().is_some() == next.event().is_some());
            if runs.filter(|run| run.iter().any(|link| link.event().is_some())).count() > 1 {
                return Err(Error::corrupt("bundle", "an event of its span is withheld"));
            }
            let mut last = self.after;
            for event in proof.events() {
                // The record has its sealed body, which the chain is made of.
                if event.body.is_shredded() {
                    return Err(Error::corrupt("bundle", "an event is not as it is stored"));
                }
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

    /// SHA-256 over its spelling with zeros for the digest.
    fn digested(&self) -> Result<Digest, Error> {
        // It stands last. Events are many, so they are not copied for it.
        let end = |digest: Digest| format!("\"{digest}\"}}");
        let spelled = self.to_json()?;
        let kept =
            spelled.strip_suffix(&end(self.digest)).ok_or_else(|| Error::corrupt("bundle", "no digest ends it"))?;
        let mut hash = Sha256::new();
        hash.update(b"nasnet-events bundle 1\0");
        hash.update(kept);
        hash.update(end(Digest::GENESIS));
        Ok(Digest(hash.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::expected::Expected;
    use crate::name::{EventType, StreamName};
    use crate::options::EventOptions;
    use crate::place::Place;

    type Forge = fn(&mut Bundle);

    fn first_lane(bundle: &mut Bundle) -> &mut LaneProof {
        bundle.lanes.iter_mut().find(|proof| proof.events().count() == 5).expect("the rows are one chain")
    }

    fn event_at(bundle: &mut Bundle, at: usize) -> &mut Recorded {
        let events = first_lane(bundle).links.iter_mut().filter_map(|link| match link {
            Link::Event(event) => Some(&mut **event),
            Link::Leaf(_) => None,
        });
        events.into_iter().nth(at).expect("there are five")
    }

    #[tokio::test]
    async fn what_is_withheld_doubled_or_shown_as_shredded_is_found_without_a_head() {
        let Place { dir: _dir, clock: _, manager } = Place::new().await;
        let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let stream = StreamName::parse("s").unwrap();
        for _ in 0..5 {
            let kind = EventType::parse("config.applied").unwrap();
            let event = NewEvent::new(manager.next_ulid(), kind, &()).unwrap();
            store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
        }
        let whole = export(&store, Span::all(), Vec::new()).await.unwrap();
        let proven = whole.verify(whole.head()).unwrap();
        assert_eq!((proven.events, proven.lanes), (5, 1));

        let forgeries: [(&str, Forge); 3] = [
            ("a chain stands in it twice", |bundle| {
                let lane = first_lane(bundle).clone();
                bundle.lanes.push(lane);
            }),
            ("an event of its span is withheld", |bundle| {
                let leaf = chain::leaf(event_at(bundle, 2));
                first_lane(bundle).links[2] = Link::Leaf(leaf);
            }),
            ("an event is not as it is stored", |bundle| event_at(bundle, 3).body = Body::Shredded),
        ];
        for (why, forge) in forgeries {
            let mut forged = whole.clone();
            forge(&mut forged);
            forged.digest = forged.digested().unwrap();
            let found = forged.verify(whole.head());
            assert!(matches!(&found, Err(Error::Corrupt { why: told, .. }) if told == why), "{why}: {found:?}");
            let text = forged.to_json().unwrap();
            assert!(matches!(Bundle::from_json(&text), Err(Error::Corrupt { .. })), "{why}");
        }
        store.shutdown().await.unwrap();
    }
}
