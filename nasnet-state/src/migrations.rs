//! The tables of the crate, as data for whoever opens the files.

/// One step of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationText {
    /// Its place in the order, from 1 on.
    pub version: u32,
    /// What it does, in a word or two.
    pub name: &'static str,
    /// The statements that do it.
    pub up: &'static str,
    /// The statements that take it back.
    pub down: &'static str,
}

/// The tables of a router's file: resources, their deployments and sealed secrets.
pub const MIGRATIONS: &[MigrationText] = &[MigrationText {
    version: 1,
    name: "resources",
    up: include_str!("../migrations/0001_resources.up.sql"),
    down: include_str!("../migrations/0001_resources.down.sql"),
}];

/// The tables of the volatile file: the runtime layer of all routers.
pub const RUNTIME_MIGRATIONS: &[MigrationText] = &[MigrationText {
    version: 1,
    name: "runtime-layers",
    up: include_str!("../migrations/runtime_0001_layers.up.sql"),
    down: include_str!("../migrations/runtime_0001_layers.down.sql"),
}];
