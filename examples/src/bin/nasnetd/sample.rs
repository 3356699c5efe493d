//! Writes a RouterOS export of any length, for trying the tools on something large.

use std::fmt::Write as _;

/// Returns an export of `lines` lines, the same for the same number.
///
/// The configuration is that of a small access router: VLANs on a bridge, their addresses, DHCP networks, static
/// leases, address lists, DNS entries and firewall rules, in the proportions such a router has them.
pub(crate) fn export(lines: usize) -> String {
    let mut out = Writer { text: String::new(), lines: 0, limit: lines.max(HEAD.lines().count()) };
    for line in HEAD.lines() {
        out.line(line);
    }
    let rest = out.limit - out.lines;
    let vlans = (rest / 40).clamp(1, 200);
    out.section("/interface vlan", vlans, |n| {
        format!("add interface=bridge name=vlan{} vlan-id={} comment=\"tenant {n}\"", 100 + n, 100 + n)
    });
    out.section("/ip address", vlans, |n| {
        format!(
            "add address=10.{}.{}.1/24 interface=vlan{} network=10.{}.{}.0",
            20 + n / 250,
            n % 250,
            100 + n,
            20 + n / 250,
            n % 250
        )
    });
    out.section("/ip dhcp-server network", vlans, |n| {
        format!("add address=10.{0}.{1}.0/24 dns-server=10.{0}.{1}.1 gateway=10.{0}.{1}.1", 20 + n / 250, n % 250)
    });
    out.section("/ip dhcp-server lease", rest / 4, |n| {
        format!(
            "add address=192.168.{}.{} comment=\"device \\\"{n}\\\"\" mac-address=02:00:00:00:{:02X}:{:02X} server=lan",
            88 + n / 200,
            n % 200 + 20,
            n / 256 % 256,
            n % 256
        )
    });
    out.section("/ip firewall address-list", rest / 5, |n| {
        format!("add address=198.51.{}.{} list=blocked", 100 + n / 250, n % 250 + 1)
    });
    out.section("/ip dns static", rest / 8, |n| {
        format!("add address=192.168.88.{} name=host{n}.lan type=A", n % 250 + 1)
    });
    out.line("/ip firewall filter");
    let mut n = 0;
    while out.lines < out.limit {
        let line =
            format!("add action=accept chain=forward comment=\"service {n}\" dst-port={} protocol=tcp", 1024 + n);
        out.line(&line);
        n += 1;
    }
    out.text
}

const HEAD: &str = r#"# 2026-03-01 12:00:00 by RouterOS 7.16.2
# software id = ABCD-EFGH
#
# model = RB5009UG+S+
# serial number = HG0000SAMPLE
/interface bridge
add name=bridge protocol-mode=none
/interface list
add name=WAN
add name=LAN
/ip pool
add name=lan-pool ranges=192.168.88.100-192.168.88.199
/ip dhcp-server
add address-pool=lan-pool interface=bridge name=lan
/interface bridge port
add bridge=bridge interface=ether2
add bridge=bridge interface=ether3
/interface list member
add interface=bridge list=LAN
add interface=ether1 list=WAN
/ip address
add address=192.168.88.1/24 interface=bridge network=192.168.88.0
/ip dhcp-client
add interface=ether1
/system identity
set name=sample"#;

struct Writer {
    text: String,
    lines: usize,
    limit: usize,
}

impl Writer {
    fn line(&mut self, line: &str) {
        if self.lines < self.limit {
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "{line}");
            self.lines += 1;
        }
    }

    fn section(&mut self, menu: &str, count: usize, row: impl Fn(usize) -> String) {
        self.line(menu);
        for n in 0..count {
            self.line(&row(n));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nasnet_reconcile::routeros::export::parse;

    #[test]
    fn a_sample_has_the_asked_number_of_lines_and_no_broken_one() {
        for lines in [50, 500, 2_000, 5_000] {
            let text = export(lines);
            assert_eq!(text.lines().count(), lines);
            assert!(parse(text.as_bytes()).errors.is_empty());
        }
    }
}
