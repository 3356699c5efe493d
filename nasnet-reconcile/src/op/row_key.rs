//! How a step finds its row: marker first, then natural key, then the handle.

use serde::{Deserialize, Serialize};

use super::image::{Image, Sight};
use crate::device::{MenuPath, Row, RowId};

/// The length of the identity kept in a marker: eight characters of the random part of a ULID.
const MARKER_ID_LEN: usize = 8;
const MARKER_PREFIX: &str = "nn:";

/// One row as read, ready to be matched: marker split from the comment, content in canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRow {
    /// The handle; `None` in a menu of one row.
    pub id: Option<RowId>,
    /// The marker found in the comment.
    pub marker: Option<String>,
    /// The content.
    pub image: Image,
}

impl SeenRow {
    /// Takes a row as it is printed, with no knowledge of its kind: only the marker is split from the comment.
    pub fn verbatim(row: Row) -> Self {
        let mut image = row.fields;
        let comment = image.remove("comment").unwrap_or_default();
        let (own, marker) = split_comment(&comment);
        if !own.is_empty() {
            image.insert("comment".to_owned(), own.to_owned());
        }
        Self { id: row.id, marker: marker.map(str::to_owned), image }
    }
}

/// What identifies the row of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowKey {
    /// The menu of the row.
    pub menu: MenuPath,
    /// The marker we put into its comment, if the row carries one.
    pub marker: Option<String>,
    /// Natural keys: the row answers to any of them, so that a step which renames its row finds it on both sides.
    pub natural: Vec<Image>,
    /// The last known handle: used only for rows with neither marker nor natural key.
    pub handle: Option<RowId>,
}

impl RowKey {
    /// Finds the row among all rows of the menu.
    ///
    /// A marker decides alone. Without one in sight, the natural key is asked; a row that carries somebody else's marker
    /// does not answer to a handle.
    pub fn resolve(&self, rows: &[SeenRow]) -> Sight {
        match self.locate(rows) {
            Ok(at) => Sight::Row { id: rows[at].id.clone(), image: rows[at].image.clone() },
            Err(none) => none,
        }
    }

    /// Finds the place of the row among all rows of the menu; `Err` says why there is none.
    ///
    /// # Errors
    ///
    /// [`Sight::Absent`] or [`Sight::Ambiguous`].
    pub fn locate<'a, I>(&self, rows: I) -> Result<usize, Sight>
    where
        I: IntoIterator<Item = &'a SeenRow>,
        I::IntoIter: Clone,
    {
        let rows = rows.into_iter().enumerate();
        if let Some(marker) = &self.marker {
            let marked = only(rows.clone().filter(|(_, row)| row.marker.as_ref() == Some(marker)));
            if marked != Err(Sight::Absent) {
                return marked;
            }
        }
        let keyed = only(rows.clone().filter(|(_, row)| self.natural.iter().any(|key| holds(row, key))));
        if let Err(Sight::Ambiguous { .. }) = &keyed
            && let Some(handle) = &self.handle
        {
            // A device may hold twins; of these, the one that also has the handle of the time before is meant.
            let same = |(_, row): &(usize, &SeenRow)| row.id.as_ref() == Some(handle) && row.marker.is_none();
            let twins = rows.clone().filter(|(_, row)| self.natural.iter().any(|key| holds(row, key)));
            return only(twins.filter(same)).or(keyed);
        }
        if keyed != Err(Sight::Absent) {
            return keyed;
        }
        if self.natural.is_empty()
            && let Some(handle) = &self.handle
        {
            let foreign = |row: &SeenRow| row.marker.is_some() && row.marker != self.marker;
            return only(rows.filter(|(_, row)| row.id.as_ref() == Some(handle) && !foreign(row)));
        }
        let mut first = rows.clone();
        match (first.next(), first.next()) {
            (Some((at, row)), None) if row.id.is_none() => Ok(at),
            _ => Err(Sight::Absent),
        }
    }
}

fn holds(row: &SeenRow, key: &Image) -> bool {
    !key.is_empty() && key.iter().all(|(name, value)| row.image.get(name) == Some(value))
}

fn only<'a>(rows: impl Iterator<Item = (usize, &'a SeenRow)>) -> Result<usize, Sight> {
    let found: Vec<usize> = rows.map(|(at, _)| at).collect();
    match found.as_slice() {
        [] => Err(Sight::Absent),
        [at] => Ok(*at),
        several => Err(Sight::Ambiguous { rows: several.len() }),
    }
}

