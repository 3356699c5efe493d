//! Who reads as a consumer: its definition is found or made, and one subscription at a time takes it.

use std::sync::Arc;

use nasnet_dbmanager::Cause;

use crate::consumer::checkpoint::Checkpoint;
use crate::consumer::marker::Mark;
use crate::consumer::progress::{CLAIM_MS, Progress};
use crate::consumer::rows::{self, Defined, Moved, Reader, Standing};
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
    /// Makes a subscription that begins now the one that reads as the consumer, and tells where it stands.
    pub(crate) async fn begin_to_read(&self, consumer: &Consumer) -> Result<(Arc<Progress>, Mark), Error> {
        let shared = self.shared();
        let reader = Reader { session: shared.owner(), instance: shared.manager.next_ulid().to_bytes() };
        for _ in 0..CLAIMS_MAX {
            let defined = self.define(consumer).await?;
            let is_another = defined.filter != consumer.filter || defined.guard != consumer.guard;
            let defined = Moved::from(defined);
            let mark = claim(shared, &defined, reader).await?;
            let now = shared.manager.now();
            let checkpoint = Checkpoint::new(mark, defined.mark, now);
            let progress = Progress::new(defined.name, defined.uid, reader, checkpoint, now.boottime_ms);
            // Another process may have forgotten the consumer between the two.
            if progress.is_defined(shared).await? {
                // Only now: what retention keeps for whoever reads is not for one to say who is turned away.
                if is_another && let Err(error) = self.redefine(consumer, &progress).await {
                    progress.release(shared).await?;
                    return Err(error);
                }
                return Ok((Arc::new(progress), mark));
            }
            progress.unclaim(shared).await?;
        }
        Err(Error::ConsumerBusy { consumer: consumer.name.as_str().to_owned() })
    }

    /// Finds the consumer's row in system.db, making it where there is none: the one flash write of a subscription.
    async fn define(&self, consumer: &Consumer) -> Result<Defined, Error> {
        let system = self.shared().manager.system();
        let name = consumer.name.as_str().to_owned();
        let found = system.read(SUBSCRIBE, move |conn| Box::pin(async move { rows::find(conn, &name).await })).await?;
        if let Some(found) = found {
            return Ok(found);
        }
        let start = match consumer.from {
            StartAt::Beginning => Position::START,
            StartAt::Now => self.view().await?.stable(),
            StartAt::After(position) => position.min(Position::END),
        };
        let manager = &self.shared().manager;
        let (consumer, now, uid) = (consumer.clone(), manager.now(), manager.next_ulid().to_bytes());
        system
            .write(SUBSCRIBE, move |conn| {
                Box::pin(async move { rows::define(conn, &consumer, uid, Mark::at(start), now).await })
            })
            .await
    }

    /// Gives the consumer another filter and guard.
    async fn redefine(&self, consumer: &Consumer, progress: &Progress) -> Result<(), Error> {
        let (consumer, of) = (consumer.clone(), progress.identity());
        let system = self.shared().manager.system();
        system.write(SUBSCRIBE, move |conn| Box::pin(async move { rows::redefine(conn, &consumer, &of).await })).await
    }
}

/// Takes the consumer from nobody, a dead reader or a silent one, and returns where it stands.
async fn claim(shared: &Shared, defined: &Moved, reader: Reader) -> Result<Mark, Error> {
    let name = defined.name.as_str();
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
        let own = defined.clone();
        let claimed = runtime
            .write(SUBSCRIBE, move |conn| {
                Box::pin(async move { rows::claim(conn, &own, reader, before, now.boottime_ms).await })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::rows::Identity;
    use crate::consumer::{ConsumerName, left_out};
    use crate::forward;
    use crate::forward::rows::Changes;
    use crate::options::EventOptions;
    use crate::place::Place;

    #[tokio::test]
    async fn where_a_forgotten_consumer_stood_is_nothing_to_the_next_of_its_name() {
        let Place { dir: _dir, clock: _, manager } = Place::new().await;
        let store = EventStore::open(&manager, EventOptions::default()).await.unwrap();
        let shared = store.shared();
        let consumer = Consumer::new(ConsumerName::parse("c").unwrap());
        let reader = |number| Reader { session: shared.owner(), instance: [number; 16] };
        let release = async |reader| {
            let done = manager
                .runtime()
                .write(SUBSCRIBE, move |conn| Box::pin(async move { rows::release(conn, "c", reader).await }));
            done.await.unwrap();
        };
        let at = |seq| Mark::at(Position::new(1, seq));

        // It is forgotten after it was found and before it is taken.
        let old = Moved::from(store.define(&consumer).await.unwrap());
        assert!(store.forget_consumer(&consumer.name).await.unwrap());
        let stood = claim(shared, &Moved { mark: at(500), ..old.clone() }, reader(1)).await.unwrap();
        assert_eq!(stood, at(500));
        release(reader(1)).await;
        let (progress, mark) = store.begin_to_read(&consumer).await.unwrap();
        assert_eq!(mark, Mark::at(Position::START));
        assert_ne!(progress.identity().uid, old.uid);
        release(progress.reader).await;
        // Nor is anything noted for it that is found out about the old one.
        let (gone, now) = (Identity { name: old.name, uid: old.uid }, manager.now());
        for of_reader in 0..3 {
            let gone = gone.clone();
            let noted = manager.system().write(SUBSCRIBE, move |conn| {
                Box::pin(async move {
                    match of_reader {
                        0 => forward::rows::write(conn, &gone, &Changes::default(), 0, now).await.map(drop),
                        1 => left_out::add(conn, &gone, &[], now).await,
                        _ => left_out::begin_at(conn, &gone, Position::START).await,
                    }
                })
            });
            let refused = noted.await;
            assert!(matches!(refused, Err(Error::ConsumerTaken { .. })), "{of_reader}: {refused:?}");
        }
        // One that goes on stays where it is.
        let anew = Moved::from(store.define(&consumer).await.unwrap());
        assert_eq!(claim(shared, &Moved { mark: at(3), ..anew.clone() }, reader(2)).await.unwrap(), at(3));
        release(reader(2)).await;
        assert_eq!(claim(shared, &Moved { mark: at(1), ..anew }, reader(3)).await.unwrap(), at(3));
        store.shutdown().await.unwrap();
        manager.shutdown().await.unwrap();
    }
}
