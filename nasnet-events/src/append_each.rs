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

/// Where the answer for one stream comes from.
enum Source {
    Ready(Result<Receipt, Error>),
    /// The appender, in the order of the queue.
    Queued,
}

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
        let mut sources = Vec::with_capacity(appends.len());
        let (mut parts, mut hot) = (SmallVec::with_capacity(appends.len()), Vec::with_capacity(count));
        let (mut durable, mut durable_streams) = (Vec::new(), HashSet::new());
        for StreamAppend { stream, expected, events } in appends {
            let before = hot.len();
            if let Err(error) = self.record(scope, &stream, events, &keys, &now, &mut hot) {
                sources.push(Source::Ready(Err(error)));
                continue;
            }
            // What follows durable events of its stream is appended behind them.
            let follows = !durable.is_empty() && durable_streams.contains(&stream);
            if follows || matches!(durability::way(None, &hot[before..]), Way::Durable) {
                durable_streams.insert(stream.clone());
                durable.push((sources.len(), stream, expected, hot.split_off(before)));
            } else {
                parts.push(Part { expected, count: hot.len() - before });
            }
            sources.push(Source::Queued);
        }
        let queued = async {
            if parts.is_empty() { Ok(Answers::new()) } else { self.append_hot(scope, parts, hot, places).await }
        };
        let stored = async {
            let mut answers = Vec::with_capacity(durable.len());
            for (index, stream, expected, events) in durable {
                answers.push((index, self.append_durable(scope, &stream, expected, events).await));
            }
            answers
        };
        // The hot part is queued first, and nobody waits for one before the other.
        let (queued, stored) = tokio::join!(biased; queued, stored);
        for (index, answer) in stored {
            sources[index] = Source::Ready(answer);
        }
        let mut answers = queued?.into_iter();
        let mut results = Vec::with_capacity(sources.len());
        for source in sources {
            results.push(match source {
                Source::Ready(answer) => answer,
                Source::Queued => match answers.next().unwrap_or(Err(Error::Closed)) {
                    Err(Error::Conflict(conflict)) => Err(Error::Conflict(self.with_missed(conflict).await)),
                    answer => answer,
                },
            });
        }
        Ok(results)
    }
}
