#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(test)]
mod arbitrary;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod place;

// What an event is.
mod body;
mod class;
mod event;
mod expected;
mod name;
mod pace;
mod position;
mod receipt;
pub mod types;

// Pure rules and stored forms.
mod backlog;
mod block;
mod chain;
mod durability;
mod heads;
mod line;
mod loaded;
mod merge;
mod plan;
mod query;
mod upcast;
mod varint;

// The tiers.
mod cold;
mod copied;
mod epoch;
mod hot;
mod schedule;
mod schema;
mod truncation;
mod warm;
mod window;

// What the store does.
mod append_each;
mod archive;
mod below;
mod consumer;
mod decide;
mod durable;
mod error;
pub mod evidence;
mod flush;
pub mod forward;
mod head;
pub mod history;
mod ids;
mod in_flight;
mod largest_id;
mod maintain;
pub mod observe;
mod options;
mod present;
mod read;
mod reads;
mod register;
mod replay;
mod resolve;
mod retain;
mod seal;
mod sealing;
mod shared;
mod shred;
mod status;
mod store;
mod train;
mod verify;
mod walk;

pub use archive::ArchiveReport;
pub use body::Body;
pub use chain::Digest;
pub use class::{Class, ClassRules};
pub use cold::{ColdFindings, ColdState, prepare_cold_dir};
pub use consumer::{
    Consumer, ConsumerName, ConsumerStatus, Filter, Guard, GuardLimits, Item, LeftOut, StartAt, Subscription,
    project_in, projected_through,
};
pub use durability::Durability;
pub use durable::PendingReceipt;
pub use epoch::TailLost;
pub use error::{Conflict, Error};
pub use event::{Head, Level, NewEvent, Recorded, StreamAppend};
pub use expected::Expected;
pub use flush::{FlushReason, FlushReport};
pub use head::{ChainHead, Lane, LaneHead};
pub use hot::compact::CompactReport;
pub use largest_id::largest_ids;
pub use name::{EventType, StreamName, Subject};
pub use options::{ArchivePolicy, ColdOptions, ColdPolicy, EventOptions, FlushPolicy};
pub use position::Position;
pub use query::Query;
pub use reads::Reads;
pub use receipt::{Achieved, Receipt};
pub use register::{register, register_with_cold};
pub use replay::EventReplay;
pub use retain::{
    Blocked, Blocker, Forced, Keep, Retention, RetentionPlan, RetentionReport, ScopePlan, SnapshotHorizon,
};
pub use schema::{high_waters, schema_sets};
pub use seal::SealReport;
pub use shred::Shredded;
pub use status::{Held, ScopeStatus, Status};
pub use store::EventStore;
pub use truncation::{Truncated, TruncatedBy};
pub use upcast::Upcasters;
pub use verify::{Fault, FaultKind, LaneReport, Span, Verification};
pub use warm::dictionary::DictionaryId;
