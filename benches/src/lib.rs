//! Test data for the benches.
