//! Who appends: a caller that seems to be the only one does it on its own thread, and a task of the store does the rest.
//!
//! To wake a task on another thread costs more than a small append takes. The appender stays one future that one thread at a
//! time polls, so commands keep their order. A caller polls it once, which is one batch at most, and does not own it: whatever
//! has to be waited for is waited for by the task, and a caller that is dropped takes nothing along. Where several callers
//! come together all of it is left to the task: a commit for each of them would cost more than that they share one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
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
    /// How many batches in a row were of one caller, with nobody else there.
    calm: AtomicUsize,
    /// Batches that may be done in this poll.
    left: AtomicUsize,
}

/// So many batches of one caller are taken for a sign that there is only one.
const CALM: usize = 8;
/// Batches done for one call, and by the task before it lets others go on.
const BATCHES_OF_CALLER: usize = 1;
const BATCHES_OF_TASK: usize = 32;

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    is_closed: bool,
    /// The appender has nothing to do.
    is_idle: bool,
}

/// What whoever has added a command does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing: the appender is at work, and looks again before it waits.
    Leave,
    /// Wakes the appender's task.
    Wake,
    /// As that, or lets the appender go on itself: there seems to be no other caller.
    Do,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Adds a command.
    fn push(&self, command: Command) -> Result<Next, Error> {
        let mut state = self.state();
        if state.is_closed {
            return Err(Error::Closed);
        }
        state.commands.push_back(command);
        Ok(match mem::take(&mut state.is_idle) {
            false => Next::Leave,
            true if self.calm.load(Ordering::Relaxed) < CALM => Next::Wake,
            true => Next::Do,
        })
    }

    /// Takes note of how many commands a batch has.
    pub(crate) fn note_batch(&self, commands: usize) {
        let calm = if commands > 1 { 0 } else { self.calm.load(Ordering::Relaxed).saturating_add(1) };
        self.calm.store(calm, Ordering::Relaxed);
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
    /// Waits for the next poll when this one has done its batches.
    pub(crate) async fn receive(&self, commands: &mut Vec<Command>, most: usize) -> bool {
        poll_fn(|_| {
            {
                let mut state = self.state();
                if state.commands.is_empty() && !state.is_closed {
                    // Nobody is to be told who waits here: whoever adds a command sees to it that this is polled.
                    state.is_idle = true;
                    return Poll::Pending;
                }
            }
            let Some(left) = self.left.load(Ordering::Relaxed).checked_sub(1) else {
                self.ask();
                return Poll::Pending;
            };
            self.left.store(left, Ordering::Relaxed);
            self.take(commands, most);
            Poll::Ready(!commands.is_empty())
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
                Some(seat) if seat.turn(BATCHES_OF_TASK) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        });
        (seat, task)
    }

    /// Does a command at once, or leaves it to whoever is at it.
    pub(crate) fn send(&self, command: Command) -> Result<(), Error> {
        let is_here = || Handle::try_current().is_ok_and(|current| current.id() == self.runtime);
        match self.queue.push(command)? {
            Next::Leave => {}
            Next::Do if is_here() => {
                self.turn(BATCHES_OF_CALLER);
            }
            Next::Do | Next::Wake => self.bell.0.wake(),
        }
        Ok(())
    }

    /// Polls the appender, unless another thread is just doing so: that one sees afterwards that it was asked to. False once
    /// the appender has ended.
    fn turn(&self, batches: usize) -> bool {
        self.queue.ask();
        // Either this thread gets the lock, or who gives it back sees what was asked.
        fence(Ordering::SeqCst);
        let Ok(mut work) = self.work.try_lock() else { return true };
        if self.queue.asked.swap(false, Ordering::SeqCst) {
            self.queue.left.store(batches, Ordering::Relaxed);
            self.poll(&mut work);
        }
        let is_alive = work.is_some();
        drop(work);
        fence(Ordering::SeqCst);
        let more = self.queue.asked.load(Ordering::SeqCst);
        if more && batches == BATCHES_OF_CALLER {
            // This thread was at it, so it was another that came.
            self.queue.calm.store(0, Ordering::Relaxed);
        }
        if more || !is_alive {
            // What has come meanwhile is for the task: a caller has its answer by now.
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

    fn send(seat: &Seat) -> Answer {
        let (command, answer) = command();
        seat.send(command).unwrap();
        answer
    }

    /// The answer was there when asking for it had returned.
    fn is_done(answer: &mut Answer) -> bool {
        matches!(answer.now_or_never(), Some(Ok(Ok(()))))
    }

    async fn done(answer: Answer) {
        assert!(matches!(answer.await, Ok(Ok(()))));
    }

    /// An appender that answers every command and does nothing else, after it has been polled once more for each batch if
    /// `waits`, and panics at this command.
    async fn answering(queue: Arc<Queue>, waits: bool, panics_at: usize) {
        let (mut commands, mut done) = (Vec::new(), 0);
        while queue.receive(&mut commands, 3).await {
            queue.note_batch(commands.len());
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

    /// Lets the appender begin, and be used to a single caller.
    async fn calm(seat: &Seat) {
        for _ in 0..CALM {
            done(send(seat)).await;
            turn_of_others().await;
        }
    }

    async fn turn_of_others() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_finds_nobody_at_it_has_the_answer_when_it_has_asked() {
        let (seat, _task) = start(false, 0);
        calm(&seat).await;
        for _ in 0..5 {
            assert!(is_done(&mut send(&seat)));
        }
    }

    #[tokio::test]
    async fn those_who_come_together_are_left_to_the_task() {
        let (seat, _task) = start(false, 0);
        calm(&seat).await;
        let together: Vec<Answer> = (0..3)
            .map(|_| {
                let (command, answer) = command();
                seat.queue.push(command).unwrap();
                answer
            })
            .collect();
        seat.bell.0.wake();
        let mut alone = send(&seat);
        assert!(!is_done(&mut alone), "it is not the first of those who wait");
        for answer in together.into_iter().chain([alone]) {
            done(answer).await;
        }
        let mut next = send(&seat);
        assert!(!is_done(&mut next), "more may come");
        done(next).await;
        calm(&seat).await;
        assert!(is_done(&mut send(&seat)));
    }

    #[tokio::test]
    async fn what_is_waited_for_is_left_to_the_task() {
        let (seat, _task) = start(true, 0);
        calm(&seat).await;
        let mut answer = send(&seat);
        assert!(!is_done(&mut answer));
        done(answer).await;
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
                        assert!(matches!(send(&seat).await, Ok(Ok(()))), "caller {caller}, round {round}");
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
            let inside = other.enter();
            let answer = send(&seat);
            drop(inside);
            other.block_on(done(answer));
        }
    }
}
