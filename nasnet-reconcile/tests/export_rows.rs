//! Which rows the commands of an export leave behind on an empty device.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs)]

use nasnet_reconcile::device::MenuPath;
use nasnet_reconcile::routeros::export::{RowOrigin, Seed, Style, parse, print};

fn seed(text: &str) -> Seed {
    let export = parse(text.as_bytes());
    assert_eq!(export.errors, []);
    export.rows()
}

/// The rows of a menu as `origin field=value ..`, short enough to compare at a glance.
fn shown(seed: &Seed, menu: &str) -> Vec<String> {
    let menu: MenuPath = menu.parse().unwrap();
    let row = |row: &nasnet_reconcile::routeros::export::SeedRow| {
        let mut text = match &row.origin {
            RowOrigin::Single => "single".to_owned(),
            RowOrigin::Found(_) => "found".to_owned(),
            RowOrigin::Number(number) => format!("#{number}"),
            RowOrigin::Id(id) => id.clone(),
            RowOrigin::Named(_) => "named".to_owned(),
            RowOrigin::Added => "added".to_owned(),
        };
        for (name, value) in &row.fields {
            text += &format!(" {name}={value}");
        }
        for name in &row.unset {
            text += &format!(" !{name}");
        }
        text
    };
    seed.rows(&menu).iter().map(row).collect()
}

fn reasons(seed: &Seed) -> Vec<(u32, &str)> {
    seed.unapplied.iter().map(|unapplied| (unapplied.line, unapplied.reason.as_str())).collect()
}

#[test]
fn a_port_appears_with_the_first_command_that_names_it() {
    let seed = seed(
        "/interface ethernet\nset [ find default-name=ether1 ] name=wan\nset [ find default-name=ether2 ] mtu=1400\n\
         set [ find default-name=ether1 ] comment=x\nset [ find name=wan ] arp=disabled\nset wan mtu=9000\nset ether2 comment=y\n",
    );
    let expected = [
        "found arp=disabled comment=x default-name=ether1 mtu=9000 name=wan",
        "found comment=y default-name=ether2 mtu=1400 name=ether2",
    ];
    assert_eq!(shown(&seed, "/interface/ethernet"), expected);
    assert_eq!(seed.applied, 6);
}

#[test]
fn rows_of_the_device_are_named_by_number_id_name_or_default() {
    let seed = seed(
        "/system logging\nset 0 topics=info\nadd topics=x\nset 0 prefix=p\nset 3 topics=y\n/ppp profile\nset *0 dns-server=1.1.1.1\nset *0 !dns-server\n\
         /ip service\nset telnet,ftp disabled=yes\nset \"ftp\" port=21\n/queue interface\nset ether1 queue=fast\n\
         /snmp community\nset [ find default=yes ] disabled=yes\nset [find default=yes] name=z\n/ip dns\nset servers=9.9.9.9\nset cache-size=1\n",
    );
    assert_eq!(shown(&seed, "/system/logging"), ["#0 prefix=p topics=info", "#3 topics=y", "added topics=x"]);
    assert_eq!(shown(&seed, "/ppp/profile"), ["*0 !dns-server"]);
    assert_eq!(shown(&seed, "/ip/service"), ["named disabled=yes name=telnet", "named disabled=yes name=ftp port=21"]);
    assert_eq!(shown(&seed, "/queue/interface"), ["named interface=ether1 queue=fast"]);
    assert_eq!(shown(&seed, "/snmp/community"), ["found default=yes disabled=yes name=z"]);
    assert_eq!(shown(&seed, "/ip/dns"), ["single cache-size=1 servers=9.9.9.9"]);
    assert_eq!(reasons(&seed), []);
}

#[test]
fn every_row_that_comes_with_the_device_is_meant_by_an_empty_find() {
    let text = "/interface lte\nset [ find ] mtu=1430 name=modem\n/system console\nset [ find ] disabled=yes\n\
                /interface ethernet\nset [ find default-name=ether1 ] name=wan\nset [ find ] mtu=9000\n\
                /ip firewall filter\nset [ find ] disabled=yes\n";
    let seed = seed(text);
    assert_eq!(shown(&seed, "/interface/lte"), ["found mtu=1430 name=modem"]);
    assert_eq!(shown(&seed, "/system/console"), ["found disabled=yes"]);
    assert_eq!(shown(&seed, "/interface/ethernet"), ["found default-name=ether1 mtu=9000 name=wan"]);
    assert_eq!(reasons(&seed), [(9, "it finds no row of this export")]);
    for style in [Style::Compact, Style::Terse] {
        assert_eq!(parse(&print(&seed, style)).rows().menus, seed.menus);
    }
}

