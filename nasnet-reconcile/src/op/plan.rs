//! From row changes to a plan: order by reference, numbered steps, a hash over everything that matters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::step::{Action, Step};

/// The version of the plan's stored form.
pub const PLAN_FORMAT: u16 = 1;

/// The most steps one operation may have: it is journaled as a whole and undone as a whole.
pub const STEPS_MAX: usize = 1_000;

/// A name that rows refer to each other by, such as the interface `wg0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName {
    /// The name space, such as `interface`.
    pub space: String,
    /// The name in it.
    pub name: String,
}

/// One change to one row, not yet ordered. `step.index` and `step.requires` are filled in by [`build`].
#[derive(Debug, Clone)]
pub struct RowChange {
    /// The step it becomes.
    pub step: Step,
    /// Names the row provides before the change.
    pub provides_before: BTreeSet<RefName>,
    /// Names the row provides after the change.
    pub provides_after: BTreeSet<RefName>,
    /// Names the row refers to before the change.
    pub needs_before: BTreeSet<RefName>,
    /// Names the row refers to after the change.
    pub needs_after: BTreeSet<RefName>,
}

/// Everything one operation is going to do, and how each step is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of this form.
    pub format: u16,
    /// The operation.
    pub op_id: Ulid,
    /// The router, as its id is written.
    pub router: String,
    /// The serial number of the device the plan was made for.
    pub serial: String,
    /// Why the operation was asked for.
    pub reason: String,
    /// Who asked for it.
    pub actor: Option<String>,
    /// The steps in the order they are done.
    pub steps: Vec<Step>,
    /// SHA-256 over router, serial and steps, in hexadecimal.
    pub hash: String,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Changes wait for each other.
    #[error("changes wait for each other: {}", cycle.join(" -> "))]
    Cycle {
        /// The changes of the cycle, as people read them.
        cycle: Vec<String>,
    },
    /// More steps than one operation may have.
    #[error("{steps} steps in one operation, at most {max} are allowed: split the change set")]
    TooManySteps {
        /// What was asked for.
        steps: usize,
        /// What is allowed.
        max: usize,
    },
    /// Two changes go to one resource.
    #[error("resource {uid} is changed twice in one change set")]
    ChangedTwice {
        /// The resource.
        uid: Ulid,
    },
    /// The plan cannot be written down.
    #[error("the plan cannot be serialised: {cause}")]
    Unserialisable {
        /// The serialiser's words.
        cause: String,
    },
}

/// Who a plan is for and why.
#[derive(Debug, Clone)]
pub struct PlanHead {
    /// The operation.
    pub op_id: Ulid,
    /// The router.
    pub router: String,
    /// The device's serial number.
    pub serial: String,
    /// Why.
    pub reason: String,
    /// Who.
    pub actor: Option<String>,
}

