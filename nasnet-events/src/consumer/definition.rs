//! What a consumer is: its name, what it wants, where it begins and how it is served.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::consumer::Filter;
use crate::error::Error;
use crate::position::Position;

const NAME_BYTES_MAX: usize = 64;

/// The name of a consumer: 1-64 lower-case letters, digits, `-`, `_` and `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerName(String);

impl ConsumerName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless it is 1-64 lower-case letters, digits, `-`, `_` or `.`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            let why = "expected 1-64 lower-case letters, digits, '-', '_' or '.'";
            Err(Error::Invalid { what: "consumer name", value: text.to_owned(), why })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ConsumerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsumerName({})", self.0)
    }
}

impl FromStr for ConsumerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

/// Where a consumer without a checkpoint begins. One that has a checkpoint goes on behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// At the oldest event there is.
    #[default]
    Beginning,
    /// Behind the last event there is when it subscribes for the first time.
    Now,
    /// Behind a position, which is not included.
    After(Position),
}

/// How much a consumer may hold back from retention. Whichever limit is reached first ends the guard: then its events may
/// go, and it is told so by `Item::Truncated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardLimits {
    /// Longest time since its checkpoint moved.
    pub max_age: Duration,
    /// Most stored bytes behind its checkpoint.
    pub bytes_max: u64,
}

impl Default for GuardLimits {
    /// Seven days and 4 MiB.
    fn default() -> Self {
        Self { max_age: Duration::from_secs(7 * 24 * 3_600), bytes_max: 4 << 20 }
    }
}

/// A named reader of the order of events, to be handed to `EventStore::subscribe`.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct Consumer {
    /// Under which its checkpoint is kept.
    pub name: ConsumerName,
    /// What it is shown. Default: everything.
    pub filter: Filter,
    /// Where it begins the first time. Default: at the beginning.
    pub from: StartAt,
    /// How long events that arrive live wait for others to come with them. Default: [`Consumer::IMMEDIATE`].
    pub batch: Duration,
    /// Events gathered at once. One that falls further behind than this is told so by `Item::Lagged`. Default 512.
    pub capacity: usize,
    /// What it may hold back from retention, `None` = nothing. Default: seven days and 4 MiB.
    pub guard: Option<GuardLimits>,
}

impl Consumer {
    /// Delivers each event as soon as it can be read.
    pub const IMMEDIATE: Duration = Duration::ZERO;
    /// Delivery window for what somebody waits for.
    pub const CRITICAL: Duration = Duration::from_millis(100);
    /// Delivery window for a screen.
    pub const NORMAL: Duration = Duration::from_secs(1);
    /// Delivery window for a summary.
    pub const LOW: Duration = Duration::from_secs(5);
    /// Delivery window for work nobody watches.
    pub const BACKGROUND: Duration = Duration::from_secs(30);

    /// A consumer of every event from the beginning, each at once.
    pub fn new(name: ConsumerName) -> Self {
        Self {
            name,
            filter: Filter::all(),
            from: StartAt::default(),
            batch: Self::IMMEDIATE,
            capacity: 512,
            guard: Some(GuardLimits::default()),
        }
    }

    /// Chooses what it is shown.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Chooses where it begins the first time.
    pub const fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// Chooses its delivery window.
    pub const fn batch(mut self, window: Duration) -> Self {
        self.batch = window;
        self
    }

    /// Chooses how many events are gathered at once.
    pub const fn capacity(mut self, events: usize) -> Self {
        self.capacity = events;
        self
    }

    /// Limits what it may hold back from retention.
    pub const fn guard(mut self, limits: GuardLimits) -> Self {
        self.guard = Some(limits);
        self
    }

    /// Lets retention pass it: it holds nothing back, and may be told that events are gone.
    pub const fn unguarded(mut self) -> Self {
        self.guard = None;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_when_parsed() {
        for good in ["a", "sync-cloud", "metrics.daily_2"] {
            assert_eq!(good.parse::<ConsumerName>().unwrap().as_str(), good);
        }
        for bad in ["", "A", "a b", "../x", "a/b", &"a".repeat(65)] {
            assert!(ConsumerName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
