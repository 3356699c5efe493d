//! Walks that are told about wrongly on purpose: each must be noticed, and its honest twin pass.

use nasnet_benches::events::Random;
use nasnet_events::Position;

use super::readers::Follower;
use super::retention::{self, DAY, Policy};
use super::{Walk, YEARS_56_MS};
use crate::events::{self, NOW_MS, Seen, Told, Way};
use crate::{Controls, Failure};

/// A lost tail that is not told of, and events that are read by the wall clock, must be noticed.
pub(crate) fn control(seed: u64) -> Result<Controls, Failure> {
    events::runtime()?.block_on(async {
        let mut random = Random::new(seed);
        let mut walk = Walk::begin(NOW_MS, Policy::Default, true).await?;
        for _ in 0..20 {
            walk.append(Way::Append, &mut random, false).await?;
        }
        walk.reopen(false, true).await?;
        let mut seen = events::look(&walk.open).await;
        let honest = seen.judge(&walk.promises).is_none();
        seen.losses.clear();
        let swallowed = seen.judge(&walk.promises).is_some();
        walk.open.close(false).await?;
        drop(walk.place);
        let mut controls = vec![("loss that is not told", swallowed), ("honest twin passes", honest)];
        controls.extend(refusal_control(&mut random).await?);
        controls.extend(retention_control(&mut random).await?);
        Ok(controls)
    })
}

/// A refused call of which a part is there, or comes later, and an event that is read with another version must be noticed.
async fn refusal_control(random: &mut Random) -> Result<Controls, Failure> {
    let mut walk = Walk::begin(NOW_MS, Policy::Default, true).await?;
    walk.append(Way::Append, random, false).await?;
    let call = events::append_some(&walk.open, &mut walk.numbers, Way::Commit, 0, 3, random).await?;
    let call = call.map_err(|(_, error)| error)?;
    let hidden = call[1].number;
    // As if its receipt had been an error.
    let mut refused = walk.promises.clone();
    refused.refused.push(call.into_iter().map(|told| Told { position: Position::START, version: 0, ..told }).collect());
    let judge = |seen: &Seen| {
        let mut promises = refused.clone();
        promises.resolve(seen);
        (seen.judge(&promises).is_some(), promises)
    };
    let seen = events::look(&walk.open).await;
    let honest = !judge(&seen).0;
    let mut half = events::look(&walk.open).await;
    half.hide(hidden);
    let half = judge(&half).0;
    let mut other = events::look(&walk.open).await;
    other.facts.entry(hidden).and_modify(|facts| facts.version += 1);
    let other = judge(&other).0;
    let mut nothing = events::look(&walk.open).await;
    (hidden - 1..=hidden + 1).for_each(|number| nothing.hide(number));
    let (is_wrong, promises) = judge(&nothing);
    let later = !is_wrong && seen.judge(&promises).is_some();
    walk.open.close(false).await?;
    drop(walk.place);
    Ok(vec![
        ("refused call that is there passes", honest),
        ("half of a refused call", half),
        ("another version", other),
        ("refused call that comes later", later),
    ])
}

/// A retention that removes a young event, and one that a consumer does not hear of, must be noticed.
async fn retention_control(random: &mut Random) -> Result<Controls, Failure> {
    let mut walk = Walk::begin(NOW_MS, Policy::Default, false).await?;
    for _ in 0..8 {
        walk.append(Way::Commit, random, false).await?;
    }
    walk.mark_age().await?;
    walk.pass(40 * DAY);
    walk.append(Way::Commit, random, false).await?;
    walk.snapshots.set(Some(Position::END));
    let before = walk.warm().await?;
    let plan = walk.open.store.retention_plan().await?;
    let report = walk.open.store.retain(walk.open.store.retention_plan().await?).await?;
    let honest = walk.compare(&before, Some(&plan), Some(&report), false).await?.is_none() && report.events > 0;
    let before = walk.warm().await?;
    let young = walk.promises.told.last().ok_or("nothing was appended")?.clone();
    retention::remove_row(&walk.open, &young).await?;
    let removed = walk.compare(&before, None, None, true).await?.is_some();
    walk.promises.told.pop();
    walk.reopen(false, true).await?;
    let deaf = Follower::new().follow(&walk.open, &walk.promises, None, true).await?.is_some();
    let hears = Follower::new().follow(&walk.open, &walk.promises, None, false).await?.is_none();
    walk.open.close(false).await?;
    drop(walk.place);
    Ok(vec![
        ("retention of what is old passes", honest),
        ("young event removed", removed),
        ("removal that is not told", deaf),
        ("removal that is told passes", hears),
    ])
}

/// Events that are read by the wall clock must be noticed.
pub(crate) fn clock_control(seed: u64) -> Result<Controls, Failure> {
    events::runtime()?.block_on(async {
        let mut random = Random::new(seed);
        let mut walk = Walk::begin(NOW_MS, Policy::Default, true).await?;
        walk.append(Way::Append, &mut random, false).await?;
        walk.clock.set_wall_ms(NOW_MS - YEARS_56_MS);
        walk.append(Way::Append, &mut random, false).await?;
        let mut seen = events::look(&walk.open).await;
        let honest = seen.judge(&walk.promises).is_none();
        let mut by_clock: Vec<_> = seen.wall_ms.iter().copied().zip(seen.events.iter().copied()).collect();
        by_clock.sort_by_key(|(wall_ms, _)| *wall_ms);
        seen.events = by_clock.into_iter().map(|(_, event)| event).collect();
        let noticed = seen.judge(&walk.promises).is_some();
        walk.open.close(false).await?;
        Ok(vec![("order by the wall clock", noticed), ("honest twin passes", honest)])
    })
}
