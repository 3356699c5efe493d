//! Addresses, routes, DHCP, DNS records, services.

use super::super::names::Target;
use super::super::value::Type;
use super::{Arguments, DISABLED, Rows, Spec, Unique, def, opt, req};

const DISTANCE: Type = Type::Int { min: 0, max: 255 };

pub(super) const SPECS: &[Spec] = &[
    Spec {
        fields: &[
            req("address", Type::HostAddress),
            req("interface", Type::Name(Target::Interface, &[])),
            opt("network", Type::Ip),
            DISABLED,
        ],
        texts: &["broadcast", "netmask"],
        unique: &[Unique { fields: &["address", "interface"], text: "already have such address" }],
        prints_invalid: true,
        ..Spec::new("/ip/address")
    },
    Spec {
        fields: &[
            def("dst-address", Type::Prefix, "0.0.0.0/0"),
            opt("gateway", Type::Gateway),
            def("distance", DISTANCE, "1"),
            def("scope", DISTANCE, "30"),
            def("target-scope", DISTANCE, "10"),
            def("routing-table", Type::Name(Target::RoutingTable, &["main"]), "main"),
            opt("pref-src", Type::Text),
            opt("blackhole", Type::Flag),
            opt("check-gateway", Type::OneOf(&["none", "arp", "ping", "bfd", "bfd-multihop"])),
            def("suppress-hw-offload", Type::Bool, "false"),
            DISABLED,
        ],
        texts: &["vrf-interface"],
        ..Spec::new("/ip/route")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            req("ranges", Type::Text),
            def("next-pool", Type::Name(Target::Pool, &["none"]), "none"),
        ],
        unique: &[Unique { fields: &["name"], text: "pool with such name exists" }],
        name_prefix: Some("pool"),
        ..Spec::new("/ip/pool")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            req("interface", Type::Name(Target::Interface, &[])),
            def("address-pool", Type::Name(Target::Pool, &["static-only"]), "static-only"),
            def("lease-time", Type::Duration, "30m"),
            def("authoritative", Type::OneOf(&["yes", "no", "after-2sec-delay", "after-10sec-delay"]), "yes"),
            DISABLED,
        ],
        texts: &[
            "add-arp",
            "allow-dual-stack-queue",
            "always-broadcast",
            "bootp-lease-time",
            "bootp-support",
            "client-mac-limit",
            "conflict-detection",
            "delay-threshold",
            "dhcp-option-set",
            "insert-queue-before",
            "lease-script",
            "parent-queue",
            "relay",
            "server-address",
            "use-framed-as-classless",
            "use-radius",
        ],
        unique: &[Unique { fields: &["name"], text: "already have dhcp server with such name" }],
        name_prefix: Some("dhcp"),
        prints_invalid: true,
        ..Spec::new("/ip/dhcp-server")
    },
    Spec {
        fields: &[req("address", Type::Prefix), def("gateway", Type::IpList, ""), def("dns-server", Type::IpList, "")],
        texts: &[
            "boot-file-name",
            "caps-manager",
            "dhcp-option",
            "dhcp-option-set",
            "dns-none",
            "domain",
            "netmask",
            "next-server",
            "ntp-server",
            "wins-server",
        ],
        unique: &[Unique { fields: &["address"], text: "already have such network" }],
        ..Spec::new("/ip/dhcp-server/network")
    },
    Spec {
        fields: &[
            req("address", Type::Text),
            opt("mac-address", Type::Mac),
            def("server", Type::Name(Target::DhcpServer, &["all"]), "all"),
            opt("lease-time", Type::Duration),
            DISABLED,
        ],
        texts: &[
            "address-lists",
            "allow-dual-stack-queue",
            "always-broadcast",
            "block-access",
            "client-id",
            "dhcp-option",
            "dhcp-option-set",
            "insert-queue-before",
            "parent-queue",
            "queue-type",
            "rate-limit",
            "routes",
            "use-src-mac",
        ],
        unique: &[Unique { fields: &["mac-address", "server"], text: "already have static lease with this client" }],
        printed: &[("blocked", "false"), ("radius", "false"), ("status", "waiting"), ("last-seen", "never")],
        ..Spec::new("/ip/dhcp-server/lease")
    },
    Spec {
        fields: &[
            req("interface", Type::Name(Target::Interface, &[])),
            def("add-default-route", Type::OneOf(&["yes", "no", "special-classless"]), "yes"),
            def("default-route-distance", DISTANCE, "1"),
            def("use-peer-dns", Type::OneOf(&["yes", "no", "exclusively"]), "yes"),
            def("use-peer-ntp", Type::Bool, "true"),
            def("dhcp-options", Type::Text, "hostname,clientid"),
            DISABLED,
        ],
        texts: &["script"],
        unique: &[Unique { fields: &["interface"], text: "already have dhcp client on this interface" }],
        printed: &[("status", "searching...")],
        prints_invalid: true,
        ..Spec::new("/ip/dhcp-client")
    },
    Spec {
        fields: &[opt("name", Type::Text), opt("address", Type::Ip), def("ttl", Type::Duration, "1d"), DISABLED],
        texts: &[
            "address-list",
            "cname",
            "forward-to",
            "match-subdomain",
            "mx-exchange",
            "mx-preference",
            "ns",
            "regexp",
            "srv-port",
            "srv-priority",
            "srv-target",
            "srv-weight",
            "text",
            "type",
        ],
        ..Spec::new("/ip/dns/static")
    },
    Spec {
        rows: Rows::Fixed,
        arguments: Arguments::Open,
        fields: &[
            req("name", Type::Text),
            req("port", Type::Int { min: 1, max: 65535 }),
            def("address", Type::PrefixList, ""),
            DISABLED,
        ],
        prints_invalid: true,
        ..Spec::new("/ip/service")
    },
    Spec {
        fields: &[req("name", Type::Text), opt("fib", Type::Flag), DISABLED],
        unique: &[Unique { fields: &["name"], text: "already have routing table with such name" }],
        prints_invalid: true,
        ..Spec::new("/routing/table")
    },
];
