//! Who appends: a caller that finds nobody at it does it on its own thread, and a task of the store does the rest.
//!
//! To wake a task on another thread costs more than a small append takes. The appender stays one future that one thread at a
//! time polls, so commands keep their order. A caller polls it once, which is one batch at most, and does not own it: whatever
//! has to be waited for is waited for by the task, and a caller that is dropped takes nothing along.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use tokio::runtime::{self, Handle};

use crate::error::Error;
use crate::hot::appender::Command;

/// What the appender is asked to do, in order.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Somebody wants the appender to be polled.
    asked: AtomicBool,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    is_closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    fn push(&self, command: Command) -> Result<(), Error> {
        let mut state = self.state();
        if state.is_closed {
            return Err(Error::Closed);
        }
        state.commands.push_back(command);
        Ok(())
    }

    /// Takes no more commands; those that wait are done.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
    }

    /// Takes commands that wait, until there are so many.
    pub(crate) fn take(&self, commands: &mut Vec<Command>, most: usize) {
        let mut state = self.state();
        let count = most.saturating_sub(commands.len()).min(state.commands.len());
        commands.extend(state.commands.drain(..count));
    }

    /// Waits for commands and takes them. False once the queue is closed and empty.
    ///
    /// Never in the poll it is called in: whoever polls has done one batch then.
    pub(crate) async fn receive(&self, commands: &mut Vec<Command>, most: usize) -> bool {
        let mut rested = false;
        poll_fn(|_| {
            let is_closed = {
                let state = self.state();
                if !mem::replace(&mut rested, true) {
                    if !state.commands.is_empty() || state.is_closed {
                        self.ask();
                    }
                    return Poll::Pending;
                }
                state.is_closed
            };
            // Nobody is to be told who waits here: whoever adds a command asks for a poll.
            self.take(commands, most);
            if commands.is_empty() && !is_closed { Poll::Pending } else { Poll::Ready(!commands.is_empty()) }
        })
        .await
    }
}

/// Wakes the task of the appender.
#[derive(Default)]
struct Bell(AtomicWaker);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

/// The appender, and whose turn it is to let it go on.
pub(crate) struct Seat {
    queue: Arc<Queue>,
    /// `None` once it has ended.
    work: Mutex<Option<BoxFuture<'static, ()>>>,
    bell: Arc<Bell>,
    waker: Waker,
    /// What the appender waits for belongs to the runtime it was started on.
    runtime: runtime::Id,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.bell.0.wake();
    }
}

impl Seat {
    /// Starts an appender on the current runtime. The task ends with it, or when nobody holds the seat any more.
    pub(crate) fn start(
        appender: impl FnOnce(Arc<Queue>) -> BoxFuture<'static, ()>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (queue, bell) = (Arc::new(Queue::default()), Arc::new(Bell::default()));
        let seat = Arc::new(Self {
            work: Mutex::new(Some(appender(Arc::clone(&queue)))),
            queue,
            waker: Waker::from(Arc::clone(&bell)),
            bell: Arc::clone(&bell),
            runtime: Handle::current().id(),
        });
        let held = Arc::downgrade(&seat);
        let task = poll_fn(move |context| {
            bell.0.register(context.waker());
            match held.upgrade() {
                Some(seat) if seat.turn() => Poll::Pending,
                _ => Poll::Ready(()),
            }
        });
        (seat, task)
    }

    /// Does a command at once, or leaves it to whoever is at it.
    pub(crate) fn send(&self, command: Command) -> Result<(), Error> {
        self.queue.push(command)?;
        if Handle::try_current().is_ok_and(|current| current.id() == self.runtime) {
            self.turn();
        } else {
            self.queue.ask();
            self.bell.0.wake();
        }
        Ok(())
    }

    /// Polls the appender, unless another thread is just doing so: that one sees afterwards that it was asked to. False once
    /// the appender has ended.
    fn turn(&self) -> bool {
        self.queue.ask();
        // Either this thread gets the lock, or who gives it back sees what was asked.
        fence(Ordering::SeqCst);
        let Ok(mut work) = self.work.try_lock() else { return true };
        if self.queue.asked.swap(false, Ordering::SeqCst) {
            self.poll(&mut work);
        }
        let is_alive = work.is_some();
        drop(work);
        fence(Ordering::SeqCst);
        if self.queue.asked.load(Ordering::SeqCst) || !is_alive {
            // More has come. That is for the task: a caller has its answer by now.
            self.bell.0.wake();
        }
        is_alive
    }

