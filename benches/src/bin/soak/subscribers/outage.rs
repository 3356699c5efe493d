//! A router whose database cannot be read for a while, and consumers of all scopes that go on without it: each is told of it
//! once, is shown everything of the others, and once the router is back is told that once and reads what it was not shown.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use nasnet_benches::events::Random;
use nasnet_dbmanager::{DbManager, RouterId, Scope};
use nasnet_events::{
    Consumer, ConsumerName, Error, EventStore, EventType, Expected, Filter, FlushReason, Item, LeftOut, NewEvent,
    Position, StartAt, StreamName, Subscription,
};
use sqlx::SqliteConnection;

use super::{CAUSE, KINDS, ROUTERS};
use crate::{Failure, Found};

/// Whoever has not been shown what it waits for after so long hangs, on a busy machine as well.
const PATIENCE: Duration = Duration::from_secs(300);
const BREAK: &str = "ALTER TABLE event_segments RENAME TO elsewhere";
const MEND: &str = "ALTER TABLE elsewhere RENAME TO event_segments";
/// Leaves nothing of the hot log but what says where the order goes on.
const EMPTY_HOT: &str = "INSERT INTO hot_log (first_seq, count, state, scope, reservation) \
         SELECT MAX(first_seq + count), 1, 'void', 'system', MAX(first_seq + count) FROM hot_log; \
     DELETE FROM hot_log WHERE first_seq < (SELECT MAX(first_seq) FROM hot_log)";
/// The router that breaks.
const BROKEN: &str = ROUTERS[1];

/// How the consumers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As they should.
    Honest,
    /// A control: they do not hear that something is left out.
    Deaf,
    /// A control: they do not come back for what was left out.
    Careless,
}

/// What a consumer does between the outage and the return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Stays,
    /// It acknowledges everything, goes, and comes back.
    Returns,
    /// It goes without having acknowledged anything, and begins anew.
    Forgets,
}

/// One consumer of all scopes, and what it was shown.
struct Follower {
    name: ConsumerName,
    filter: Filter,
    between: Between,
    shown: Vec<Position>,
    late: Vec<Position>,
    left: Vec<LeftOut>,
    returned: Vec<LeftOut>,
}

impl Follower {
    fn new(number: usize, manner: Manner, random: &mut Random) -> Result<Self, Failure> {
        let filter = if number == 0 { Filter::all().kind_prefix("config") } else { Filter::all() };
        // Whoever begins anew has nothing to come back to, so a control could not fail.
        let choices = if manner == Manner::Honest { 3 } else { 2 };
        let between = [Between::Stays, Between::Returns, Between::Forgets][usize::try_from(random.below(choices))?];
        let name = ConsumerName::parse(&format!("outage-{number}"))?;
        let (shown, late, left, returned) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { name, filter, between, shown, late, left, returned })
    }

    async fn subscribe(&self, store: &EventStore) -> Result<Subscription, Error> {
        let consumer = Consumer::new(self.name.clone()).filter(self.filter.clone()).capacity(16);
        store.subscribe(consumer.from(StartAt::Now)).await
    }

    /// Takes what it is shown until it has caught up, or until `enough`.
    async fn read(
        &mut self,
        subscription: &mut Subscription,
        manner: Manner,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<Position, Failure> {
        let reading = async {
            while let Some(item) = subscription.next().await {
                let item = item?;
                let position = item.position();
                let caught_up = matches!(item, Item::CaughtUp { .. });
                match item {
                    Item::Event(event) => self.shown.push(event.position),
                    Item::LeftOut { .. } if manner == Manner::Deaf => {}
                    Item::LeftOut { left, .. } => self.left.push(left),
                    Item::Returned { left, retired: false, .. } => self.returned.push(left),
                    Item::Lagged { .. } | Item::CaughtUp { .. } => {}
                    other => return Err(format!("{}: is shown {other:?}", self.name).into()),
                }
                if caught_up || enough(self) {
                    return Ok(position);
                }
            }
            Err("the stream of a consumer ends".into())
        };
        let waited = tokio::time::timeout(PATIENCE, reading).await;
        waited.map_err(|_| "a consumer is not shown what it waits for")?
    }

    /// What is wrong with what it was shown, of the events it was to see.
    fn judge(&self, wanted: &[Position]) -> Option<String> {
        let broken: Scope = BROKEN.parse().ok()?;
        if self.shown.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Some(format!("was shown events twice or out of order: {:?}", self.shown));
        }
        if let Some(again) = self.late.iter().find(|position| self.shown.contains(position)) {
            return Some(format!("was shown {again}, and found it among what was left out"));
        }
        let seen: BTreeSet<&Position> = self.shown.iter().chain(&self.late).collect();
        if let Some(missed) = wanted.iter().find(|position| !seen.contains(position)) {
            return Some(format!("was never shown {missed}"));
        }
        // Whoever begins anew reads everything once the router is back, and has nothing to come back to.
        let times = if self.between == Between::Forgets { 0 } else { 1 };
        let told = |list: &[LeftOut]| list.len() == times && list.iter().all(|left| left.scope == broken);
        if !told(&self.left) || !told(&self.returned) || self.left != self.returned {
            return Some(format!("{:?}: was told of {:?} and {:?}", self.between, self.left, self.returned));
        }
        None
    }
}

