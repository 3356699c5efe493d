//! `/interface/list` and its members.

use nasnet_state::{FieldSpec, FieldType, KindSchema, ListSem, Risk};

use super::{COMMENT, DISABLED, INTERFACE_LIST_SPACE, INTERFACE_SPACE, NAME, runtime};

const LISTS: FieldType = FieldType::List(&FieldType::Ref(INTERFACE_LIST_SPACE), ListSem::Set);

/// A named list of interfaces. The firewall refers to it, so a mistake can lock everybody out.
pub static INTERFACE_LIST: KindSchema = KindSchema::new(
    "net.interface-list",
    1,
    &[
        NAME,
        FieldSpec::new("include", LISTS),
        FieldSpec::new("exclude", LISTS),
        COMMENT,
        runtime("dynamic"),
        runtime("builtin"),
    ],
)
.menu("/interface/list")
.natural_key(&["name"])
.provides(&[INTERFACE_LIST_SPACE])
.risk(Risk::Management);

/// One interface of a list.
pub static INTERFACE_LIST_MEMBER: KindSchema = KindSchema::new(
    "net.interface-list.member",
    1,
    &[
        FieldSpec::new("interface", FieldType::Ref(INTERFACE_SPACE)).required(),
        FieldSpec::new("list", FieldType::Ref(INTERFACE_LIST_SPACE)).required(),
        DISABLED,
        COMMENT,
        runtime("dynamic"),
    ],
)
.menu("/interface/list/member")
.natural_key(&["interface", "list"])
.risk(Risk::Management);
