//! Whole export files of many kinds of devices, all made up, each with quirks of its own.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs)]

use nasnet_reconcile::device::MenuPath;
use nasnet_reconcile::routeros::export::{Seed, SeedRow, Style, Tally, parse, print};
use nasnet_reconcile::routeros::text;

#[path = "../examples/make_export.rs"]
#[allow(dead_code)]
mod make_export;

const HOME_OFFICE: &[u8] = include_bytes!("../../examples/data/home-office.rsc");
const FIXTURES: &[(&str, &[u8])] = &[
    ("home-office", HOME_OFFICE),
    ("terse-branch", include_bytes!("fixtures/export/terse-branch.rsc")),
    ("verbose-excerpt", include_bytes!("fixtures/export/verbose-excerpt.rsc")),
    ("v6-hotel", include_bytes!("fixtures/export/v6-hotel.rsc")),
    ("broken-lines", include_bytes!("fixtures/export/broken-lines.rsc")),
    ("windows-latin1", include_bytes!("fixtures/export/windows-latin1.rsc")),
    ("dual-wan-starlink", include_bytes!("fixtures/export/dual-wan-starlink.rsc")),
    ("crs-switch", include_bytes!("fixtures/export/crs-switch.rsc")),
    ("chr-minimal", include_bytes!("fixtures/export/chr-minimal.rsc")),
    ("handwritten", include_bytes!("fixtures/export/handwritten.rsc")),
];

fn bytes(name: &str) -> &'static [u8] {
    FIXTURES.iter().find(|(fixture, _)| *fixture == name).unwrap().1
}

fn seed(name: &str) -> Seed {
    parse(bytes(name)).rows()
}

fn rows<'a>(seed: &'a Seed, menu: &str) -> &'a [SeedRow] {
    let menu: MenuPath = menu.parse().unwrap();
    seed.rows(&menu)
}

fn find<'a>(seed: &'a Seed, menu: &str, field: &str, value: &str) -> &'a SeedRow {
    rows(seed, menu).iter().find(|row| row.fields.get(field).is_some_and(|found| found == value)).unwrap()
}

#[test]
fn every_file_survives_reading_and_printing() {
    for (name, input) in FIXTURES {
        let seed = parse(input).rows();
        for style in [Style::Compact, Style::Terse] {
            let printed = print(&seed, style);
            let read = parse(&printed);
            assert_eq!(read.errors, [], "{name}");
            let again = read.rows();
            assert_eq!(again.menus, seed.menus, "{name}");
            assert_eq!(again.header, seed.header, "{name}");
            assert_eq!(again.unapplied.len(), seed.unapplied.len(), "{name}");
            assert_eq!(print(&again, style), printed, "{name}");
        }
    }
}

#[test]
fn every_command_of_every_file_is_counted() {
    for (name, input) in FIXTURES {
        let export = parse(input);
        let seed = export.rows();
        let tally = export.tally();
        assert_eq!(tally.commands + tally.scripts, seed.applied + seed.unapplied.len(), "{name}");
        let by_lines = String::from_utf8_lossy(input).lines().filter(|line| line.starts_with("add ")).count();
        if tally.errors == 0 && tally.scripts == 0 {
            let added = seed
                .menus
                .values()
                .flatten()
                .filter(|row| row.origin == nasnet_reconcile::routeros::export::RowOrigin::Added);
            let terse = String::from_utf8_lossy(input)
                .lines()
                .filter(|line| line.contains(" add ") && line.starts_with('/'))
                .count();
            assert_eq!(added.count(), by_lines + terse, "{name}");
        }
    }
}

#[test]
fn the_home_office_is_read_whole() {
    let export = parse(HOME_OFFICE);
    assert_eq!(export.errors, []);
    assert!(export.lines > 350 && export.lines <= 500);
    assert_eq!(export.header.version.as_deref(), Some("7.16.2"));
    let seed = export.rows();
    assert_eq!(seed.unapplied, []);
    assert_eq!(seed.problems, []);
    let home = find(&seed, "/interface/wireguard", "name", "wg-home");
    assert_eq!(home.fields["private-key"].len(), 44);
    assert_eq!(rows(&seed, "/interface/wireguard/peers").len(), 4);
    let uplink = find(&seed, "/interface/ethernet", "name", "ether1-wan");
    assert_eq!(uplink.fields["comment"], "Uplink \"Glasfaser\" (ISP box in the cellar)");
    let script = find(&seed, "/system/script", "name", "address-watch");
    assert!(script.fields["source"].contains("\r\n    :log warning \"uplink address is now $current\"\r\n"));
    assert!(script.fields["source"].contains("body=\"$lastAddress -> $current\\r\\n50% done?\""));
    let dns = find(&seed, "/ip/dns/static", "type", "NXDOMAIN");
    assert_eq!(dns.fields["regexp"], "^(.*\\.)?(ads|track(er|ing))\\.example\\.(com|net)$");
    let env = find(&seed, "/container/envs", "key", "BANNER");
    assert_eq!(env.fields["value"], "It's \"up\": a=b; $HOME\t[x] {y}");
    let printer = find(&seed, "/ip/dhcp-server/lease", "address", "10.77.20.9");
    assert_eq!(text::to_bytes(&printer.fields["comment"]), b"Drucker \x96 2. Stock");
    assert_eq!(find(&seed, "/interface/wifi", "default-name", "wifi1").fields["configuration.ssid"], "Nordlicht");
    assert!(rows(&seed, "/ip/route").iter().any(|route| route.flags.contains("blackhole")));
    assert_eq!(seed.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["ether4", "ether5"]);
}

