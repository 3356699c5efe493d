//! The eight layers of a resource. Each file states at its top who writes the layer; nobody else does.

pub mod configuration;
pub mod deployment;
pub mod metadata;
pub mod platform;
pub mod relationships;
pub mod runtime;
pub mod telemetry;
pub mod validation;
