//! The warm tier: what the database of a scope keeps on flash.

pub(crate) mod dictionary;
pub(crate) mod names;
pub(crate) mod rows;
pub(crate) mod segment;
