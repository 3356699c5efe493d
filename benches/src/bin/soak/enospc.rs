//! stub
use nasnet_benches::events::Random;

use crate::{Failure, Found};

pub(crate) fn enter() -> Result<bool, Failure> {
    Ok(true)
}
pub(crate) fn control(_seed: u64) -> Result<bool, Failure> {
    Ok(true)
}
pub(crate) fn case(_random: &mut Random) -> Result<Found, Failure> {
    Ok(Found::default())
}
