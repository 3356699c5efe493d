//! `/ip/address`.

use nasnet_state::{FieldSpec, FieldType, HostBits, HostForm, KindSchema, Risk};

use super::{COMMENT, DISABLED, INTERFACE_SPACE, runtime};

/// An IPv4 address of an interface.
pub static IP_ADDRESS: KindSchema = KindSchema::new(
    "net.address",
    1,
    &[
        FieldSpec::new("address", FieldType::Prefix { host_bits: HostBits::Keep, host: HostForm::WithLength })
            .required(),
        FieldSpec::new("interface", FieldType::Ref(INTERFACE_SPACE)).required(),
        // Computed unless given; given for point-to-point addresses, so it is part of what a removal must bring back.
        FieldSpec::new("network", FieldType::Ip).generated(),
        DISABLED,
        COMMENT,
        FieldSpec::new("actual-interface", FieldType::Str).read_only(),
        runtime("broadcast"),
        runtime("netmask"),
        runtime("invalid"),
        runtime("dynamic"),
        runtime("slave"),
        runtime("vrf"),
    ],
)
.menu("/ip/address")
.natural_key(&["address", "interface"])
.risk(Risk::Management);
