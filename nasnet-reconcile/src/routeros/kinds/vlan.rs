//! `/interface/vlan`.

use nasnet_state::{FieldSpec, FieldType, KindSchema, Risk};

use super::{COMMENT, DISABLED, INTERFACE_SPACE, NAME, assumed, runtime};

/// A VLAN on top of an interface.
pub static VLAN: KindSchema = KindSchema::new(
    "net.vlan",
    1,
    &[
        NAME,
        FieldSpec::new("interface", FieldType::Ref(INTERFACE_SPACE)).required(),
        FieldSpec::new("vlan-id", FieldType::Int { min: 1, max: 4095 }).default("1"),
        FieldSpec::new("mtu", FieldType::Int { min: 68, max: 65_535 }).default("1500"),
        FieldSpec::new("arp", FieldType::Enum(&["enabled", "disabled", "local-proxy-arp", "proxy-arp", "reply-only"]))
            .default("enabled"),
        FieldSpec::new("arp-timeout", FieldType::Duration).words(&["auto"]).default("auto"),
        FieldSpec::new("use-service-tag", FieldType::Bool).default("no"),
        FieldSpec::new("mvrp", FieldType::Bool).default("no"),
        assumed("loop-protect", "default"),
        assumed("loop-protect-disable-time", "5m"),
        assumed("loop-protect-send-interval", "5s"),
        DISABLED,
        COMMENT,
        FieldSpec::new("mac-address", FieldType::Mac).read_only(),
        runtime("loop-protect-status"),
        runtime("l2mtu"),
        runtime("running"),
        runtime("dynamic"),
    ],
)
.menu("/interface/vlan")
.natural_key(&["name"])
.provides(&[INTERFACE_SPACE])
.risk(Risk::Management);
