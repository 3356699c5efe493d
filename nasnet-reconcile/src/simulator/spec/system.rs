//! Users, scripts and the scheduler.

use super::super::names::Target;
use super::super::value::Type;
use super::{DISABLED, Spec, Unique, def, opt, req};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        fields: &[
            req("name", Type::Text),
            req("group", Type::Name(Target::UserGroup, &[])),
            def("address", Type::PrefixList, ""),
            opt("password", Type::Text),
            DISABLED,
        ],
        texts: &["inactivity-policy", "inactivity-timeout"],
        unique: &[Unique { fields: &["name"], text: "user with the same name already exists" }],
        ..Spec::new("/user")
    },
    Spec {
        fields: &[req("name", Type::Text), def("policy", Type::Text, ""), def("skin", Type::Text, "default")],
        unique: &[Unique { fields: &["name"], text: "group with the same name already exists" }],
        ..Spec::new("/user/group")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            def("source", Type::Text, ""),
            def("dont-require-permissions", Type::Bool, "false"),
        ],
        texts: &["owner", "policy"],
        unique: &[Unique { fields: &["name"], text: "item with such name already exists" }],
        name_prefix: Some("script"),
        printed: &[("run-count", "0")],
        prints_invalid: true,
        ..Spec::new("/system/script")
    },
    Spec {
        fields: &[
            req("name", Type::Text),
            def("interval", Type::Duration, "0s"),
            def("on-event", Type::Text, ""),
            def("start-time", Type::Text, "startup"),
            DISABLED,
        ],
        texts: &["policy", "start-date"],
        unique: &[Unique { fields: &["name"], text: "item with such name already exists" }],
        name_prefix: Some("schedule"),
        printed: &[("run-count", "0")],
        ..Spec::new("/system/scheduler")
    },
];
