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

/// The rows of a menu on a router seeded with an export, as the values of two fields.
fn loaded(text: &str, menu: &str, fields: [&str; 2]) -> Vec<[String; 2]> {
    let mut sim = Sim::new(SimProfile::hap_7_16());
    sim.seed_from_export(&parse(text.as_bytes()).rows());
    let rows = sim.edit(|admin| Ok(admin.rows(&menu.parse().unwrap()))).unwrap();
    let value = |row: &nasnet_reconcile::device::Row, name: &str| row.fields.get(name).cloned().unwrap_or_default();
    rows.iter().map(|row| fields.map(|field| value(row, field))).collect()
}

#[test]
fn rows_named_by_number_are_never_mixed_up_with_each_other() {
    let text = "/queue type\nset 7 pcq-rate=7M\nset 2 pcq-rate=2M\nset 0 pcq-rate=1M\n";
    let rates: Vec<String> =
        loaded(text, "/queue/type", ["pcq-rate", "name"]).into_iter().map(|[rate, _]| rate).collect();
    assert_eq!(rates, ["7M", "2M", "1M"]);
}

#[test]
fn an_empty_find_means_every_port_of_the_router() {
    let rows = loaded("/interface ethernet\nset [ find ] comment=x\n", "/interface/ethernet", ["name", "comment"]);
    assert!(rows.len() > 1 && rows.iter().all(|[name, comment]| !name.is_empty() && comment == "x"), "{rows:?}");
    let lte = loaded("/interface lte\nset [ find ] name=modem\n", "/interface/lte", ["name", "comment"]);
    assert_eq!(lte, [["modem".to_owned(), String::new()]]);
}

#[test]
fn a_login_works_again_whatever_the_export_did_to_its_user() {
    let text = "/user group\nset full policy=local,read,!rest-api\n/user\nadd name=panel group=read disabled=yes\n";
    let mut sim = Sim::new(SimProfile::hap_7_16());
    sim.seed_from_export(&parse(text.as_bytes()).rows());
    sim.edit(|admin| admin.set_login("panel", "x", "write")).unwrap();
    let rows = sim.edit(|admin| Ok(admin.rows(&"/user".parse().unwrap()))).unwrap();
    let panel = rows.iter().find(|row| row.fields["name"] == "panel").unwrap();
    assert_eq!((panel.fields["group"].as_str(), panel.fields["disabled"].as_str()), ("write", "false"));
}

#[test]
fn policies_of_an_older_version_stay_in_a_group() {
    let text = "/user group\nset full policy=local,read,dude,tikapp,!ftp\n";
    let rows = loaded(text, "/user/group", ["name", "policy"]);
    let full = &rows.iter().find(|[name, _]| name == "full").unwrap()[1];
    assert!(full.starts_with("local,read,dude,tikapp,!") && full.matches("!ftp").count() == 1, "{full}");
}

#[test]
fn settings_without_a_row_and_added_rows_of_one_menu_do_not_hide_each_other() {
    let text = "/interface ovpn-server server\nset port=1195\nadd name=two port=1196\n/ip firewall filter\nset comment=x\nadd chain=input\n";
    let servers = loaded(text, "/interface/ovpn-server/server", ["name", "port"]);
    assert_eq!(servers, [["", "1195"], ["two", "1196"]]);
    assert_eq!(loaded(text, "/ip/firewall/filter", ["chain", "comment"]), [["", "x"], ["input", ""]]);
}
