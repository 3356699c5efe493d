//! umadb: its event tree and its tag tree, the stream being a tag.

use std::path::Path;
use std::time::{Duration, Instant};

use umadb_core::db::UmaDB;
use umadb_dcb::DCBEvent;

use crate::{Append, Event, Failure};

pub(crate) struct Store(UmaDB);

impl Store {
    pub(crate) fn open(dir: &Path) -> Result<Self, Failure> {
        Ok(Self(UmaDB::new(dir)?))
    }
}

impl Append for Store {
    fn append(&mut self, batch: Vec<Event>) -> Result<Duration, Failure> {
        let start = Instant::now();
        let event = |Event { sample, .. }: Event| DCBEvent {
            event_type: sample.kind.to_owned(),
            tags: vec![sample.stream],
            data: sample.body.into_bytes(),
            uuid: None,
        };
        for appended in self.0.append_batch(vec![(batch.into_iter().map(event).collect(), None, None)])? {
            appended?;
        }
        Ok(start.elapsed())
    }
}
