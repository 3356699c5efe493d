//! The scopes a consumer of several goes on without, and whether they are back.

use std::collections::BTreeSet;

use nasnet_dbmanager::{Cause, Scope};

use crate::consumer::left_out::{self, LeftOut};
use crate::consumer::rows::Identity;
use crate::epoch;
use crate::error::Error;
use crate::event::Recorded;
use crate::merge::Range;
use crate::position::Position;
use crate::query::Query;
use crate::read::{Cursor, Tiers};
use crate::shared::Shared;
use crate::truncation::{self, Removals, Truncated};

const AWAY: Cause = Cause::new("event-left-out");

/// What one subscription knows of what was left out.
#[derive(Debug, Default)]
pub(crate) struct Away {
    /// Nothing of these is shown, and their databases are not asked.
    skipped: Vec<(Scope, Range)>,
    /// Something is recorded and may not be settled.
    is_recorded: bool,
    /// Scopes told as back.
    returned: BTreeSet<Scope>,
    looked_ms: Option<u64>,
}

/// What can be read again.
#[derive(Debug)]
pub(crate) struct Back {
    pub(crate) left: LeftOut,
    pub(crate) removed: Vec<Truncated>,
    pub(crate) retired: bool,
}

impl Away {
    /// What a consumer that begins at `position` had to leave out before.
    pub(crate) async fn load(shared: &Shared, consumer: Identity, position: Position) -> Result<Self, Error> {
        let system = shared.manager.system();
        let name = consumer.name.clone();
        let left = system.read(AWAY, move |conn| Box::pin(async move { left_out::list(conn, &name).await })).await?;
        if left.iter().any(|left| left.through > position) {
            system
                .write(AWAY, move |conn| Box::pin(async move { left_out::begin_at(conn, &consumer, position).await }))
                .await?;
        }
        Ok(Self { is_recorded: left.iter().any(|left| left.after < position), ..Self::default() })
    }

    /// Ranges a new read passes.
    pub(crate) fn skipped(&self) -> Vec<(Scope, Range)> {
        self.skipped.clone()
    }

    /// Records what is about to be told, before the consumer can move past it.
    pub(crate) async fn leave_out(
        &mut self,
        shared: &Shared,
        consumer: Identity,
        left: &[LeftOut],
    ) -> Result<(), Error> {
        let (name, records, now) = (consumer.name.clone(), left.to_vec(), shared.manager.now());
        shared
            .manager
            .system()
            .write(AWAY, move |conn| Box::pin(async move { left_out::add(conn, &consumer, &records, now).await }))
            .await?;
        for left in left {
            tracing::warn!(consumer = %name, scope = %left.scope, after = %left.after, through = %left.through, why = %left.why,
                "a scope is left out");
            self.skipped.push((left.scope.clone(), Range { low: left.after, high: left.through }));
            self.returned.remove(&left.scope);
        }
        self.is_recorded = true;
        Ok(())
    }

    /// True for an event that other tiers have of what is left out: it comes with the rest, in order.
    pub(crate) fn skips(&self, event: &Recorded) -> bool {
        let within = |range: &Range| event.position > range.low && event.position <= range.high;
        self.skipped.iter().any(|(scope, range)| *scope == event.scope && within(range))
    }

    /// True when a scope is left out of all of a range.
    pub(crate) fn covers(&self, scope: &Scope, range: Range) -> bool {
        let within = |skipped: &Range| skipped.low <= range.low && range.high <= skipped.high;
        self.skipped.iter().any(|(skipped, out)| skipped == scope && within(out))
    }

    /// Takes note that everything up to a position is dealt with.
    pub(crate) fn pass(&mut self, position: Position) {
        self.skipped.retain(|(_, range)| range.high > position);
    }