/// Orders the changes and numbers them.
///
/// A row that provides a name comes before the rows that need it; a row that stops providing a name comes after the rows
/// that stop needing it; a name is freed before it is taken again. Otherwise the given order is kept.
///
/// # Errors
///
/// The changes wait for each other, one resource is changed twice, or there are too many.
pub fn build(head: PlanHead, changes: Vec<RowChange>) -> Result<Plan, PlanError> {
    if changes.len() > STEPS_MAX {
        return Err(PlanError::TooManySteps { steps: changes.len(), max: STEPS_MAX });
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = changes.iter().find(|change| !seen.insert(change.step.uid)) {
        return Err(PlanError::ChangedTwice { uid: twice.step.uid });
    }
    let edges = requirements(&changes);
    let order = topological(&changes, &edges)?;
    let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    let mut steps = Vec::with_capacity(order.len());
    for (index, old) in order.iter().enumerate() {
        let mut step = changes[*old].step.clone();
        step.index = index;
        let mut requires: Vec<usize> = edges[*old].iter().filter_map(|other| place.get(other)).copied().collect();
        requires.sort_unstable();
        step.requires = requires;
        steps.push(step);
    }
    explain(&mut steps);
    let hash = hash_of(&head.router, &head.serial, &steps)?;
    let PlanHead { op_id, router, serial, reason, actor } = head;
    Ok(Plan { format: PLAN_FORMAT, op_id, router, serial, reason, actor, steps, hash })
}

/// Adds to the reason of each step which later steps wait for it.
fn explain(steps: &mut [Step]) {
    const NAMED_MAX: usize = 3;
    let mut waiting: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for step in steps.iter() {
        for required in &step.requires {
            waiting.entry(*required).or_default().push(format!("{} {:?}", step.kind, step.name));
        }
    }
    for (step, mut names) in waiting {
        let more = names.len().saturating_sub(NAMED_MAX);
        names.truncate(NAMED_MAX);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        if let Some(step) = steps.get_mut(step) {
            step.why = format!("{}; before {}{more}", step.why, names.join(", "));
        }
    }
}

fn requirements(changes: &[RowChange]) -> Vec<BTreeSet<usize>> {
    let mut gained: BTreeMap<&RefName, Vec<usize>> = BTreeMap::new();
    let mut lost: BTreeMap<&RefName, Vec<usize>> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate() {
        for name in change.provides_after.difference(&change.provides_before) {
            gained.entry(name).or_default().push(at);
        }
        for name in change.provides_before.difference(&change.provides_after) {
            lost.entry(name).or_default().push(at);
        }
    }
    let mut edges = vec![BTreeSet::new(); changes.len()];
    for (at, change) in changes.iter().enumerate() {
        for provider in change.needs_after.iter().filter_map(|name| gained.get(name)).flatten() {
            edges[at].insert(*provider);
        }
        for owner in change.needs_before.iter().filter_map(|name| lost.get(name)).flatten() {
            edges[*owner].insert(at);
        }
        for name in change.provides_after.difference(&change.provides_before) {
            edges[at].extend(lost.get(name).into_iter().flatten().copied());
        }
    }
    for (at, required) in edges.iter_mut().enumerate() {
        required.remove(&at);
    }
    edges
}

fn topological(changes: &[RowChange], edges: &[BTreeSet<usize>]) -> Result<Vec<usize>, PlanError> {
    let mut order = Vec::with_capacity(edges.len());
    let mut placed = vec![false; edges.len()];
    while order.len() < edges.len() {
        let ready = (0..edges.len()).find(|at| !placed[*at] && edges[*at].iter().all(|needed| placed[*needed]));
        let Some(at) = ready else {
            return Err(PlanError::Cycle { cycle: cycle_of(changes, edges, &placed) });
        };
        placed[at] = true;
        order.push(at);
    }
    Ok(order)
}

fn cycle_of(changes: &[RowChange], edges: &[BTreeSet<usize>], placed: &[bool]) -> Vec<String> {
    let mut path: Vec<usize> = Vec::new();
    let mut at = placed.iter().position(|done| !done).unwrap_or(0);
    while !path.contains(&at) {
        path.push(at);
        match edges[at].iter().find(|next| !placed[**next]) {
            Some(next) => at = *next,
            None => break,
        }
    }
    let start = path.iter().position(|step| *step == at).unwrap_or(0);
    path[start..].iter().chain([&at]).map(|step| title(&changes[*step].step)).collect()
}

fn title(step: &Step) -> String {
    format!("{} {} {:?}", step.action.as_str(), step.kind, step.name)
}

fn hash_of(router: &str, serial: &str, steps: &[Step]) -> Result<String, PlanError> {
    let body = serde_json::to_vec(steps).map_err(|error| PlanError::Unserialisable { cause: error.to_string() })?;
    let mut hasher = Sha256::new();
    for part in [b"nn1".as_slice(), b"plan", router.as_bytes(), serial.as_bytes(), &body] {
        hasher.update(part);
        hasher.update([0]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Plan {
    /// Returns whether the hash still covers the content.
    pub fn is_intact(&self) -> bool {
        hash_of(&self.router, &self.serial, &self.steps).is_ok_and(|hash| hash == self.hash)
    }
}

/// Prints the plan as people read it: one line a step with its reason, one line a changed field.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {} for {} ({} steps): {}", &self.hash[..12], self.router, self.steps.len(), self.reason)?;
        for step in &self.steps {
            let number = step.index + 1;
            writeln!(f, "{number:3}. {} in {}: {}", title(step), step.key.menu, step.why)?;
            let none = BTreeMap::new();
            let before = step.pre.touched().unwrap_or(&none);
            let after = step.post.touched().unwrap_or(&none);
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let side = |fields: &BTreeMap<String, Option<String>>| match fields.get(name).cloned().flatten() {
                    Some(_) if step.hidden.contains(name) => "(secret)".to_owned(),
                    Some(value) => value,
                    None => "-".to_owned(),
                };
                match step.action {
                    Action::Add => writeln!(f, "       {name} = {}", side(after))?,
                    Action::Set => writeln!(f, "       {name}: {} -> {}", side(before), side(after))?,
                    Action::Remove => writeln!(f, "       {name} was {}", side(before))?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::op::image::{Image, RowImage};
    use crate::op::row_key::RowKey;
    use crate::op::step::{Intent, Wire};

    fn names(space: &str, list: &[&str]) -> BTreeSet<RefName> {
        list.iter().map(|name| RefName { space: space.into(), name: (*name).into() }).collect()
    }

    fn change(uid: u128, action: Action, name: &str, provides: &[&str], needs: &[&str]) -> RowChange {
        let image = RowImage::whole(&Image::from([("name".into(), name.into())]));
        let (pre, post) = match action {
            Action::Add => (RowImage::Absent, image),
            Action::Set => (image.clone(), image),
            Action::Remove => (image, RowImage::Absent),
        };
        let (before, after) = (action != Action::Add, action != Action::Remove);
        let when = |on: bool, set: BTreeSet<RefName>| if on { set } else { BTreeSet::new() };
        RowChange {
            step: Step {
                index: 0,
                uid: Ulid::from(uid),
                kind: "test".into(),
                name: name.into(),
                why: "test".into(),
                key: RowKey { menu: "/test".parse().unwrap(), marker: None, natural: vec![], handle: None },
                action,
                intent: Intent::Configure,
                expected_version: None,
                pre,
                post,
                hidden: BTreeSet::new(),
                asked: Wire::default(),
                forward: Wire::default(),
                backward: Wire::default(),
                place_before: None,
                undo_place_before: None,
                requires: vec![],
            },
            provides_before: when(before, names("interface", provides)),
            provides_after: when(after, names("interface", provides)),
            needs_before: when(before, names("interface", needs)),
            needs_after: when(after, names("interface", needs)),
        }
    }

    fn head() -> PlanHead {
        PlanHead {
            op_id: Ulid::from(1u128),
            router: "edge".into(),
            serial: "S1".into(),
            reason: "test".into(),
            actor: None,
        }
    }

    fn order(changes: Vec<RowChange>) -> Vec<String> {
        build(head(), changes).unwrap().steps.into_iter().map(|step| step.name).collect()
    }

    #[test]
    fn what_is_referred_to_is_created_first_and_removed_last() {
        let add = |uid, name, provides: &[&str], needs: &[&str]| change(uid, Action::Add, name, provides, needs);
        let remove = |uid, name, provides: &[&str], needs: &[&str]| change(uid, Action::Remove, name, provides, needs);
        assert_eq!(
            order(vec![add(1, "peer", &[], &["wg0"]), add(2, "address", &[], &["wg0"]), add(3, "wg0", &["wg0"], &[])]),
            ["wg0", "peer", "address"]
        );
        assert_eq!(order(vec![remove(1, "wg0", &["wg0"], &[]), remove(2, "peer", &[], &["wg0"])]), ["peer", "wg0"]);
    }

    #[test]
    fn a_name_is_freed_before_it_is_taken_again() {
        let add = change(1, Action::Add, "new", &["wg0"], &[]);
        let remove = change(2, Action::Remove, "old", &["wg0"], &[]);
        assert_eq!(order(vec![add, remove]), ["old", "new"]);
    }

    #[test]
    fn steps_know_what_they_require() {
        let plan = build(
            head(),
            vec![change(1, Action::Add, "peer", &[], &["wg0"]), change(2, Action::Add, "wg0", &["wg0"], &[])],
        );
        let steps = plan.unwrap().steps;
        assert_eq!(steps[1].requires, [0]);
        assert_eq!(steps[0].why, "test; before test \"peer\"");
    }

    #[test]
    fn changes_that_wait_for_each_other_are_refused_with_the_cycle() {
        let a = change(1, Action::Add, "a", &["a"], &["b"]);
        let b = change(2, Action::Add, "b", &["b"], &["a"]);
        let Err(PlanError::Cycle { cycle }) = build(head(), vec![a, b]) else { panic!("the cycle was not found") };
        assert_eq!(cycle.len(), 3);
        assert_eq!(cycle.first(), cycle.last());
    }

    #[test]
    fn one_resource_is_changed_once() {
        let twice = vec![change(1, Action::Add, "a", &[], &[]), change(1, Action::Add, "b", &[], &[])];
        assert_eq!(build(head(), twice), Err(PlanError::ChangedTwice { uid: Ulid::from(1u128) }));
    }

    #[test]
    fn the_hash_covers_router_serial_and_steps() {
        let plan = build(head(), vec![change(1, Action::Add, "a", &[], &[])]).unwrap();
        assert!(plan.is_intact());
        let damage: [fn(&mut Plan); 3] =
            [|p| p.serial = "S2".into(), |p| p.router = "other".into(), |p| p.steps[0].action = Action::Remove];
        for change in damage {
            let mut damaged = plan.clone();
            change(&mut damaged);
            assert!(!damaged.is_intact());
        }
    }

    proptest! {
        #[test]
        fn the_order_respects_every_reference_whatever_the_given_order(
            needs in proptest::collection::vec(proptest::collection::vec(0usize..12, 0..4), 1..12),
            shuffle in any::<u64>(),
        ) {
            // Row i may only need rows before it, so that no cycle exists; then the rows are given in another order.
            let mut changes: Vec<RowChange> = needs.iter().enumerate().map(|(at, needed)| {
                let needed: Vec<String> = needed.iter().filter(|n| **n < at).map(|n| format!("if{n}")).collect();
                let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
                let name = format!("if{at}");
                change(at as u128 + 1, Action::Add, &name, &[&name], &needed)
            }).collect();
            let mut state = shuffle | 1;
            for at in (1..changes.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let with = usize::try_from(state >> 33).unwrap() % (at + 1);
                changes.swap(at, with);
            }
            let wanted: BTreeMap<String, BTreeSet<RefName>> =
                changes.iter().map(|c| (c.step.name.clone(), c.needs_after.clone())).collect();
            let plan = build(head(), changes).unwrap();
            let mut present = BTreeSet::new();
            for step in &plan.steps {
                for needed in &wanted[&step.name] {
                    prop_assert!(present.contains(&needed.name), "{} before {}", step.name, needed.name);
                }
                present.insert(step.name.clone());
            }
        }
    }
}
