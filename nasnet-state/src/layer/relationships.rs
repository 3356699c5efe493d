//! Layer 7, what a resource has to do with others. Each edge has one writer, told by its origin: the API declares, the
//! engine derives, the observer discovers. Back-edges are an index, not data.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::value::FieldName;

/// The edges that start at a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relationships {
    /// The edges.
    pub edges: Vec<Edge>,
    /// The resources that own this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<OwnerRef>,
}

/// One edge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// What the edge means.
    pub relation: Relation,
    /// Where it leads.
    pub target: Ulid,
    /// The field that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<FieldName>,
    /// Who says so.
    pub origin: EdgeOrigin,
    /// What happens to this resource when the target goes.
    pub on_delete: OnDelete,
}

/// What an edge means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// The target is part of this resource.
    ParentChild,
    /// This resource cannot work without the target.
    DependsOn,
    /// A field names the target.
    References,
    /// This resource belongs to a group.
    MemberOf,
    /// Traffic of this resource leaves through the target.
    RoutesTo,
}

/// Who says that an edge exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeOrigin {
    /// Somebody declared it.
    Declared,
    /// It follows from the fields.
    Derived,
    /// The device showed it.
    Discovered,
}

/// What happens to a resource when the target of one of its edges goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDelete {
    /// The target cannot go.
    Block,
    /// It goes too.
    Cascade,
    /// The field is taken back.
    Unset,
    /// It stays as it is.
    Orphan,
}

/// A resource that owns another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRef {
    /// The owner.
    pub uid: Ulid,
    /// True for the one owner that manages it.
    pub controller: bool,
    /// True when the owner waits for it to go first.
    pub block_owner_deletion: bool,
}
