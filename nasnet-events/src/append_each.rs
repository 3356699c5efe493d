//! Appending to many streams at once.

use nasnet_dbmanager::Scope;
use tokio::sync::oneshot;

use crate::durability::{self, Way};
use crate::error::Error;
use crate::event::StreamAppend;
use crate::hot::appender::{Append, Command};
use crate::receipt::Receipt;
use crate::sealing;
use crate::store::EventStore;
use crate::window;

/// Where the answer for one stream comes from.
enum Answer {
    Ready(Result<Receipt, Error>),
    Queued(oneshot::Receiver<Result<Receipt, Error>>),
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
        let mut places = self.places(appends.iter().map(|append| append.events.len()).sum())?;
        let mut answers = Vec::with_capacity(appends.len());
        let mut hot = Vec::with_capacity(appends.len());
        let mut durable = Vec::new();
        for StreamAppend { stream, expected, events } in appends {
            let keys = sealing::for_append(self.shared(), &events).await?;
            let events = match self.record(scope, &stream, events, &keys) {
                Ok(events) => events,
                Err(error) => {
                    answers.push(Some(Answer::Ready(Err(error))));
                    continue;
                }
            };
            if matches!(durability::way(None, &events), Way::Durable) {
                durable.push((answers.len(), stream, expected, events));
                answers.push(None);
                continue;
            }
            let (reply, answer) = oneshot::channel();
            let permit = places.split(events.len()).ok_or(Error::Overloaded { queue: events.len() })?;
            hot.push(Append { scope: scope.clone(), stream, expected, events, reply, _permit: permit });
            answers.push(Some(Answer::Queued(answer)));
        }
        drop(places);
        if !hot.is_empty() {
            self.queue().send(Command::Appends(hot)).map_err(|_| Error::Closed)?;
        }
        for (index, stream, expected, events) in durable {
            answers[index] = Some(Answer::Ready(self.append_durable(scope, &stream, expected, events).await));
        }
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(match answer {
                None => Err(Error::Closed),
                Some(Answer::Ready(result)) => result,
                Some(Answer::Queued(answer)) => match answer.await {
                    Err(_) => Err(Error::Closed),
                    Ok(Err(Error::Conflict(conflict))) => Err(Error::Conflict(self.with_missed(conflict).await)),
                    Ok(result) => result,
                },
            });
        }
        Ok(results)
    }
}
