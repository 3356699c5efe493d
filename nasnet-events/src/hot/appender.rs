//! The one that gives positions: it drains a queue and writes each batch as one transaction of hot.db.

use std::iter;
use std::sync::Arc;

use nasnet_dbmanager::{Cause, Scope};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::block::{self, Packing};
use crate::durable::PendingReceipt;
use crate::error::{Conflict, Error};
use crate::event::Recorded;
use crate::expected::Expected;
use crate::heads::{Reservation, ReservedBy, Resolution};
use crate::hot::log::{self, Found, NewRow, Order, PLAIN_EVENTS_MAX, ROW_EVENTS_MAX, RowState};
use crate::hot::newest::Newest;
use crate::hot::seat::Queue;
use crate::hot::{flushed, purged, shed, tops};
use crate::name::StreamName;
use crate::plan::{Changes, DurableStream, Looked, Plan, Refusal};
use crate::position::Position;
use crate::receipt::{Achieved, Receipt};
use crate::shared::Shared;
use crate::window;

/// Critical, so that the bound on the hot tier is the one that holds: it gives room back, the database only refuses.
pub(crate) const APPEND: Cause = Cause::new("event-append").critical();
const RELOAD: Cause = Cause::new("event-reload");

/// Commands taken from the queue at once.
const DRAIN_MAX: usize = 1_024;
/// Bytes of bodies from which a row is compressed however few events it has.
const COMPRESS_BYTES_MIN: usize = 8 << 10;
/// What a row takes beside its body.
const ROW_BYTES: u64 = 64;
/// Bytes of bodies at which a row ends early.
const ROW_BYTES_MAX: usize = 1 << 20;
/// Times a batch is planned anew because other processes wrote; each time at least one of them made progress.
const COLLISIONS_MAX: u32 = 1_000;
/// Rows read at once while catching up with the log.
const RELOAD_ROWS: u32 = 64;

/// Appends to streams of one scope: planned one after the other, each refused by itself, and answered together.
pub(crate) struct Append {
    pub(crate) scope: Scope,
    pub(crate) parts: SmallVec<[Part; 1]>,
    /// Those of the parts, one after the other.
    pub(crate) events: Vec<Recorded>,
    pub(crate) reply: oneshot::Sender<Answers>,
    /// The events' places in the queue, given back with the answer.
    pub(crate) places: OwnedSemaphorePermit,
}

/// An append to one stream.
pub(crate) struct Part {
    pub(crate) expected: Expected,
    /// How many of the events are its own.
    pub(crate) count: usize,
}

/// What each part of an append is answered with.
pub(crate) type Answers = SmallVec<[Result<Receipt, Error>; 1]>;

impl Append {
    fn plan(&mut self, plan: &mut Plan<'_>) -> Planned {
        // All streams first: what is known of them lies scattered in memory, and is fetched at once this way.
        let (mut slots, mut at) = (SmallVec::<[_; 1]>::with_capacity(self.parts.len()), 0);
        for part in &self.parts {
            slots.push(self.events.get(at).map(|first| plan.slot(&self.scope, &first.stream)));
            at += part.count;
        }
        let mut rest = &mut self.events[..];
        let mut planned = Planned::with_capacity(self.parts.len());
        for (part, slot) in self.parts.iter().zip(slots) {
            let own = rest.split_off_mut(..part.count.min(rest.len())).unwrap_or_default();
            planned.push(slot.map_or(Err(Refusal::Empty), |slot| plan.append(slot, part.expected, own)));
        }
        planned
    }

    /// The events of the parts that are new.
    fn placed<'a>(&'a self, planned: &'a [Result<Receipt, Refusal>]) -> impl Iterator<Item = &'a Recorded> {
        let mut rest = &self.events[..];
        self.parts.iter().zip(planned).flat_map(move |(part, planned)| {
            let own = rest.split_off(..part.count.min(rest.len())).unwrap_or_default();
            if is_placed(planned) { own } else { &[] }
        })
    }

    fn refuse(self, error: &Error) {
        drop(self.reply.send(self.parts.iter().map(|_| Err(error.shared())).collect()));
    }
}

