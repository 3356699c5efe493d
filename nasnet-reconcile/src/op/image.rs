//! What a row looks like before and after a step, and which of the two a read shows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::device::RowId;

/// An observed row in canonical spelling: configuration and generated fields, secrets as keyed fingerprints.
pub type Image = BTreeMap<String, String>;

/// The fields a step touches with their values; `None` means the field is absent.
pub type Touched = BTreeMap<String, Option<String>>;

/// What a step expects of its row at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowImage {
    /// The row does not exist.
    Absent,
    /// The row exists and the touched fields have these values.
    Present(Touched),
}

impl RowImage {
    /// Builds the image of a whole row: every given field is touched.
    pub fn whole(image: &Image) -> Self {
        Self::Present(image.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect())
    }

    /// Returns the touched fields, none for an absent row.
    pub fn touched(&self) -> Option<&Touched> {
        match self {
            Self::Absent => None,
            Self::Present(touched) => Some(touched),
        }
    }

    /// Returns whether `sight` shows this image; a field of `hidden` that the device does not print cannot contradict.
    pub fn agrees(&self, sight: &Sight, hidden: &BTreeSet<String>) -> bool {
        match (self, sight) {
            (Self::Absent, Sight::Absent) => true,
            (Self::Present(touched), Sight::Row { image, .. }) => {
                touched.iter().all(|(name, value)| field_agrees(name, value.as_ref(), image, hidden))
            }
            _ => false,
        }
    }
}

fn field_agrees(name: &str, expected: Option<&String>, image: &Image, hidden: &BTreeSet<String>) -> bool {
    match (expected, image.get(name)) {
        (None, None) => true,
        (Some(expected), Some(observed)) => expected == observed,
        (_, None) => hidden.contains(name),
        (None, Some(_)) => false,
    }
}

/// What reading a step's row showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// No such row.
    Absent,
    /// Exactly one such row.
    Row {
        /// Its handle of this moment; `None` in a menu of one row.
        id: Option<RowId>,
        /// Its content.
        image: Image,
    },
    /// Several rows answer to the key, so none of them may be written.
    Ambiguous {
        /// How many.
        rows: usize,
    },
    /// The device could not be read.
    Unreadable {
        /// The device's or the transport's words.
        cause: String,
    },
}

/// Which of a step's two images a sight shows.
///
/// Both at once is possible: when a step changes nothing but a secret that the device hides, no read can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The sight shows the pre-image.
    pub pre: bool,
    /// The sight shows the post-image.
    pub post: bool,
    /// Every touched field shows one of its two values, but not all the same side.
    pub mixed: bool,
    /// The device could not be read, so nothing is known.
    pub unreadable: bool,
}

impl Fit {
    /// Compares a sight with both images.
    pub fn of(pre: &RowImage, post: &RowImage, hidden: &BTreeSet<String>, sight: &Sight) -> Self {
        let unreadable = matches!(sight, Sight::Unreadable { .. });
        let (is_pre, is_post) = (pre.agrees(sight, hidden), post.agrees(sight, hidden));
        let mixed = match (pre, post, sight) {
            (RowImage::Present(before), RowImage::Present(after), Sight::Row { image, .. }) if !is_pre && !is_post => {
                let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
                names.into_iter().all(|name| {
                    [before, after].into_iter().any(|side| {
                        side.get(name).is_some_and(|value| field_agrees(name, value.as_ref(), image, hidden))
                    })
                })
            }
            _ => false,
        };
        Self { pre: is_pre, post: is_post, mixed, unreadable }
    }

    /// Returns the class recovery decides by. A sight that shows both images counts as [`RowClass::Mixed`]: the undo
    /// then writes the old value again, which is right in either case.
    pub fn class(self) -> RowClass {
        match self {
            Self { unreadable: true, .. } => RowClass::Unreadable,
            Self { pre: true, post: true, .. } | Self { mixed: true, .. } => RowClass::Mixed,
            Self { pre: true, .. } => RowClass::Pre,
            Self { post: true, .. } => RowClass::Post,
            _ => RowClass::Other,
        }
    }
}

/// How a touched row stands to its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowClass {
    /// As before the step.
    Pre,
    /// As after the step.
    Post,
    /// Every field is ours, but some are old and some are new, or no read can tell.
    Mixed,
    /// Somebody else's value: never written over.
    Other,
    /// The device could not be read.
    Unreadable,
}

impl RowClass {
    /// All classes, for tables that must be total.
    pub const ALL: [Self; 5] = [Self::Pre, Self::Post, Self::Mixed, Self::Other, Self::Unreadable];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(fields: &[(&str, &str)]) -> Image {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn row(fields: &[(&str, &str)]) -> Sight {
        Sight::Row { id: Some(RowId("*1".into())), image: image(fields) }
    }

    fn class(pre: &RowImage, post: &RowImage, sight: &Sight) -> RowClass {
        Fit::of(pre, post, &BTreeSet::new(), sight).class()
    }

    #[test]
    fn a_set_is_classified_by_its_touched_fields_alone() {
        let pre = RowImage::whole(&image(&[("mtu", "1500"), ("comment", "lan")]));
        let post = RowImage::whole(&image(&[("mtu", "1420"), ("comment", "vpn")]));
        let of = |fields: &[(&str, &str)]| class(&pre, &post, &row(fields));
        assert_eq!(of(&[("mtu", "1500"), ("comment", "lan"), ("untouched", "x")]), RowClass::Pre);
        assert_eq!(of(&[("mtu", "1420"), ("comment", "vpn")]), RowClass::Post);
        assert_eq!(of(&[("mtu", "1420"), ("comment", "lan")]), RowClass::Mixed);
        assert_eq!(of(&[("mtu", "9000"), ("comment", "lan")]), RowClass::Other);
        assert_eq!(class(&pre, &post, &Sight::Absent), RowClass::Other);
        assert_eq!(class(&pre, &post, &Sight::Ambiguous { rows: 2 }), RowClass::Other);
        assert_eq!(class(&pre, &post, &Sight::Unreadable { cause: "gone".into() }), RowClass::Unreadable);
    }

    #[test]
    fn clearing_a_field_expects_it_to_be_absent() {
        let pre = RowImage::Present([("comment".to_owned(), Some("old".to_owned()))].into());
        let post = RowImage::Present([("comment".to_owned(), None)].into());
        assert_eq!(class(&pre, &post, &row(&[])), RowClass::Post);
        assert_eq!(class(&pre, &post, &row(&[("comment", "old")])), RowClass::Pre);
    }

    #[test]
    fn a_hidden_secret_fits_both_sides_and_is_therefore_never_assumed_applied() {
        let pre = RowImage::whole(&image(&[("preshared-key", "hmac:aa")]));
        let post = RowImage::whole(&image(&[("preshared-key", "hmac:bb")]));
        let hidden = BTreeSet::from(["preshared-key".to_owned()]);
        let fit = Fit::of(&pre, &post, &hidden, &row(&[]));
        assert!(fit.pre && fit.post);
        assert_eq!(fit.class(), RowClass::Mixed);
    }
}
