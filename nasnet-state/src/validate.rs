//! Whether a wish can work, told before anything is touched.

pub mod finding;