/// Returns the marker of a resource, from the random part of its id (the time part is shared by a whole import).
pub fn marker_of(uid: ulid::Ulid) -> String {
    let text = uid.to_string().to_ascii_lowercase();
    format!("{MARKER_PREFIX}{}", &text[text.len() - MARKER_ID_LEN..])
}

/// Puts a marker behind the user's own comment.
pub fn mark_comment(comment: &str, marker: &str) -> String {
    if comment.is_empty() { marker.to_owned() } else { format!("{comment} {marker}") }
}

/// Splits a device comment into the user's part and the marker.
pub fn split_comment(comment: &str) -> (&str, Option<&str>) {
    let start = comment.rfind(' ').map_or(0, |space| space + 1);
    let last = &comment[start..];
    let is_marker = last.strip_prefix(MARKER_PREFIX).is_some_and(|id| {
        id.len() == MARKER_ID_LEN && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    });
    if is_marker { (comment[..start].strip_suffix(' ').unwrap_or(""), Some(last)) } else { (comment, None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, marker: Option<&str>, name: &str) -> SeenRow {
        SeenRow {
            id: Some(RowId(id.into())),
            marker: marker.map(str::to_owned),
            image: Image::from([("name".into(), name.into())]),
        }
    }

    fn key(marker: Option<&str>, names: &[&str], handle: Option<&str>) -> RowKey {
        RowKey {
            menu: "/interface/list".parse().unwrap(),
            marker: marker.map(str::to_owned),
            natural: names.iter().map(|name| Image::from([("name".into(), (*name).into())])).collect(),
            handle: handle.map(|id| RowId(id.into())),
        }
    }

    fn id_of(sight: &Sight) -> &str {
        match sight {
            Sight::Row { id: Some(id), .. } => &id.0,
            other => panic!("expected one row, saw {other:?}"),
        }
    }

    #[test]
    fn the_marker_wins_over_the_natural_key() {
        let rows = [seen("*1", None, "wan"), seen("*2", Some("nn:00000001"), "renamed")];
        assert_eq!(id_of(&key(Some("nn:00000001"), &["wan"], None).resolve(&rows)), "*2");
    }

    #[test]
    fn a_lost_marker_falls_back_to_the_natural_key() {
        assert_eq!(id_of(&key(Some("nn:00000001"), &["wan"], None).resolve(&[seen("*1", None, "wan")])), "*1");
    }

    #[test]
    fn two_rows_with_one_marker_are_ambiguous() {
        let rows = [seen("*1", Some("nn:00000001"), "a"), seen("*2", Some("nn:00000001"), "a")];
        assert_eq!(key(Some("nn:00000001"), &["a"], None).resolve(&rows), Sight::Ambiguous { rows: 2 });
    }

    #[test]
    fn a_handle_is_used_only_without_a_natural_key_and_never_on_a_foreign_row() {
        let rows = [seen("*1", None, "a"), seen("*2", Some("nn:0000000z"), "b")];
        assert_eq!(id_of(&key(None, &[], Some("*1")).resolve(&rows)), "*1");
        assert_eq!(key(None, &["missing"], Some("*1")).resolve(&rows), Sight::Absent);
        assert_eq!(key(None, &[], Some("*2")).resolve(&rows), Sight::Absent);
    }

    #[test]
    fn of_twins_the_one_with_the_handle_is_meant() {
        let rows = [seen("*1", None, "a"), seen("*2", None, "a")];
        assert_eq!(id_of(&key(None, &["a"], Some("*2")).resolve(&rows)), "*2");
        assert_eq!(key(None, &["a"], Some("*9")).resolve(&rows), Sight::Ambiguous { rows: 2 });
        assert_eq!(key(None, &["a"], None).resolve(&rows), Sight::Ambiguous { rows: 2 });
    }

    #[test]
    fn a_renamed_row_answers_to_the_old_and_the_new_name() {
        let key = key(None, &["old", "new"], None);
        assert_eq!(id_of(&key.resolve(&[seen("*1", None, "old")])), "*1");
        assert_eq!(id_of(&key.resolve(&[seen("*1", None, "new")])), "*1");
    }

    #[test]
    fn marking_and_splitting_a_comment_are_inverse() {
        let marker = marker_of(ulid::Ulid::from_parts(7, 99));
        assert_eq!(marker.len(), "nn:".len() + 8);
        for comment in ["", "LAN", "two words", "nn:short", "trailing "] {
            assert_eq!(split_comment(&mark_comment(comment, &marker)), (comment, Some(marker.as_str())));
            assert_eq!(split_comment(comment), (comment, None));
        }
    }
}
