//! Where the newest id is found after an unclean stop.

use nasnet_dbmanager::{FileKind, LargestId};

/// Returns where the newest id of an event is found, for `Options::largest_ids`: ids given out after a power cut are then
/// greater than those of the events that survived it, whatever the clock says.
#[must_use]
pub fn largest_ids() -> Vec<LargestId> {
    // Positions ascend, and an event gets its id shortly before its position.
    let newest = |file| LargestId {
        file,
        table: "event_rows",
        sql: "SELECT event_id FROM event_rows ORDER BY pos DESC LIMIT 1",
    };
    vec![newest(FileKind::System), newest(FileKind::Router)]
}
