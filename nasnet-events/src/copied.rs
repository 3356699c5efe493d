//! Which frames of an archive hold nothing that this very database did not hold when they were written, Low events aside. It
//! holds that still, until retention removes it, so a read that has looked there needs none of them.
//!
//! The database notes where the archive ended then, by the digest of the archive's chain. One that comes back as it was has
//! the note of that time, and so it says nothing about frames that were written later; one that is built from a backup has
//! none until it is archived again; another medium has another chain.

use std::cmp::Reverse;
use std::collections::HashSet;

use sqlx::SqliteConnection;

use crate::chain::Digest;
use crate::class::Class;
use crate::error::Error;
use crate::merge::Range;
use crate::position::Position;
use crate::query::Query;

const NOTED: &str = "SELECT after_pos, last_pos, digest FROM event_copied WHERE file_uid = ?1";
/// What retention removed is in the archive alone. What sealing removed is in segments.
const HELD: &str = "SELECT MAX(after_pos, COALESCE((SELECT MAX(through_pos) FROM event_retained WHERE what <> -4), 0)), \
     last_pos, digest FROM event_copied WHERE file_uid = ?1";
const WRITE: &str = "INSERT INTO event_copied (one, file_uid, after_pos, last_pos, digest) VALUES (1, ?1, ?2, ?3, ?4) \
     ON CONFLICT (one) DO UPDATE SET file_uid = excluded.file_uid, after_pos = excluded.after_pos, \
     last_pos = excluded.last_pos, digest = excluded.digest";

/// Where an archive of a scope ends: its last event, and its chain behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tip {
    pub(crate) last: Position,
    pub(crate) digest: Digest,
}

/// The archive that ends at `tip`, from after a position on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) after: Position,
    pub(crate) tip: Tip,
}

/// What is looked at of a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) last: Position,
    /// The chain before the frame and after it.
    pub(crate) chain: (Digest, Digest),
}

impl Copied {
    /// What is to be noted when an archive that ended at `mounted` was added to, up to `tip`. What stood there before counts
    /// when it was copied from here.
    pub(crate) fn grown(before: Option<Self>, mounted: Option<Tip>, tip: Tip) -> Self {
        let from_here = before.filter(|before| Some(before.tip) == mounted);
        let after = from_here.map(|before| before.after).or(mounted.map(|mounted| mounted.last));
        Self { after: after.unwrap_or(Position::START), tip }
    }

    /// The part behind an event that is not in the database, if there is any.
    pub(crate) fn beyond(self, lacking: Option<Position>) -> Option<Self> {
        let after = lacking.map_or(self.after, |lacking| self.after.max(lacking));
        (after < self.tip.last).then_some(Self { after, ..self })
    }

    /// Those of the frames of an archive that stand in its chain before the tip and reach beyond `low`, by the chain behind
    /// each. None when the tip is not among them: it is another archive.
    pub(crate) fn chained(&self, low: Position, mut links: Vec<Link>) -> HashSet<Digest> {
        links.retain(|link| link.last > self.after.max(low) && link.last <= self.tip.last);
        links.sort_unstable_by_key(|link| Reverse(link.last));
        let mut next = self.tip.digest;
        let mut chained = HashSet::new();
        for Link { last, chain } in links {
            if chain.1 == next && (last == self.tip.last || !chained.is_empty()) {
                chained.insert(chain.1);
                next = chain.0;
            }
        }
        chained
    }

    /// True when the database holds what a query wants of a chained frame with events of these classes in this range. Low
    /// events are copied from the hot tier.
    pub(crate) fn has(&self, range: Range, classes: u8, query: &Query) -> bool {
        range.low >= self.after && classes & query.class_bits() & Class::Low.bit() == 0
    }
}

/// What was copied from the database, as far as it still holds it. `file_uid` is that of the file: one built from the rows
/// of another may have its note without its events.
pub(crate) async fn read(conn: &mut SqliteConnection, file_uid: [u8; 16]) -> Result<Option<Copied>, Error> {
    find(conn, HELD, file_uid).await
}

/// What was copied from the database.
pub(crate) async fn noted(conn: &mut SqliteConnection, file_uid: [u8; 16]) -> Result<Option<Copied>, Error> {
    find(conn, NOTED, file_uid).await
}

