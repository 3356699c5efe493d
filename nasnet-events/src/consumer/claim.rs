//! Who reads as a consumer: its definition is found or made, and one subscription at a time takes it.

use nasnet_dbmanager::Cause;

use crate::consumer::marker::Mark;
use crate::consumer::progress::CLAIM_MS;
use crate::consumer::rows::{self, Reader, Standing, Uid};
use crate::consumer::{Consumer, StartAt};
use crate::error::Error;
use crate::hot::session;
use crate::position::Position;
use crate::shared::Shared;
use crate::store::{EventStore, blocking};

const SUBSCRIBE: Cause = Cause::new("event-subscribe");

/// Times a claim is tried anew because its row changed meanwhile.
const CLAIMS_MAX: u32 = 8;

impl EventStore {
    /// Finds the consumer's row in system.db, making it or adapting its definition where needed: the one flash write of a
    /// subscription.
    pub(crate) async fn define(&self, consumer: &Consumer) -> Result<(Uid, Mark), Error> {
        let system = self.shared().manager.system();
        let name = consumer.name.as_str().to_owned();
        let found = system.read(SUBSCRIBE, move |conn| Box::pin(async move { rows::find(conn, &name).await })).await?;
        if let Some(found) = found
            && found.filter == consumer.filter
            && found.guard == consumer.guard
        {
            return Ok((found.uid, found.mark));
        }
        let start = match consumer.from {
            StartAt::Beginning => Position::START,
            StartAt::Now => self.view().await?.stable(),
            StartAt::After(position) => position.min(Position::END),
        };
        let manager = &self.shared().manager;
        let (consumer, now, uid) = (consumer.clone(), manager.now(), manager.next_ulid().to_bytes());
        let defined = system
            .write(SUBSCRIBE, move |conn| {
                Box::pin(async move { rows::define(conn, &consumer, uid, Mark::at(start), now).await })
            })
            .await?;
        Ok((defined.uid, defined.mark))
    }
}

/// Takes the consumer from nobody, a dead reader or a silent one, and returns where it stands.
pub(crate) async fn claim(shared: &Shared, name: &str, defined: Mark, reader: Reader) -> Result<Mark, Error> {
    // The reader before may let go, or another take it, between the look and the claim.
    for _ in 0..CLAIMS_MAX {
        let own = name.to_owned();
        let runtime = shared.manager.runtime();
        let standing =
            runtime.read(SUBSCRIBE, move |conn| Box::pin(async move { rows::standing(conn, &own).await })).await?;
        let now = shared.manager.now();
        let before = standing.and_then(|standing| standing.reader);
        if let (Some(standing), Some(before)) = (standing, before)
            && is_read(shared, name, &standing, before, now.boottime_ms).await
        {
            break;
        }
        let own = name.to_owned();
        let claimed = runtime
            .write(SUBSCRIBE, move |conn| {
                Box::pin(async move { rows::claim(conn, &own, defined, reader, before, now.boottime_ms).await })
            })
            .await?;
        if let Some(mark) = claimed {
            return Ok(mark);
        }
    }
    Err(Error::ConsumerBusy { consumer: name.to_owned() })
}

/// True while the reader named in a row may still be at work.
async fn is_read(shared: &Shared, name: &str, standing: &Standing, reader: Reader, boottime_ms: u64) -> bool {
    if reader.session == shared.owner() {
        return shared.consumers.is_read_by(name, reader.instance);
    }
    let is_silent = boottime_ms.saturating_sub(standing.boottime_ms) >= CLAIM_MS;
    let dir = shared.sessions_dir();
    !is_silent && blocking(move || session::is_alive(&dir, reader.session)).await
}