/// Positions for a transaction that is open on a scope's database.
pub(crate) struct Reserve {
    pub(crate) scope: Scope,
    pub(crate) streams: Vec<DurableStream>,
    pub(crate) looked: Looked,
    pub(crate) reply: oneshot::Sender<Result<Reserved, Error>>,
}

/// What a transaction has to store.
pub(crate) struct Reserved {
    pub(crate) streams: Vec<DurableStream>,
    /// Wherever it is dropped, even on its way to a caller that is gone, the reservation is given up.
    pub(crate) pending: PendingReceipt,
}

/// The end of a reservation.
pub(crate) struct Resolve {
    pub(crate) first: Position,
    pub(crate) last_seq: u64,
    pub(crate) resolution: Resolution,
    pub(crate) reply: oneshot::Sender<Result<(), Error>>,
}

/// What the appender is asked to do.
pub(crate) enum Command {
    Append(Append),
    Reserve(Reserve),
    Resolve(Resolve),
    /// Take into account what other processes wrote.
    CatchUp(oneshot::Sender<Result<(), Error>>),
    /// Answered already.
    Done,
    /// Answer what is queued and end.
    Stop,
}

type Planned = SmallVec<[Result<Receipt, Refusal>; 1]>;

/// Whether the events are new.
const fn is_placed(planned: &Result<Receipt, Refusal>) -> bool {
    matches!(planned, Ok(receipt) if !receipt.deduplicated)
}

/// How a command came out of a batch that was committed.
enum Outcome {
    Appended(Planned),
    Reserved(Result<(Vec<Receipt>, Option<Reservation>), Refusal>),
    Done,
}

impl Outcome {
    fn is_refused(&self) -> bool {
        match self {
            Self::Appended(planned) => planned.iter().any(Result::is_err),
            Self::Reserved(reserved) => reserved.is_err(),
            Self::Done => false,
        }
    }
}

/// One transaction of hot.db.
struct Batch {
    outcomes: Vec<Outcome>,
    rows: Vec<NewRow>,
    changes: Changes,
    epoch: u32,
}

/// Answers commands until it is told to stop.
pub(crate) async fn run(shared: Arc<Shared>, queue: Arc<Queue>) {
    let mut commands = Vec::new();
    let mut stale = false;
    // Commands of the last two batches.
    let (mut last, mut before) = (0, 0);
    while queue.receive(&mut commands, DRAIN_MAX).await {
        gather(&queue, &mut commands, (last + before) / 2).await;
        (before, last) = (last, commands.len());
        queue.note_batch(last);
        if commands.iter().any(|command| matches!(command, Command::Stop)) {
            queue.close();
        }
        stale |= commands.iter().any(|command| matches!(command, Command::CatchUp(_)));
        match commit(&shared, &mut commands, &mut stale).await {
            Ok(batch) => answer(&shared, &mut commands, batch),
            Err(error) => {
                // The transaction may or may not have committed: look before the next one.
                stale = true;
                for command in commands.drain(..) {
                    refuse(command, &error);
                }
            }
        }
    }
}

/// Waits, as long as more keep coming, until half of those who came with the last two batches are back: each who was
/// answered is awake already, and many small batches cost more than the moment this takes. Not for all of them, since those
/// of one half prepare what is next while the batch of the other is written.
async fn gather(queue: &Queue, received: &mut Vec<Command>, wanted: usize) {
    while received.len() < wanted.min(DRAIN_MAX) {
        let before = received.len();
        tokio::task::yield_now().await;
        queue.take(received, DRAIN_MAX);
        if received.len() == before {
            break;
        }
    }
}