/// Breaks a router, lets consumers go on, and mends it. Whatever fails is something that was found.
pub(super) async fn run(db: &DbManager, store: &EventStore, random: &mut Random, manner: Manner, found: &mut Found) {
    if let Err(error) = break_and_mend(db, store, random, manner, found).await {
        found.broken.push(format!("an outage: {error}"));
    }
}

async fn break_and_mend(
    db: &DbManager,
    store: &EventStore,
    random: &mut Random,
    manner: Manner,
    found: &mut Found,
) -> Result<(), Failure> {
    let mut followers: Vec<Follower> =
        (0..3).map(|number| Follower::new(number, manner, random)).collect::<Result<_, _>>()?;
    let mut start = Position::START;
    for follower in &mut followers {
        let mut subscription = follower.subscribe(store).await?;
        start = follower.read(&mut subscription, manner, |_| false).await?;
        subscription.ack(start).await?;
        subscription.close().await?;
    }
    for _ in 0..1 + random.below(3) {
        for _ in 0..3 + random.below(20) {
            append(db, store, None, random).await?;
        }
        store.flush(FlushReason::Requested).await?;
    }
    // One in each, whatever else there is: the range that is left out must hold something.
    append(db, store, Some(BROKEN), random).await?;
    store.flush(FlushReason::Requested).await?;
    alter(db, None, EMPTY_HOT).await?;
    let mut wanted = wanted_of(store, &followers, start).await?;

    alter(db, Some(BROKEN), BREAK).await?;
    let mut open = Vec::new();
    for follower in &mut followers {
        // One that is interrupted reads all of it again, and is told again.
        if random.below(2) == 0 {
            let some = usize::try_from(1 + random.below(6))?;
            let mut subscription = follower.subscribe(store).await?;
            follower.read(&mut subscription, manner, |follower| follower.shown.len() >= some).await?;
            subscription.close().await?;
            follower.begin_anew();
            found.count("interrupted_in_an_outage", 1);
        }
        let mut subscription = follower.subscribe(store).await?;
        let through = follower.read(&mut subscription, manner, |_| false).await?;
        open.push(match follower.between {
            Between::Stays => {
                subscription.ack(through).await?;
                Some(subscription)
            }
            Between::Returns => {
                subscription.ack(through).await?;
                subscription.close().await?;
                None
            }
            Between::Forgets => {
                subscription.close().await?;
                follower.begin_anew();
                None
            }
        });
    }
    // Those who stay are shown the others live.
    append(db, store, Some(ROUTERS[0]), random).await?;
    alter(db, Some(BROKEN), MEND).await?;
    append(db, store, Some(BROKEN), random).await?;
    let last = append(db, store, Some(ROUTERS[0]), random).await?;
    let before = std::mem::replace(&mut wanted, wanted_of(store, &followers, start).await?);
    if wanted.iter().zip(&before).any(|(wanted, before)| !wanted.starts_with(before)) {
        return Err("events are gone with the outage".into());
    }
    for ((follower, subscription), wanted) in followers.iter_mut().zip(open).zip(&wanted) {
        let mut subscription = match subscription {
            Some(subscription) => subscription,
            None => follower.subscribe(store).await?,
        };
        let times = usize::from(follower.between != Between::Forgets);
        let is_done = |follower: &Follower| {
            follower.shown.last().is_some_and(|shown| *shown >= last) && follower.returned.len() >= times
        };
        while !is_done(follower) {
            follower.read(&mut subscription, manner, is_done).await?;
        }
        if manner != Manner::Careless {
            for left in &follower.returned {
                let late = store.read(left.query(&follower.filter)).map_ok(|event| event.position);
                follower.late.extend(late.try_collect::<Vec<_>>().await?);
                store.settle(&follower.name, left).await?;
            }
        }
        // One more, with which anything that is told twice would come.
        let another = append(db, store, Some(ROUTERS[0]), random).await?;
        let is_shown = |follower: &Follower| follower.shown.last().is_some_and(|shown| *shown >= another);
        while !is_shown(follower) {
            follower.read(&mut subscription, manner, is_shown).await?;
        }
        subscription.close().await?;
        let unsettled = store.left_out(&follower.name).await?;
        if manner == Manner::Honest && !unsettled.is_empty() {
            found.broken.push(format!("{}: {unsettled:?} is not settled", follower.name));
        }
        found.broken.extend(follower.judge(wanted).map(|what| format!("{}: {what}", follower.name)));
        found.cases += (follower.shown.len() + follower.late.len()) as u64;
        found.count("left_out_told", follower.left.len() as u64);
        found.count("returns_told", follower.returned.len() as u64);
        found.count("read_after_a_return", follower.late.len() as u64);
    }
    Ok(())
}

