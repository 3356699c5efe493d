//! Changes without a lease: decide on a version, store only over that version, decide again when somebody was quicker.
//!
//! A conflict is no bare "was modified": it carries who was quicker, when, and what they changed, so that a person or a
//! merge can tell whether the two changes touch at all. This module knows no store: reading, deciding and writing are the
//! caller's.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// A value and the version it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<V> {
    /// The value.
    pub value: V,
    /// Its version: a write names it as the one it was decided on.
    pub version: u64,
}

/// Somebody else stored a version in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict<C> {
    /// The version the change was decided on.
    pub expected: u64,
    /// The version that is stored.
    pub actual: u64,
    /// Who stored the latest one, if the store knows.
    pub by: Option<String>,
    /// Wall clock of the latest one in milliseconds, for people.
    pub at_ms: Option<i64>,
    /// What was changed in between, in order: who, when and which fields, as the store tells it.
    pub changes: Vec<C>,
}

impl<C> fmt::Display for Conflict<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected version {} but found {}", self.expected, self.actual)?;
        match &self.by {
            Some(by) => write!(f, ", stored by {by}"),
            None => Ok(()),
        }
    }
}

/// What a write over an expected version answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored<R, C> {
    /// It is stored.
    Done(R),
    /// It is not: another version is there.
    Conflict(Conflict<C>),
}

/// How often to decide again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Attempts in all, at least one.
    pub attempts_max: u32,
    /// Longest pause after the first conflict; it doubles with each further one. The pause taken is a random part of it,
    /// so that those who collided once do not collide in step.
    pub pause: Duration,
    /// Longest pause of all.
    pub pause_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 5, pause: Duration::from_millis(10), pause_max: Duration::from_millis(200) }
    }
}

impl Retry {
    /// Decides once: a conflict goes to the caller.
    #[must_use]
    pub fn never() -> Self {
        Self { attempts_max: 1, ..Self::default() }
    }

    fn pause_after(&self, attempt: u32, random: u64) -> Duration {
        let longest = self.pause.saturating_mul(1 << attempt.min(16)).min(self.pause_max);
        let parts = u32::try_from(random % 1_000).unwrap_or(0);
        longest * parts / 1_000
    }
}

/// Why an update came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpdateError<C, E> {
    /// Somebody was quicker in every attempt.
    Conflict {
        /// How many attempts were made.
        attempts: u32,
        /// What the last one met.
        last: Conflict<C>,
    },
    /// Reading, deciding or writing failed.
    Failed(E),
}

impl<C, E: fmt::Display> fmt::Display for UpdateError<C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { attempts, last } => write!(f, "conflict after {attempts} attempts: {last}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<C: fmt::Debug, E: std::error::Error + 'static> std::error::Error for UpdateError<C, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Conflict { .. } => None,
            Self::Failed(error) => Some(error),
        }
    }
}

/// Reads, decides and writes; after a conflict reads and decides again, until it is stored or the attempts are used up.
///
/// `decide` is given the current value and, from the second attempt on, the conflict of the one before: it may merge, decide
/// the same again, or give up with an error. `write` must store only over the version it is given.
///
/// # Errors
/// [`UpdateError::Conflict`] with what was changed in between, [`UpdateError::Failed`] with the caller's own error.
///
/// # Cancel safety
/// As `write`: a dropped future may have stored the change.
pub async fn update_with<V, D, R, C, E, ReadFuture, WriteFuture>(
    retry: &Retry,
    mut read: impl FnMut() -> ReadFuture,
    mut decide: impl FnMut(&V, Option<&Conflict<C>>) -> Result<D, E>,
    mut write: impl FnMut(u64, D) -> WriteFuture,
) -> Result<R, UpdateError<C, E>>
where
    ReadFuture: Future<Output = Result<Versioned<V>, E>>,
    WriteFuture: Future<Output = Result<Stored<R, C>, E>>,
{
    let mut met: Option<Conflict<C>> = None;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let Versioned { value, version } = read().await.map_err(UpdateError::Failed)?;
        let decided = decide(&value, met.as_ref()).map_err(UpdateError::Failed)?;
        match write(version, decided).await.map_err(UpdateError::Failed)? {
            Stored::Done(done) => return Ok(done),
            Stored::Conflict(last) if attempts >= retry.attempts_max => {
                return Err(UpdateError::Conflict { attempts, last });
            }
            Stored::Conflict(conflict) => met = Some(conflict),
        }
        tokio::time::sleep(retry.pause_after(attempts - 1, RandomState::new().build_hasher().finish())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_are_never_longer() {
        let retry = Retry::default();
        for (attempt, longest_ms) in [(0, 10), (1, 20), (2, 40), (5, 200), (60, 200)] {
            assert!(retry.pause_after(attempt, 999) < Duration::from_millis(longest_ms));
            assert!(retry.pause_after(attempt, 999) > Duration::from_millis(longest_ms * 9 / 10));
            assert_eq!(retry.pause_after(attempt, 0), Duration::ZERO);
        }
    }

    #[tokio::test]
    async fn a_conflict_is_given_to_the_next_decision_and_the_last_one_to_the_caller() {
        let mut seen = Vec::new();
        let result: Result<(), UpdateError<&str, &str>> = update_with(
            &Retry { attempts_max: 3, pause: Duration::ZERO, ..Retry::default() },
            || std::future::ready(Ok(Versioned { value: (), version: 7 })),
            |(), met: Option<&Conflict<&str>>| {
                seen.push(met.map(|conflict| conflict.changes.clone()));
                Ok(())
            },
            |expected, ()| {
                let changes = vec!["mtu by ann"];
                let by = Some("ann".to_owned());
                std::future::ready(Ok(Stored::Conflict(Conflict { expected, actual: 8, by, at_ms: Some(1), changes })))
            },
        )
        .await;
        match result {
            Err(UpdateError::Conflict { attempts: 3, last }) => {
                assert_eq!((last.expected, last.actual), (7, 8));
                assert_eq!(last.to_string(), "expected version 7 but found 8, stored by ann");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(seen, [None, Some(vec!["mtu by ann"]), Some(vec!["mtu by ann"])]);
    }

    #[tokio::test]
    async fn a_decision_may_give_up() {
        let result: Result<(), UpdateError<(), &str>> = update_with(
            &Retry::default(),
            || std::future::ready(Ok(Versioned { value: 1, version: 1 })),
            |_, _| Err("no longer wanted"),
            |_, ()| std::future::ready(Ok(Stored::Done(()))),
        )
        .await;
        assert_eq!(result, Err(UpdateError::Failed("no longer wanted")));
    }
}
