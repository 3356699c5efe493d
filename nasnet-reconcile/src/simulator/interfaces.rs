//! `/interface`: the one list of all interfaces, each kept in the menu of its type.

use super::store::{Store, StoredRow, id_text};
use crate::device::RawFields;

/// The menus whose rows are interfaces, and the type `/interface` prints for them.
const TYPES: &[(&str, &str)] = &[
    ("/interface", "loopback"),
    ("/interface/6to4", "6to4-tunnel"),
    ("/interface/bonding", "bond"),
    ("/interface/bridge", "bridge"),
    ("/interface/eoip", "eoip"),
    ("/interface/eoipv6", "eoipv6"),
    ("/interface/ethernet", "ether"),
    ("/interface/gre", "gre-tunnel"),
    ("/interface/gre6", "gre6-tunnel"),
    ("/interface/ipip", "ipip-tunnel"),
    ("/interface/ipipv6", "ipipv6-tunnel"),
    ("/interface/l2tp-client", "l2tp-out"),
    ("/interface/l2tp-server", "l2tp-in"),
    ("/interface/lte", "lte"),
    ("/interface/macsec", "macsec"),
    ("/interface/macvlan", "macvlan"),
    ("/interface/mesh", "mesh"),
    ("/interface/ovpn-client", "ovpn-out"),
    ("/interface/ovpn-server", "ovpn-in"),
    ("/interface/ppp-client", "ppp-out"),
    ("/interface/ppp-server", "ppp-in"),
    ("/interface/pppoe-client", "pppoe-out"),
    ("/interface/pppoe-server", "pppoe-in"),
    ("/interface/pptp-client", "pptp-out"),
    ("/interface/pptp-server", "pptp-in"),
    ("/interface/sstp-client", "sstp-out"),
    ("/interface/sstp-server", "sstp-in"),
    ("/interface/veth", "veth"),
    ("/interface/vlan", "vlan"),
    ("/interface/vpls", "vpls"),
    ("/interface/vrrp", "vrrp"),
    ("/interface/vxlan", "vxlan"),
    ("/interface/wifi", "wifi"),
    ("/interface/wifiwave2", "wifiwave2"),
    ("/interface/wireguard", "wg"),
    ("/interface/wireless", "wlan"),
    ("/zerotier/interface", "zerotier"),
];

/// Returns the interface type of a menu's rows.
pub(crate) fn type_of(menu: &str) -> Option<&'static str> {
    TYPES.iter().find(|(known, _)| *known == menu).map(|(_, kind)| *kind)
}

/// Iterates over all interfaces with the menus that keep them.
pub(crate) fn all(store: &Store) -> impl Iterator<Item = (&'static str, &StoredRow)> {
    TYPES.iter().flat_map(|(menu, _)| store.rows(menu).iter().map(move |row| (*menu, row)))
}

/// Returns the interface of a name.
pub(crate) fn named<'a>(store: &'a Store, name: &str) -> Option<(&'static str, &'a StoredRow)> {
    all(store).find(|(_, row)| row.field("name") == Some(name))
}

/// Returns the menu that keeps an interface.
pub(crate) fn menu_of(store: &Store, id: u64) -> Option<&'static str> {
    all(store).find(|(_, row)| row.id == id).map(|(menu, _)| menu)
}

/// Prints an interface as `/interface` does (S02a).
pub(crate) fn summary(menu: &str, row: &StoredRow) -> RawFields {
    let mut out = RawFields::new();
    out.insert(".id".to_owned(), id_text(row.id));
    out.insert("type".to_owned(), type_of(menu).unwrap_or("unknown").to_owned());
    for name in ["name", "default-name", "mtu", "mac-address", "comment", "disabled"] {
        if let Some(value) = row.field(name) {
            out.insert(name.to_owned(), value.to_owned());
        }
    }
    out.entry("disabled".to_owned()).or_insert_with(|| "false".to_owned());
    let actual = row.field("mtu").filter(|mtu| *mtu != "auto").unwrap_or("1500").to_owned();
    out.insert("actual-mtu".to_owned(), actual);
    out.insert("running".to_owned(), (!row.is_disabled()).to_string());
    out
}
