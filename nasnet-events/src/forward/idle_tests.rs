//! How long a forwarder rests, asked without resting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nasnet_dbmanager::{BoxFuture, Cause, Database, DbManager, ManualClock, NewRouter, Options, RouterId, Scope};

use crate::consumer::{Consumer, ConsumerName};
use crate::error::Error;
use crate::event::NewEvent;
use crate::expected::Expected;
use crate::flush::FlushReason;
use crate::forward::pause::IDLE_PAUSE;
use crate::forward::{Batch, Delivery, Forwarder, Sink};
use crate::name::{EventType, StreamName};
use crate::options::EventOptions;
use crate::store::EventStore;

const EMPTY_HOT: &str = "INSERT INTO hot_log (first_seq, count, state, scope, reservation)
        SELECT MAX(first_seq + count), 1, 'void', 'system', MAX(first_seq + count) FROM hot_log;
    DELETE FROM hot_log WHERE first_seq < (SELECT MAX(first_seq) FROM hot_log)";
const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";

struct Place {
    _dir: tempfile::TempDir,
    clock: ManualClock,
    manager: DbManager,
    store: EventStore,
    router: Scope,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(1_795_000_000_000);
        let mut options = Options::new(dir.path().join("data")).run_dir(dir.path().join("run"));
        options = options.schemas(crate::schema_sets());
        options.clock = Arc::new(clock.clone());
        let manager = DbManager::open(options).await.unwrap();
        let id = RouterId::parse("r1").unwrap();
        manager.create_router(NewRouter::new(id.clone())).await.unwrap();
        let options = EventOptions { stall_after: Duration::ZERO, ..EventOptions::default() };
        let store = EventStore::open(&manager, options).await.unwrap();
        Self { _dir: dir, clock, manager, store, router: Scope::Router(id) }
    }

    async fn append(&self) {
        let event = NewEvent::new(self.manager.next_ulid(), EventType::parse("resource.updated").unwrap(), &1).unwrap();
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
    let place = Place::new().await;
    let sink = Scripted::retries();
    let forwarder = place.forwarder(&sink);
    let mut forwarding = forwarder.open().await.unwrap();
    place.append().await;
    assert_eq!(forwarding.round().await.unwrap().failed, 1, "the stream is blocked");
    place.clock.advance(Duration::from_secs(121));
    assert!(forwarding.idle_for() < IDLE_PAUSE, "it is due");
    *sink.0.lock().unwrap() = Delivery::Offline { why: "told by a test".to_owned() };
    assert!(forwarding.round().await.unwrap().offline.is_some());
    assert_eq!(forwarding.idle_for(), IDLE_PAUSE);
}

#[tokio::test]
async fn a_stream_of_a_scope_that_cannot_be_read_is_not_due() {
    let place = Place::new().await;
    let sink = Scripted::retries();
    let forwarder = place.forwarder(&sink);
    let mut forwarding = forwarder.open().await.unwrap();
    place.append().await;
    assert_eq!(forwarding.round().await.unwrap().failed, 1, "the stream is blocked");
    place.append().await;
    place.store.flush(FlushReason::Requested).await.unwrap();
    place.run(&place.manager.hot(), EMPTY_HOT).await;
    let database = place.manager.scope(&place.router).await.unwrap();
    place.run(&database, BREAK).await;
    forwarding.round().await.unwrap();
    let name = ConsumerName::parse("cloud").unwrap();
    assert_eq!(place.store.left_out(&name).await.unwrap().len(), 1);
    place.clock.advance(Duration::from_secs(3_600));
    let round = forwarding.round().await.unwrap();
    assert_eq!((round.failed, round.delivered), (0, 0), "it comes after what was left out");
    assert_eq!(forwarding.idle_for(), IDLE_PAUSE);
}
