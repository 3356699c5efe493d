//! What a router without configuration has: its ports, services, users and lists.

use super::generate::POLICIES;
use super::profile::SimProfile;
use super::store::{Origin, Store};
use super::write;
use crate::device::RawFields;

/// The services of RouterOS with their ports.
const SERVICES: &[(&str, &str)] = &[
    ("telnet", "23"),
    ("ftp", "21"),
    ("www", "80"),
    ("ssh", "22"),
    ("www-ssl", "443"),
    ("api", "8728"),
    ("winbox", "8291"),
    ("api-ssl", "8729"),
];

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> RawFields {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Fills an empty store.
pub(crate) fn fill(store: &mut Store, profile: &SimProfile) {
    let builtin = |store: &mut Store, menu: &str, row: RawFields| load(store, menu, Origin::Builtin, &row);
    for number in 1..=profile.ethernet_ports {
        add_port(store, "/interface/ethernet", &format!("ether{number}"));
    }
    builtin(store, "/interface", fields([("name", "lo"), ("mtu", "65536"), ("mac-address", "00:00:00:00:00:00")]));
    for name in ["all", "none", "dynamic", "static"] {
        builtin(store, "/interface/list", fields([("name", name)]));
    }
    for (name, port) in SERVICES {
        builtin(store, "/ip/service", fields([("name", name), ("port", port)]));
    }
    builtin(store, "/routing/table", fields([("name", "main"), ("fib", "")]));
    let all = POLICIES.join(",");
    let all_but = |denied: &[&str]| {
        let granted: Vec<&str> = POLICIES.iter().copied().filter(|policy| !denied.contains(policy)).collect();
        granted.join(",")
    };
    builtin(store, "/user/group", fields([("name", "read"), ("policy", &all_but(&["ftp", "write", "policy"]))]));
    builtin(store, "/user/group", fields([("name", "write"), ("policy", &all_but(&["ftp", "policy"]))]));
    builtin(store, "/user/group", fields([("name", "full"), ("policy", &all)]));
    load(store, "/user", Origin::Static, &fields([("name", "admin"), ("group", "full")]));
    store.singleton_mut("/system/identity").extend(fields([("name", "MikroTik")]));
    store.singleton_mut("/ip/dns").extend(fields([
        ("servers", ""),
        ("dynamic-servers", ""),
        ("use-doh-server", ""),
        ("verify-doh-cert", "false"),
        ("allow-remote-requests", "false"),
        ("max-udp-packet-size", "4096"),
        ("cache-size", "2048KiB"),
        ("cache-max-ttl", "1w"),
    ]));
    store.singleton_mut("/system/clock").extend(fields([("time-zone-autodetect", "true"), ("time-zone-name", "UTC")]));
}

/// Adds a port of the hardware.
pub(crate) fn add_port(store: &mut Store, menu: &str, name: &str) {
    let mac = store.random_mac();
    let row = fields([("name", name), ("default-name", name), ("mac-address", &mac)]);
    load(store, menu, Origin::Builtin, &row);
}

fn load(store: &mut Store, menu: &str, origin: Origin, row: &RawFields) {
    let (_, refusals) = write::load(store, menu, None, origin, row);
    debug_assert!(refusals.is_empty(), "a built-in row of {menu} is not valid: {refusals:?}");
}
