//! Whether a wish can work, told before anything is touched.
//!
//! [`run`] puts the resources of one change through the stages that are there today: schema, syntax and dependency. The
//! result is the validation layer of each; it says of which inputs it is the result, so it goes stale by itself.

pub mod finding;

mod dependency_stage;
mod pipeline;
mod schema_stage;
mod syntax_stage;
mod universe;

pub use dependency_stage::dependency_graph;
pub use pipeline::{Candidate, Request, run};
pub use universe::Universe;
