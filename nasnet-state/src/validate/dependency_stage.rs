//! Stage 5: references resolve, nothing that stays needs something that goes, and there is an order.

use std::collections::{BTreeMap, BTreeSet};

use ulid::Ulid;

use crate::graph::Graph;
use crate::kind::KindName;
use crate::schema::Schemas;
use crate::validate::finding::{Finding, Severity, codes, nearest};
use crate::validate::pipeline::{Candidate, Looked, Request, look};
use crate::validate::universe::{label, spaces};
use crate::value::Reference;

/// Returns the graph of the candidates: node `i` is candidate `i`, and depends on those it refers to. Its
/// [`order`](Graph::order) is the order to create them in.
pub fn dependency_graph(schemas: &Schemas, candidates: &[Candidate]) -> Graph {
    graph_of(schemas, &look(schemas, candidates))
}

pub(crate) fn graph_of(schemas: &Schemas, looked: &[Looked<'_>]) -> Graph {
    let providers = providers(schemas, looked);
    let mut graph = Graph::new();
    for looked in looked {
        graph.add_node(label(&looked.candidate.kind, &looked.candidate.name));
    }
    for (at, looked) in looked.iter().enumerate() {
        for (_, reference) in references(looked) {
            for &provider in providers.get(&(reference.target.clone(), reference.key.as_str())).into_iter().flatten() {
                graph.add_dependency(at, provider);
            }
        }
    }
    graph
}

/// Returns what the stage has to say about each candidate.
pub(crate) fn check(
    request: &Request<'_>,
    looked: &[Looked<'_>],
    graph: &Graph,
    change: &BTreeSet<Ulid>,
) -> Vec<Vec<Finding>> {
    let providers = providers(request.schemas, looked);
    let mut findings: Vec<Vec<Finding>> = looked.iter().map(|_| Vec::new()).collect();
    for (at, one) in looked.iter().enumerate() {
        if one.is_present() {
            for (field, reference) in references(one) {
                findings[at].extend(check_reference(request, looked, &providers, change, one, field, reference));
            }
            if let Some(circle) = graph.circle_through(at) {
                let circle: Vec<&str> = circle.into_iter().map(|node| graph.label(node)).collect();
                let message = format!("dependency cycle: {}", circle.join(" -> "));
                findings[at].push(one.finding(codes::CYCLE, Severity::Error, "", message));
            }
        } else {
            for user in users_outside(request, one, change) {
                let message = format!("{user} still refers to it");
                findings[at].push(one.finding(codes::STILL_IN_USE, Severity::Error, "", message));
            }
        }
    }
    let mut named = BTreeMap::new();
    for (at, one) in looked.iter().enumerate().filter(|(_, one)| one.is_present()) {
        if let Some(first) = named.insert((&one.candidate.kind, &one.candidate.name), at) {
            let message = format!("the change has two resources {}", graph.label(first));
            findings[at].push(one.finding(codes::NAME_TWICE, Severity::Error, "", message));
        }
    }
    findings
}

type Providers<'a> = BTreeMap<(KindName, &'a str), Vec<usize>>;

fn providers<'a>(schemas: &Schemas, looked: &'a [Looked<'_>]) -> Providers<'a> {
    let mut providers = Providers::new();
    for (at, one) in looked.iter().enumerate() {
        for space in spaces(schemas, &one.candidate.kind) {
            providers.entry((space, one.referred_name())).or_default().push(at);
        }
    }
    providers
}

fn references<'a>(looked: &'a Looked<'_>) -> impl Iterator<Item = (&'a str, &'a Reference)> {
    looked
        .fields
        .iter()
        .flat_map(|(name, value)| value.references().into_iter().map(move |found| (name.as_str(), found)))
}

fn check_reference(
    request: &Request<'_>,
    looked: &[Looked<'_>],
    providers: &Providers<'_>,
    change: &BTreeSet<Ulid>,
    one: &Looked<'_>,
    field: &str,
    reference: &Reference,
) -> Option<Finding> {
    let Reference { target, key } = reference;
    let inside = providers.get(&(target.clone(), key.as_str()));
    if inside.into_iter().flatten().any(|&at| looked[at].is_present()) || request.universe.resolves(reference, change) {
        return None;
    }
    if inside.is_some() {
        let message = format!("{target} {key:?} is to be removed by the same change");
        return Some(one.finding(codes::STILL_IN_USE, Severity::Error, field, message));
    }
    let in_change = providers.keys().filter(|(space, _)| space == target).map(|(_, name)| *name);
    let Some(around) = request.universe.names(target) else {
        if let Some(suggestion) = nearest(key, in_change) {
            let message = format!("there is no {target} {key:?}");
            let finding = one.finding(codes::UNRESOLVED_REFERENCE, Severity::Error, field, message);
            return Some(finding.suggest(Some(suggestion)));
        }
        let message = format!("nothing is known about any {target}, so {key:?} was not looked up");
        return Some(one.finding(codes::UNCHECKED_REFERENCE, Severity::Warning, field, message));
    };
    let message = format!("there is no {target} {key:?}");
    let finding = one.finding(codes::UNRESOLVED_REFERENCE, Severity::Error, field, message);
    Some(finding.suggest(nearest(key, around.chain(in_change))))
}

/// Returns the labels of resources outside the change that refer to a candidate that is to go, when nothing else will
/// have its name.
pub(crate) fn users_outside(request: &Request<'_>, looked: &Looked<'_>, change: &BTreeSet<Ulid>) -> BTreeSet<String> {
    if looked.is_present() {
        return BTreeSet::new();
    }
    let spaces = spaces(request.schemas, &looked.candidate.kind);
    request
        .universe
        .uses_outside(change)
        .filter(|used| used.reference.key == looked.referred_name() && spaces.contains(&used.reference.target))
        .filter(|used| !request.universe.resolves(&used.reference, change))
        .map(|used| used.label.clone())
        .collect()
}
