//! Interfaces, bridges, VLANs, WireGuard.

use super::super::names::Target;
use super::super::value::Type;
use super::{Arguments, DISABLED, Rows, Spec, Unique, def, opt, req};

const MTU: Type = Type::Int { min: 68, max: 65535 };
const ARP: Type = Type::OneOf(&["enabled", "disabled", "local-proxy-arp", "proxy-arp", "reply-only"]);
const FRAMES: Type = Type::OneOf(&["admit-all", "admit-only-untagged-and-priority-tagged", "admit-only-vlan-tagged"]);
const VLAN: Type = Type::Int { min: 1, max: 4094 };

pub(super) const SPECS: &[Spec] = &[
    Spec {
        rows: Rows::Fixed,
        arguments: Arguments::Open,
        fields: &[
            req("name", Type::Text),
            def("mtu", MTU, "1500"),
            opt("l2mtu", MTU),
            opt("mac-address", Type::Mac),
            def("arp", ARP, "enabled"),
            def("auto-negotiation", Type::Bool, "true"),
            DISABLED,
        ],
        ..Spec::new("/interface/ethernet")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            def("include", Type::NameList(Target::InterfaceList), ""),
            def("exclude", Type::NameList(Target::InterfaceList), ""),
        ],
        unique: &[Unique { fields: &["name"], text: "already have interface list with such name" }],
        ..Spec::new("/interface/list")
    },
    Spec {
        fields: &[
            req("interface", Type::Name(Target::Interface, &[])),
            req("list", Type::Name(Target::InterfaceList, &[])),
            DISABLED,
        ],
        unique: &[Unique { fields: &["interface", "list"], text: "already have such interface list member" }],
        ..Spec::new("/interface/list/member")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            def("mtu", Type::IntOr { min: 68, max: 65535, words: &["auto"] }, "auto"),
            def("arp", ARP, "enabled"),
            def("arp-timeout", Type::Duration, "auto"),
            def("auto-mac", Type::Bool, "true"),
            opt("admin-mac", Type::Mac),
            def("ageing-time", Type::Duration, "5m"),
            def("protocol-mode", Type::OneOf(&["none", "stp", "rstp", "mstp"]), "rstp"),
            def("priority", Type::Hex16, "0x8000"),
            def("max-message-age", Type::Duration, "20s"),
            def("transmit-hold-count", Type::Int { min: 1, max: 10 }, "6"),
            def("ether-type", Type::OneOf(&["0x8100", "0x88a8", "0x9100"]), "0x8100"),
            def("fast-forward", Type::Bool, "true"),
            def("forward-delay", Type::Duration, "15s"),
            def("igmp-snooping", Type::Bool, "false"),
            def("dhcp-snooping", Type::Bool, "false"),
            def("vlan-filtering", Type::Bool, "false"),
            opt("ingress-filtering", Type::Bool),
            opt("frame-types", FRAMES),
            opt("pvid", VLAN),
            DISABLED,
        ],
        texts: &[
            "add-dhcp-option82",
            "ether-type",
            "forward-reserved-addresses",
            "igmp-version",
            "last-member-interval",
            "last-member-query-count",
            "max-hops",
            "max-learned-entries",
            "max-message-age",
            "membership-interval",
            "mld-version",
            "multicast-querier",
            "multicast-router",
            "mvrp",
            "port-cost-mode",
            "priority",
            "querier-interval",
            "query-interval",
            "query-response-interval",
            "region-name",
            "region-revision",
            "startup-query-count",
            "startup-query-interval",
            "transmit-hold-count",
        ],
        name_prefix: Some("bridge"),
        ..Spec::new("/interface/bridge")
    },
    Spec {
        fields: &[
            req("bridge", Type::Name(Target::Bridge, &[])),
            req("interface", Type::Name(Target::InterfaceOrList, &[])),
            def("pvid", VLAN, "1"),
            def("frame-types", FRAMES, "admit-all"),
            def("ingress-filtering", Type::Bool, "true"),
            def("hw", Type::Bool, "true"),
            def("trusted", Type::Bool, "false"),
            def("horizon", Type::IntOr { min: 0, max: 4_294_967_295, words: &["none"] }, "none"),
            DISABLED,
        ],
        texts: &[
            "auto-isolate",
            "bpdu-guard",
            "broadcast-flood",
            "edge",
            "fast-leave",
            "internal-path-cost",
            "learn",
            "multicast-router",
            "mvrp-applicant-state",
            "mvrp-registrar-state",
            "path-cost",
            "point-to-point",
            "priority",
            "restricted-role",
            "restricted-tcn",
            "tag-stacking",
            "unknown-multicast-flood",
            "unknown-unicast-flood",
        ],
        unique: &[Unique { fields: &["interface"], text: "device already added as bridge port" }],
        printed: &[("inactive", "false"), ("hw-offload", "false")],
        ..Spec::new("/interface/bridge/port")
    },
    Spec {
        fields: &[
            req("bridge", Type::Name(Target::Bridge, &[])),
            req("vlan-ids", Type::VlanIds),
            def("tagged", Type::NameList(Target::Interface), ""),
            def("untagged", Type::NameList(Target::Interface), ""),
            DISABLED,
        ],
        texts: &["mvrp-forbidden"],
        unique: &[Unique { fields: &["bridge", "vlan-ids"], text: "already have such vlan" }],
        ..Spec::new("/interface/bridge/vlan")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            req("interface", Type::Name(Target::Interface, &[])),
            def("vlan-id", Type::Int { min: 1, max: 4095 }, "1"),
            def("mtu", MTU, "1500"),
            def("arp", ARP, "enabled"),
            def("arp-timeout", Type::Duration, "auto"),
            def("use-service-tag", Type::Bool, "false"),
            DISABLED,
        ],
        texts: &["loop-protect", "loop-protect-disable-time", "loop-protect-send-interval", "mvrp"],
        name_prefix: Some("vlan"),
        ..Spec::new("/interface/vlan")
    },
    Spec {
        fields: &[req("name", Type::Text), def("address", Type::Text, ""), DISABLED],
        texts: &["gateway", "gateway6"],
        name_prefix: Some("veth"),
        ..Spec::new("/interface/veth")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            def("mtu", MTU, "1420"),
            opt("listen-port", Type::Int { min: 0, max: 65535 }),
            opt("private-key", Type::Key),
            DISABLED,
        ],
        name_prefix: Some("wireguard"),
        ..Spec::new("/interface/wireguard")
    },
    Spec {
        fields: &[
            opt("name", Type::Text),
            req("interface", Type::Name(Target::Wireguard, &[])),
            req("public-key", Type::Key),
            opt("private-key", Type::Key),
            opt("preshared-key", Type::Key),
            def("allowed-address", Type::PrefixList, ""),
            def("endpoint-address", Type::Text, ""),
            def("endpoint-port", Type::Int { min: 0, max: 65535 }, "0"),
            opt("persistent-keepalive", Type::Duration),
            opt("is-responder", Type::Bool),
            DISABLED,
        ],
        texts: &["client-address", "client-dns", "client-endpoint", "client-keepalive", "client-listen-port"],
        unique: &[Unique {
            fields: &["interface", "public-key"],
            text: "already have peer with such public-key on this interface",
        }],
        name_prefix: Some("peer"),
        printed: &[("current-endpoint-address", ""), ("current-endpoint-port", "0"), ("rx", "0"), ("tx", "0")],
        ..Spec::new("/interface/wireguard/peers")
    },
];
