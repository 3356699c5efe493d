//! The stages in order, over all resources of one change.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::canonical::{Domain, FieldMask, StateHash, hash};
use crate::kind::KindName;
use crate::layer::configuration::Intent;
use crate::layer::validation::{Stage, StageOutcome, StageReport, Validation};
use crate::resource::Resource;
use crate::schema::{KindSchema, Schemas};
use crate::stamp::Timestamp;
use crate::validate::finding::{Finding, Severity};
use crate::validate::universe::{Universe, referred_name};
use crate::validate::{dependency_stage, schema_stage, syntax_stage};
use crate::value::Fields;

/// A resource as it would be after the change.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its identity.
    pub uid: Ulid,
    /// What it is.
    pub kind: KindName,
    /// Its name.
    pub name: String,
    /// The generation that is looked at.
    pub generation: u64,
    /// Whether it should be there.
    pub intent: Intent,
    /// What is wanted.
    pub spec: Fields,
}

impl From<&Resource> for Candidate {
    fn from(resource: &Resource) -> Self {
        Self {
            uid: resource.uid,
            kind: resource.kind.clone(),
            name: resource.name.clone(),
            generation: resource.configuration.generation,
            intent: resource.configuration.settings.intent,
            spec: resource.configuration.spec.clone(),
        }
    }
}

/// What is to be looked at, and what is known around it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The kinds.
    pub schemas: &'a Schemas,
    /// The resources of the change.
    pub candidates: &'a [Candidate],
    /// Everything else.
    pub universe: &'a Universe,
}

/// A candidate with its values read, as the stages see it.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    pub(crate) candidate: &'a Candidate,
    pub(crate) schema: Option<&'static KindSchema>,
    pub(crate) fields: Fields,
}

impl Looked<'_> {
    pub(crate) fn is_present(&self) -> bool {
        self.candidate.intent != Intent::Absent
    }

    pub(crate) fn referred_name(&self) -> &str {
        referred_name(&self.candidate.name, &self.fields)
    }

    pub(crate) fn finding(&self, code: &'static str, severity: Severity, field: &str, message: String) -> Finding {
        let dot = if field.is_empty() { "" } else { "." };
        Finding::new(code, severity, format!("{}{dot}{field}", self.candidate.name), message)
    }
}

pub(crate) fn look<'a>(schemas: &Schemas, candidates: &'a [Candidate]) -> Vec<Looked<'a>> {
    candidates
        .iter()
        .map(|candidate| {
            let schema = schemas.kind(&candidate.kind);
            let fields = schema.map_or_else(|| candidate.spec.clone(), |schema| schema.normalise(&candidate.spec));
            Looked { candidate, schema, fields }
        })
        .collect()
}

/// Runs schema, syntax and dependency stages and returns the validation layer of each candidate, in their order.
///
/// The stages run for every candidate; a candidate that fails schema or syntax has its dependency stage skipped, which
/// the result says. A resource that is to go is only looked at for what still needs it.
pub fn run(request: &Request<'_>, now: Timestamp) -> Vec<Validation> {
    let looked = look(request.schemas, request.candidates);
    let graph = dependency_stage::graph_of(request.schemas, &looked);
    let change: BTreeSet<Ulid> = request.candidates.iter().map(|candidate| candidate.uid).collect();
    let own: Vec<StateHash> = looked.iter().map(|looked| own_inputs(request, looked, &change)).collect();
    let mut dependency = dependency_stage::check(request, &looked, &graph, &change);
    looked
        .iter()
        .enumerate()
        .map(|(at, looked)| {
            let mut stages = Vec::with_capacity(3);
            if looked.is_present() {
                stages.push(report(Stage::Schema, schema_stage::check(looked)));
                stages.push(report(Stage::Syntax, syntax_stage::check(looked)));
            }
            let failed = stages.iter().any(|report| report.outcome == StageOutcome::Fail);
            stages.push(if failed {
                let reason = "an earlier stage failed".to_owned();
                StageReport { stage: Stage::Dependency, outcome: StageOutcome::Skipped(reason), findings: Vec::new() }
            } else {
                report(Stage::Dependency, std::mem::take(&mut dependency[at]))
            });
            let mut inputs = Sha256::new();
            inputs.update(own[at].0);
            for node in graph.reachable(at) {
                inputs.update(own[node].0);
            }
            Validation {
                for_generation: looked.candidate.generation,
                inputs: StateHash(inputs.finalize().into()),
                stages,
                validated_at: now,
                plan_id: None,
            }
        })
        .collect()
}

fn report(stage: Stage, mut findings: Vec<Finding>) -> StageReport {
    findings.sort();
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    StageReport { stage, outcome: if failed { StageOutcome::Fail } else { StageOutcome::Pass }, findings }
}

/// Digests what the result for one candidate depends on, apart from the candidates it refers to.
fn own_inputs(request: &Request<'_>, looked: &Looked<'_>, change: &BTreeSet<Ulid>) -> StateHash {
    let candidate = looked.candidate;
    let revision = looked.schema.map_or(0, |schema| schema.revision);
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    };
    add(&candidate.uid.to_bytes());
    add(candidate.name.as_bytes());
    add(&candidate.generation.to_be_bytes());
    add(&[u8::from(looked.is_present())]);
    add(&hash(Domain::Plan, &candidate.kind, revision, &FieldMask::All, &candidate.spec).0);
    for reference in looked.fields.iter().flat_map(|(_, value)| value.references()) {
        add(reference.target.as_str().as_bytes());
        add(reference.key.as_bytes());
        add(&[u8::from(request.universe.resolves(reference, change))]);
    }
    for user in dependency_stage::users_outside(request, looked, change) {
        add(user.as_bytes());
    }
    StateHash(digest.finalize().into())
}
