//! Checks that the record is what it was: every digest, every chain, and an earlier head.

use std::collections::{BTreeMap, HashMap};

use nasnet_dbmanager::Scope;

use crate::chain::{self, Digest};
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::head::{ChainHead, Lane};
use crate::name::StreamName;
use crate::position::Position;
use crate::store::EventStore;
use crate::walk::{Step, Stretch};

/// A part of the record: some scopes, after one position, up to another.
#[derive(Debug, Clone)]
#[must_use]
pub struct Span {
    pub(crate) scopes: Option<Vec<Scope>>,
    pub(crate) after: Position,
    pub(crate) until: Position,
}

impl Span {
    /// Everything.
    pub const fn all() -> Self {
        Self { scopes: None, after: Position::START, until: Position::END }
    }

    /// Everything of one scope.
    pub fn scope(scope: Scope) -> Self {
        Self { scopes: Some(vec![scope]), ..Self::all() }
    }

    /// After a position, which is not included.
    pub const fn after(mut self, position: Position) -> Self {
        self.after = position;
        self
    }

    /// Up to a position, which is included.
    pub const fn until(mut self, position: Position) -> Self {
        self.until = position;
        self
    }

    pub(crate) fn stretch(&self) -> Stretch {
        Stretch { after: self.after, until: self.until }
    }

    pub(crate) async fn scopes(&self, store: &EventStore) -> Result<Vec<Scope>, Error> {
        match &self.scopes {
            Some(scopes) => Ok(scopes.clone()),
            None => epoch::scopes(&store.shared().manager).await,
        }
    }
}

/// What is wrong with a part of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// It cannot be read now.
    Unreadable,
    /// Stored bytes do not check.
    Damaged,
    /// The events are whole, but not those that were chained, or two of a stream have one version.
    Broken,
    /// The copies in the warm and the cold tier differ.
    Diverges,
    /// The chain ends before the head that was given.
    Shorter,
    /// The chain does not lead through the head that was given.
    Rewritten,
}

/// One thing that is wrong.
#[derive(Debug)]
pub struct Fault {
    /// The scope.
    pub scope: Scope,
    /// The chain.
    pub lane: Lane,
    /// The event, or the first of several, when that is known.
    pub position: Option<Position>,
    /// What is wrong.
    pub kind: FaultKind,
    /// More about it.
    pub detail: String,
}

/// What was found along one chain.
#[derive(Debug)]
pub struct LaneReport {
    /// The scope.
    pub scope: Scope,
    /// The chain.
    pub lane: Lane,
    /// Events that were digested.
    pub events: u64,
    /// The first of them.
    pub first: Option<Position>,
    /// The last of them.
    pub last: Option<Position>,
    /// The digest of the chain behind the last event.
    pub digest: Digest,
    /// Events after here are chained to `digest` without a gap. Earlier ones were chained through events that retention
    /// has removed, so each of them is whole, but nothing shows that it was not exchanged.
    pub unbroken_after: Position,
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Chains that were walked.
    pub lanes: Vec<LaneReport>,
    /// Everything that is wrong; one fault hides no other.
    pub faults: Vec<Fault>,
    /// Why the cold tier was left out, when it is not there.
    pub cold_absent: Option<String>,
    /// Chains whose part of the given head is not there any more: removed by retention, or on another medium than the one in
    /// use, which begins behind it.
    pub beyond: Vec<(Scope, Lane)>,
}

