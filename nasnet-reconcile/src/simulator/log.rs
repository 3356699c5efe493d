//! What was asked of the simulated router and what became of it.

use std::collections::VecDeque;

use super::message::Delivery;

/// How many entries are kept; older ones are counted only.
const ENTRIES_MAX: usize = 10_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The request's number, from 1.
    pub number: u64,
    /// Uptime of the router when it came.
    pub at_ms: u64,
    /// The method.
    pub method: String,
    /// The path without query and body.
    pub path: String,
    /// The status the router meant to answer with.
    pub status: u16,
    /// Whether the router's configuration was changed by it.
    pub committed: bool,
    /// What the client got to see.
    pub delivery: Delivery,
    /// The fault it met, such as `F04`.
    pub fault: Option<&'static str>,
}

/// The newest requests in the order they came.
#[derive(Debug, Default)]
pub(crate) struct RequestLog {
    entries: VecDeque<LogEntry>,
    count: u64,
}

impl RequestLog {
    pub(crate) fn push(&mut self, mut entry: LogEntry) {
        self.count += 1;
        entry.number = self.count;
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    pub(crate) fn entries(&self) -> Vec<LogEntry> {
        self.entries.iter().cloned().collect()
    }
}
