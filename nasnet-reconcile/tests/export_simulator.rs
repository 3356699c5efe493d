//! What the simulator says to rows that come from whole exports.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, missing_docs)]

use nasnet_reconcile::routeros::export::parse;
use nasnet_reconcile::simulator::{Sim, SimProfile};

#[path = "../examples/make_export.rs"]
#[allow(dead_code)]
mod make_export;

#[test]
fn a_simulated_router_takes_every_row_of_the_home_office_and_of_a_made_up_export() {
    let home_office = include_bytes!("../../examples/data/home-office.rsc");
    let made = make_export::make_export(2000);
    for input in [home_office.as_slice(), made.as_bytes()] {
        let seed = parse(input).rows();
        let report = Sim::new(SimProfile::hap_7_16()).seed_from_export(&seed);
        assert_eq!(report.problems, []);
        assert_eq!(report.rows, seed.row_count());
    }
}
