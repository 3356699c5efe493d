//! The recorder of metrics that the tests of this crate and of those above it read.
#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// One sum per series, written `name{label=value,...}`; a histogram adds a series of its own for the number of values.
#[derive(Clone, Default)]
pub struct Book {
    pub sums: Arc<Mutex<BTreeMap<String, f64>>>,
    pub described: Arc<Mutex<Vec<String>>>,
}

struct Line(Book, String);

impl Book {
    fn line(&self, key: &Key) -> Arc<Line> {
        let mut labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        labels.sort();
        Arc::new(Line(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        self.sums.lock().unwrap().get(&format!("{name}{{{labels}}}")).copied().unwrap_or_default()
    }

    /// A sum that is a number of things.
    pub fn count(&self, name: &str, labels: &str) -> u64 {
        let sum = self.sum(name, labels);
        assert_eq!(sum.fract(), 0.0, "{name}");
        format!("{sum:.0}").parse().unwrap()
    }

    /// Every series was described, by a name that the documentation has.
    pub fn is_documented(&self, of: &str) {
        let page = include_str!("../../../docs/metrics.md");
        let described = self.described.lock().unwrap();
        for series in self.sums.lock().unwrap().keys().filter(|series| series.starts_with(of)) {
            let name = series.split('{').next().unwrap();
            assert!(described.iter().any(|described| described == name), "{name} is not described");
            assert!(page.contains(&format!("`{name}`")), "docs/metrics.md does not name {name}");
        }
    }
}

impl Line {
    fn add(&self, amount: f64) {
        *self.0.sums.lock().unwrap().entry(self.1.clone()).or_default() += amount;
    }
}

impl CounterFn for Line {
    fn increment(&self, value: u64) {
        self.add(f64::from(u32::try_from(value).unwrap()));
    }
    fn absolute(&self, _: u64) {}
}

impl GaugeFn for Line {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, value: f64) {
        self.add(-value);
    }
    fn set(&self, _: f64) {}
}

impl HistogramFn for Line {
    fn record(&self, _: f64) {
        self.add(1.0);
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
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.line(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.line(key))
    }
}
