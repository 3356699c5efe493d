//! Requests for leases are counted by how they were decided, without a key or a holder.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::{World, exclusive, manager};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use nasnet_locking::{Error, observe};

/// One sum per series, written `name{label=value}`; a histogram counts its values.
#[derive(Clone, Default)]
struct Book {
    sums: Arc<Mutex<BTreeMap<String, u64>>>,
    described: Arc<Mutex<Vec<String>>>,
}

struct Line(Book, String);

impl Line {
    fn add(&self, amount: u64) {
        *self.0.sums.lock().unwrap().entry(self.1.clone()).or_default() += amount;
    }
}

impl CounterFn for Line {
    fn increment(&self, value: u64) {
        self.add(value);
    }
    fn absolute(&self, _: u64) {}
}

impl HistogramFn for Line {
    fn record(&self, _: f64) {
        self.add(1);
    }
}

impl Book {
    fn line(&self, key: &Key) -> Arc<Line> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Line(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn sum(&self, name: &str, labels: &str) -> u64 {
        self.sums.lock().unwrap().get(&format!("{name}{{{labels}}}")).copied().unwrap_or_default()
    }

    /// Every series was described, by a name that the documentation has.
    fn is_documented(&self, of: &str) {
        let page = include_str!("../../docs/metrics.md");
        let described = self.described.lock().unwrap();
        for series in self.sums.lock().unwrap().keys().filter(|series| series.starts_with(of)) {
            let name = series.split('{').next().unwrap();
            assert!(described.iter().any(|described| described == name), "{name} is not described");
            assert!(page.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
        }
    }
}

impl Recorder for Book {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().unwrap().push(key.as_str().to_owned());
    }
    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }
    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.line(key))
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.line(key))
    }
}

// The recorder is that of the process, so this is one test.
#[tokio::test]
async fn each_request_is_counted_once_when_it_is_decided() {
    let book = Book::default();
    metrics::set_global_recorder(book.clone()).unwrap();
    observe::describe();
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let counted = || {
        let of = |outcome: &str| {
            let label = format!("outcome={outcome}");
            assert_eq!(book.sum(observe::ACQUIRES, &label), book.sum(observe::WAIT_SECONDS, &label), "{outcome}");
            book.sum(observe::ACQUIRES, &label)
        };
        (of("granted"), of("held"), of("failed"))
    };
    let guard = locks.acquire(exclusive("router/r1/wan", "ann")).await.unwrap();
    assert_eq!(counted(), (1, 0, 0));
    for _ in 0..2 {
        assert!(matches!(locks.acquire(exclusive("router/r1/wan", "bob")).await, Err(Error::Held { .. })));
    }
    assert_eq!(counted(), (1, 2, 0));
    guard.release().await.unwrap();
    db.shutdown().await.unwrap();
    assert!(locks.acquire(exclusive("router/r1/wan", "bob")).await.is_err());
    assert_eq!(counted(), (1, 2, 1));
    let sums = book.sums.lock().unwrap().clone();
    assert!(sums.keys().all(|series| !series.contains("wan") && !series.contains("bob")), "{sums:?}");
    book.is_documented("nasnet_lock_");
}
