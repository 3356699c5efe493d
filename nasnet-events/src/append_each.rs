//! Appending to many streams at once.

use std::sync::Arc;

use nasnet_dbmanager::Scope;

use crate::durability::{self, Way};
use crate::error::Error;
use crate::event::StreamAppend;
use crate::hot::appender::{Append, Command, Reply, Together};
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
    /// stream after stream. Each stream is refused by itself, and a refusal leaves the others appended: for all or nothing
    /// there is [`EventStore::append_in`].
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
        window::load(self.shared(), scope).await?;
        let places = self.places(appends.iter().map(|append| append.events.len()).sum())?;
        let now = self.shared().manager.now();
        let mut sources = Vec::with_capacity(appends.len());
        let mut hot = Vec::with_capacity(appends.len());
        let mut durable = Vec::new();
        for StreamAppend { stream, expected, events } in appends {
            let keys = sealing::for_append(self.shared(), &events).await?;
            let events = match self.record(scope, &stream, events, &keys, &now) {
                Ok(events) => events,
                Err(error) => {
                    sources.push(Source::Ready(Err(error)));
                    continue;
                }
            };
            if matches!(durability::way(None, &events), Way::Durable) {
                durable.push((sources.len(), stream, expected, events));
            } else {
                hot.push((stream, expected, events));
            }
            sources.push(Source::Queued);
        }
        let (together, answers) = Together::new(hot.len(), places);
        if !hot.is_empty() {
            let queued = hot.into_iter().enumerate().map(|(index, (stream, expected, events))| {
                let reply = Reply::Together { with: Arc::clone(&together), index };
                Append { scope: scope.clone(), stream, expected, events, reply }
            });
            self.queue().send(Command::Appends(queued.collect())).map_err(|_| Error::Closed)?;
        }
        drop(together);
        for (index, stream, expected, events) in durable {
            sources[index] = Source::Ready(self.append_durable(scope, &stream, expected, events).await);
        }
        let mut answers = answers.await.map_err(|_| Error::Closed)?.into_iter();
        let mut results = Vec::with_capacity(sources.len());
        for source in sources {
            results.push(match source {
                Source::Ready(answer) => answer,
                Source::Queued => match answers.next().flatten().unwrap_or(Err(Error::Closed)) {
                    Err(Error::Conflict(conflict)) => Err(Error::Conflict(self.with_missed(conflict).await)),
                    answer => answer,
                },
            });
        }
        Ok(results)
    }
}
