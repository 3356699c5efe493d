//! `/interface/bridge`.

use nasnet_state::{FieldSpec, FieldType, KindSchema, Risk};

use super::{COMMENT, DISABLED, INTERFACE_SPACE, NAME, assumed, runtime, text};

const VLAN_ID: FieldType = FieldType::Int { min: 1, max: 4094 };

/// A bridge.
pub static BRIDGE: KindSchema = KindSchema::new(
    "net.bridge",
    1,
    &[
        NAME,
        FieldSpec::new("mtu", FieldType::Int { min: 68, max: 65_535 }).words(&["auto"]).default("auto"),
        FieldSpec::new("arp", FieldType::Enum(&["enabled", "disabled", "local-proxy-arp", "proxy-arp", "reply-only"]))
            .default("enabled"),
        FieldSpec::new("arp-timeout", FieldType::Duration).words(&["auto"]).default("auto"),
        FieldSpec::new("auto-mac", FieldType::Bool).default("yes"),
        FieldSpec::new("admin-mac", FieldType::Mac),
        FieldSpec::new("ageing-time", FieldType::Duration).default("5m"),
        FieldSpec::new("protocol-mode", FieldType::Enum(&["none", "stp", "rstp", "mstp"])).default("rstp"),
        FieldSpec::new("priority", FieldType::Int { min: 0, max: 65_535 }).default("0x8000"),
        FieldSpec::new("fast-forward", FieldType::Bool).default("yes"),
        FieldSpec::new("forward-delay", FieldType::Duration).default("15s"),
        FieldSpec::new("max-message-age", FieldType::Duration).default("20s"),
        FieldSpec::new("transmit-hold-count", FieldType::Int { min: 1, max: 10 }).default("6"),
        FieldSpec::new("igmp-snooping", FieldType::Bool).default("no"),
        FieldSpec::new("dhcp-snooping", FieldType::Bool).default("no"),
        FieldSpec::new("add-dhcp-option82", FieldType::Bool),
        FieldSpec::new("vlan-filtering", FieldType::Bool).default("no"),
        FieldSpec::new("ingress-filtering", FieldType::Bool).default("yes"),
        FieldSpec::new(
            "frame-types",
            FieldType::Enum(&["admit-all", "admit-only-untagged-and-priority-tagged", "admit-only-vlan-tagged"]),
        )
        .default("admit-all"),
        FieldSpec::new("pvid", VLAN_ID).default("1"),
        FieldSpec::new("ether-type", FieldType::Enum(&["0x8100", "0x88a8", "0x9100"])).default("0x8100"),
        FieldSpec::new("mvrp", FieldType::Bool).default("no"),
        assumed("port-cost-mode", "long"),
        assumed("max-learned-entries", "auto"),
        text("forward-reserved-addresses"),
        text("igmp-version"),
        text("mld-version"),
        text("last-member-interval"),
        text("last-member-query-count"),
        text("max-hops"),
        text("membership-interval"),
        text("multicast-querier"),
        text("multicast-router"),
        text("querier-interval"),
        text("query-interval"),
        text("query-response-interval"),
        text("region-name"),
        text("region-revision"),
        text("startup-query-count"),
        text("startup-query-interval"),
        DISABLED,
        COMMENT,
        FieldSpec::new("mac-address", FieldType::Mac).read_only(),
        runtime("actual-mtu"),
        runtime("l2mtu"),
        runtime("running"),
        runtime("dynamic"),
    ],
)
.menu("/interface/bridge")
.natural_key(&["name"])
.provides(&[INTERFACE_SPACE])
.risk(Risk::Management);
