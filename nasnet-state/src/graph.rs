//! What must come before what: an order, or the circle that makes one impossible.

use std::collections::{BTreeSet, VecDeque};

use crate::error::Error;

/// Nodes with labels, and edges from a node to what it depends on.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    labels: Vec<String>,
    depends_on: Vec<BTreeSet<usize>>,
}

impl Graph {
    /// Starts without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node and returns its number; numbers count up from 0. The label is for messages.
    pub fn add_node(&mut self, label: impl Into<String>) -> usize {
        self.labels.push(label.into());
        self.depends_on.push(BTreeSet::new());
        self.labels.len() - 1
    }

    /// Says that `node` depends on `other`. Numbers that were never given out are ignored.
    pub fn add_dependency(&mut self, node: usize, other: usize) {
        if other < self.labels.len()
            && let Some(edges) = self.depends_on.get_mut(node)
        {
            edges.insert(other);
        }
    }

    /// Returns all nodes, each after everything it depends on; among equals, the one added first comes first.
    ///
    /// Turned round, it is the order in which things can be taken away.
    ///
    /// # Errors
    /// [`Error::Cycle`] with the labels of one shortest circle through the first node that is part of one.
    pub fn order(&self) -> Result<Vec<usize>, Error> {
        let mut waits_for: Vec<usize> = self.depends_on.iter().map(BTreeSet::len).collect();
        let mut dependents = vec![Vec::new(); self.labels.len()];
        for (node, edges) in self.depends_on.iter().enumerate() {
            for &other in edges {
                dependents[other].push(node);
            }
        }
        let mut ready: BTreeSet<usize> = (0..self.labels.len()).filter(|&node| waits_for[node] == 0).collect();
        let mut order = Vec::with_capacity(self.labels.len());
        while let Some(node) = ready.pop_first() {
            order.push(node);
            for &dependent in &dependents[node] {
                waits_for[dependent] -= 1;
                if waits_for[dependent] == 0 {
                    ready.insert(dependent);
                }
            }
        }
        if order.len() == self.labels.len() {
            return Ok(order);
        }
        let path = (0..self.labels.len()).find_map(|node| self.circle_through(node)).unwrap_or_default();
        Err(Error::Cycle { path: path.into_iter().map(|node| self.labels[node].clone()).collect() })
    }

    /// Returns a shortest circle through the node, the node first and last.
    pub fn circle_through(&self, start: usize) -> Option<Vec<usize>> {
        let mut reached_from: Vec<Option<usize>> = vec![None; self.labels.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(node) = queue.pop_front() {
            for &other in self.depends_on.get(node)? {
                if other == start {
                    let back =
                        std::iter::successors(Some(node), |&at| if at == start { None } else { reached_from[at] });
                    let mut path: Vec<usize> = std::iter::once(start).chain(back).collect();
                    path.reverse();
                    return Some(path);
                }
                if reached_from[other].is_none() {
                    reached_from[other] = Some(node);
                    queue.push_back(other);
                }
            }
        }
        None
    }

    /// Returns everything the node depends on, directly or not, itself included.
    pub fn reachable(&self, start: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([start]);
        let mut queue = vec![start];
        while let Some(node) = queue.pop() {
            for &other in self.depends_on.get(node).into_iter().flatten() {
                if reached.insert(other) {
                    queue.push(other);
                }
            }
        }
        reached
    }

    /// Returns the label of a node.
    pub fn label(&self, node: usize) -> &str {
        self.labels.get(node).map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(nodes: usize, edges: &[(usize, usize)]) -> Graph {
        let mut graph = Graph::new();
        for node in 0..nodes {
            graph.add_node(format!("n{node}"));
        }
        for &(node, other) in edges {
            graph.add_dependency(node, other);
        }
        graph
    }

    #[test]
    fn everything_comes_after_what_it_depends_on_and_otherwise_in_the_order_it_was_added() {
        assert_eq!(graph(4, &[(0, 3), (1, 0), (2, 0)]).order().unwrap(), [3, 0, 1, 2]);
        assert_eq!(graph(3, &[]).order().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_circle_is_told_with_its_members_in_order() {
        let circle = |edges: &[(usize, usize)]| graph(5, edges).order().unwrap_err().to_string();
        assert_eq!(circle(&[(4, 1), (1, 2), (2, 3), (3, 1)]), "dependency cycle: n1 -> n2 -> n3 -> n1");
        assert_eq!(circle(&[(2, 2)]), "dependency cycle: n2 -> n2");
        assert_eq!(circle(&[(0, 1), (1, 0), (1, 2), (2, 1)]), "dependency cycle: n0 -> n1 -> n0");
    }

    #[test]
    fn a_chain_of_ten_thousand_is_ordered_without_recursion() {
        let edges: Vec<_> = (0..9_999).map(|node| (node, node + 1)).collect();
        let order = graph(10_000, &edges).order().unwrap();
        assert!(order.iter().rev().copied().eq(0..10_000));
    }
}