impl Follower {
    /// It forgets what it was shown and did not acknowledge.
    fn begin_anew(&mut self) {
        self.shown.clear();
        self.left.clear();
        self.returned.clear();
    }
}

/// What each consumer is to see behind a position.
async fn wanted_of(store: &EventStore, followers: &[Follower], after: Position) -> Result<Vec<Vec<Position>>, Failure> {
    let mut all = Vec::new();
    for follower in followers {
        let events = store.read(follower.filter.query().after(after)).map_ok(|event| event.position);
        all.push(events.try_collect().await?);
    }
    Ok(all)
}

/// Appends to a router, one event that every consumer wants, or to any scope, some of any kind.
async fn append(
    db: &DbManager,
    store: &EventStore,
    router: Option<&str>,
    random: &mut Random,
) -> Result<Position, Failure> {
    let (scope, kind) = match router {
        Some(router) => (Scope::Router(RouterId::parse(router)?), KINDS[1]),
        None => {
            let kind = KINDS[[0, 0, 0, 1, 2][usize::try_from(random.below(5))?]];
            match random.below(3) {
                0 => (Scope::System, kind),
                router => (Scope::Router(RouterId::parse(ROUTERS[usize::try_from(router - 1)?])?), kind),
            }
        }
    };
    let event = NewEvent::new(db.next_ulid(), EventType::parse(kind)?, &random.number())?;
    let stream = StreamName::parse(&format!("s{}", random.below(5)))?;
    Ok(store.append(&scope, &stream, Expected::Any, vec![event]).await?.last)
}

/// Runs a statement on the database of a router, or on hot.db, past the store.
async fn alter(db: &DbManager, router: Option<&str>, sql: &'static str) -> Result<(), Failure> {
    match router {
        None => db.hot().write(CAUSE, move |conn| Box::pin(execute(conn, sql))).await?,
        Some(router) => {
            let database = db.scope(&Scope::Router(RouterId::parse(router)?)).await?;
            database.write(CAUSE, move |conn| Box::pin(execute(conn, sql))).await?;
        }
    }
    Ok(())
}

async fn execute(conn: &mut SqliteConnection, sql: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(sql).execute(conn).await?;
    Ok(())
}