/// Plans and writes the batch, again as long as others write at the same place.
async fn commit(shared: &Shared, commands: &mut [Command], stale: &mut bool) -> Result<Batch, Error> {
    let (mut fresh, mut relieved) = (false, false);
    for _ in 0..COLLISIONS_MAX {
        if !shared.is_current(&shared.manager.hot()) {
            turn_away(commands);
        }
        let hot = shared.hot().await?;
        let (own, epoch) = (shared.owner(), shared.heads().epoch());
        let behind = !shared.heads().is_caught_up();
        if *stale || behind || shared.heads().reservations().any(|reservation| reservation.owner != own) {
            catch_up(shared).await?;
            (*stale, fresh) = (false, true);
        }
        load_windows(shared, commands).await;
        let mut batch = plan(shared, commands)?;
        if batch.epoch != epoch || !shared.is_current(&hot) {
            continue;
        }
        // Nobody is refused for what another process has changed meanwhile.
        if !fresh && batch.outcomes.iter().any(Outcome::is_refused) {
            *stale = true;
            continue;
        }
        let resolutions = resolutions_of(commands, epoch);
        if batch.rows.is_empty() && resolutions.is_empty() {
            return Ok(batch);
        }
        let rows = std::mem::take(&mut batch.rows);
        let small = rows.iter().filter(|row| row.count <= PLAIN_EVENTS_MAX as u64).count() as u64;
        let bytes = rows.iter().map(|row| row.body.len() as u64 + ROW_BYTES).sum();
        shed::make_room(shared, &hot, epoch, bytes, false).await?;
        let written = hot
            .write_raw(APPEND, move |conn| {
                for (first_seq, last_seq, resolution) in resolutions {
                    log::resolve(conn, first_seq, last_seq, resolution)?;
                }
                log::insert(conn, epoch, &rows)
            })
            .await;
        let inserted = match written {
            // Room is made once; after that whoever fills the file system has to.
            Err(error) if is_no_space(&error) && !relieved => {
                relieved = true;
                shed::make_room(shared, &hot, epoch, bytes, true).await?;
                continue;
            }
            // Nothing of it counts any more: a new incarnation takes what was to be appended.
            Err(_) if hot.is_damaged() => {
                *stale = true;
                continue;
            }
            written => written?,
        };
        // What went into a file that is gone is appended again, to the one in its place.
        if inserted && shared.is_current(&hot) {
            shared.note_small_rows(small);
            return Ok(batch);
        }
        *stale = true;
    }
    Err(Error::Overloaded { queue: commands.len() })
}

fn is_no_space(error: &Error) -> bool {
    matches!(error, Error::Storage { source } if matches!(**source, nasnet_dbmanager::Error::NoSpace { .. }))
}

/// Answers reservations for transactions on system.db: they hold what the opening of a wiped hot tier has to write.
fn turn_away(commands: &mut [Command]) {
    for command in commands {
        if matches!(command, Command::Reserve(reserve) if reserve.scope == Scope::System) {
            refuse(std::mem::replace(command, Command::Done), &Error::Renewing);
        }
    }
}

/// Makes sure that the versions of every stream are known: callers have seen to it, but a hot tier that was wiped since
/// took with it what was known. A command whose scope cannot be read is refused.
async fn load_windows(shared: &Shared, commands: &mut [Command]) {
    let mut loaded: Option<Scope> = None;
    for command in commands {
        let scope = match &command {
            Command::Append(append) => &append.scope,
            Command::Reserve(reserve) => &reserve.scope,
            _ => continue,
        };
        if loaded.as_ref() == Some(scope) {
            continue;
        }
        match window::load(shared, scope).await {
            Ok(()) => loaded = Some(scope.clone()),
            Err(error) => refuse(std::mem::replace(command, Command::Done), &error),
        }
    }
}

/// The ends of reservations of this incarnation; those of a lost one went with it.
fn resolutions_of(commands: &[Command], epoch: u32) -> Vec<(u64, u64, Resolution)> {
    commands.iter().filter_map(|command| resolution_of(command, epoch)).collect()
}

fn resolution_of(command: &Command, epoch: u32) -> Option<(u64, u64, Resolution)> {
    match command {
        Command::Resolve(resolve) if resolve.first.epoch == epoch => {
            Some((resolve.first.seq, resolve.last_seq, resolve.resolution))
        }
        _ => None,
    }
}

fn plan(shared: &Shared, commands: &mut [Command]) -> Result<Batch, Error> {
    let mut heads = shared.heads();
    let epoch = heads.epoch();
    let mut plan = Plan::new(&mut heads);
    let mut outcomes = Vec::with_capacity(commands.len());
    for command in commands.iter_mut() {
        outcomes.push(match command {
            Command::Append(append) => Outcome::Appended(append.plan(&mut plan)),
            Command::Reserve(reserve) => {
                Outcome::Reserved(plan.reserve(&reserve.scope, shared.owner(), &mut reserve.streams, &reserve.looked))
            }
            Command::Resolve(_) | Command::CatchUp(_) | Command::Done | Command::Stop => Outcome::Done,
        });
    }
    let changes = plan.into_changes();
    drop(heads);
    let rows = rows_of(commands, &outcomes)?;
    Ok(Batch { outcomes, rows, changes, epoch })
}

