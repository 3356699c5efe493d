//! Firewall rules and address lists.

use super::super::names::Target;
use super::super::value::Type;
use super::{Arguments, DISABLED, Field, Spec, Unique, def, opt, req};

const INTERFACE: Type = Type::NegatableName(Target::Interface, &[]);
const LIST: Type = Type::NegatableName(Target::InterfaceList, &[]);

const CHAIN: Field = req("chain", Type::Text);
const IN: Field = opt("in-interface", INTERFACE);
const OUT: Field = opt("out-interface", INTERFACE);
const IN_LIST: Field = opt("in-interface-list", LIST);
const OUT_LIST: Field = opt("out-interface-list", LIST);
const LOG: Field = def("log", Type::Bool, "false");
const LOG_PREFIX: Field = def("log-prefix", Type::Text, "");

const MATCHERS: &[&str] = &[
    "address-list",
    "address-list-timeout",
    "connection-bytes",
    "connection-limit",
    "connection-mark",
    "connection-nat-state",
    "connection-rate",
    "connection-state",
    "connection-type",
    "content",
    "dscp",
    "dst-address",
    "dst-address-list",
    "dst-address-type",
    "dst-limit",
    "dst-port",
    "fragment",
    "hotspot",
    "hw-offload",
    "icmp-options",
    "in-bridge-port",
    "in-bridge-port-list",
    "ingress-priority",
    "ipsec-policy",
    "ipv4-options",
    "jump-target",
    "layer7-protocol",
    "limit",
    "nth",
    "out-bridge-port",
    "out-bridge-port-list",
    "packet-mark",
    "packet-size",
    "per-connection-classifier",
    "port",
    "priority",
    "protocol",
    "psd",
    "random",
    "randomise-ports",
    "realm",
    "reject-with",
    "routing-mark",
    "same-not-by-dst",
    "src-address",
    "src-address-list",
    "src-address-type",
    "src-mac-address",
    "src-port",
    "tcp-flags",
    "tcp-mss",
    "time",
    "tls-host",
    "to-addresses",
    "to-ports",
    "ttl",
];

const COUNTERS: &[(&str, &str)] = &[("bytes", "0"), ("packets", "0")];

pub(super) const SPECS: &[Spec] = &[
    Spec {
        fields: &[
            CHAIN,
            def(
                "action",
                Type::OneOf(&[
                    "accept",
                    "add-dst-to-address-list",
                    "add-src-to-address-list",
                    "drop",
                    "fasttrack-connection",
                    "jump",
                    "log",
                    "passthrough",
                    "reject",
                    "return",
                    "tarpit",
                ]),
                "accept",
            ),
            IN,
            OUT,
            IN_LIST,
            OUT_LIST,
            LOG,
            LOG_PREFIX,
            DISABLED,
        ],
        texts: MATCHERS,
        printed: COUNTERS,
        prints_invalid: true,
        ..Spec::new("/ip/firewall/filter")
    },
    Spec {
        fields: &[
            CHAIN,
            def(
                "action",
                Type::OneOf(&[
                    "accept",
                    "add-dst-to-address-list",
                    "add-src-to-address-list",
                    "dst-nat",
                    "endpoint-independent-nat",
                    "jump",
                    "log",
                    "masquerade",
                    "netmap",
                    "passthrough",
                    "redirect",
                    "return",
                    "same",
                    "src-nat",
                ]),
                "accept",
            ),
            IN,
            OUT,
            IN_LIST,
            OUT_LIST,
            LOG,
            LOG_PREFIX,
            DISABLED,
        ],
        texts: MATCHERS,
        printed: COUNTERS,
        prints_invalid: true,
        ..Spec::new("/ip/firewall/nat")
    },
    Spec {
        arguments: Arguments::Open,
        fields: &[CHAIN, def("action", Type::Text, "accept"), IN, OUT, IN_LIST, OUT_LIST, LOG, LOG_PREFIX, DISABLED],
        printed: COUNTERS,
        prints_invalid: true,
        ..Spec::new("/ip/firewall/mangle")
    },
    Spec {
        arguments: Arguments::Open,
        fields: &[CHAIN, def("action", Type::Text, "accept"), IN, OUT, IN_LIST, OUT_LIST, LOG, LOG_PREFIX, DISABLED],
        printed: COUNTERS,
        prints_invalid: true,
        ..Spec::new("/ip/firewall/raw")
    },
    Spec {
        fields: &[req("list", Type::Text), req("address", Type::Text), opt("timeout", Type::Duration), DISABLED],
        texts: &["dynamic"],
        unique: &[Unique { fields: &["list", "address"], text: "already have such entry" }],
        ..Spec::new("/ip/firewall/address-list")
    },
];
