//! The kinds of RouterOS rows the engine manages: one file each, our own tables.
//!
//! Field names and defaults were checked against the console trees of RouterOS 7.9 to 7.23; what a table marks as a guess
//! has not been seen on a device. Every menu without a kind is carried as opaque rows.

mod bridge;
mod firewall_filter;
mod interface_list;
mod ip_address;
mod ip_route;
mod vlan;
mod wireguard;

use nasnet_state::{Access, DriftRule, FieldSpec, FieldType, KindSchema, Provenance, Schemas};

use crate::kinds::Kinds;

pub use bridge::BRIDGE;
pub use firewall_filter::FIREWALL_FILTER;
pub use interface_list::{INTERFACE_LIST, INTERFACE_LIST_MEMBER};
pub use ip_address::IP_ADDRESS;
pub use ip_route::IP_ROUTE;
pub use vlan::VLAN;
pub use wireguard::{WIREGUARD, WIREGUARD_PEER};

/// The name space of everything that can be called an interface.
pub const INTERFACE_SPACE: &str = "interface";

/// The name space of interface lists.
pub const INTERFACE_LIST_SPACE: &str = "interface-list";

/// The managed kinds.
pub const ALL: [&KindSchema; 9] = [
    &INTERFACE_LIST,
    &INTERFACE_LIST_MEMBER,
    &BRIDGE,
    &VLAN,
    &WIREGUARD,
    &WIREGUARD_PEER,
    &IP_ADDRESS,
    &IP_ROUTE,
    &FIREWALL_FILTER,
];

/// Returns the managed kinds together with the opaque kind for every other menu.
pub fn schemas() -> Schemas {
    Schemas::new(ALL)
}

/// Returns what the engine needs to know of RouterOS.
pub fn kinds() -> Kinds {
    let kinds = Kinds::new(schemas());
    let kinds = PROVIDERS.iter().fold(kinds, |kinds, (menu, space)| kinds.provider(*menu, *space));
    BUILTIN.iter().fold(kinds, |kinds, (space, name)| kinds.builtin(*space, *name))
}

/// Menus without a kind whose rows provide a name that managed rows refer to.
pub const PROVIDERS: [(&str, &str); 24] = [
    ("/interface/ethernet", INTERFACE_SPACE),
    ("/interface/bonding", INTERFACE_SPACE),
    ("/interface/veth", INTERFACE_SPACE),
    ("/interface/wifi", INTERFACE_SPACE),
    ("/interface/wifiwave2", INTERFACE_SPACE),
    ("/interface/wireless", INTERFACE_SPACE),
    ("/interface/lte", INTERFACE_SPACE),
    ("/interface/gre", INTERFACE_SPACE),
    ("/interface/gre6", INTERFACE_SPACE),
    ("/interface/ipip", INTERFACE_SPACE),
    ("/interface/ipipv6", INTERFACE_SPACE),
    ("/interface/eoip", INTERFACE_SPACE),
    ("/interface/eoipv6", INTERFACE_SPACE),
    ("/interface/6to4", INTERFACE_SPACE),
    ("/interface/vxlan", INTERFACE_SPACE),
    ("/interface/vrrp", INTERFACE_SPACE),
    ("/interface/macvlan", INTERFACE_SPACE),
    ("/interface/pppoe-client", INTERFACE_SPACE),
    ("/interface/l2tp-client", INTERFACE_SPACE),
    ("/interface/sstp-client", INTERFACE_SPACE),
    ("/interface/ovpn-client", INTERFACE_SPACE),
    ("/interface/pptp-client", INTERFACE_SPACE),
    ("/interface/ppp-client", INTERFACE_SPACE),
    ("/routing/table", "routing-table"),
];

/// Names that exist on every device, by name space.
pub const BUILTIN: [(&str, &str); 7] = [
    (INTERFACE_SPACE, "all"),
    (INTERFACE_SPACE, "lo"),
    (INTERFACE_LIST_SPACE, "all"),
    (INTERFACE_LIST_SPACE, "none"),
    (INTERFACE_LIST_SPACE, "dynamic"),
    (INTERFACE_LIST_SPACE, "static"),
    ("routing-table", "main"),
];

const NAME: FieldSpec = FieldSpec::new("name", FieldType::Str).required();
const COMMENT: FieldSpec = FieldSpec::new("comment", FieldType::Str);
const DISABLED: FieldSpec = FieldSpec::new("disabled", FieldType::Bool).default("no");

/// A field that tells what the row is doing now; it never counts as a difference.
const fn runtime(name: &'static str) -> FieldSpec {
    FieldSpec::new(name, FieldType::Str).access(Access::ReadOnly).drift(DriftRule::Ignore)
}

/// A field kept as text, since nothing refers into it.
const fn text(name: &'static str) -> FieldSpec {
    FieldSpec::new(name, FieldType::Str)
}

/// A field with a default that has not been seen on a device.
const fn assumed(name: &'static str, default: &'static str) -> FieldSpec {
    FieldSpec::new(name, FieldType::Str).default(default).provenance(Provenance::Guess)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::device::MenuPath;

    #[test]
    fn every_kind_has_a_menu_and_keys_that_exist() {
        let mut menus = BTreeSet::new();
        for kind in ALL {
            kind.menu.parse::<MenuPath>().unwrap();
            assert!(menus.insert(kind.menu), "{} is described twice", kind.menu);
            for key in kind.natural_key {
                assert!(kind.field(key).is_some(), "{}: no field {key}", kind.kind());
            }
            let mut names = BTreeSet::new();
            for field in kind.fields {
                assert!(names.insert(field.name), "{}: {} is described twice", kind.kind(), field.name);
                assert_eq!(field.name, field.device, "{}: plans speak the device's names", kind.kind());
            }
            assert!(kind.field("comment").is_some(), "{}: a marker needs a comment", kind.kind());
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_field() {
        for kind in ALL {
            for field in kind.fields.iter().filter(|field| field.default.is_some()) {
                let value = field.default_value().unwrap_or_else(|| panic!("{} {}", kind.kind(), field.name));
                assert!(!matches!(value, nasnet_state::FieldValue::Opaque(_)), "{} {}", kind.kind(), field.name);
            }
        }
    }

    #[test]
    fn keys_are_secrets() {
        for (kind, field) in
            [(&WIREGUARD, "private-key"), (&WIREGUARD_PEER, "private-key"), (&WIREGUARD_PEER, "preshared-key")]
        {
            assert!(kind.field(field).unwrap().sensitive, "{} {field}", kind.kind());
        }
        assert!(!WIREGUARD.field("public-key").unwrap().sensitive);
    }
}
