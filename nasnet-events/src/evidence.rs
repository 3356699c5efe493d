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

    /// Where the events of an archive, from its beginning up to a position, lead a chain of the warm tier.
    fn lead(&self, lane: Lane, through: Position) -> Digest {
        let own = self.events().filter(|event| is_of(lane, event) && event.position <= through);
        own.fold(Digest::GENESIS, |state, event| chain::link(state, chain::leaf(event)))
    }
}

/// What a bundle should show and does not.
struct Withheld<'a> {
    scope: &'a Scope,
    lane: Lane,
    why: &'static str,
}

/// Events with the proof that they belong to the record of a fleet. Carried by value, and verified without the store.
///
/// Bodies of events with a subject are in it as they are stored, sealed: a shredded event proves that it happened and
/// shows nothing more.
///
/// # What is shown without the store
/// Of each chain a bundle has everything from where it begins to the end that a head names: events, and only the digests
/// of those outside of the span ([`Bundle::after`], [`Bundle::until`]). So with a head that can be trusted, it is shown
/// that
///
/// - each event is what was recorded, and stood in the record before the head was made;
/// - between two events of a chain none is withheld;
/// - in a span from [`Position::START`] on, none is withheld before the first one either;
/// - where the last event that the head names of a chain lies in the span, that one is there, and so none is withheld
///   behind the others: this holds for all chains of the warm tier of each scope that the bundle names;
/// - a span from the start that is shown from the archive lacks nothing that the chains of the warm tier had up to
///   there.
///
/// A digest tells no position, so nobody can know without the store whether some of the digests before the first event
/// and behind the last one are of events of the span. A span that begins later than the record, or ends before the
/// head, is shown without its edges by whoever wants to withhold them: compare it with the events next to it, or ask
/// for the whole record. Nor is it shown that a chain of which the head's last event lies behind the span has nothing
/// in it, that a scope which [`Bundle::head`] does not name has, or that Low events were archived: none of the chains
/// but that of the archive has them.
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