impl Verification {
    /// True when nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl EventStore {
    /// Reads a part of the record in the warm and the cold tier, and checks every event, every chain, and that copies in
    /// both tiers are alike. Times play no part in it.
    ///
    /// Without a head from outside it finds damage and careless changes; whoever rewrites the databases with care can
    /// make new chains. [`EventStore::verify_against`] finds that too.
    ///
    /// # Errors
    /// [`Error::Storage`] when the scopes cannot be listed. A scope that cannot be read is a fault in the report.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn verify(&self, span: Span) -> Result<Verification, Error> {
        let scopes = span.scopes(self).await?;
        self.verify_lanes(&scopes, span.stretch(), &HashMap::new()).await
    }

    /// Verifies everything in the scopes of a head that was exported earlier, and that their chains lead through it:
    /// nothing before it was changed or cut off.
    ///
    /// # Errors
    /// [`Error::Invalid`] when this fleet has not made the head as it is.
    ///
    /// # Cancel safety
    /// Safe: it only reads.
    pub async fn verify_against(&self, head: &ChainHead) -> Result<Verification, Error> {
        if !self.has_issued(head) {
            let value = head.digest().to_string();
            return Err(Error::Invalid { what: "chain head", value, why: "this fleet has not made it as it is" });
        }
        let mut scopes: Vec<Scope> = head.lanes.iter().map(|lane| lane.scope.clone()).collect();
        scopes.dedup();
        let marks = head.lanes.iter().map(|lane| ((lane.scope.clone(), lane.lane), (lane.position, lane.digest)));
        self.verify_lanes(&scopes, Span::all().stretch(), &marks.collect()).await
    }

    async fn verify_lanes(
        &self,
        scopes: &[Scope],
        stretch: Stretch,
        marks: &HashMap<(Scope, Lane), (Position, Digest)>,
    ) -> Result<Verification, Error> {
        let mut verification = Verification::default();
        for scope in scopes {
            let mut warm = Warm::default();
            for lane in [Lane::Rows, Lane::Segments, Lane::Frames] {
                if lane == Lane::Frames && self.shared().cold.is_none() {
                    continue;
                }
                let mark = marks.get(&(scope.clone(), lane)).copied();
                let mut check = Check::new(scope, lane, stretch, mark, &mut warm);
                match self.walk(scope, lane, stretch, &mut |step| check.see(step)).await {
                    Ok(()) => check.end(&mut verification),
                    Err(Error::ColdAbsent { why, .. }) => verification.cold_absent = Some(why),
                    Err(error) => {
                        check.fault(None, FaultKind::Unreadable, error.to_string());
                        check.end(&mut verification);
                    }
                }
            }
        }
        Ok(verification)
    }
}

/// What the warm tier of a scope was found to hold.
#[derive(Default)]
struct Warm {
    leaves: BTreeMap<Position, Digest>,
    /// Where each version of a stream stands, of rows and of segments: no index keeps two events from having one.
    versions: HashMap<StreamName, HashMap<u64, Position>>,
}

/// Follows one chain.
struct Check<'a> {
    report: LaneReport,
    faults: Vec<Fault>,
    stretch: Stretch,
    state: Option<Digest>,
    /// Where the walk began.
    began: Option<Position>,
    /// Stretches that retention has removed: after one position, up to another.
    gaps: Vec<(Position, Position)>,
    mark: Option<(Position, Digest)>,
    /// Whether the chain leads through the mark, once it has come by.
    passed: Option<bool>,
    warm: &'a mut Warm,
}

impl<'a> Check<'a> {
    fn new(scope: &Scope, lane: Lane, stretch: Stretch, mark: Option<(Position, Digest)>, warm: &'a mut Warm) -> Self {
        let report = LaneReport {
            scope: scope.clone(),
            lane,
            events: 0,
            first: None,
            last: None,
            digest: Digest::GENESIS,
            unbroken_after: stretch.after,
        };
        Self {
            report,
            faults: Vec::new(),
            stretch,
            state: None,
            began: None,
            gaps: Vec::new(),
            mark,
            passed: None,
            warm,
        }
    }

    fn fault(&mut self, position: Option<Position>, kind: FaultKind, detail: impl Into<String>) {
        let (scope, lane) = (self.report.scope.clone(), self.report.lane);
        self.faults.push(Fault { scope, lane, position, kind, detail: detail.into() });
    }