/// The events that are written as blocks of the hot tier.
fn hot_events<'a>(command: &'a Command, outcome: &'a Outcome) -> impl Iterator<Item = &'a Recorded> {
    let append = match (command, outcome) {
        (Command::Append(append), Outcome::Appended(planned)) => Some((append, planned)),
        _ => None,
    };
    append.into_iter().flat_map(|(append, planned)| append.placed(planned))
}

fn rows_of(commands: &[Command], outcomes: &[Outcome]) -> Result<Vec<NewRow>, Error> {
    let mut rows = Vec::new();
    let mut run: Vec<&Recorded> = Vec::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        run.extend(hot_events(command, outcome));
        if let (Command::Reserve(reserve), Outcome::Reserved(Ok((receipts, Some(reservation))))) = (command, outcome) {
            add_rows(&mut rows, &std::mem::take(&mut run), None)?;
            let reserved = ReservedBy {
                first_seq: reservation.first_seq,
                scope: reservation.scope.clone(),
                owner: reservation.owner,
            };
            let streams = reserve.streams.iter().zip(receipts).filter(|(_, receipt)| !receipt.deduplicated);
            let events: Vec<&Recorded> = streams.flat_map(|(append, _)| &append.events).collect();
            add_rows(&mut rows, &events, Some(&reserved))?;
        }
    }
    add_rows(&mut rows, &run, None)?;
    Ok(rows)
}

/// Events of the next row: as many as may share one, and fewer when they are long.
fn row_length(events: &[&Recorded]) -> usize {
    let mut bytes = 0_usize;
    let fits = |event: &&&Recorded| {
        bytes = bytes.saturating_add(event.body.get().len());
        bytes <= ROW_BYTES_MAX
    };
    events.iter().take(ROW_EVENTS_MAX).take_while(fits).count().max(1)
}

/// A row with room for another like it is compressed when they are joined; any other at once, as nobody would come back to it.
fn packing_of(events: &[&Recorded]) -> Packing<'static> {
    let bytes: usize = events.iter().map(|event| event.body.get().len()).sum();
    if events.len() <= PLAIN_EVENTS_MAX && bytes < COMPRESS_BYTES_MIN { Packing::Plain } else { Packing::Zstd(1) }
}

fn add_rows(rows: &mut Vec<NewRow>, events: &[&Recorded], reserved: Option<&ReservedBy>) -> Result<(), Error> {
    let mut rest = events;
    while let Some(first) = rest.first() {
        let (chunk, later) = rest.split_at(row_length(rest));
        rest = later;
        let (body, _) =
            block::encode(chunk, packing_of(chunk)).map_err(|error| Error::corrupt("batch of events", error))?;
        let (first_seq, count) = (first.position.seq, chunk.len() as u64);
        rows.push(NewRow { first_seq, count, reserved: reserved.cloned(), body });
    }
    Ok(())
}

/// Makes a committed batch known and answers its callers.
fn answer(shared: &Arc<Shared>, commands: &mut Vec<Command>, batch: Batch) {
    let Batch { outcomes, changes, epoch, .. } = batch;
    let mut heads = shared.heads();
    // Others may have begun a new incarnation since; what is known of it does not come from this batch.
    if heads.epoch() == epoch {
        let reservation = |outcome: &Outcome| match outcome {
            Outcome::Reserved(Ok((_, reservation))) => reservation.clone(),
            _ => None,
        };
        let reservations = outcomes.iter().filter_map(reservation).collect();
        let hot = commands.iter().zip(&outcomes).flat_map(|(command, outcome)| hot_events(command, outcome));
        heads.commit(changes, hot, reservations);
        for (seq, _, resolution) in commands.iter().filter_map(|command| resolution_of(command, epoch)) {
            heads.resolve(seq, resolution);
        }
    }
    drop(heads);
    shared.note_backlog();
    shared.note_moved();
    let mut newest = shared.newest();
    for (command, outcome) in commands.drain(..).zip(outcomes) {
        match (command, outcome) {
            (Command::Append(append), Outcome::Appended(planned)) => {
                answer_append(shared, &mut newest, epoch, append, planned);
            }
            (Command::Reserve(reserve), Outcome::Reserved(result)) => answer_reserve(shared, epoch, reserve, result),
            (Command::Resolve(resolve), Outcome::Done) => drop(resolve.reply.send(Ok(()))),
            (Command::CatchUp(reply), Outcome::Done) => drop(reply.send(Ok(()))),
            _ => {}
        }
    }
}

