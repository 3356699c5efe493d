//! How many bytes each database on flash may have, so that together they fit what there is for them.

use std::sync::atomic::{AtomicU64, Ordering};

/// No database gets less: an empty one with its tables needs about a quarter of it.
pub(crate) const FLOOR_BYTES: u64 = 2 << 20;

/// The part of the whole that is for the system database, as its reciprocal.
const SYSTEM_PART: u64 = 9;

/// The bounds of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) system: u64,
    /// Of each router.
    pub(crate) router: u64,
    /// Whether all of them fit, were each full.
    pub(crate) fits: bool,
}

/// Divides `total` among the system database and `routers` of them; none gets more than `each_max` or less than the
/// floor, even if they then do not fit.
pub(crate) fn share(total: u64, each_max: u64, routers: u64) -> Shares {
    let bounded = |bytes: u64| bytes.max(FLOOR_BYTES).min(each_max);
    let system = bounded(total / SYSTEM_PART);
    let router = bounded(total.saturating_sub(system) / routers.max(1));
    Shares { system, router, fits: router.saturating_mul(routers).saturating_add(system) <= total }
}

/// The bounds of a fleet; they follow the number of its routers while databases are open.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) total: u64,
    each_max: u64,
    routers: AtomicU64,
}

impl Room {
    pub(crate) fn new(total: u64, each_max: u64) -> Self {
        Self { total, each_max, routers: AtomicU64::new(0) }
    }

    /// Notes how many routers have a database.
    pub(crate) fn set_routers(&self, count: usize) {
        self.routers.store(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn shares(&self) -> Shares {
        share(self.total, self.each_max, self.routers.load(Ordering::Relaxed))
    }

    /// Returns the bound of the system database or, otherwise, of a router.
    pub(crate) fn bytes_max(&self, system: bool) -> u64 {
        let shares = self.shares();
        if system { shares.system } else { shares.router }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn one_router_gets_what_the_system_database_leaves_and_fifty_share_it() {
        assert_eq!(share(72 * MIB, 64 * MIB, 1), Shares { system: 8 * MIB, router: 64 * MIB, fits: true });
        let fifty = share(512 * MIB, 64 * MIB, 50);
        assert!(fifty.fits && fifty.router > 8 * MIB, "{fifty:?}");
        let too_many = share(72 * MIB, 64 * MIB, 50);
        assert_eq!((too_many.router, too_many.fits), (FLOOR_BYTES, false));
        assert_eq!(share(u64::MAX, 64 * MIB, 3).router, 64 * MIB);
        assert_eq!(share(72 * MIB, 512 << 10, 3).router, 512 << 10, "a bound below the floor is the caller's");
    }

    proptest! {
        #[test]
        fn the_sum_fits_or_it_is_told_and_more_routers_never_get_more(
            total in FLOOR_BYTES..1 << 40, each_max in FLOOR_BYTES..1 << 36, routers in 0_u64..2_000,
        ) {
            let shares = share(total, each_max, routers);
            prop_assert!(shares.router >= FLOOR_BYTES && shares.router <= each_max);
            prop_assert_eq!(shares.fits, shares.router * routers + shares.system <= total);
            prop_assert!(share(total, each_max, routers + 1).router <= shares.router);
            if shares.router > FLOOR_BYTES && shares.system > FLOOR_BYTES {
                prop_assert!(shares.fits, "{:?}", shares);
            }
        }
    }
}
