//! How long a forwarder rests, asked without resting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nasnet_dbmanager::{BoxFuture, Cause, Database, NewRouter, RouterId, Scope};

use crate::consumer::{Consumer, ConsumerName};
use crate::error::Error;
use crate::event::NewEvent;
use crate::expected::Expected;
use crate::flush::FlushReason;
use crate::forward::pause::IDLE_PAUSE;
use crate::forward::{Batch, Delivery, Forwarder, Forwarding, Sink};
use crate::name::{EventType, StreamName};
use crate::options::EventOptions;
use crate::place::Place;
use crate::store::EventStore;

const EMPTY_HOT: &str = "INSERT INTO hot_log (first_seq, count, state, scope, reservation)
        SELECT MAX(first_seq + count), 1, 'void', 'system', MAX(first_seq + count) FROM hot_log;
    DELETE FROM hot_log WHERE first_seq < (SELECT MAX(first_seq) FROM hot_log)";
const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";

struct Queue {
    place: Place,
    store: EventStore,
    router: Scope,
}

impl Queue {
    async fn new() -> Self {
        let place = Place::new().await;
        let id = RouterId::parse("r1").unwrap();
        place.manager.create_router(NewRouter::new(id.clone())).await.unwrap();
        let options = EventOptions { stall_after: Duration::ZERO, ..EventOptions::default() };
        let store = EventStore::open(&place.manager, options).await.unwrap();
        Self { place, store, router: Scope::Router(id) }
    }

    async fn append(&self) {
        let event =
            NewEvent::new(self.place.manager.next_ulid(), EventType::parse("resource.updated").unwrap(), &1).unwrap();
        let stream = StreamName::parse("s").unwrap();
        self.store.append(&self.router, &stream, Expected::Any, vec![event]).await.unwrap();
    }

    async fn run(&self, database: &Database, sql: &'static str) {
        let run = database.write(Cause::new("test"), move |conn| {
            Box::pin(async move {
                sqlx::raw_sql(sql).execute(conn).await?;
                Ok::<_, Error>(())
            })
        });
        run.await.unwrap();
    }

    fn forwarder(&self, sink: &Arc<Scripted>) -> Forwarder<Arc<Scripted>> {
        let consumer = Consumer::new(ConsumerName::parse("cloud").unwrap());
        Forwarder::new(self.store.clone(), consumer, Arc::clone(sink))
    }

    /// Begins to send, and fails with the first event.
    async fn block<'f>(&self, forwarder: &'f Forwarder<Arc<Scripted>>) -> Forwarding<'f, Arc<Scripted>> {
        let mut forwarding = forwarder.open().await.unwrap();
        self.append().await;
        assert_eq!(forwarding.round().await.unwrap().failed, 1, "the stream is blocked");
        forwarding
    }
}

/// Answers as it was told.
struct Scripted(Mutex<Delivery>);

impl Scripted {
    fn retries() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Delivery::Retry { why: "told by a test".to_owned() })))
    }
}

impl Sink for Scripted {
    fn deliver<'a>(&'a self, _batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        let answer = self.0.lock().unwrap().clone();
        Box::pin(async { answer })
    }
}

#[tokio::test]
async fn a_stream_that_is_due_wakes_nobody_while_the_sink_is_away() {
    let queue = Queue::new().await;
    let sink = Scripted::retries();
    let forwarder = queue.forwarder(&sink);
    let mut forwarding = queue.block(&forwarder).await;
    queue.place.clock.advance(Duration::from_secs(121));
    assert!(forwarding.idle_for() < IDLE_PAUSE, "it is due");
    *sink.0.lock().unwrap() = Delivery::Offline { why: "told by a test".to_owned() };
    assert!(forwarding.round().await.unwrap().offline.is_some());
    assert_eq!(forwarding.idle_for(), IDLE_PAUSE);
}

#[tokio::test]
async fn a_stream_of_a_scope_that_cannot_be_read_is_not_due() {
    let queue = Queue::new().await;
    let sink = Scripted::retries();
    let forwarder = queue.forwarder(&sink);
    let mut forwarding = queue.block(&forwarder).await;
    queue.append().await;
    queue.store.flush(FlushReason::Requested).await.unwrap();
    queue.run(&queue.place.manager.hot(), EMPTY_HOT).await;
    let database = queue.place.manager.scope(&queue.router).await.unwrap();
    queue.run(&database, BREAK).await;
    forwarding.round().await.unwrap();
    let name = ConsumerName::parse("cloud").unwrap();
    assert_eq!(queue.store.left_out(&name).await.unwrap().len(), 1);
    queue.place.clock.advance(Duration::from_secs(3_600));
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.failed, round.delivered), (0, 0), "it comes after what was left out");
    assert_eq!(forwarding.idle_for(), IDLE_PAUSE);
}