fn answer_append(shared: &Shared, newest: &mut Newest, epoch: u32, append: Append, planned: Planned) {
    let Append { scope, parts, mut events, reply, places } = append;
    if !planned.iter().all(is_placed) {
        let placed =
            parts.iter().zip(&planned).flat_map(|(part, planned)| iter::repeat_n(is_placed(planned), part.count));
        let mut placed = placed.collect::<Vec<_>>().into_iter();
        events.retain(|_| placed.next().unwrap_or(false));
    }
    let answers = planned
        .into_iter()
        .zip(parts)
        .map(|(planned, part)| planned.map_err(|refusal| refused(shared, refusal, &scope, |_| part.expected)));
    drop(reply.send(answers.collect()));
    drop(places);
    // Nobody waits for this any more.
    newest.add(epoch, events);
}

fn answer_reserve(
    shared: &Arc<Shared>,
    epoch: u32,
    reserve: Reserve,
    result: Result<(Vec<Receipt>, Option<Reservation>), Refusal>,
) {
    let Reserve { scope, mut streams, reply, .. } = reserve;
    let result = match result {
        Err(refusal) => {
            let append_of = |stream: &StreamName| streams.iter().find(|append| append.stream == *stream);
            let expected = |stream: &StreamName| append_of(stream).map_or(Expected::Any, |append| append.expected);
            Err(refused(shared, refusal, &scope, expected))
        }
        Ok((receipts, reservation)) => {
            let range = reservation.map(|held| (Position::new(epoch, held.first_seq), held.last_seq()));
            if let Some((first, _)) = range {
                shared.in_flight.take_off(first, &scope);
            }
            // There is nothing left to write of what is known already.
            for (append, _) in streams.iter_mut().zip(&receipts).filter(|(_, receipt)| receipt.deduplicated) {
                append.events.clear();
            }
            Ok(Reserved { streams, pending: PendingReceipt::new(Arc::clone(shared), range, receipts) })
        }
    };
    drop(reply.send(result));
}

/// The error for a refusal of events that were to go where they were expected to.
fn refused(shared: &Shared, refusal: Refusal, scope: &Scope, expected: impl FnOnce(&StreamName) -> Expected) -> Error {
    match refusal {
        Refusal::Conflict { stream, actual } => {
            let expected = expected(&stream);
            let tail_lost = matches!(expected, Expected::Exact(version) if version > actual) && shared.has_losses();
            let scope = scope.clone();
            Error::Conflict(Box::new(Conflict { scope, stream, expected, actual, since: Vec::new(), tail_lost }))
        }
        Refusal::IdReused(id) => Error::IdReused { id },
        Refusal::Unresolved(id) => Error::Unresolved { id },
        Refusal::OnlyHot => Error::NotDurable { reached: Some(Achieved::Hot), source: None },
        Refusal::Empty => Error::Invalid { what: "append", value: scope.to_string(), why: "it holds no event" },
        Refusal::OutOfPositions => {
            Error::Invalid { what: "position", value: scope.to_string(), why: "the epoch has no more positions" }
        }
    }
}

fn refuse(command: Command, error: &Error) {
    match command {
        Command::Append(append) => append.refuse(error),
        Command::Reserve(reserve) => drop(reserve.reply.send(Err(error.shared()))),
        Command::Resolve(resolve) => drop(resolve.reply.send(Err(error.shared()))),
        Command::CatchUp(reply) => drop(reply.send(Err(error.shared()))),
        Command::Done | Command::Stop => {}
    }
}

