//! What a resource was, told from what happened to it.

use crate::change::ChangeEvent;
use crate::error::Error;
use crate::resource::Resource;

/// A resource as it was at a position.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceAt<P> {
    /// The resource; a tombstone when it was deleted by then.
    pub resource: Resource,
    /// The position of the last change that counts.
    pub position: P,
}

/// Folds the changes of one resource, oldest first. `None` when there is none.
///
/// The result equals the stored row when all changes are given: layers kept in other files are absent in both.
///
/// # Errors
/// [`Error::BrokenHistory`] when a change is missing, repeated or out of order. A guess is never returned.
pub fn fold<P>(changes: impl IntoIterator<Item = (P, ChangeEvent)>) -> Result<Option<ResourceAt<P>>, Error> {
    let mut at = None;
    for (position, change) in changes {
        let before = at.map(|at: ResourceAt<P>| at.resource);
        at = Some(ResourceAt { resource: change.apply_to(before)?, position });
    }
    Ok(at)
}

/// Folds the changes up to and including `bound`; later ones are not looked at.
///
/// # Errors
/// As [`fold`].
pub fn at<P: Ord>(
    changes: impl IntoIterator<Item = (P, ChangeEvent)>,
    bound: &P,
) -> Result<Option<ResourceAt<P>>, Error> {
    fold(changes.into_iter().take_while(|(position, _)| position <= bound))
}
