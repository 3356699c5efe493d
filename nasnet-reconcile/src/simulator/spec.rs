//! The menus whose arguments the simulator knows (S02): types, defaults, uniqueness and what is printed beside them.

mod firewall;
mod interface;
mod ip;
mod system;

use super::value::Type;

/// One argument of a menu.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    pub(crate) default: Option<&'static str>,
    pub(crate) need: Need,
}

/// Whether a row must have an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Required,
    Optional,
}

/// Arguments that must not be the same in two rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unique {
    pub(crate) fields: &'static [&'static str],
    pub(crate) text: &'static str,
}

/// Whether rows can be added and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// They can.
    Free,
    /// The router has them once and for all.
    Fixed,
}

/// Whether arguments outside the table are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// They are refused as unknown (S01).
    Listed,
    /// They are accepted, because they depend on the hardware or the table does not list them all.
    Open,
}

/// What the simulator knows of one menu.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) menu: &'static str,
    pub(crate) rows: Rows,
    pub(crate) arguments: Arguments,
    pub(crate) fields: &'static [Field],
    /// More arguments, of any text.
    pub(crate) texts: &'static [&'static str],
    pub(crate) unique: &'static [Unique],
    /// Rows get a name from this and a number when none is given.
    pub(crate) name_prefix: Option<&'static str>,
    /// Fields that are printed and cannot be set.
    pub(crate) printed: &'static [(&'static str, &'static str)],
    /// Whether `invalid` is printed, and whether an unresolved reference makes it true.
    pub(crate) prints_invalid: bool,
}

impl Spec {
    const fn new(menu: &'static str) -> Self {
        Self {
            menu,
            rows: Rows::Free,
            arguments: Arguments::Listed,
            fields: &[],
            texts: &[],
            unique: &[],
            name_prefix: None,
            printed: &[],
            prints_invalid: false,
        }
    }

    /// Returns the type of an argument; `None` when the menu does not have it.
    pub(crate) fn kind_of(&self, name: &str) -> Option<Type> {
        if let Some(field) = self.field(name) {
            return Some(field.kind);
        }
        let known = name == "comment" || self.arguments == Arguments::Open || self.texts.contains(&name);
        known.then_some(Type::Text)
    }

    /// Returns the argument's entry in the table.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

const fn req(name: &'static str, kind: Type) -> Field {
    Field { name, kind, default: None, need: Need::Required }
}

const fn opt(name: &'static str, kind: Type) -> Field {
    Field { name, kind, default: None, need: Need::Optional }
}

const fn def(name: &'static str, kind: Type, default: &'static str) -> Field {
    Field { name, kind, default: Some(default), need: Need::Optional }
}

const DISABLED: Field = def("disabled", Type::Bool, "false");

/// Menus whose rows have an order that can be changed with `move` and `place-before` (S26).
const ORDERED: &[&str] = &[
    "/interface/bridge/calea",
    "/interface/bridge/filter",
    "/interface/bridge/nat",
    "/interface/bridge/port",
    "/interface/wifi/access-list",
    "/interface/wifi/provisioning",
    "/interface/wireguard/peers",
    "/interface/wireless/access-list",
    "/interface/wireless/channels",
    "/interface/wireless/connect-list",
    "/ip/dns/static",
    "/ip/firewall/calea",
    "/ip/firewall/filter",
    "/ip/firewall/mangle",
    "/ip/firewall/nat",
    "/ip/firewall/raw",
    "/ip/hotspot/ip-binding",
    "/ip/hotspot/walled-garden",
    "/ip/hotspot/walled-garden/ip",
    "/ip/ipsec/policy",
    "/ip/proxy/access",
    "/ip/proxy/cache",
    "/ip/proxy/direct",
    "/ip/socks/access",
    "/ip/tftp",
    "/ip/vrf",
    "/ipv6/firewall/filter",
    "/ipv6/firewall/mangle",
    "/ipv6/firewall/nat",
    "/ipv6/firewall/raw",
    "/mpls/interface",
    "/mpls/ldp/accept-filter",
    "/mpls/ldp/advertise-filter",
    "/queue/simple",
    "/radius",
    "/routing/bfd/configuration",
    "/routing/filter/community-ext-list",
    "/routing/filter/community-large-list",
    "/routing/filter/community-list",
    "/routing/filter/num-list",
    "/routing/filter/rule",
    "/routing/filter/select-rule",
    "/routing/isis/interface-template",
    "/routing/ospf/interface-template",
    "/routing/pimsm/interface-template",
    "/routing/rule",
];

/// Menus without a table whose rows the router has once and for all.
const FIXED: &[&str] = &["/ip/firewall/service-port", "/ip/hotspot/service-port", "/queue/interface"];

/// Returns whether the rows of a menu can be moved.
pub(crate) fn is_ordered(menu: &str) -> bool {
    ORDERED.contains(&menu)
}

/// Returns whether rows of a menu can be added and removed.
pub(crate) fn rows_of(menu: &str) -> Rows {
    match of(menu) {
        Some(spec) => spec.rows,
        None if FIXED.contains(&menu) => Rows::Fixed,
        None => Rows::Free,
    }
}

/// Returns what is known of a menu.
pub(crate) fn of(menu: &str) -> Option<&'static Spec> {
    [interface::SPECS, ip::SPECS, firewall::SPECS, system::SPECS].into_iter().flatten().find(|spec| spec.menu == menu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::value::canonical;

    #[test]
    fn every_default_is_in_the_printed_spelling_of_its_type() {
        for spec in [interface::SPECS, ip::SPECS, firewall::SPECS, system::SPECS].into_iter().flatten() {
            for field in spec.fields {
                if let Some(default) = field.default.filter(|default| !default.is_empty()) {
                    assert_eq!(
                        canonical(field.kind, default).as_deref(),
                        Some(default),
                        "{} {}",
                        spec.menu,
                        field.name
                    );
                }
            }
            for unique in spec.unique {
                assert!(unique.fields.iter().all(|name| spec.kind_of(name).is_some()), "{}", spec.menu);
            }
        }
    }
}
