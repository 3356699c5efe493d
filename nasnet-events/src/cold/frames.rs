//! All frames of a scope, for those who look at the chain and not at single events.

use std::path::PathBuf;

use nasnet_dbmanager::Scope;

use crate::cold::dir::ColdDir;
use crate::cold::index::{Place, Tail};
use crate::error::Error;
use crate::event::Recorded;

/// The frames of a scope, and what is damaged between them.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) places: Vec<(PathBuf, Place)>,
    pub(crate) damaged: Vec<Error>,
}

impl ColdDir {
    /// All frames of a scope in the order of their positions.
    pub(crate) fn frames(&mut self, scope: &Scope) -> Result<Frames, Error> {
        let fence = self.site.open()?;
        let mut frames = Frames { places: Vec::new(), damaged: Vec::new() };
        for (_, path) in Self::files(&fence, scope)? {
            let index = match self.index(&fence, &path) {
                Ok((index, _)) if index.is_foreign() => continue,
                Ok((index, _)) => index,
                Err(error) => {
                    frames.damaged.push(error);
                    continue;
                }
            };
            let tail = (index.whole_bytes, index.whole_bytes + index.tail_bytes);
            let rotten = (index.tail == Tail::Damaged).then_some(tail);
            frames.damaged.extend(index.damaged.iter().copied().chain(rotten).map(|(from, to)| {
                let what = format!("{} at byte {from}", fence.shown(&path).display());
                Error::corrupt(what, format!("{} bytes are no frame", to - from))
            }));
            frames.places.extend(index.frames.iter().map(|place| (path.clone(), place.clone())));
        }
        frames.places.sort_by_key(|(_, place)| place.header.first);
        Ok(frames)
    }

    /// Reads and checks the events of one of [`ColdDir::frames`].
    pub(crate) fn open_frame(&self, (path, place): &(PathBuf, Place)) -> Result<Vec<Recorded>, Error> {
        place.open(&self.source(&self.site.open()?, path)?)
    }
}