/// What the archive holds of a span, and what the warm tier has behind its end; `None` when nothing shows that this is
/// all of it. The chain of the frames leads to their head whatever is missing before, between and behind them: the
/// medium may have been begun later or have been away for a while, damaged events were passed over, and new ones wait
/// for the next archive. So the events of the frames have to lead both chains of the warm tier from one place where
/// they are known to the next.
async fn archived_proofs(
    store: &EventStore,
    scope: &Scope,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Option<Vec<LaneProof>>, Error> {
    let Some(end) = head.lane(scope, Lane::Frames).map(|end| end.position) else { return Ok(None) };
    let mut followed = Vec::new();
    for lane in WARM {
        match Followed::of(store, scope, lane, stretch, end).await? {
            Some(lane) => followed.push(lane),
            None => return Ok(None),
        }
    }
    let after = followed.iter().map(|lane| lane.from).min().unwrap_or(stretch.after);
    let until = followed.iter().map(|lane| lane.through).max().unwrap_or(end);
    let mut see = |step| {
        if let Step::Event(event) = step {
            followed.iter_mut().for_each(|lane| lane.see(&event));
        }
    };
    store.walk(scope, Lane::Frames, Stretch { after, until }, &mut see).await?;
    let is_known_behind = followed.iter().all(|lane| lane.is_known_behind);
    if !followed.into_iter().all(Followed::leads_to_end) {
        return Ok(None);
    }
    let Some(archived) = lane_proof(store, scope, Lane::Frames, stretch, head).await? else { return Ok(None) };
    if stretch.after == Position::START && archived.start != Digest::GENESIS {
        return Ok(None);
    }
    let mut proofs = vec![archived];
    // Behind the archive, and that nothing was removed there: else nobody knows where the chains stood at its end.
    if stretch.until > end || !is_known_behind {
        for lane in WARM {
            proofs.extend(lane_proof(store, scope, lane, Stretch { after: end, ..stretch }, head).await?);
        }
    }
    Ok(Some(proofs))
}

/// Walks one chain from the beginning of a stretch to the head.
async fn lane_proof(
    store: &EventStore,
    scope: &Scope,
    lane: Lane,
    stretch: Stretch,
    head: &ChainHead,
) -> Result<Option<LaneProof>, Error> {
    // It has nothing behind the beginning of the stretch.
    let Some(end) = head.lane(scope, lane).filter(|end| end.position > stretch.after) else { return Ok(None) };
    let mut collected =
        Collector { stretch, start: None, state: Digest::GENESIS, links: Vec::new(), events: 0, gap: None };
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
    Ok(collected.into_proof(scope, lane))
}

/// A chain of the warm tier, followed along the events of the archive.
struct Followed {
    lane: Lane,
    /// Where the chain is known, and its digest there: at what the warm tier has, and behind what it has given up.
    known: BTreeMap<Position, Digest>,
    /// It is followed from one of these places to another, on both sides of the span, or to the end of the archive.
    from: Position,
    through: Position,
    /// It is known at the end of what is followed, or behind that.
    is_known_behind: bool,
    /// What it is at the last of them.
    last: Digest,
    state: Digest,
    is_led: bool,
}

impl Followed {
    /// `None` when the place behind the span where the chain is known next lies behind the archive, which ends at
    /// `end`.
    async fn of(
        store: &EventStore,
        scope: &Scope,
        lane: Lane,
        stretch: Stretch,
        end: Position,
    ) -> Result<Option<Self>, Error> {
        let mut known = BTreeMap::new();
        let mut state = None;
        let mut see = |step| match step {
            Step::At { position, digest, .. } => {
                known.insert(position, digest);
                state = Some(digest);
            }
            Step::Event(event) => {
                if let Some(before) = state {
                    let after = chain::link(before, chain::leaf(&event));
                    known.extend([(event.position.before(), before), (event.position, after)]);
                    state = Some(after);
                }
            }
            Step::After(digest) => state = Some(digest),
            Step::Damaged { through, after, .. } => {
                known.extend(through.zip(after));
                state = after;
            }
        };
        store.walk(scope, lane, Stretch { after: stretch.after, until: end }, &mut see).await?;
        let Some((from, state)) = known.range(..=stretch.after).next_back().map(|(at, digest)| (*at, *digest)) else {
            return Ok(None);
        };
        let behind = known.range(stretch.until.min(end)..).next().map(|(at, _)| *at);
        let (through, is_known_behind) = (behind.unwrap_or(end), behind.is_some());
        let last = known.range(..=through).next_back().map_or(state, |(_, digest)| *digest);
        let followed = Self { lane, known, from, through, is_known_behind, last, state, is_led: true };
        Ok((through <= end).then_some(followed))
    }

    fn see(&mut self, event: &Recorded) {
        if is_of(self.lane, event) && event.position > self.from && event.position <= self.through {
            self.pass(event.position.before());
            self.state = chain::link(self.state, chain::leaf(event));
        }
    }

    /// Compares the chain with what is known of it up to a position.
    fn pass(&mut self, through: Position) {
        while let Some(place) = self.known.first_entry().filter(|place| *place.key() <= through) {
            self.is_led &= *place.key() < self.from || *place.get() == self.state;
            place.remove();
        }
    }

    /// True when the archive has all events of the chain from one end of what was followed to the other.
    fn leads_to_end(mut self) -> bool {
        self.pass(self.through);
        self.is_led && self.state == self.last
    }
}

/// True for events that are links of a chain of the warm tier.
fn is_of(lane: Lane, event: &Recorded) -> bool {
    match lane {
        Lane::Rows => event.synced,
        Lane::Segments => !event.synced && event.class != Class::Low,
        Lane::Frames => false,
    }
}

enum Gap {
    Removed,
    Error(Error),
}

struct Collector {
    stretch: Stretch,
    start: Option<Digest>,
    state: Digest,
    links: Vec<Link>,
    events: u64,
    gap: Option<Gap>,
}

impl Collector {
    /// The proof of the events of the stretch, `None` when there are none.
    fn into_proof(self, scope: &Scope, lane: Lane) -> Option<LaneProof> {
        let start = self.start.filter(|_| self.events > 0)?;
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
                    self.start = Some(digest);
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

    /// What it says it shows: the events of its scopes after this position, which is not included.
    #[must_use]
    pub const fn after(&self) -> Position {
        self.after
    }

    /// What it says it shows: up to this position, which is included.
    #[must_use]
    pub const fn until(&self) -> Position {
        self.until
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
    /// [`Error::Corrupt`] when the bundle does not check, [`Error::Unproven`] when an event is not proven by this head: it
    /// was changed, or it is newer, or the head is newer than the bundle; and when an event is withheld that the head knows
    /// of.
    pub fn verify(&self, head: &ChainHead) -> Result<Proven, Error> {
        self.check()?;
        if let Some(Withheld { scope, lane, why }) = self.withheld(head) {
            return Err(Error::Unproven { scope: scope.clone(), lane, why: why.to_owned() });
        }
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
        match self.withheld(&self.head) {
            Some(Withheld { scope, lane, why }) => Err(Error::corrupt("bundle", format!("{lane} of {scope}: {why}"))),
            None => Ok(()),
        }
    }

    fn lane(&self, scope: &Scope, lane: Lane) -> Option<&LaneProof> {
        self.lanes.iter().find(|proof| proof.scope == *scope && proof.lane == lane)
    }

    /// What is missing at the ends of the span, as far as the bundle and a head show it.
    fn withheld<'a>(&'a self, head: &'a ChainHead) -> Option<Withheld<'a>> {
        let of = |scope, lane, why| Some(Withheld { scope, lane, why });
        let is_whole_record = self.after == Position::START;
        for proof in self.lanes.iter().filter(|_| is_whole_record) {
            let archived = self.lane(&proof.scope, Lane::Frames).filter(|_| proof.lane != Lane::Frames);
            let leading = proof.links.iter().map_while(|link| match link {
                Link::Leaf(leaf) => Some(*leaf),
                Link::Event(_) => None,
            });
            // A chain of the warm tier goes on where the archive ends.
            let begins = match archived {
                None => proof.start == Digest::GENESIS && leading.count() == 0,
                Some(archived) => {
                    let is_shown = archived.links.iter().all(|link| link.event().is_some());
                    is_shown && archived.lead(proof.lane, Position::END) == leading.fold(proof.start, chain::link)
                }
            };
            if !begins {
                return of(&proof.scope, proof.lane, "an event at its beginning is withheld");
            }
        }
        let is_claimed = |scope: &Scope| {
            self.lanes.iter().any(|proof| proof.scope == *scope)
                || self.head.lanes.iter().any(|lane| lane.scope == *scope)
        };
        for end in head.lanes.iter().filter(|end| end.position > self.after && end.position <= self.until) {
            let (own, archived) = (self.lane(&end.scope, end.lane), self.lane(&end.scope, Lane::Frames));
            // What the archive has is shown from the warm tier where that is whole.
            if !is_claimed(&end.scope) || (end.lane == Lane::Frames && own.is_none()) {
                continue;
            }
            let mut shown = own.into_iter().chain(archived).flat_map(LaneProof::events);
            if !shown.any(|event| event.position == end.position) {
                return of(&end.scope, end.lane, "the last event that the head knows is withheld");
            }
            let is_behind = own.and_then(|own| own.events().next()).is_some_and(|first| first.position <= end.position);
            if let Some(archived) = archived.filter(|_| is_whole_record && end.lane != Lane::Frames && !is_behind)
                && archived.lead(end.lane, end.position) != end.digest
            {
                return of(&end.scope, end.lane, "the archive has not all of its events");
            }
        }
        None
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

    /// Shows only the digest of an event.
    fn withhold(bundle: &mut Bundle, at: usize) {
        let leaf = chain::leaf(event_at(bundle, at));
        first_lane(bundle).links[at] = Link::Leaf(leaf);
    }

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

        let forgeries: [(&str, Forge); 8] = [
            ("a chain stands in it twice", |bundle| {
                let lane = first_lane(bundle).clone();
                bundle.lanes.push(lane);
            }),
            ("an event of its span is withheld", |bundle| withhold(bundle, 2)),
            ("rows of system: an event at its beginning is withheld", |bundle| withhold(bundle, 0)),
            ("rows of system: an event at its beginning is withheld", |bundle| {
                let lane = first_lane(bundle);
                let Link::Event(first) = lane.links.remove(0) else { panic!("it is an event") };
                lane.start = chain::link(lane.start, chain::leaf(&first));
            }),
            ("rows of system: the last event that the head knows is withheld", |bundle| withhold(bundle, 4)),
            ("rows of system: the last event that the head knows is withheld", |bundle| {
                first_lane(bundle).links.pop();
            }),
            ("rows of system: the last event that the head knows is withheld", |bundle| {
                bundle.lanes.retain(|proof| proof.events().count() != 5);
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

        // Whoever withholds an event can change the head of the bundle too, but not the one that was kept elsewhere.
        let elsewhere: [Forge; 2] =
            [|bundle| withhold(bundle, 4), |bundle| bundle.lanes.retain(|proof| proof.events().count() != 5)];
        for forge in elsewhere {
            let mut forged = whole.clone();
            forge(&mut forged);
            forged.head.lanes.iter_mut().for_each(|lane| lane.position = Position::new(u32::MAX, 1));
            forged.digest = forged.digested().unwrap();
            let read = Bundle::from_json(&forged.to_json().unwrap()).unwrap();
            assert!(matches!(read.verify(whole.head()), Err(Error::Unproven { .. })));
        }
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_withheld_between_the_archive_and_the_warm_tier_is_found_without_a_head() {
        let Place { dir, clock: _, manager } = Place::new().await;
        let cold = dir.path().join("cold");
        crate::cold::prepare_cold_dir(&manager, &cold).unwrap();
        let cold = crate::options::ColdOptions::new(cold).allow_same_device();
        let store = EventStore::open(&manager, EventOptions::default().cold(cold)).await.unwrap();
        let append = async || {
            for name in ["config.applied", "resource.updated"] {
                let event = NewEvent::new(manager.next_ulid(), EventType::parse(name).unwrap(), &()).unwrap();
                let stream = StreamName::parse("s").unwrap();
                store.append(&Scope::System, &stream, Expected::Any, vec![event]).await.unwrap();
            }
        };
        append().await;
        append().await;
        store.archive().await.unwrap();
        let retire = "INSERT INTO event_retained (what, through_pos) SELECT -3, MIN(pos) FROM event_rows;
             DELETE FROM event_rows WHERE pos = (SELECT MIN(pos) FROM event_rows)";
        let retired = manager.system().write(nasnet_dbmanager::Cause::new("test"), move |conn| {
            Box::pin(async move { Ok::<_, Error>(sqlx::raw_sql(retire).execute(conn).await?.rows_affected()) })
        });
        assert_eq!(retired.await.unwrap(), 2, "a mark and a row");
        append().await;
        append().await;
        let whole = export(&store, Span::all(), Vec::new()).await.unwrap();
        assert_eq!(whole.verify(whole.head()).unwrap(), Proven { events: 8, sealed: 0, lanes: 3 });
        for lane in WARM {
            let mut forged = whole.clone();
            let proof = forged.lanes.iter_mut().find(|proof| proof.lane == lane).unwrap();
            let first = proof.links.iter_mut().find(|link| link.event().is_some()).unwrap();
            *first = Link::Leaf(chain::leaf(first.event().unwrap()));
            forged.digest = forged.digested().unwrap();
            let why = format!("{lane} of system: an event at its beginning is withheld");
            let found = forged.verify(whole.head());
            assert!(matches!(&found, Err(Error::Corrupt { why: told, .. }) if *told == why), "{found:?}");
        }
        // A chain that ends in the archive.
        for lane in WARM {
            let mut forged = whole.clone();
            forged.lanes.retain(|proof| proof.lane != lane);
            let end = forged.head.lanes.iter_mut().find(|end| end.lane == lane).unwrap();
            end.position = forged.lanes[0].events().filter(|event| is_of(lane, event)).last().unwrap().position;
            forged.digest = forged.digested().unwrap();
            let why = format!("{lane} of system: the archive has not all of its events");
            let found = forged.check();
            assert!(matches!(&found, Err(Error::Corrupt { why: told, .. }) if *told == why), "{found:?}");
        }
        store.shutdown().await.unwrap();
    }
}
