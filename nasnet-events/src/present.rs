//! From the form events are stored in to the one callers see.

use crate::error::Error;
use crate::event::Recorded;
use crate::sealing;
use crate::shared::Shared;

/// Brings stored events into the form callers see: sealed bodies are opened, old ones upcast. An event that cannot be is
/// an error in its place.
pub(crate) async fn present(shared: &Shared, events: &mut [Result<Recorded, Error>]) -> Result<(), Error> {
    sealing::open_all(shared, events).await?;
    for item in events.iter_mut() {
        let upcast = item.as_mut().map_or(Ok(()), |event| shared.options.upcasters.apply(event));
        if let Err(error) = upcast {
            *item = Err(error);
        }
    }
    Ok(())
}
