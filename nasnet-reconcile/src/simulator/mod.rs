//! A simulated router with RouterOS' REST API: configuration, refusals, generated values and scripted faults.
//!
//! [`Sim`] is a pure library; [`SimServer`] serves one on loopback. It knows the menus this project manages well and
//! keeps every other menu as plain rows. What it imitates, and how sure that is, stands in [`conformance::TABLE`].

mod admin;
mod base;
pub mod conformance;
mod derive;
mod dispatch;
mod error;
mod fault;
mod generate;
mod interfaces;
mod log;
mod login;
mod message;
mod names;
mod persist;
mod profile;
mod query;
mod refusal;
mod seed;
mod seed_export;
mod server;
mod sim;
mod spec;
mod store;
mod value;
mod view;
mod world;
mod write;

pub use self::admin::Admin;
pub use self::error::SimError;
pub use self::fault::{Fault, FaultRule};
pub use self::log::LogEntry;
pub use self::message::{Delivery, Request, Response};
pub use self::profile::{ControlCharacters, Denial, DynamicEdit, SimProfile};
pub use self::refusal::Refusal;
pub use self::seed::{SeedMenu, SeedPlace, SeedProblem, SeedReport, SeedRow};
pub use self::server::{SharedSim, SimServer};
pub use self::sim::Sim;
