//! Saving, loading, seeding, and the table of behaviours.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;

use nasnet_reconcile::device::{MenuPath, RawFields, Row};
use nasnet_reconcile::routeros::export;
use nasnet_reconcile::simulator::{SeedMenu, SeedPlace, SeedRow, Sim, SimError, SimProfile, conformance};

fn menu(path: &str) -> MenuPath {
    path.parse().unwrap()
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> RawFields {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn rows(sim: &mut Sim, path: &str) -> Vec<Row> {
    sim.edit(|admin| Ok(admin.rows(&menu(path)))).unwrap()
}

#[test]
fn a_saved_router_comes_back_with_its_rows_ids_and_keys() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("router.sim");
    assert!(Sim::load(&file).unwrap().is_none());
    let mut sim = Sim::new(SimProfile::chr_7_16());
    sim.edit(|admin| {
        admin.add(&menu("/interface/wireguard"), &[("name", "wg0")])?;
        admin.add(&menu("/ip/address"), &[("address", "10.0.0.1/24"), ("interface", "wg0")])?;
        admin.set_singleton(&menu("/system/identity"), &[("name", "saved")])
    })
    .unwrap();
    sim.save(&file).unwrap();
    sim.save(&file).unwrap();
    let mut loaded = Sim::load(&file).unwrap().unwrap();
    assert_eq!(loaded.profile(), sim.profile());
    for path in ["/interface/wireguard", "/ip/address", "/ip/route", "/system/identity", "/interface", "/user/group"] {
        assert_eq!(rows(&mut loaded, path), rows(&mut sim, path), "{path}");
    }
    let next = |sim: &mut Sim| sim.edit(|admin| admin.add(&menu("/interface/wireguard"), &[("name", "wg1")])).unwrap();
    assert_eq!(next(&mut loaded), next(&mut sim));
    assert_eq!(rows(&mut loaded, "/interface/wireguard"), rows(&mut sim, "/interface/wireguard"));
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["router.sim"], "nothing else is left behind");
}

#[test]
fn a_damaged_file_is_an_error_wherever_it_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("router.sim");
    Sim::new(SimProfile::chr_7_16()).save(&file).unwrap();
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&file, &flipped).unwrap();
        let error = Sim::load(&file).err();
        assert!(matches!(error, Some(SimError::Damaged { .. } | SimError::TooNew { .. })), "byte {at}: {error:?}");
        fs::write(&file, &whole[..at]).unwrap();
        assert!(matches!(Sim::load(&file), Err(SimError::Damaged { .. })), "cut at {at}");
    }
    let newer = String::from_utf8(whole).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    fs::write(&file, newer).unwrap();
    assert!(matches!(Sim::load(&file), Err(SimError::TooNew { found: 2, supported: 1, .. })));
}