/// Takes into account what stands in the log beyond what is known, and how the reservations of others ended. Only the
/// appender may call it (or the opening of the store): anyone else would take a batch that is just being written for the
/// work of others.
pub(crate) async fn catch_up(shared: &Shared) -> Result<(), Error> {
    let own = shared.owner();
    let mut left_open = false;
    loop {
        let hot = shared.hot().await?;
        let (epoch, from, foreign) = {
            let heads = shared.heads();
            if heads.file() != hot.file_uid() {
                continue;
            }
            let foreign: Vec<u64> =
                heads.reservations().filter(|held| held.owner != own).map(|held| held.first_seq).collect();
            (heads.epoch(), heads.next_seq(), foreign)
        };
        // One snapshot: a reservation that ends between two pages shows in the next look at all that are known.
        let (view, resolved, rows, (flushed, purged), tops) = hot
            .read(RELOAD, move |conn| {
                Box::pin(async move {
                    let resolved =
                        if foreign.is_empty() { Vec::new() } else { log::resolutions(conn, &foreign).await? };
                    let all = (from, i64::MAX.cast_unsigned());
                    let rows = log::page(conn, epoch, all, Order::Forwards, RELOAD_ROWS, None).await?;
                    let view = log::view(conn).await?;
                    // What nobody here has seen may have left the log.
                    let is_missed = view.floor.is_some_and(|floor| floor > from) || rows.iter().any(|row| row.shed > 0);
                    let tops = if is_missed { tops::list(conn).await? } else { Vec::new() };
                    let others = (flushed::read(conn).await?, purged::list(conn, from).await?);
                    Ok::<_, Error>((view, resolved, rows, others, tops))
                })
            })
            .await?;
        let rows: Vec<_> = rows.into_iter().map(|row| (row.events(), row)).collect();
        let mut heads = shared.heads();
        if heads.epoch() != epoch {
            continue;
        }
        for (scope, stream, version) in tops {
            heads.note_version(&scope, &stream, version);
        }
        for (first_seq, found) in resolved {
            match found {
                Found::Open => {}
                Found::Ended(resolution) => heads.resolve(first_seq, resolution),
                // Its row has left the log meanwhile: the database of its scope tells how it ended.
                Found::Gone => {
                    heads.abandon(first_seq);
                    left_open = true;
                }
            }
        }
        // The rest of a reservation may stand in the next rows.
        heads.set_caught_up(false);
        let mut grown = false;
        let mut purged = purged.into_iter().peekable();
        for (events, row) in rows {
            while let Some((scope, _)) = purged.next_if(|(_, through)| *through <= row.first_seq) {
                heads.forget_scope(&scope);
            }
            let known = heads.next_seq();
            if row.last_seq() < known {
                continue;
            }
            grown = true;
            if row.shed > 0 {
                // Of which streams they were is not known any more.
                heads.note_unknown(row.first_seq, row.last_seq());
            }
            let next_seq = row.last_seq() + 1;
            let mut events = events.unwrap_or_else(|error| {
                heads.note_unknown(row.first_seq, row.last_seq());
                tracing::error!(%error, "the events of a row of the hot log are not known");
                Vec::new()
            });
            // Rows that were known may have been joined with others since.
            events.retain(|event| event.position.seq >= known);
            match row.state {
                RowState::Block => heads.note_block(&events, false),
                RowState::Mirrored => heads.note_block(&events, true),
                // A reservation of our own that is not known here comes from a write whose outcome was unknown.
                RowState::Reserved(reserved) => {
                    left_open = true;
                    heads.note_reserved(&reserved, reserved.owner == own, row.count, &events);
                }
                RowState::Void | RowState::Shed => {}
            }
            heads.advance_to(next_seq);
        }
        // Blocks stay long after they were flushed, by whatever process.
        heads.backlog_mut().flushed(&flushed);
        if !grown {
            // Nothing is being written now, so what is known ends where the log does.
            heads.end_at(view.end + 1);
            heads.set_caught_up(true);
            break;
        }
    }
    if left_open {
        shared.resolver.notify_one();
    }
    if shared.heads().has_grown() {
        shared.grown.notify_one();
    }
    shared.note_moved();
    Ok(())
}
