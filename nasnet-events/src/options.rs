//! How a store behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::class::ClassRules;
use crate::retain::Retention;
use crate::upcast::Upcasters;

/// Settings of an event store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EventOptions {
    /// Rules that give every event type a class.
    pub classes: ClassRules,
    /// Events that may wait to be appended before callers get `Overloaded`, a body counting once for each
    /// [`EventOptions::PLACE_BYTES`] begun. Default and least [`EventOptions::BATCH_EVENTS_MAX`]: 32 MiB of bodies.
    pub queue_events_max: usize,
    /// Largest body of one event in bytes, at most [`EventOptions::BODY_BYTES_LIMIT`]. Default 256 KiB.
    pub body_bytes_max: usize,
    /// Unflushed Normal events of one scope, in estimated compressed bytes and on average over the scopes that have any, that
    /// make `maintain` flush before [`EventOptions::flush_interval`] is over; with more scopes than databases stay open as
    /// many times more. Default
    /// 16 KiB: in pages of flash a flush costs about three and what its events take (docs/adr/0013).
    pub flush_bytes: usize,
    /// Longest time `maintain` leaves Normal events in tmpfs only. Default 5 minutes. It is stretched to at most an hour with
    /// more routers than databases stay open, fourfold while the flash budget is scarce, and to a day once what is left of
    /// it is for what is Critical. [`crate::Durability::Batched`] is not.
    pub flush_interval: Duration,
    /// Most bytes of hot.db, `None` = 64 MiB or 15 % of its file system, whichever is less; at most 15/16 of what the
    /// manager lets a database have ([`nasnet_dbmanager::Options::database_bytes_max`]). Default `None`.
    pub hot_bytes_max: Option<u64>,
    /// How long events stay in the hot tier that are on flash or of class Low, by the time since boot. Default 24 hours.
    pub hot_keep: Duration,
    /// What makes `maintain` flush. Default [`FlushPolicy::PageFull`].
    pub flush: FlushPolicy,
    /// Age from which durable rows are sealed into segments, and their ids forgotten. Default 24 hours.
    pub seal_after: Duration,
    /// Durable rows of one scope from which the oldest are sealed whatever their age. Default 512.
    pub rows_max: u64,
    /// How long readers of all scopes wait for a transaction whose database cannot be asked how it ended. After that they
    /// see an error in its place and go on; readers of its scope wait until it is known. How long consumers and the archive
    /// wait for a file that cannot be read, too. Default 30 seconds.
    pub stall_after: Duration,
    /// How old forms of bodies are read. Default none.
    pub upcasters: Upcasters,
    /// What the warm tier keeps.
    pub retention: Retention,
    /// The cold tier, `None` = no cold tier.
    pub cold: Option<ColdOptions>,
}

impl EventOptions {
    /// Least [`EventOptions::flush_interval`]; shorter ones count as this one.
    pub const FLUSH_INTERVAL_MIN: Duration = Duration::from_millis(10);
    /// The largest number of events in one append.
    pub const BATCH_EVENTS_MAX: usize = 16_384;
    /// Bytes of a body that take one place in the queue of appends.
    pub const PLACE_BYTES: usize = 2 << 10;
    /// The longest name of an actor.
    pub const ACTOR_BYTES_MAX: usize = 255;
    /// No setting allows a larger body than this: 32 MiB.
    pub const BODY_BYTES_LIMIT: usize = 32 << 20;
}

impl Default for EventOptions {
    fn default() -> Self {
        Self {
            classes: ClassRules::default(),
            queue_events_max: 16_384,
            body_bytes_max: 256 << 10,
            flush_bytes: 16 << 10,
            flush_interval: Duration::from_secs(5 * 60),
            hot_bytes_max: None,
            hot_keep: Duration::from_secs(24 * 60 * 60),
            flush: FlushPolicy::default(),
            seal_after: Duration::from_secs(24 * 60 * 60),
            rows_max: 512,
            stall_after: Duration::from_secs(30),
            upcasters: Upcasters::new(),
            retention: Retention::default(),
            cold: None,
        }
    }
}

impl EventOptions {
    /// Adds a cold tier.
    #[must_use]
    pub fn cold(mut self, cold: ColdOptions) -> Self {
        self.cold = Some(cold);
        self
    }

    /// Sets how old forms of bodies are read.
    #[must_use]
    pub fn upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// Sets what the warm tier keeps.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Replaces the class rules.
    #[must_use]
    pub fn classes(mut self, classes: ClassRules) -> Self {
        self.classes = classes;
        self
    }
}

/// Where archived events go.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ColdOptions {
    /// The directory, usually a mount point; it must hold the marker written by [`crate::prepare_cold_dir`].
    pub dir: PathBuf,
    /// Accept a directory on the same device as the data directory. Off by default, because the mount point of a missing
    /// stick is a folder on flash.
    pub allow_same_device: bool,
    /// Which events are archived.
    pub policy: ColdPolicy,
    /// When `maintain` archives. Default [`ArchivePolicy::Daily`] at 02:00 UTC.
    pub archive: ArchivePolicy,
}

impl ColdOptions {
    /// A cold tier in `dir` that takes every event.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            allow_same_device: false,
            policy: ColdPolicy::default(),
            archive: ArchivePolicy::default(),
        }
    }

    /// Accepts a directory on the same device as the data directory.
    #[must_use]
    pub const fn allow_same_device(mut self) -> Self {
        self.allow_same_device = true;
        self
    }

    /// Chooses when events are archived.
    #[must_use]
    pub const fn archive(mut self, archive: ArchivePolicy) -> Self {
        self.archive = archive;
        self
    }

    /// Chooses which events are archived.
    #[must_use]
    pub const fn policy(mut self, policy: ColdPolicy) -> Self {
        self.policy = policy;
        self
    }
}

/// Which events the cold tier takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColdPolicy {
    /// All of them; Low events come from the hot tier.
    #[default]
    Everything,
    /// Those that are in the warm tier.
    WarmOnly,
}

/// What makes [`crate::EventStore::maintain`] flush Normal events. Little room in tmpfs and the end of the process do so
/// under every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FlushPolicy {
    /// Events that fill [`EventOptions::flush_bytes`], or that have waited for [`EventOptions::flush_interval`]; with more
    /// routers than databases stay open the interval is stretched, to an hour at most.
    #[default]
    PageFull,
    /// Once a day at this minute, UTC; missed days are caught up with. A power cut costs up to a day of Normal events.
    Daily {
        /// Minutes after midnight.
        minute: u16,
    },
}

impl FlushPolicy {
    /// Once a day at 02:00 UTC.
    pub const NIGHTLY: Self = Self::Daily { minute: 120 };
}

/// When [`crate::EventStore::maintain`] archives. What was missed, while the process was down or the medium away, is
/// caught up with as soon as both are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchivePolicy {
    /// Whenever a frame of 1,000 events is full, and once a day.
    WhenFrameFull,
    /// Once a day at this minute, UTC.
    Daily {
        /// Minutes after midnight.
        minute: u16,
    },
    /// On Sundays at this minute, UTC.
    Weekly {
        /// Minutes after midnight.
        minute: u16,
    },
}

impl Default for ArchivePolicy {
    fn default() -> Self {
        Self::Daily { minute: 120 }
    }
}