#[test]
fn an_export_is_loaded_whole_even_where_it_refers_to_what_it_does_not_print() {
    let text = br#"# 2025-03-01 09:30:00 by RouterOS 7.16.2
/interface bridge
add name=bridge vlan-filtering=yes
/interface ethernet
set [ find default-name=ether1 ] comment=Uplink name=wan
/interface wireguard
add listen-port=51820 mtu=1412 name=wg-office
/interface wifi
set [ find default-name=wifi1 ] configuration.mode=ap disabled=no
/interface list
add name=WAN
/ip pool
add name=dhcp ranges=192.168.88.10-192.168.88.254
/interface bridge port
add bridge=bridge interface=ether2
add bridge=bridge interface=sfp1
add bridge=bridge interface=wifi1
/interface list member
add interface=wan list=WAN
add interface=pppoe-out9 list=WAN
/ip address
add address=192.168.88.1/24 interface=bridge network=192.168.88.0
/ip service
set telnet disabled=yes
/ip firewall filter
add action=accept chain=input connection-state=established,related
add action=drop chain=input in-interface-list=GONE
/ip dns
set allow-remote-requests=yes servers=1.1.1.1,9.9.9.9
/system identity
set name=office
/made up menu
add anything=goes
/port
set 0 name=serial0
"#;
    let read = export::parse(text);
    assert!(read.errors.is_empty(), "{:?}", read.errors);
    let mut sim = Sim::new(SimProfile::default());
    let report = sim.seed_from_export(&read.rows());
    assert_eq!(report.rows, 19);
    assert_eq!(report.created_ports, ["sfp1"]);
    let problems: Vec<String> = report.problems.iter().map(|p| format!("{} {}", p.menu, p.refusal)).collect();
    assert_eq!(
        problems,
        [
            "/interface/list/member refused with 400: input does not match any value of interface",
            "/ip/firewall/filter refused with 400: input does not match any value of in-interface-list",
        ]
    );
    let ethernet = rows(&mut sim, "/interface/ethernet");
    assert_eq!(ethernet.len(), 6);
    assert_eq!((ethernet[0].fields["name"].as_str(), ethernet[0].fields["comment"].as_str()), ("wan", "Uplink"));
    assert_eq!(rows(&mut sim, "/interface/bridge/port").len(), 3);
    assert_eq!(rows(&mut sim, "/interface/list/member")[1].fields["interface"], "pppoe-out9");
    let wg = rows(&mut sim, "/interface/wireguard").remove(0);
    assert_eq!(wg.fields["listen-port"], "51820");
    assert_eq!(wg.fields["private-key"].len(), 44, "the key an export hides is generated");
    assert_eq!(rows(&mut sim, "/ip/service")[0].fields["disabled"], "true");
    assert_eq!(rows(&mut sim, "/ip/service").len(), 8);
    assert_eq!(rows(&mut sim, "/ip/dns")[0].fields["servers"], "1.1.1.1,9.9.9.9");
    assert_eq!(rows(&mut sim, "/ip/dns")[0].fields["cache-size"], "2048KiB");
    assert_eq!(rows(&mut sim, "/ip/route").len(), 1, "the address has its connected route");
    assert_eq!(rows(&mut sim, "/made/up/menu")[0].fields["anything"], "goes");
    assert_eq!(rows(&mut sim, "/ip/firewall/filter")[1].fields["invalid"], "true");
    assert_eq!(rows(&mut sim, "/port")[0].fields["name"], "serial0");
}

#[test]
fn plain_lists_and_fixed_ids_seed_a_router() {
    let mut sim = Sim::new(SimProfile::default());
    let fixed = SeedRow { place: SeedPlace::Id("*0".to_owned()), fields: fields([("name", "default")]) };
    let far = SeedRow { place: SeedPlace::Id("*2".to_owned()), fields: fields([("name", "far")]) };
    let report = sim.seed(&[
        SeedMenu::single(menu("/system/identity"), fields([("name", "plain")])),
        SeedMenu::list(menu("/interface/vlan"), [fields([("interface", "ether1"), ("name", "v"), ("vlan-id", "7")])]),
        SeedMenu { menu: menu("/ppp/profile"), rows: vec![fixed, far] },
        SeedMenu::list(menu("/ppp/profile"), [fields([("name", "x")]), fields([("name", "y")])]),
    ]);
    assert_eq!((report.rows, report.problems.len()), (6, 0));
    let ids: Vec<String> = rows(&mut sim, "/ppp/profile").into_iter().map(|row| row.id.unwrap().0).collect();
    assert_eq!(ids, ["*0", "*2", "*1", "*3"]);
}

#[test]
fn every_behaviour_the_code_names_is_in_the_table_and_the_other_way_round() {
    let mut files = vec![std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("src/simulator")];
    let mut named = BTreeSet::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().unwrap() != "conformance.rs" {
            named.extend(ids(&fs::read_to_string(&path).unwrap()));
        }
    }
    let table: BTreeSet<String> = conformance::TABLE.iter().map(|behaviour| behaviour.id.to_owned()).collect();
    assert_eq!(table.len(), conformance::TABLE.len(), "an id is used twice");
    assert_eq!(named, table);
    assert_eq!(conformance::counts().iter().map(|(_, count)| count).sum::<usize>(), table.len());
}

fn ids(source: &str) -> Vec<String> {
    let words = source.split(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |word: &&str| {
        let (head, digits) = word.split_at(1);
        matches!(head, "S" | "F")
            && (digits.len() == 2 || (digits.len() == 3 && digits.ends_with(|c: char| c.is_ascii_lowercase())))
            && digits.bytes().take(2).all(|byte| byte.is_ascii_digit())
    };
    words.filter(|word| word.len() >= 3 && word.is_ascii()).filter(is_id).map(str::to_owned).collect()
}