    fn see(&mut self, step: Step) {
        match step {
            Step::At { position, digest, may_be_removed } => self.at(position, digest, may_be_removed),
            Step::Event(event) => self.event(&event),
            Step::After(digest) => {
                if self.state.is_some_and(|state| state != digest) {
                    self.fault(self.report.last, FaultKind::Broken, "its digest is not that of its events");
                }
                self.state = Some(digest);
            }
            Step::Damaged { position, through, error, after } => {
                let kind = match error {
                    Error::Io { .. } => FaultKind::Unreadable,
                    _ => FaultKind::Damaged,
                };
                self.fault(position, kind, error.to_string());
                self.state = after;
                if let (Some(through), Some(digest)) = (through, after) {
                    self.pass(through, digest);
                }
            }
        }
    }

    fn at(&mut self, position: Position, digest: Digest, may_be_removed: bool) {
        match self.state {
            None => {}
            Some(state) if state == digest => {}
            Some(_) if may_be_removed => {
                let before = self.gaps.last().map(|(_, through)| *through).max(self.report.last).max(self.began);
                self.gaps.push((before.unwrap_or(Position::START), position));
                self.report.unbroken_after = position;
            }
            Some(_) => {
                self.fault(Some(position), FaultKind::Broken, "what stands before is not what was chained");
            }
        }
        if self.began.is_none() {
            self.began = Some(position);
            self.report.unbroken_after = position;
        }
        self.state = Some(digest);
        self.pass(position, digest);
    }

    fn event(&mut self, event: &Recorded) {
        let leaf = chain::leaf(event);
        let position = event.position;
        if self.report.last.is_some_and(|last| last >= position) {
            self.fault(Some(position), FaultKind::Broken, "positions do not ascend");
        }
        match self.report.lane {
            Lane::Frames if self.warm.leaves.get(&position).is_some_and(|warm| *warm != leaf) => {
                self.fault(Some(position), FaultKind::Diverges, "warm and cold tier hold different events");
            }
            Lane::Frames => {}
            Lane::Rows | Lane::Segments => {
                self.warm.leaves.insert(position, leaf);
                self.version(event);
            }
        }
        self.report.events += 1;
        self.report.first.get_or_insert(position);
        self.report.last = Some(position);
        self.state = self.state.map(|state| chain::link(state, leaf));
        if let Some(state) = self.state {
            self.pass(position, state);
        }
    }

    fn version(&mut self, event: &Recorded) {
        let versions = self.warm.versions.entry(event.stream.clone()).or_default();
        if let Some(other) = versions.insert(event.version, event.position).filter(|other| *other != event.position) {
            let detail = format!("stream {} has version {} at {other} as well", event.stream, event.version);
            self.fault(Some(event.position), FaultKind::Broken, detail);
        }
    }

    /// Compares the chain with the mark when it comes by.
    fn pass(&mut self, position: Position, digest: Digest) {
        if let Some((marked, expected)) = self.mark
            && position == marked
            && self.passed != Some(true)
        {
            self.passed = Some(digest == expected);
        }
    }

    /// True when retention has removed what stood there.
    fn is_removed(&self, position: Position) -> bool {
        self.gaps.iter().any(|(after, through)| *after < position && position <= *through)
    }

    fn end(mut self, verification: &mut Verification) {
        if let (Some((marked, _)), None | Some(false)) = (self.mark, self.passed) {
            let end = self.report.last.max(self.began);
            let is_readable = !self.faults.iter().any(|fault| fault.kind == FaultKind::Unreadable);
            if self.passed == Some(false) {
                self.fault(Some(marked), FaultKind::Rewritten, "the chain is another one than at the given head");
            } else if self.began.is_some_and(|began| began > marked) || self.is_removed(marked) {
                verification.beyond.push((self.report.scope.clone(), self.report.lane));
            } else if end.is_none_or(|end| end < marked) && is_readable {
                self.fault(Some(marked), FaultKind::Shorter, "the chain ends before the given head");
            } else if is_readable {
                self.fault(Some(marked), FaultKind::Rewritten, "the last event of the given head is gone");
            }
        }
        self.report.digest = self.state.unwrap_or(Digest::GENESIS);
        self.report.unbroken_after = self.report.unbroken_after.max(self.stretch.after);
        verification.faults.append(&mut self.faults);
        verification.lanes.push(self.report);
    }
}
