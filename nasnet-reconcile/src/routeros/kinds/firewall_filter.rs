//! `/ip/firewall/filter`.

use nasnet_state::{FieldSpec, FieldType, KindSchema, ListSem, Negation, Risk};

use super::{COMMENT, DISABLED, INTERFACE_LIST_SPACE, INTERFACE_SPACE, runtime, text};

const INTERFACE: FieldType = FieldType::Ref(INTERFACE_SPACE);
const INTERFACE_LIST: FieldType = FieldType::Ref(INTERFACE_LIST_SPACE);
const WORDS: FieldType = FieldType::List(&FieldType::Str, ListSem::Set);

const fn matcher(name: &'static str, ty: FieldType) -> FieldSpec {
    FieldSpec::new(name, ty).negatable()
}

/// A rule of the IPv4 filter. The order of rules decides, and nothing but a marker tells two rules apart.
pub static FIREWALL_FILTER: KindSchema = KindSchema::new(
    "firewall.filter",
    1,
    &[
        FieldSpec::new("chain", FieldType::Str).required(),
        FieldSpec::new("action", FieldType::Str).default("accept"),
        text("jump-target"),
        text("reject-with"),
        text("address-list"),
        text("address-list-timeout"),
        matcher("protocol", FieldType::Str),
        matcher("src-address", FieldType::AddressMatch),
        matcher("dst-address", FieldType::AddressMatch),
        matcher("src-address-list", FieldType::Str),
        matcher("dst-address-list", FieldType::Str),
        matcher("src-address-type", WORDS),
        matcher("dst-address-type", WORDS),
        matcher("src-port", FieldType::Ranges { min: 0, max: 65_535 }),
        matcher("dst-port", FieldType::Ranges { min: 0, max: 65_535 }),
        matcher("port", FieldType::Ranges { min: 0, max: 65_535 }),
        matcher("in-interface", INTERFACE),
        matcher("out-interface", INTERFACE),
        matcher("in-interface-list", INTERFACE_LIST),
        matcher("out-interface-list", INTERFACE_LIST),
        matcher("in-bridge-port", INTERFACE),
        matcher("out-bridge-port", INTERFACE),
        matcher("in-bridge-port-list", INTERFACE_LIST),
        matcher("out-bridge-port-list", INTERFACE_LIST),
        matcher("connection-state", WORDS),
        matcher("connection-nat-state", WORDS),
        matcher("connection-mark", FieldType::Str),
        matcher("packet-mark", FieldType::Str),
        matcher("routing-mark", FieldType::Str),
        matcher("connection-type", FieldType::Str),
        FieldSpec::new("tcp-flags", WORDS).negation(Negation::Members),
        matcher("src-mac-address", FieldType::Mac),
        matcher("icmp-options", FieldType::Str),
        matcher("limit", FieldType::Str),
        matcher("dst-limit", FieldType::Str),
        matcher("connection-limit", FieldType::Str),
        matcher("connection-bytes", FieldType::Str),
        matcher("connection-rate", FieldType::Str),
        matcher("ipv4-options", FieldType::Str),
        matcher("layer7-protocol", FieldType::Str),
        matcher("packet-size", FieldType::Str),
        matcher("per-connection-classifier", FieldType::Str),
        matcher("priority", FieldType::Str),
        matcher("ingress-priority", FieldType::Str),
        matcher("psd", FieldType::Str),
        matcher("tcp-mss", FieldType::Str),
        matcher("dscp", FieldType::Str),
        matcher("hotspot", FieldType::Str),
        matcher("realm", FieldType::Str),
        matcher("p2p", FieldType::Str),
        text("content"),
        text("fragment"),
        text("hw-offload"),
        text("ipsec-policy"),
        text("nth"),
        text("random"),
        text("time"),
        text("tls-host"),
        text("ttl"),
        FieldSpec::new("log", FieldType::Bool).default("no"),
        text("log-prefix"),
        DISABLED,
        COMMENT,
        runtime("bytes"),
        runtime("packets"),
        runtime("invalid"),
        runtime("dynamic"),
    ],
)
.menu("/ip/firewall/filter")
.ordered()
.risk(Risk::Management);