#[test]
fn the_terse_form_says_what_the_compact_form_says() {
    let seed = seed("terse-branch");
    assert_eq!((seed.row_count(), seed.unapplied.len()), (36, 0));
    assert!(find(&seed, "/interface/eoip", "name", "eoip-office").unset.contains("keepalive"));
    assert_eq!(rows(&seed, "/system/identity")[0].fields["name"], "branch gw #2");
    assert_eq!(find(&seed, "/ip/route", "gateway", "wg-office").fields["comment"], "");
    assert_eq!(seed.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["ether2", "ether3"]);
}

#[test]
fn a_verbose_export_gives_its_defaults_as_fields() {
    let seed = seed("verbose-excerpt");
    assert_eq!(seed.unapplied, []);
    assert_eq!(find(&seed, "/interface/bridge", "name", "bridge").fields["priority"], "0x8000");
    let desk = find(&seed, "/interface/ethernet", "default-name", "ether2");
    assert_eq!((desk.fields["name"].as_str(), desk.fields["advertise"].as_str()), ("desk", ""));
    assert_eq!(rows(&seed, "/ppp/profile")[0].unset.len(), 19);
    assert_eq!(rows(&seed, "/interface/ethernet/switch/port-isolation").len(), 2);
    assert_eq!(seed.problems.len(), 1, "the menu that the device could not export: {:?}", seed.problems);
}

#[test]
fn version_6_is_read_with_its_own_menus() {
    let seed = seed("v6-hotel");
    assert_eq!((seed.row_count(), seed.unapplied.len()), (46, 0));
    assert_eq!(seed.header.date.as_deref(), Some("jan/02/2024 10:00:00"));
    let gateway = find(&seed, "/interface/ethernet", "default-name", "ether1");
    assert_eq!(text::to_bytes(&gateway.fields["comment"]), b"\xCF\xF0\xEE\xE2\xE0\xE9\xE4\xE5\xF0 \xB91");
    assert_eq!(
        find(&seed, "/ip/firewall/layer7-protocol", "name", "torrent").fields["regexp"],
        "^(\\x13bittorrent protocol|azver\\x01$|get /scrape\\?info_hash=)"
    );
    assert_eq!(find(&seed, "/ip/hotspot/user", "name", "vip").fields["password"], "a\\b");
    assert_eq!(seed.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["ether3"]);
}

#[test]
fn broken_lines_are_counted_and_the_others_are_kept() {
    let export = parse(bytes("broken-lines"));
    let places: Vec<_> = export.errors.iter().map(|error| (error.line, error.column)).collect();
    let expected = [
        (4, 50),
        (6, 55),
        (7, 52),
        (8, 53),
        (9, 1),
        (11, 5),
        (12, 5),
        (14, 5),
        (15, 25),
        (16, 25),
        (17, 5),
        (19, 67),
        (21, 15),
        (24, 1),
        (25, 13),
    ];
    assert_eq!(places, expected);
    let seed = export.rows();
    let addresses: Vec<_> = rows(&seed, "/ip/address").iter().map(|row| row.fields["address"].as_str()).collect();
    assert_eq!(addresses, ["10.0.1.1/24", "10.0.5.1/24"]);
    assert_eq!(rows(&seed, "/ip/address")[1].fields["comment"], "kept");
    assert_eq!(rows(&seed, "/interface/vlan").len(), 2);
    assert_eq!(rows(&seed, "/system/identity")[0].fields["name"], "still-here");
    assert_eq!(seed.problems.len(), expected.len());
}

