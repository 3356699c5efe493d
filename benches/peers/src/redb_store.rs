//! redb: events by position, and two tables that index them by stream and by type.

use std::path::Path;
use std::time::{Duration, Instant};

use redb::{Database, Durability, TableDefinition};

use crate::{Append, Event, Failure, stream_number};

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
const BY_STREAM: TableDefinition<'_, (u64, u64), u64> = TableDefinition::new("by_stream");
const BY_KIND: TableDefinition<'_, (&str, u64), ()> = TableDefinition::new("by_kind");

pub(crate) struct Store(Database);

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self(Database::create(dir.join("events.redb"))?))
    }
}

impl Append for Store {
    fn append(&mut self, batch: Vec<Event>) -> Result<Duration, Failure> {
        let start = Instant::now();
        let mut write = self.0.begin_write()?;
        write.set_durability(Durability::None)?;
        {
            let (mut events, mut by_stream, mut by_kind) =
                (write.open_table(EVENTS)?, write.open_table(BY_STREAM)?, write.open_table(BY_KIND)?);
            for Event { seq, version, sample } in batch {
                let stream = stream_number(&sample.stream);
                let mut value = Vec::with_capacity(sample.body.len() + 40);
                value.extend_from_slice(&stream.to_be_bytes());
                value.extend_from_slice(&version.to_be_bytes());
                value.extend_from_slice(sample.kind.as_bytes());
                value.push(0);
                value.extend_from_slice(sample.body.as_bytes());
                by_stream.insert((stream, version), seq)?;
                by_kind.insert((sample.kind, seq), ())?;
                events.insert(seq, value.as_slice())?;
            }
        }
        write.commit()?;
        Ok(start.elapsed())
    }
}
