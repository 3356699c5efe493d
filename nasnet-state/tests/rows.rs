//! Rows as a router shows them: what is understood, what is kept, what was meant, and what is written back.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;

use nasnet_state::diff::diff;
use nasnet_state::validate::finding::codes;
use nasnet_state::{
    Access, FieldName, FieldSpec, FieldType, FieldValue, Fields, HostBits, HostForm, KindSchema, MENU_FIELD, Parsed,
    Schemas, SecretIntake, Unset, opaque_name,
};
use support::{EVERYTHING, TestSeal};

static ROUTE: KindSchema = KindSchema::new(
    "test.route",
    1,
    &[
        FieldSpec::new("dst-address", FieldType::Prefix { host_bits: HostBits::Zero, host: HostForm::WithLength })
            .default("0.0.0.0/0"),
        FieldSpec::new("gateway", FieldType::Str),
        FieldSpec::new("distance", FieldType::Int { min: 1, max: 255 }).default("1"),
        FieldSpec::new("table", FieldType::Ref("routing-table")).required(),
        FieldSpec::new("vrf", FieldType::Str).access(Access::CreateOnly),
        FieldSpec::new("scope", FieldType::Str).unset(Unset::Recreate),
        FieldSpec::new("pref-src", FieldType::Ip).unset(Unset::WriteEmpty),
    ],
)
.menu("/ip/route")
.natural_key(&["dst-address", "gateway", "table"]);

fn row(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(schema: &KindSchema, pairs: &[(&str, &str)]) -> Parsed {
    schema.parse(&row(pairs), &SecretIntake::compare(&TestSeal)).unwrap()
}

#[test]
fn what_is_not_understood_is_kept_and_reported_once() {
    let parsed = parse(
        &EVERYTHING,
        &[(".id", "*1"), ("mtu", "huge"), ("mod", "x"), ("mac", "aa-bb-cc-00-01-02"), ("comment", "")],
    );
    assert_eq!(parsed.fields.get("mtu"), Some(&FieldValue::Opaque("huge".into())));
    assert_eq!(parsed.fields.get("mod"), Some(&"x".into()));
    assert!(parsed.fields.contains("mac-address"), "a device name was not translated");
    assert!(!parsed.fields.contains("comment"), "an empty text counted as set");
    let found: Vec<_> =
        parsed.findings.iter().map(|found| (found.code.as_ref(), found.suggestion.as_deref())).collect();
    assert_eq!(found, [(codes::UNKNOWN_FIELD, Some("mode")), (codes::NOT_UNDERSTOOD, None)]);
    let wanted = row(&[("mtu", "huge"), ("mod", "x"), ("mac", "AA:BB:CC:00:01:02")]);
    assert_eq!(EVERYTHING.print(&parsed.fields), wanted);
}

#[test]
fn the_intent_of_a_row_is_what_somebody_must_have_set() {
    let shown =
        [("name", "a"), ("mtu", "1500"), ("disabled", "no"), ("mode", "trunk"), ("running", "yes"), ("rx-byte", "7")];
    let intent = EVERYTHING.intent_of(&parse(&EVERYTHING, &shown).fields);
    assert_eq!(intent, parse(&EVERYTHING, &[("name", "a"), ("mode", "trunk")]).fields);
}

#[test]
fn a_natural_name_counts_absent_parts_as_their_defaults() {
    let name = |pairs: &[(&str, &str)]| ROUTE.natural_name(&parse(&ROUTE, pairs).fields);
    let full = name(&[("dst-address", "0.0.0.0/0"), ("gateway", "10.0.0.1"), ("table", "main")]);
    assert_eq!(full.as_deref(), Some("0.0.0.0/0/10.0.0.1/main"));
    assert_eq!(name(&[("gateway", "10.0.0.1"), ("table", "main")]), full);
    assert_eq!(name(&[("gateway", "10.0.0.1")]), None, "a required part is missing");
    assert_eq!(name(&[("dst-address", "10.9.8.7/8"), ("table", "main")]).as_deref(), Some("10.0.0.0/8//main"));
    assert_eq!(KindSchema::opaque().natural_name(&Fields::new()), None);
}

#[test]
fn a_change_is_translated_into_what_the_device_is_told() {
    let before =
        parse(&ROUTE, &[("distance", "5"), ("scope", "x"), ("pref-src", "10.0.0.9"), ("vrf", "red"), ("gateway", "a")]);
    let after = parse(&ROUTE, &[("dst-address", "10.0.0.0/8"), ("vrf", "blue"), ("gateway", "b")]);
    let change = ROUTE.print_changes(&before.fields, &diff(&before.fields, &after.fields));
    assert_eq!(
        change.set,
        row(&[("dst-address", "10.0.0.0/8"), ("gateway", "b"), ("distance", "1"), ("pref-src", "")])
    );
    assert_eq!(change.recreate, [FieldName::from("scope"), FieldName::from("vrf")]);
    assert!(change.unset.is_empty() && change.secrets.is_empty());

    let before =
        parse(&EVERYTHING, &[("allowed-address", "10.0.0.0/8,10.1.0.1"), ("max-size", "1k"), ("private-key", "a")]);
    let after =
        parse(&EVERYTHING, &[("allowed-address", "10.2.0.0/16,10.0.0.0/8"), ("private-key", "b"), ("running", "yes")]);
    let change = EVERYTHING.print_changes(&before.fields, &diff(&before.fields, &after.fields));
    assert_eq!(change.set, row(&[("allowed-address", "10.0.0.0/8,10.2.0.0/16")]));
    assert_eq!(change.unset, ["max-size"]);
    assert_eq!(change.secrets.keys().collect::<Vec<_>>(), ["private-key"]);
}

#[test]
fn a_menu_without_a_schema_falls_to_the_opaque_kind_and_keeps_its_rows() {
    let schemas = Schemas::new([&EVERYTHING, &ROUTE]);
    assert_eq!(schemas.for_menu("/ip/route"), &ROUTE);
    let opaque = schemas.for_menu("/ip/dns/static");
    assert!(opaque.is_opaque());
    let shown = [(MENU_FIELD, "/ip/dns/static"), (".id", "*3"), ("address", "10.0.0.1"), ("ttl", "1d"), ("x", "")];
    let parsed = parse(opaque, &shown);
    assert!(parsed.findings.is_empty(), "{:?}", parsed.findings);
    assert_eq!(opaque_name("/ip/dns/static", &parsed.fields), "/ip/dns/static:10.0.0.1");
    assert_eq!(opaque.print(&parsed.fields), row(&[("address", "10.0.0.1"), ("ttl", "1d"), ("x", "")]));
    assert_eq!(opaque.intent_of(&parsed.fields), parsed.fields);
}
