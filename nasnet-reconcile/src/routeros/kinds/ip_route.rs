//! `/ip/route`.

use nasnet_state::{FieldSpec, FieldType, HostBits, HostForm, KindSchema, Risk};

use super::{COMMENT, DISABLED, runtime, text};

const DISTANCE: FieldType = FieldType::Int { min: 0, max: 255 };

/// A static IPv4 route.
pub static IP_ROUTE: KindSchema = KindSchema::new(
    "routing.route",
    1,
    &[
        FieldSpec::new("dst-address", FieldType::Prefix { host_bits: HostBits::Zero, host: HostForm::WithLength })
            .default("0.0.0.0/0"),
        text("gateway"),
        FieldSpec::new("distance", DISTANCE).default("1"),
        FieldSpec::new("scope", DISTANCE).default("30"),
        FieldSpec::new("target-scope", DISTANCE).default("10"),
        FieldSpec::new("routing-table", FieldType::Ref("routing-table")).default("main"),
        text("pref-src"),
        FieldSpec::new("check-gateway", FieldType::Enum(&["none", "arp", "ping", "bfd", "bfd-multihop"]))
            .default("none"),
        FieldSpec::new("suppress-hw-offload", FieldType::Bool).default("no"),
        FieldSpec::new("blackhole", FieldType::Flag),
        text("vrf-interface"),
        DISABLED,
        COMMENT,
        runtime("immediate-gw"),
        runtime("local-address"),
        runtime("active"),
        runtime("inactive"),
        runtime("static"),
        runtime("dynamic"),
        runtime("connect"),
        runtime("dhcp"),
        runtime("bgp"),
        runtime("ospf"),
        runtime("rip"),
        runtime("vpn"),
        runtime("modem"),
        runtime("copy"),
        runtime("ecmp"),
        runtime("hw-offloaded"),
        runtime("invalid"),
        runtime("debug"),
        runtime("belongs-to"),
    ],
)
.menu("/ip/route")
.natural_key(&["dst-address", "gateway", "routing-table", "distance"])
.risk(Risk::Management);