async fn find(conn: &mut SqliteConnection, sql: &'static str, file_uid: [u8; 16]) -> Result<Option<Copied>, Error> {
    let found: Option<(i64, i64, Vec<u8>)> = sqlx::query_as(sql).bind(&file_uid[..]).fetch_optional(conn).await?;
    Ok(found.and_then(|(after, last, digest)| {
        let tip = Tip { last: Position::from_key(last)?, digest: Digest::from_slice(&digest)? };
        Some(Copied { after: Position::from_key(after)?, tip })
    }))
}

/// Notes what was copied from the database.
pub(crate) async fn note(conn: &mut SqliteConnection, file_uid: [u8; 16], copied: Copied) -> Result<(), Error> {
    let Copied { after, tip } = copied;
    sqlx::query(WRITE)
        .bind(&file_uid[..])
        .bind(after.to_key()?)
        .bind(tip.last.to_key()?)
        .bind(&tip.digest.0[..])
        .execute(conn)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn position(seq: u64) -> Position {
        Position::new(1, seq)
    }

    const fn digest(number: u8) -> Digest {
        Digest([number; 32])
    }

    /// Frames of ten events, each with its number for the chain behind it.
    fn link(number: u8) -> Link {
        Link { last: position(u64::from(number) * 10), chain: (digest(number - 1), digest(number)) }
    }

    const fn tip(number: u8) -> Tip {
        Tip { last: position(number as u64 * 10), digest: digest(number) }
    }

    #[test]
    fn an_archive_that_was_copied_from_here_grows_and_another_counts_from_its_end_on() {
        let first = Copied::grown(None, None, tip(2));
        assert_eq!(first, Copied { after: Position::START, tip: tip(2) });
        let second = Copied::grown(Some(first), Some(tip(2)), tip(3));
        assert_eq!(second, Copied { after: Position::START, tip: tip(3) });
        let other = Tip { digest: digest(9), ..tip(2) };
        for mounted in [other, tip(4)] {
            let grown = Copied::grown(Some(first), Some(mounted), tip(5));
            assert_eq!(grown, Copied { after: mounted.last, tip: tip(5) });
        }
        assert_eq!(
            Copied::grown(Some(first), None, tip(3)).after,
            Position::START,
            "an empty medium has no other events"
        );
    }

    #[test]
    fn what_the_database_lacks_is_left_to_the_archive() {
        let copied = Copied { after: position(10), tip: tip(4) };
        assert_eq!(copied.beyond(None), Some(copied));
        assert_eq!(copied.beyond(Some(position(5))), Some(copied));
        assert_eq!(copied.beyond(Some(position(25))), Some(Copied { after: position(25), ..copied }));
        assert_eq!(copied.beyond(Some(position(40))), None);
    }

    #[test]
    fn frames_count_that_stand_in_the_chain_before_the_tip() {
        let copied = Copied { after: position(10), tip: tip(4) };
        let links = || (1..=6).rev().map(link).collect::<Vec<_>>();
        let chained = |links| copied.chained(Position::START, links);
        let of = |numbers: &[u8]| numbers.iter().map(|number| digest(*number)).collect::<HashSet<_>>();
        assert_eq!(chained(links()), of(&[2, 3, 4]));
        assert_eq!(copied.chained(position(25), links()), of(&[3, 4]));
        for last in [25, 30] {
            let strange = Link { last: position(last), chain: (digest(8), digest(9)) };
            assert_eq!(chained([vec![strange], links()].concat()), of(&[2, 3, 4]));
        }
        let without = |gone: u8| links().into_iter().filter(|at| at.last != link(gone).last).collect();
        assert_eq!(chained(without(3)), of(&[4]));
        assert_eq!(chained(without(4)), of(&[]), "another archive");
        let other = Copied { tip: Tip { digest: digest(7), ..tip(4) }, ..copied };
        assert_eq!(other.chained(Position::START, links()), of(&[]));
    }

    #[test]
    fn what_was_removed_and_low_events_are_looked_for_in_the_archive() {
        let copied = Copied { after: position(10), tip: tip(4) };
        let after = |seq| Range { low: position(seq), high: position(40) };
        let (normal, all) = (Class::Normal.bit(), Class::Low.bit() | Class::Normal.bit());
        assert!(copied.has(after(10), normal, &Query::all()));
        assert!(!copied.has(after(9), normal, &Query::all()));
        assert!(!copied.has(after(10), all, &Query::all()));
        assert!(copied.has(after(10), all, &Query::all().class(Class::Normal)));
        assert!(!copied.has(after(10), all, &Query::all().class(Class::Normal).class(Class::Low)));
    }
}