    /// Looks now and then which of the scopes can be read again.
    pub(crate) async fn look(&mut self, shared: &std::sync::Arc<Shared>, consumer: &str) -> Result<Vec<Back>, Error> {
        let now_ms = shared.manager.now().boottime_ms;
        let is_due = self.looked_ms.is_none_or(|looked| now_ms.saturating_sub(looked) >= shared.stall_after_ms());
        if !self.is_recorded || !is_due {
            return Ok(Vec::new());
        }
        self.looked_ms = Some(now_ms);
        let name = consumer.to_owned();
        let system = shared.manager.system();
        let left = system.read(AWAY, move |conn| Box::pin(async move { left_out::list(conn, &name).await })).await?;
        self.is_recorded = !left.is_empty();
        let mut back = Vec::new();
        for left in left {
            let is_passed = !self.skipped.iter().any(|(scope, _)| *scope == left.scope);
            if self.returned.contains(&left.scope) || !is_passed || !is_readable(shared, &left).await {
                continue;
            }
            back.extend(back_of(shared, left).await.transpose());
        }
        self.return_all(back)
    }

    /// Takes note of the scopes that are told as back now. One that could not be looked at keeps no other from being told: it
    /// is looked at again.
    fn return_all(&mut self, looked_at: Vec<Result<Back, Error>>) -> Result<Vec<Back>, Error> {
        let (mut back, mut failed) = (Vec::new(), None);
        for looked in looked_at {
            match looked {
                Ok(found) => {
                    self.returned.insert(found.left.scope.clone());
                    back.push(found);
                }
                Err(error) => {
                    tracing::warn!(%error, "a scope that was left out could not be looked at");
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if back.is_empty() => Err(error),
            _ => Ok(back),
        }
    }
}

/// What there is to tell of a scope that can be read again; `None` while it is not known what was removed from it: it is told
/// as back once, with all that is missing.
async fn back_of(shared: &Shared, left: LeftOut) -> Result<Option<Back>, Error> {
    let Removals { found, failed } =
        truncation::since_of(shared, std::slice::from_ref(&left.scope), left.after).await?;
    if let Some((scope, error)) = failed.into_iter().next() {
        if scope != left.scope {
            return Err(error);
        }
        tracing::warn!(%scope, %error, "what was removed from it is unknown");
        return Ok(None);
    }
    let removed = found.into_iter().filter(|removed| removed.scope.as_ref() == Some(&left.scope)).collect();
    let retired = !epoch::scopes(&shared.manager).await?.contains(&left.scope);
    Ok(Some(Back { left, removed, retired }))
}

/// True when the beginning of what was left out can be read.
async fn is_readable(shared: &std::sync::Arc<Shared>, left: &LeftOut) -> bool {
    let query = Query::scope(left.scope.clone()).after(left.after).until(left.through);
    let page = Cursor::new(std::sync::Arc::clone(shared), query, Tiers::All).next_page().await;
    let fails = |item: &Result<Recorded, Error>| matches!(item, Err(Error::Unreadable { .. }));
    match page {
        // A transaction whose end is not known keeps readers of its scope from what is behind it.
        Ok(Some(page)) => page.end >= left.through && !page.items.iter().any(fails),
        Ok(None) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(scope: &str) -> Back {
        let (after, through) = (Position::new(1, 1), Position::new(1, 9));
        let left = LeftOut { scope: scope.parse().unwrap(), after, through, why: String::new() };
        Back { left, removed: Vec::new(), retired: false }
    }

    #[test]
    fn a_scope_that_cannot_be_looked_at_keeps_no_other_from_being_told_as_back() {
        let mut away = Away::default();
        let told = away.return_all(vec![Ok(back("r1")), Err(Error::Closed), Ok(back("r3"))]).unwrap();
        let scopes: Vec<Scope> = told.into_iter().map(|back| back.left.scope).collect();
        assert_eq!(scopes, away.returned.iter().cloned().collect::<Vec<_>>(), "each that counts as told is told");
        assert_eq!(scopes.len(), 2);
        assert!(matches!(Away::default().return_all(vec![Err(Error::Closed)]), Err(Error::Closed)));
    }
}
