//! Appending to many streams at once.

use foldhash::{HashSet, HashSetExt as _};
use nasnet_dbmanager::Scope;
use smallvec::SmallVec;

use crate::durability::{self, Way};
use crate::error::Error;
use crate::event::StreamAppend;
use crate::hot::appender::{Answers, Part};
use crate::receipt::Receipt;
use crate::sealing;
use crate::store::EventStore;
use crate::window;

impl EventStore {
    /// Appends to many streams of one scope, each as [`EventStore::append`] would, and answers for each in the same order.
    /// What goes to the hot tier shares one commit, whatever the number of streams; what is durable at once is written
    /// stream after stream, and with it what follows it in the same stream. Each stream is refused by itself, and a refusal
    /// leaves the others appended: for all or nothing there is [`EventStore::append_in`].
    ///
    /// # Errors
    /// An outer error means that nothing was appended: [`Error::Overloaded`], [`Error::Closed`], or [`Error::Storage`] when
    /// the warm tier of the scope cannot be read. The inner ones are those of [`EventStore::append`].
    ///
    /// # Cancel safety
    /// A dropped call may have appended some or all; appending the same ids again answers with the same receipts.
    pub async fn append_each(
        &self,
        scope: &Scope,
        appends: Vec<StreamAppend>,
    ) -> Result<Vec<Result<Receipt, Error>>, Error> {
        let shared = self.shared();
        window::load(shared, scope).await?;
        let count = appends.iter().map(|append| append.events.len()).sum();
        let bodies = appends.iter().flat_map(|append| &append.events).map(|event| event.body.get().len());
        let places = self.places(bodies)?;
        let keys = sealing::for_append(shared, appends.iter().flat_map(|append| &append.events)).await?;
        let now = shared.manager.now();
        // The answers that do not come from the appender, each with the place of its stream.
        let mut elsewhere: Vec<(usize, Result<Receipt, Error>)> = Vec::new();
        let (mut parts, mut hot) = (SmallVec::with_capacity(appends.len()), Vec::with_capacity(count));
        let (mut durable, mut durable_streams) = (Vec::new(), HashSet::new());
        for (at, StreamAppend { stream, expected, events }) in appends.into_iter().enumerate() {
            let before = hot.len();
            if let Err(error) = self.record(scope, &stream, events, &keys, &now, &mut hot) {
                elsewhere.push((at, Err(error)));
                continue;
            }
            // What follows durable events of its stream is appended behind them.
            let follows = !durable.is_empty() && durable_streams.contains(&stream);
            if follows || matches!(durability::way(None, &hot[before..]), Way::Durable) {
                durable_streams.insert(stream.clone());
                durable.push((at, stream, expected, hot.split_off(before)));
            } else {
                parts.push(Part { expected, count: hot.len() - before });
            }
        }
        let queued = async {
            if parts.is_empty() { Ok(Answers::new()) } else { self.append_hot(scope, parts, hot, places).await }
        };
        let stored = async {
            let mut answers = Vec::with_capacity(durable.len());
            for (at, stream, expected, events) in durable {
                answers.push((at, self.append_durable(scope, &stream, expected, events).await));
            }
            answers
        };
        // The hot part is queued first, and nobody waits for one before the other.
        let (queued, stored) = tokio::join!(biased; queued, stored);
        let mut results = queued?.into_vec();
        elsewhere.extend(stored);
        elsewhere.sort_unstable_by_key(|(at, _)| *at);
        for (at, answer) in elsewhere {
            results.insert(at.min(results.len()), answer);
        }
        for result in &mut results {
            if let Err(Error::Conflict(_)) = result
                && let Err(Error::Conflict(conflict)) = std::mem::replace(result, Err(Error::Closed))
            {
                *result = Err(Error::Conflict(self.with_missed(conflict).await));
            }
        }
        Ok(results)
    }
}
