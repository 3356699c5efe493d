//! Work of several statements that is worth nothing in part.

use std::sync::Arc;

use crate::vitals::Vitals;

/// Stands for work of several statements inside a write, of which all or nothing may be committed. Unless it is
/// [finished](Whole::finish), the write it was begun in fails with [`crate::Error::HalfDone`], whatever the write itself
/// returns: a future that is dropped between two of its statements could not be noticed otherwise.
#[derive(Debug)]
#[must_use = "the write fails unless this is finished"]
pub struct Whole {
    vitals: Arc<Vitals>,
}

impl Whole {
    pub(crate) fn begin(vitals: &Arc<Vitals>) -> Self {
        vitals.begin_whole();
        Self { vitals: Arc::clone(vitals) }
    }

    /// The work is done.
    pub fn finish(self) {
        self.vitals.finish_whole();
    }
}
