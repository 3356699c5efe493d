//! Everything a manager has to be told about this crate, in one place.

use std::sync::Arc;

use nasnet_dbmanager::Options;

use crate::largest_id::largest_ids;
use crate::options::ColdOptions;
use crate::replay::EventReplay;
use crate::schema::{high_waters, schema_sets};

/// Adds to the options of a manager what a store needs: its tables ([`schema_sets`]), where numbers of incarnations are in
/// use ([`high_waters`]) and the newest ids are found ([`largest_ids`]), and how durable events are brought back after a
/// restore ([`EventReplay`]). A manager that was opened with the tables alone works until a database is restored: then a
/// number may be given twice, and what came after the backup is missing.
#[must_use]
pub fn register(options: Options) -> Options {
    register_with(options, EventReplay::new())
}

/// As [`register`]; after a restore the events of this cold tier are brought back as well.
#[must_use]
pub fn register_with_cold(options: Options, cold: ColdOptions) -> Options {
    register_with(options, EventReplay::new().cold(cold))
}

fn register_with(options: Options, replay: EventReplay) -> Options {
    let mut options = options.schemas(schema_sets());
    options.high_waters.extend(high_waters());
    options.largest_ids.extend(largest_ids());
    options.replays.push(Arc::new(replay));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_store_needs_is_left_to_be_remembered() {
        let options = register(Options::new("data"));
        assert_eq!(options.schemas.len(), schema_sets().len());
        assert_eq!(options.high_waters.len(), high_waters().len());
        assert_eq!(options.largest_ids.len(), largest_ids().len());
        assert_eq!(options.replays.len(), 1);
    }
}
