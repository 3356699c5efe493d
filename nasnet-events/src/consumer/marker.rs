//! Where markers of lost and removed events stand in the order a consumer is shown. Pure.

use crate::consumer::{Filter, Item, LeftOut};
use crate::epoch::TailLost;
use crate::event::Recorded;
use crate::position::Position;
use crate::truncation::Truncated;

/// What a consumer has behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    /// Every event up to here.
    pub(crate) position: Position,
    /// Every removal that reaches up to here or less far. Ahead of `position` between such a marker and the event at the
    /// removal's last position.
    pub(crate) told: Position,
}

impl Mark {
    /// Everything up to a position, removals included.
    pub(crate) const fn at(position: Position) -> Self {
        Self { position, told: position }
    }
}

/// The marker of a lost tail stands behind all events of its epoch and before those of the next.
pub(crate) const fn place_of_loss(lost: &TailLost) -> Position {
    Position::new(lost.epoch + 1, 0)
}

/// An item and what is told by acknowledging it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) item: Item,
    /// The removal that is told with it: the last of those that end at one position stands for all of them.
    pub(crate) tells: Option<Position>,
}

/// Puts the events of a page and the markers that belong among them in order. The page begins after `low` and ends with
/// `through`; removals that end beyond it are left to a later page, and those the consumer was told are left out.
pub(crate) fn arrange(
    (low, through): (Position, Position),
    told: Position,
    filter: &Filter,
    events: Vec<Recorded>,
    losses: &[TailLost],
    removed: &[Truncated],
    left_out: &[LeftOut],
) -> Vec<Placed> {
    // Of one place the loss comes first: what was removed afterwards ends at an event of the next epoch. A removal stands
    // directly before the event at its end, if that is still there.
    let mut markers: Vec<(Position, Placed)> = Vec::new();
    for lost in losses {
        let place = place_of_loss(lost);
        if place > low && place <= through {
            let item = Item::TailLost { lost: *lost, position: place };
            markers.push((place, Placed { item, tells: None }));
        }
    }
    let mut wanted: Vec<&Truncated> = removed
        .iter()
        .filter(|removed| removed.through > low.max(told) && removed.through <= through)
        .filter(|removed| removed.scope.as_ref().is_none_or(|scope| filter.wants_scope(scope)))
        .collect();
    wanted.sort_by_key(|removed| removed.through);
    for (index, removed) in wanted.iter().enumerate() {
        let is_last = wanted.get(index + 1).is_none_or(|next| next.through != removed.through);
        let position = removed.through.before();
        let item = Item::Truncated { removed: (*removed).clone(), position };
        markers.push((removed.through, Placed { item, tells: is_last.then_some(removed.through) }));
    }
    for left in left_out {
        let position = left.after;
        let item = Item::LeftOut { left: left.clone(), position };
        markers.push((Position::new(position.epoch, position.seq + 1), Placed { item, tells: None }));
    }
    markers.sort_by_key(|(place, _)| *place);

    let mut arranged = Vec::with_capacity(events.len() + markers.len());
    let mut markers = markers.into_iter().peekable();
    for event in events {
        while let Some((_, marker)) = markers.next_if(|(place, _)| *place <= event.position) {
            arranged.push(marker);
        }
        arranged.push(Placed { item: Item::Event(event), tells: None });
    }
    arranged.extend(markers.map(|(_, marker)| marker));
    arranged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary;
    use crate::truncation::TruncatedBy;

    fn removed(after: Position, through: Position) -> Truncated {
        Truncated { after, through, events: 1, lost: 0, by: TruncatedBy::Shed, scope: None }
    }

    proptest! {
        /// However the order is cut into pages, and wherever the consumer begins anew, what it acknowledged is not shown
        /// again and everything else is shown once.
        #[test]
        fn every_event_and_marker_is_shown_once_in_any_pages(
            events in arbitrary::events(1..30),
            cuts in prop::collection::vec(0..60_usize, 0..6),
            gone in prop::collection::vec((0..30_usize, 0..30_usize), 0..5),
            restart in 0..40_usize,
        ) {
            let places: Vec<Position> = events.iter().map(|event| event.position).collect();
            let end = places.last().copied().unwrap_or(Position::START);
            let removals: Vec<Truncated> = gone
                .iter()
                .map(|(a, b)| (places[a % places.len()], places[b % places.len()]))
                .map(|(a, b)| removed(a.min(b).before(), a.max(b)))
                .collect();
            let losses: Vec<TailLost> =
                (1..=3).map(|epoch| TailLost { epoch, after_seq: 0 }).filter(|lost| place_of_loss(lost) <= end).collect();
            let show = |mark: Mark, cuts: &[usize]| {
                let mut ends: Vec<Position> = cuts.iter().map(|cut| places[cut % places.len()]).collect();
                ends.retain(|cut| *cut > mark.position);
                ends.push(end);
                ends.sort();
                ends.dedup();
                let (mut low, mut shown) = (mark.position, Vec::new());
                for through in ends {
                    let page = events.iter().filter(|event| event.position > low && event.position <= through);
                    let page = page.cloned().collect();
                    shown.extend(arrange((low, through), mark.told, &Filter::all(), page, &losses, &removals, &[]));
                    low = low.max(through);
                }
                shown
            };
            let key = |placed: &Placed| format!("{:?}", placed.item);
            let whole: Vec<String> = show(Mark::at(Position::START), &[]).iter().map(key).collect();
            let paged = show(Mark::at(Position::START), &cuts);
            prop_assert_eq!(&paged.iter().map(key).collect::<Vec<_>>(), &whole);
            prop_assert_eq!(whole.len(), events.len() + losses.len() + removals.len());

            // Acknowledge some, then begin anew.
            let mut mark = Mark::at(Position::START);
            let taken = restart.min(paged.len());
            for placed in &paged[..taken] {
                mark.position = mark.position.max(placed.item.position());
                mark.told = mark.told.max(mark.position).max(placed.tells.unwrap_or(Position::START));
            }
            let rest: Vec<String> = show(mark, &cuts).iter().map(key).collect();
            // Only markers of one place may be told again, as a group.
            prop_assert!(rest.len() >= whole.len() - taken);
            prop_assert_eq!(&rest[rest.len() - (whole.len() - taken)..], &whole[taken..]);
            let again = &rest[..rest.len() - (whole.len() - taken)];
            prop_assert!(again.iter().all(|item| item.starts_with("Truncated")), "{again:?}");
            if paged.get(taken.wrapping_sub(1)).is_some_and(|last| last.tells.is_some() || matches!(last.item, Item::Event(_))) {
                prop_assert!(again.is_empty(), "{again:?}");
            }
        }
    }
}