#[test]
fn added_rows_can_be_changed_moved_disabled_and_removed() {
    let seed = seed(
        "/ip firewall filter\nadd comment=a\nadd comment=b\nadd comment=c place-before=0\nadd comment=d place-before=[find comment=b]\n\
         set 0 action=drop\nset [find where comment~\"^[ab]\"] log=yes\nset [ find comment~\"^b\" ] log=yes\nset [ find ] chain=input\n\
         disable [find comment=a]\nenable 0\nmove 3 1\nmove [find comment=a] destination=[find comment=c]\nadd comment=e\nremove [find comment=e]\nremove 3\n",
    );
    let expected = [
        "added chain=input comment=a disabled=yes",
        "added action=drop chain=input comment=c disabled=no",
        "added chain=input comment=b log=yes",
    ];
    assert_eq!(shown(&seed, "/ip/firewall/filter"), expected);
    assert_eq!(reasons(&seed), [(7, "its rows are chosen by an expression")]);
}

#[test]
fn what_cannot_be_applied_is_kept_with_its_reason() {
    let seed = seed(
        ":global x 1\n/user\nremove admin\nset [find group=full] comment=x\nadd copy-from=admin\nadd name=a 10.0.0.1\n\
         set [find name=a or name=b] x=y\nmove 0 1\nprint\n/tool fetch url=x\n/ip service\nset telnet port=1\nremove telnet\n",
    );
    let expected = [
        (1, "script code runs on a device only"),
        (3, "it removes no row of this export"),
        (4, "it finds no row of this export"),
        (5, "copying a row is not understood"),
        (6, "it has a value without a field name"),
        (7, "its rows are chosen by an expression"),
        (8, "the rows to move are not in the export"),
        (9, "`print` does not describe configuration in this form"),
        (10, "`fetch` does not describe configuration in this form"),
        (13, "it removes a row that the device has by itself"),
    ];
    assert_eq!(reasons(&seed), expected);
    assert_eq!(seed.row_count(), 0);
    assert_eq!(seed.problems.len(), expected.len());
}

#[test]
fn fields_without_values_expressions_and_doubled_fields_are_noted() {
    let seed = seed(
        "/routing table\nadd disabled=no fib name=x\n/ip route\nadd blackhole dst-address=$net loud distance=1 distance=2\n",
    );
    assert_eq!(shown(&seed, "/routing/table"), ["added disabled=no fib= name=x"]);
    let route = &seed.rows(&"/ip/route".parse().unwrap())[0];
    assert!(route.flags.contains("blackhole") && route.expressions.contains("dst-address"));
    assert_eq!(route.fields["distance"], "2");
    let problems: Vec<_> = seed.problems.iter().map(ToString::to_string).collect();
    let expected = [
        "line 4: the value of `dst-address` is an expression, kept as it was written",
        "line 4: the field `loud` has no value",
        "line 4: the field `distance` is given twice; the last one counts",
    ];
    assert_eq!(problems.len(), 3);
    assert!(expected.iter().all(|problem| problems.contains(&(*problem).to_owned())), "{problems:?}");
}

#[test]
fn a_row_that_is_never_removed_by_a_selector_of_another_menu_stays() {
    let seed = seed("/ip pool\nadd name=a\n/ip address\nremove [find name=a]\nset [find name=a] comment=x\n");
    assert_eq!(shown(&seed, "/ip/pool"), ["added name=a"]);
    assert_eq!(shown(&seed, "/ip/address"), ["found comment=x name=a"]);
}

#[test]
fn interfaces_that_no_row_defines_are_listed() {
    let seed = seed(
        "/interface ethernet\nset [ find default-name=ether1 ] name=wan\n/interface bridge\nadd name=bridge\n/interface list\nadd name=LAN\n\
         /interface bridge port\nadd bridge=bridge interface=ether2\nadd bridge=bridge interface=*F\nadd bridge=bridge interface=LAN\n\
         /interface bridge vlan\nadd bridge=bridge tagged=bridge,sfp1 untagged=\"\" vlan-ids=5\n/interface bonding\nadd name=bond1 slaves=ether3,ether4\n\
         /ip firewall filter\nadd in-interface=!ether5 out-interface=all\n/ip route\nadd gateway=10.0.0.1%ether6\nadd gateway=ether7@main,10.0.0.2,fe80::1\n\
         add gateway=$gw\n/ip dhcp-client\nadd interface=wan\n/ip dhcp-server network\nadd gateway=10.0.0.1\n",
    );
    let found: Vec<_> = seed.referenced_interfaces().into_iter().collect();
    assert_eq!(found, ["ether2", "ether3", "ether4", "ether5", "ether6", "ether7", "sfp1"]);
}

#[test]
fn debug_output_shows_no_secret() {
    let export = parse(
        b"/interface wireguard\nadd name=wg private-key=\"canary\"\n/user\nadd name=x password=canary\nset [find name=a or b] password=canary\n\
          /system script\nadd source=\"canary\"\n:global p \"canary\"\n# canary\n[a@b] > canary\n",
    );
    let shown = format!("{export:?} {:?}", export.rows());
    assert!(shown.contains("wg") && !shown.contains("canary"), "{shown}");
}
