//! References between rows: what a name may refer to, and what becomes of references when a row is renamed or removed.

use super::interfaces;
use super::spec::{self, Field};
use super::store::{Store, id_text};
use super::value::Type;

/// The rows a reference may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any interface.
    Interface,
    /// Any interface or interface list.
    InterfaceOrList,
    /// An interface list.
    InterfaceList,
    /// A bridge.
    Bridge,
    /// A WireGuard interface.
    Wireguard,
    /// An address pool.
    Pool,
    /// A routing table.
    RoutingTable,
    /// A user group.
    UserGroup,
    /// A DHCP server.
    DhcpServer,
}

/// Names of arguments that name interfaces in menus without a table of their own.
const INTERFACE_ARGUMENTS: &[&str] = &[
    "bridge",
    "in-interface",
    "interface",
    "interfaces",
    "main-interface",
    "master-interface",
    "out-interface",
    "port",
    "slaves",
];

impl Target {
    fn includes(self, menu: &str) -> bool {
        match self {
            Self::Interface => interfaces::type_of(menu).is_some(),
            Self::InterfaceOrList => interfaces::type_of(menu).is_some() || menu == "/interface/list",
            Self::InterfaceList => menu == "/interface/list",
            Self::Bridge => menu == "/interface/bridge",
            Self::Wireguard => menu == "/interface/wireguard",
            Self::Pool => menu == "/ip/pool",
            Self::RoutingTable => menu == "/routing/table",
            Self::UserGroup => menu == "/user/group",
            Self::DhcpServer => menu == "/ip/dhcp-server",
        }
    }

    /// Returns whether a row of this name exists.
    pub(crate) fn exists(self, store: &Store, name: &str) -> bool {
        store
            .lists()
            .filter(|(menu, _)| self.includes(menu))
            .any(|(_, rows)| rows.iter().any(|row| row.field("name") == Some(name)))
    }
}

/// Returns whether every reference in a value names an existing row.
pub(crate) fn resolves(store: &Store, kind: Type, value: &str) -> bool {
    match kind {
        Type::Name(target, words) => words.contains(&value) || target.exists(store, value),
        Type::NegatableName(target, words) => {
            let name = value.strip_prefix('!').unwrap_or(value);
            words.contains(&name) || target.exists(store, name)
        }
        Type::NameList(target) => value.split(',').all(|name| name.is_empty() || target.exists(store, name)),
        Type::Gateway => value.split(',').all(|hop| gateway_resolves(store, hop)),
        _ => true,
    }
}

fn gateway_resolves(store: &Store, hop: &str) -> bool {
    let hop = hop.split_once('@').map_or(hop, |(hop, _)| hop);
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    match hop.split_once('%') {
        Some((address, interface)) => is_address(address) && Target::Interface.exists(store, interface),
        None => is_address(hop) || Target::Interface.exists(store, hop),
    }
}

fn may_name(field: &Field, menu: &str) -> bool {
    match field.kind {
        Type::Name(target, _) | Type::NegatableName(target, _) | Type::NameList(target) => target.includes(menu),
        Type::Gateway => interfaces::type_of(menu).is_some(),
        _ => false,
    }
}

/// Writes the new name into every reference to a renamed row (S28e).
pub(crate) fn rename(store: &mut Store, menu: &str, old: &str, new: &str) {
    let of_interface = interfaces::type_of(menu).is_some();
    for (other, rows) in store.lists_mut() {
        let arguments: Vec<&str> = match spec::of(other) {
            Some(spec) => spec.fields.iter().filter(|field| may_name(field, menu)).map(|field| field.name).collect(),
            None if of_interface => INTERFACE_ARGUMENTS.to_vec(),
            None => continue,
        };
        for row in rows.iter_mut() {
            for argument in &arguments {
                if let Some(value) = row.fields.get_mut(*argument)
                    && let Some(renamed) = replace_name(value, old, new)
                {
                    *value = renamed;
                }
            }
        }
    }
}

/// Leaves the id of a removed row in the references to it, which is what the router prints for them (S24b).
pub(crate) fn dangle(store: &mut Store, menu: &str, name: &str, id: u64) {
    rename(store, menu, name, &id_text(id));
}

fn replace_name(value: &str, old: &str, new: &str) -> Option<String> {
    let mut changed = false;
    let parts: Vec<String> = value
        .split(',')
        .map(|part| {
            let (before, name) = match part.rsplit_once(['!', '%']) {
                Some((before, name)) => (&part[..=before.len()], name),
                None => ("", part),
            };
            if name != old {
                return part.to_owned();
            }
            changed = true;
            format!("{before}{new}")
        })
        .collect();
    changed.then(|| parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_replaced_as_a_whole_word() {
        let cases = [
            ("ether1", Some("wan")),
            ("!ether1", Some("!wan")),
            ("10.0.0.1%ether1", Some("10.0.0.1%wan")),
            ("ether10,ether1", Some("ether10,wan")),
            ("ether10", None),
        ];
        for (value, replaced) in cases {
            assert_eq!(replace_name(value, "ether1", "wan").as_deref(), replaced, "{value}");
        }
    }
}
