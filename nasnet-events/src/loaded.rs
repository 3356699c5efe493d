//! Which durable rows of each scope are taken into account in the heads. Pure.

use foldhash::HashMap;
use nasnet_dbmanager::Scope;

use crate::chain::Digest;
use crate::position::Position;

/// Published events of a scope from which its rows are looked at again: each transaction that adds a row looks at all that are
/// not taken into account.
const GROWN: u64 = 64;

/// The rows that are taken into account: all up to this one. Rows are chained, so its digest tells them from those of another
/// file, which a backup or somebody from outside may have put in the place of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsKnown {
    /// Rows committed later come behind it, since positions of rows are given while the transaction holds the write lock.
    pub(crate) through: Position,
    /// Of the chain behind that row.
    pub(crate) digest: Digest,
}

impl RowsKnown {
    pub(crate) const NONE: Self = Self { through: Position::START, digest: Digest::GENESIS };
}

#[derive(Debug)]
struct Scoped {
    known: RowsKnown,
    /// Events that were published since.
    published: u64,
}

/// The scopes whose warm tier was taken into account.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    scopes: HashMap<Scope, Scoped>,
    grown: Vec<Scope>,
}

impl Loaded {
    pub(crate) fn contains(&self, scope: &Scope) -> bool {
        self.scopes.contains_key(scope)
    }

    pub(crate) fn rows(&self, scope: &Scope) -> RowsKnown {
        self.scopes.get(scope).map_or(RowsKnown::NONE, |scoped| scoped.known)
    }

    pub(crate) fn insert(&mut self, scope: &Scope, known: RowsKnown) {
        self.scopes.insert(scope.clone(), Scoped { known, published: 0 });
    }

    pub(crate) fn remove(&mut self, scope: &Scope) {
        self.scopes.remove(scope);
    }

    /// Takes note of a look at the rows of a scope. One that is not loaded stays that: there is more than rows to know.
    pub(crate) fn update(&mut self, scope: &Scope, known: RowsKnown) {
        if let Some(scoped) = self.scopes.get_mut(scope) {
            *scoped = Scoped { known, published: 0 };
        }
    }

    /// Takes note of events that became rows of a scope for good.
    pub(crate) fn note_published(&mut self, scope: &Scope, events: u64) {
        let Some(scoped) = self.scopes.get_mut(scope) else { return };
        let before = scoped.published;
        scoped.published = before.saturating_add(events);
        if before < GROWN && scoped.published >= GROWN {
            self.grown.push(scope.clone());
        }
    }

    /// True when rows of a scope should be looked at.
    pub(crate) const fn has_grown(&self) -> bool {
        !self.grown.is_empty()
    }

    /// Takes out the scopes whose rows should be looked at.
    pub(crate) fn take_grown(&mut self) -> Vec<Scope> {
        let grown = std::mem::take(&mut self.grown);
        // Should the look fail, as many more ask for the next one.
        for scope in &grown {
            if let Some(scoped) = self.scopes.get_mut(scope) {
                scoped.published = 0;
            }
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_to_be_looked_at_once_for_each_so_many_events() {
        let mut loaded = Loaded::default();
        loaded.note_published(&Scope::System, GROWN);
        assert!(!loaded.has_grown(), "it will be read as a whole");
        loaded.insert(&Scope::System, RowsKnown::NONE);
        for _ in 0..3 {
            loaded.note_published(&Scope::System, GROWN - 1);
            assert!(!loaded.has_grown());
            loaded.note_published(&Scope::System, 5);
            loaded.note_published(&Scope::System, GROWN);
            assert!(loaded.has_grown());
            assert_eq!(loaded.take_grown(), [Scope::System]);
            assert!(!loaded.has_grown());
        }
    }

    #[test]
    fn a_look_at_the_rows_alone_loads_nothing() {
        let mut loaded = Loaded::default();
        let known = RowsKnown { through: Position::new(1, 7), digest: Digest([1; 32]) };
        loaded.update(&Scope::System, known);
        assert_eq!((loaded.contains(&Scope::System), loaded.rows(&Scope::System)), (false, RowsKnown::NONE));
        loaded.insert(&Scope::System, RowsKnown::NONE);
        loaded.update(&Scope::System, known);
        assert_eq!((loaded.contains(&Scope::System), loaded.rows(&Scope::System)), (true, known));
    }
}