    fn poll(&self, work: &mut Option<BoxFuture<'static, ()>>) {
        let Some(mut appender) = work.take() else { return };
        let mut context = Context::from_waker(&self.waker);
        // The panic of one command is not that of whoever happens to do it.
        match catch_unwind(AssertUnwindSafe(|| appender.as_mut().poll(&mut context))) {
            Ok(Poll::Pending) => *work = Some(appender),
            ended => {
                if ended.is_err() {
                    tracing::error!("the appender panicked: the store takes no more events until it is opened again");
                }
                self.queue.close();
                // Whoever waits for one of these learns that the store is closed.
                drop(mem::take(&mut self.queue.state().commands));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    use super::*;

    type Answer = oneshot::Receiver<Result<(), Error>>;

    fn command() -> (Command, Answer) {
        let (reply, answer) = oneshot::channel();
        (Command::CatchUp(reply), answer)
    }

    /// An appender that answers every command and does nothing else, after it has been polled once more for each batch if
    /// `waits`, and panics at this command.
    async fn answering(queue: Arc<Queue>, waits: bool, panics_at: usize) {
        let (mut commands, mut done) = (Vec::new(), 0);
        while queue.receive(&mut commands, 3).await {
            if waits {
                tokio::task::yield_now().await;
            }
            for command in commands.drain(..) {
                done += 1;
                assert_ne!(done, panics_at, "as asked for");
                match command {
                    Command::CatchUp(reply) => drop(reply.send(Ok(()))),
                    _ => queue.close(),
                }
            }
        }
    }

    fn start(waits: bool, panics_at: usize) -> (Arc<Seat>, tokio::task::JoinHandle<()>) {
        let (seat, task) = Seat::start(|queue| Box::pin(answering(queue, waits, panics_at)));
        (seat, tokio::spawn(task))
    }

    async fn turn_of_others() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_finds_nobody_at_it_has_the_answer_when_it_has_asked() {
        let (seat, _task) = start(false, 0);
        turn_of_others().await;
        for _ in 0..5 {
            let (command, answer) = command();
            seat.send(command).unwrap();
            assert!(matches!(answer.now_or_never(), Some(Ok(Ok(())))));
        }
    }

    #[tokio::test]
    async fn what_is_waited_for_is_left_to_the_task() {
        let (seat, _task) = start(true, 0);
        turn_of_others().await;
        let (command, mut answer) = command();
        seat.send(command).unwrap();
        assert!((&mut answer).now_or_never().is_none());
        assert!(matches!(answer.await, Ok(Ok(()))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_is_forgotten_however_many_come_at_once() {
        for waits in [false, true] {
            let (seat, task) = start(waits, 0);
            let mut callers = JoinSet::new();
            for caller in 0..16 {
                let seat = Arc::clone(&seat);
                callers.spawn(async move {
                    for round in 0..500 {
                        let (command, answer) = command();
                        seat.send(command).unwrap();
                        assert!(matches!(answer.await, Ok(Ok(()))), "caller {caller}, round {round}");
                    }
                });
            }
            while let Some(caller) = callers.join_next().await {
                caller.unwrap();
            }
            seat.send(Command::Stop).unwrap();
            task.await.unwrap();
            assert!(matches!(seat.send(command().0), Err(Error::Closed)));
        }
    }

    #[tokio::test]
    async fn a_panic_closes_the_queue_and_is_nobody_elses() {
        let (seat, task) = start(true, 2);
        let answers: Vec<Answer> = (0..5)
            .map(|_| {
                let (command, answer) = command();
                // Those that come after the panic are refused.
                drop(seat.send(command));
                answer
            })
            .collect();
        let answers: Vec<bool> = futures_util::future::join_all(answers).await.iter().map(Result::is_ok).collect();
        assert_eq!(answers, [true, false, false, false, false]);
        assert!(matches!(seat.send(command().0), Err(Error::Closed)));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn the_task_ends_with_the_last_who_holds_the_seat() {
        let (seat, task) = start(false, 0);
        turn_of_others().await;
        drop(seat);
        task.await.unwrap();
    }

    #[test]
    fn a_caller_on_another_runtime_leaves_it_to_the_task() {
        let own = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let seat = own.block_on(async { start(true, 0).0 });
        let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            let (command, answer) = command();
            other.block_on(async { seat.send(command) }).unwrap();
            assert!(matches!(other.block_on(answer), Ok(Ok(()))));
        }
    }
}
