//! Prints a made-up export of the wanted number of lines: `cargo run --example make_export -- 2000 > big.rsc`.
//!
//! The same number always gives the same text. Everything in it refers to something that is in it, so a device would
//! accept it.

use std::fmt::Write as _;
use std::io::Write as _;

/// Makes an export of exactly this many lines, or of the fewest it can be.
pub(crate) fn make_export(lines: usize) -> String {
    let mut text = String::new();
    header_and_interfaces(&mut text);
    let networks = (lines / 60).clamp(2, 400);
    write_networks(&mut text, networks);
    write_firewall(&mut text, networks, lines / 12);
    write_peers(&mut text, (lines / 40).clamp(1, 240));
    text.push_str("/system identity\nset name=\"made up \\\"gateway\\\"\"\n/ip firewall address-list\n");
    let written = text.lines().count();
    for number in written..lines {
        let (third, fourth) = (number / 250 % 250, number % 250);
        let _ = writeln!(text, "add address=198.18.{third}.{fourth} comment=\"entry {number}; filler\" list=blocked");
    }
    text
}

fn header_and_interfaces(text: &mut String) {
    text.push_str(
        "# 2025-06-01 12:00:00 by RouterOS 7.16.2\n# software id = MADE-UP00\n#\n# model = RB5009UG+S+\n\
         # serial number = HX00MADEUP01\n/interface bridge\nadd name=bridge vlan-filtering=yes\n/interface ethernet\n\
         set [ find default-name=ether1 ] comment=\"Uplink, \\\"fibre\\\"\" name=ether1-wan\n/interface wireguard\n\
         add comment=\"Everybody on the road and all of the branch offices of the company\" \\\n    \
         listen-port=51820 mtu=1420 name=wg-all\n/interface list\nadd name=WAN\nadd name=LAN\n",
    );
}

fn write_networks(text: &mut String, networks: usize) {
    let mut section = |menu: &str, row: &dyn Fn(usize) -> String| {
        let _ = writeln!(text, "{menu}");
        for number in 0..networks {
            let _ = writeln!(text, "{}", row(number));
        }
    };
    let net = |number: usize| format!("10.{}.{}", 16 + number / 200, number % 200);
    let vlan = |number: usize| 100 + number;
    section("/interface vlan", &|n| {
        format!(
            "add comment=\"Network {n}: r\\C3\\BCckw\\C3\\A4rts\" interface=bridge name=vlan{0} vlan-id={0}",
            vlan(n)
        )
    });
    section("/ip pool", &|n| format!("add name=pool{0} ranges={1}.100-{1}.199", vlan(n), net(n)));
    section("/ip dhcp-server", &|n| {
        format!("add address-pool=pool{0} interface=vlan{0} lease-time=1h name=dhcp{0}", vlan(n))
    });
    section("/interface bridge vlan", &|n| format!("add bridge=bridge tagged=bridge,ether2 vlan-ids={}", vlan(n)));
    section("/interface list member", &|n| format!("add interface=vlan{} list=LAN", vlan(n)));
    section("/ip address", &|n| format!("add address={0}.1/24 interface=vlan{1} network={0}.0", net(n), vlan(n)));
    section("/ip dhcp-server network", &|n| format!("add address={0}.0/24 dns-server={0}.1 gateway={0}.1", net(n)));
    text.push_str(
        "/interface bridge port\nadd bridge=bridge interface=ether2\n/ip dhcp-client\nadd interface=ether1-wan\n",
    );
}

fn write_firewall(text: &mut String, networks: usize, rules: usize) {
    text.push_str(
        "/ip firewall filter\nadd action=accept chain=input connection-state=established,related,untracked\n\
         add action=accept chain=input dst-port=51820 in-interface=ether1-wan protocol=udp\n",
    );
    for number in 0..rules {
        let _ = writeln!(
            text,
            "add action=accept chain=forward comment=\"Rule {number}: what\\?\" dst-port={} in-interface=\\\n    \
             vlan{} protocol=tcp",
            1024 + number,
            100 + number % networks
        );
    }
    text.push_str(
        "add action=drop chain=forward comment=\"everything else\"\n/ip firewall nat\n\
         add action=masquerade chain=srcnat out-interface=ether1-wan\n",
    );
}

fn write_peers(text: &mut String, peers: usize) {
    text.push_str("/interface wireguard peers\n");
    for number in 0..peers {
        // 43 characters of base64 and the padding: the length of a real key.
        let _ = writeln!(
            text,
            "add allowed-address=10.255.0.{}/32 interface=wg-all name=peer{number} public-key=\\\n    \
             \"Key+{number:04}MadeUpKeyMadeUpKeyMadeUpKeyMadeUpKA=\"",
            number + 2
        );
    }
    text.push_str("/ip address\nadd address=10.255.0.1/24 interface=wg-all network=10.255.0.0\n");
}

fn main() -> std::io::Result<()> {
    let lines = std::env::args().nth(1).and_then(|lines| lines.parse().ok()).unwrap_or(2000);
    std::io::stdout().lock().write_all(make_export(lines).as_bytes())
}
