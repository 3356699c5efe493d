//! What the router fills in by itself: names, keys, ports, MAC addresses, networks.

use super::interfaces;
use super::refusal::Refusal;
use super::spec;
use super::store::Store;
use super::value::{key_bytes, key_text, mask_length, network_of, prefix, public_key};
use super::write::Check;
use crate::device::RawFields;

/// WireGuard's usual first port; RouterOS takes it for the first interface.
const WIREGUARD_PORT: u16 = 13231;

/// All policies a group of version 7.16 can have.
pub(crate) const POLICIES: &[&str] = &[
    "local",
    "telnet",
    "ssh",
    "ftp",
    "reboot",
    "read",
    "write",
    "policy",
    "test",
    "winbox",
    "password",
    "web",
    "sniff",
    "sensitive",
    "api",
    "romon",
    "rest-api",
];

/// Completes a row's fields with what follows from them and what the router generates.
pub(crate) fn complete(store: &mut Store, menu: &str, fields: &mut RawFields, check: Check) -> Result<(), Refusal> {
    if let Some(prefix) = spec::of(menu).and_then(|spec| spec.name_prefix)
        && fields.get("name").is_none_or(String::is_empty)
    {
        let name = free_name(store, menu, prefix);
        fields.insert("name".to_owned(), name);
    }
    match menu {
        "/interface/wireguard" => wireguard(store, fields),
        "/interface/wireguard/peers" => peer(fields),
        "/interface/bridge" => {
            let mac = match fields.get("admin-mac") {
                Some(mac) => mac.clone(),
                None => fields.get("mac-address").cloned().unwrap_or_else(|| store.random_mac()),
            };
            fields.insert("mac-address".to_owned(), mac);
        }
        "/interface/veth" if !fields.contains_key("mac-address") => {
            let mac = store.random_mac();
            fields.insert("mac-address".to_owned(), mac);
        }
        "/ip/address" => return address(fields, check),
        "/user/group" => {
            let given = fields.get("policy").cloned().unwrap_or_default();
            fields.insert("policy".to_owned(), full_policy(&given));
        }
        _ => {}
    }
    Ok(())
}

/// Drops what followed from a value that was changed, so that it follows from the new one.
pub(crate) fn forget(menu: &str, fields: &mut RawFields, arguments: &RawFields) {
    if menu == "/ip/address" && arguments.contains_key("address") && !arguments.contains_key("network") {
        fields.remove("network");
    }
}

fn free_name(store: &Store, menu: &str, prefix: &str) -> String {
    let taken = |name: &str| match interfaces::type_of(menu) {
        Some(_) => interfaces::named(store, name).is_some(),
        None => store.rows(menu).iter().any(|row| row.field("name") == Some(name)),
    };
    let mut number = 1_u32;
    loop {
        let name = format!("{prefix}{number}");
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

/// S22b: a private key, the public key that follows from it, and a port of its own.
fn wireguard(store: &mut Store, fields: &mut RawFields) {
    if !fields.contains_key("private-key") {
        let mut key = store.random();
        // The form every WireGuard private key has.
        key[0] &= 248;
        key[31] = (key[31] & 127) | 64;
        fields.insert("private-key".to_owned(), key_text(key));
    }
    match fields.get("private-key").and_then(|key| key_bytes(key)) {
        Some(key) => fields.insert("public-key".to_owned(), public_key(key)),
        None => fields.remove("public-key"),
    };
    if !fields.contains_key("listen-port") {
        let used: Vec<&str> =
            store.rows("/interface/wireguard").iter().filter_map(|row| row.field("listen-port")).collect();
        let free = (WIREGUARD_PORT..=u16::MAX).map(|port| port.to_string()).find(|port| !used.contains(&port.as_str()));
        fields.insert("listen-port".to_owned(), free.unwrap_or_else(|| "0".to_owned()));
    }
}

fn peer(fields: &mut RawFields) {
    if !fields.contains_key("public-key")
        && let Some(key) = fields.get("private-key").and_then(|key| key_bytes(key))
    {
        fields.insert("public-key".to_owned(), public_key(key));
    }
}

/// S28a: the netmask becomes part of the address, and the network follows from both.
fn address(fields: &mut RawFields, check: Check) -> Result<(), Refusal> {
    if let Some(mask) = fields.remove("netmask") {
        let length = mask_length(&mask);
        let host = fields.get("address").and_then(|address| prefix(address)).map(|(host, _)| host);
        match (host, length) {
            (Some(host), Some(length)) => {
                fields.insert("address".to_owned(), format!("{host}/{length}"));
            }
            _ if check == Check::Strict => return Err(Refusal::invalid_value("netmask")),
            _ => {}
        }
    }
    if let Some((host, length)) = fields.get("address").and_then(|address| prefix(address)) {
        // A point-to-point address keeps the other end's address as its network.
        if length < 32 || !fields.contains_key("network") {
            fields.insert("network".to_owned(), network_of(host, length).to_string());
        }
    }
    Ok(())
}

/// S28d: a group's policy reads back complete, with `!` before what is not granted.
fn full_policy(given: &str) -> String {
    let granted: Vec<&str> = given.split(',').map(str::trim).collect();
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for policy in POLICIES {
        if granted.contains(policy) {
            yes.push((*policy).to_owned());
        } else {
            no.push(format!("!{policy}"));
        }
    }
    // Policies of older versions, such as `dude`, stay as they were given.
    let unknown = granted.iter().filter(|policy| !POLICIES.contains(&policy.trim_start_matches('!')));
    yes.extend(unknown.filter(|policy| !policy.is_empty()).map(|policy| (*policy).to_owned()));
    yes.append(&mut no);
    yes.join(",")
}
