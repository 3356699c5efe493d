//! The eight-layer resource model of a router: what the user wants, what the router confirmed, what it is doing now.
//!
//! The crate is not a database and not an engine. It brings types, pure rules over them, and SQL that runs on a
//! connection the caller owns; it knows no clock, no key and no device. Ids, the time and the sealing of secrets are
//! arguments. The tables are plain data: [`MIGRATIONS`] for a router's file, [`RUNTIME_MIGRATIONS`] for the volatile one.
//!
//! The ladder from a router's text to its history:
//! 1. a [`KindSchema`] describes a kind; [`KindSchema::parse`] reads a row into canonical [`Fields`] and
//!    [`KindSchema::print`] writes it back;
//! 2. [`diff::diff`], [`diff::three_way`] and [`canonical::hash`] compare;
//! 3. [`store`] keeps resources and returns a [`ChangeEvent`] for every change;
//! 4. [`history::fold`] tells from those what a resource was.

#![forbid(unsafe_code)]

mod error;

mod id;
mod kind;
mod stamp;

mod secret;
mod spelling;
mod value;

mod normalise;
mod opaque;
mod schema;

pub mod canonical;
pub mod diff;

pub mod layer;
mod resource;

pub mod graph;
pub mod lifecycle;
pub mod validate;

mod change;
pub mod history;
mod migrations;
pub mod store;

pub use change::{Change, ChangeEvent, ConfigurationWrite, Creation};
pub use error::Error;
pub use id::{ScopedId, UniqueNames};
pub use kind::KindName;
pub use migrations::{MIGRATIONS, MigrationText, RUNTIME_MIGRATIONS};
pub use normalise::{DeviceChange, Parsed};
pub use opaque::{MENU_FIELD, OPAQUE_KIND, opaque_name};
pub use resource::{NewResource, Resource, Versions};
pub use schema::{
    Access, DriftRule, FieldSpec, FieldType, History, HostBits, HostForm, KindSchema, ListSem, Negation, Provenance,
    Risk, Schemas, UnknownFields, Unset,
};
pub use secret::{BoxError, Fingerprint, Seal, Secret, SecretIntake, SecretPlace, SecretRef, is_sensitive_name};
pub use stamp::{Stamp, Timestamp};
pub use value::{FieldName, FieldValue, Fields, IpRange, Mac, RangeSet, Reference};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct ReadmeDoctests;
