//! `/interface/wireguard` and its peers.

use nasnet_state::{FieldSpec, FieldType, HostBits, HostForm, KindSchema, ListSem, Provenance, Unset};

use super::{COMMENT, DISABLED, INTERFACE_SPACE, NAME, runtime, text};

const PREFIXES: FieldType =
    FieldType::List(&FieldType::Prefix { host_bits: HostBits::Zero, host: HostForm::WithLength }, ListSem::Set);
const PORT: FieldType = FieldType::Int { min: 0, max: 65_535 };

/// A WireGuard interface. The device makes the private key when none is given, and derives the public key.
pub static WIREGUARD: KindSchema = KindSchema::new(
    "vpn.wireguard",
    1,
    &[
        NAME,
        FieldSpec::new("mtu", FieldType::Int { min: 68, max: 65_535 }).default("1420"),
        FieldSpec::new("listen-port", PORT).generated(),
        FieldSpec::new("private-key", FieldType::Str).generated().sensitive(),
        DISABLED,
        COMMENT,
        FieldSpec::new("public-key", FieldType::Str).read_only(),
        runtime("running"),
        runtime("dynamic"),
    ],
)
.menu("/interface/wireguard")
.natural_key(&["name"])
.provides(&[INTERFACE_SPACE]);

/// A peer of a WireGuard interface.
pub static WIREGUARD_PEER: KindSchema = KindSchema::new(
    "vpn.wireguard.peer",
    1,
    &[
        FieldSpec::new("name", FieldType::Str).generated().provenance(Provenance::Observed),
        FieldSpec::new("interface", FieldType::Ref(INTERFACE_SPACE)).required(),
        FieldSpec::new("public-key", FieldType::Str).required(),
        FieldSpec::new("private-key", FieldType::Str).sensitive(),
        FieldSpec::new("preshared-key", FieldType::Str).sensitive(),
        FieldSpec::new("allowed-address", PREFIXES),
        text("endpoint-address"),
        FieldSpec::new("endpoint-port", PORT).default("0"),
        FieldSpec::new("persistent-keepalive", FieldType::Duration).default("0s").unset(Unset::WriteDefault),
        // The name up to 7.16; later versions call it `responder`.
        FieldSpec::new("is-responder", FieldType::Bool).default("no").provenance(Provenance::Observed),
        FieldSpec::new("responder", FieldType::Bool).default("no").provenance(Provenance::Observed),
        text("client-address"),
        text("client-dns"),
        text("client-endpoint"),
        text("client-keepalive"),
        text("client-listen-port"),
        DISABLED,
        COMMENT,
        runtime("current-endpoint-address"),
        runtime("current-endpoint-port"),
        runtime("last-handshake"),
        runtime("rx"),
        runtime("tx"),
        runtime("dynamic"),
    ],
)
.menu("/interface/wireguard/peers")
.natural_key(&["interface", "public-key"]);