#[test]
fn bytes_of_a_code_page_and_line_ends_of_windows_survive() {
    let seed = seed("windows-latin1");
    let bytes_of = |menu: &str, field: &str| text::to_bytes(&rows(&seed, menu)[0].fields[field]);
    assert_eq!(bytes_of("/interface/bridge", "comment"), b"Br\xFCcke im B\xFCro");
    assert_eq!(bytes_of("/interface/wireless", "ssid"), b"Caf\xE9 \xFC");
    assert_eq!(bytes_of("/interface/wireless", "comment"), b"mixed: \xC3\xA9 and raw \xFC");
    assert_eq!(bytes_of("/ip/address", "comment"), b"tab\there, bell\x07, nothing\0, blank    end");
    assert_eq!(bytes_of("/system/note", "note"), b"raw\0nul and \x1B[1mescape\x1B[m");
    assert_eq!(bytes_of("/system/script", "source"), b"# gr\xFCsst\r\n:put \"hallo $[/system identity get name]\"\r\n");
}

#[test]
fn slashes_in_menus_and_flags_are_read() {
    let seed = seed("dual-wan-starlink");
    assert_eq!((seed.row_count(), seed.unapplied.len()), (34, 0));
    assert_eq!(rows(&seed, "/system/identity")[0].fields["name"], "boat \u{1F6A4}");
    assert_eq!(
        find(&seed, "/interface/ethernet", "default-name", "ether2").fields["comment"],
        "DSL \u{2013} slow but steady"
    );
    assert!(find(&seed, "/routing/table", "name", "to-dsl").flags.contains("fib"));
    assert!(rows(&seed, "/ip/dhcp-client")[0].fields["script"].contains("gateway=$\"gateway-address\""));
    assert_eq!(seed.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["ether3", "ether4", "ether5"]);
}

#[test]
fn a_switch_and_a_virtual_router_are_read() {
    let switch = seed("crs-switch");
    assert_eq!((switch.row_count(), switch.unapplied.len(), switch.problems.len()), (72, 0, 0));
    assert_eq!(rows(&switch, "/interface/ethernet").len(), 25);
    assert_eq!(rows(&switch, "/interface/ethernet/switch/port").len(), 3);
    assert_eq!(rows(&switch, "/ip/service").len(), 3);
    let chr = seed("chr-minimal");
    assert_eq!(chr.header.system_id.as_deref(), Some("Dem0SysId+A"));
    assert_eq!(chr.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["lo"]);
}

#[test]
fn a_script_by_hand_is_applied_as_far_as_that_is_possible() {
    let export = parse(bytes("handwritten"));
    let expected = Tally { menus: 5, commands: 25, scripts: 5, comments: 3, noise: 2, errors: 1 };
    assert_eq!(Tally { comments: 3, ..export.tally() }, expected);
    let seed = export.rows();
    let rules: Vec<_> = rows(&seed, "/ip/firewall/filter").iter().map(|row| row.fields["comment"].as_str()).collect();
    assert_eq!(rules, ["E", "D", "A", "B", "C", "Z"]);
    assert_eq!(find(&seed, "/system/script", "name", "raw").fields["source"], "\n:put \"two\"\n/system reboot\n");
    assert!(find(&seed, "/system/script", "name", "multi").expressions.contains("source"));
    assert_eq!(find(&seed, "/user", "name", "admin").fields["password"], "first run only");
}

#[test]
fn an_export_of_two_thousand_lines_is_read_whole() {
    let made = make_export::make_export(2000);
    assert_eq!(made, make_export::make_export(2000));
    let export = parse(made.as_bytes());
    assert_eq!((export.lines, export.errors.len()), (2000, 0));
    let seed = export.rows();
    assert_eq!((seed.unapplied.len(), seed.problems.len()), (0, 0));
    assert!(seed.row_count() > 1600, "{}", seed.row_count());
    assert_eq!(seed.referenced_interfaces().into_iter().collect::<Vec<_>>(), ["ether2"]);
    assert!(find(&seed, "/interface/wireguard/peers", "name", "peer1").fields["public-key"].len() == 44);
    assert_eq!(parse(&print(&seed, Style::Compact)).rows().menus, seed.menus);
}

#[test]
fn every_wireguard_key_has_the_length_of_a_real_one() {
    use base64::Engine as _;
    let made = make_export::make_export(2000);
    let mut keys = 0;
    for input in FIXTURES.iter().map(|(_, input)| *input).chain([made.as_bytes()]) {
        let seed = parse(input).rows();
        for row in rows(&seed, "/interface/wireguard").iter().chain(rows(&seed, "/interface/wireguard/peers")) {
            for field in ["public-key", "private-key", "preshared-key"] {
                if let Some(key) = row.fields.get(field) {
                    assert_eq!(base64::engine::general_purpose::STANDARD.decode(key).unwrap().len(), 32, "{key}");
                    keys += 1;
                }
            }
        }
    }
    assert!(keys > 50);
}
