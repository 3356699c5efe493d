//! Whose turn it is: operations queue for the task of the writer, and one that finds nobody before it runs at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify, mpsc};

use super::{Job, RawOperation, Writer};
use crate::observe;
use crate::schema::FileKind;

/// The largest number of operations in one transaction: enough to share a sync, few enough to bound the wait.
const GROUP_MAX: usize = 64;

/// The writer, in the hands of whoever runs operations at the moment.
pub(crate) struct Seat {
    /// `None` once it is closed.
    writer: Mutex<Option<Writer>>,
    /// Jobs that are queued or running. Only who raises it from zero may pass the queue by, so order is kept.
    before: AtomicUsize,
    /// Whether operations may run on the thread of their caller.
    passable: bool,
    /// Tells the task of the writer that the log is to be moved. Operations do not wait for it to begin.
    log_due: Notify,
    kind: FileKind,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // What was never run is no longer queued.
        observe::unqueued(self.kind, *self.before.get_mut());
    }
}

impl Seat {
    pub(crate) fn new(writer: Writer) -> Self {
        let passable = writer.is_in_memory();
        let kind = writer.vitals.kind();
        Self { writer: Mutex::new(Some(writer)), before: AtomicUsize::new(0), passable, log_due: Notify::new(), kind }
    }

    /// Counts a job about to be queued.
    pub(crate) fn join(&self) {
        self.before.fetch_add(1, Ordering::AcqRel);
        observe::queued(self.kind, 1);
    }

    /// Takes jobs back that are decided or could not be queued.
    pub(crate) fn leave(&self, jobs: usize) {
        self.before.fetch_sub(jobs, Ordering::AcqRel);
        observe::unqueued(self.kind, jobs);
    }

    /// Runs an operation on this thread if nobody is before it and nothing has to be waited for.
    pub(crate) fn run_now(&self, operation: &mut (dyn RawOperation + 'static)) -> bool {
        if !self.passable || self.before.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let (mut ran, mut is_log_due) = (false, false);
        if let Ok(mut seated) = self.writer.try_lock()
            && let Some(writer) = seated.as_mut()
        {
            ran = writer.run_now(operation);
            is_log_due = writer.is_log_due();
        }
        self.before.fetch_sub(1, Ordering::AcqRel);
        if is_log_due {
            self.log_due.notify_one();
        }
        ran
    }
}

/// Serves the queue until it is told to close or every handle is gone.
pub(crate) async fn serve(seat: Arc<Seat>, mut queue: mpsc::Receiver<Job>) {
    let mut next = None;
    loop {
        let job = match next.take() {
            Some(job) => Some(job),
            None => tokio::select! {
                biased;
                job = queue.recv() => job,
                () = seat.log_due.notified() => {
                    if let Some(writer) = seat.writer.lock().await.as_mut() {
                        writer.move_log();
                    }
                    continue;
                }
            },
        };
        let mut seated = seat.writer.lock().await;
        let Some(writer) = seated.as_mut() else { return };
        let answers = match job {
            None => {
                if let Err(error) = writer.close().await {
                    tracing::warn!(path = %writer.target.path.display(), %error, "closing the database failed");
                }
                *seated = None;
                return;
            }
            Some(Job::Close(reply)) => {
                let closed = writer.close().await;
                // Whatever slipped in behind was not run.
                queue.close();
                while let Some(job) = queue.recv().await {
                    writer.turn_away(job);
                }
                // The lock of the file goes before the answer, so that whoever waits finds the file free.
                *seated = None;
                reply.send(closed).ok();
                return;
            }
            Some(Job::Checkpoint(mode, reply)) => {
                let done = writer.checkpoint(mode).await;
                writer.charge_checkpoint();
                drop(seated);
                seat.leave(1);
                reply.send(done).ok();
                continue;
            }
            Some(Job::Write(first)) => {
                let group = gather(first, &mut queue, &mut next, |job| match job {
                    Job::Write(operation) => Ok(operation),
                    other => Err(other),
                });
                writer.commit_all(group).await
            }
            Some(Job::Raw(first)) => {
                let group = gather(first, &mut queue, &mut next, |job| match job {
                    Job::Raw(operation) => Ok(operation),
                    other => Err(other),
                });
                writer.commit_raw(group).await
            }
        };
        let is_log_due = writer.is_log_due();
        // Whoever has an answer finds the writer free.
        drop(seated);
        seat.leave(answers.len());
        answers.into_iter().for_each(|operation| operation.answer());
        if is_log_due {
            seat.log_due.notify_one();
        }
    }
}

/// Takes what is queued behind an operation and of its kind; the first job of another kind comes next.
fn gather<O>(
    first: O,
    queue: &mut mpsc::Receiver<Job>,
    next: &mut Option<Job>,
    of_its_kind: impl Fn(Job) -> Result<O, Job>,
) -> Vec<O> {
    let mut group = vec![first];
    while group.len() < GROUP_MAX {
        match queue.try_recv().map(&of_its_kind) {
            Ok(Ok(operation)) => group.push(operation),
            Ok(Err(other)) => {
                *next = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    group
}
