//! fjall: events by position, and two keyspaces that index them by stream and by type.

use std::path::Path;
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::{Append, Event, Failure, stream_number};

pub(crate) struct Store {
    db: Database,
    events: Keyspace,
    by_stream: Keyspace,
    by_kind: Keyspace,
}

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        let db = Database::builder(dir).open()?;
        let keyspace = |name: &str| db.keyspace(name, KeyspaceCreateOptions::default);
        let (events, by_stream, by_kind) = (keyspace("events")?, keyspace("by_stream")?, keyspace("by_kind")?);
        Ok(Self { db, events, by_stream, by_kind })
    }
}

impl Append for Store {
    fn append(&mut self, batch: Vec<Event>) -> Result<Duration, Failure> {
        let start = Instant::now();
        let mut write = self.db.batch();
        for Event { seq, version, sample } in batch {
            let seq = seq.to_be_bytes();
            let stream = stream_number(&sample.stream).to_be_bytes();
            let mut value = Vec::with_capacity(sample.body.len() + 40);
            value.extend_from_slice(&stream);
            value.extend_from_slice(&version.to_be_bytes());
            value.extend_from_slice(sample.kind.as_bytes());
            value.push(0);
            value.extend_from_slice(sample.body.as_bytes());
            let mut kind = sample.kind.as_bytes().to_vec();
            kind.extend_from_slice(&seq);
            write.insert(&self.by_stream, [stream, version.to_be_bytes()].concat(), seq);
            write.insert(&self.by_kind, kind, []);
            write.insert(&self.events, seq, value);
        }
        write.commit()?;
        Ok(start.elapsed())
    }
}
