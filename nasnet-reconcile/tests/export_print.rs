//! Printing and reading again gives the same configuration.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use nasnet_reconcile::device::{MenuPath, Row, RowId};
use nasnet_reconcile::routeros::export::{RowOrigin, Seed, SeedRow, Style, parse, print};
use nasnet_reconcile::routeros::text;
use proptest::prelude::*;

/// Checks that a seed survives printing in both styles, and returns what was printed.
fn survives(seed: &Seed) -> Result<(), TestCaseError> {
    for style in [Style::Compact, Style::Terse] {
        let printed = print(seed, style);
        let read = parse(&printed);
        prop_assert_eq!(&read.errors, &[], "{}", String::from_utf8_lossy(&printed));
        let again = read.rows();
        prop_assert_eq!(&again.menus, &seed.menus, "{}", String::from_utf8_lossy(&printed));
        prop_assert_eq!(again.row_count(), seed.row_count());
        let texts = |seed: &Seed| seed.unapplied.iter().map(|u| (u.menu.clone(), u.text.clone())).collect::<Vec<_>>();
        prop_assert_eq!(texts(&again), texts(seed));
        prop_assert_eq!(&again.header, &seed.header);
        prop_assert_eq!(print(&again, style), printed);
    }
    Ok(())
}

fn menu() -> impl Strategy<Value = MenuPath> {
    "(/[a-z][a-z0-9-]{0,8}){1,4}"
        .prop_filter("no command names", |path| {
            let reserved =
                ["add", "set", "remove", "enable", "disable", "move", "unset", "edit", "print", "find", "get"];
            !path.split('/').any(|word| reserved.contains(&word))
        })
        .prop_map(|path| path.parse().unwrap())
}

fn field() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,12}(\\.[a-z][a-z-]{0,6})?"
        .prop_filter("taken by commands", |name| !["place-before", "copy-from", "numbers"].contains(&name.as_str()))
}

/// Values of every class of bytes: words, prose, bytes of no encoding, long ones that have to be continued.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9./:,!*_-]{0,20}",
        "[ -~]{0,40}",
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| text::from_bytes(&bytes)),
        "[ \\\\\"$?a]{60,200}",
        any::<char>().prop_map(|c| text::from_bytes(c.to_string().as_bytes())),
    ]
}

fn fields() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(field(), value(), 0..6)
}

fn row() -> impl Strategy<Value = SeedRow> {
    (fields(), proptest::collection::btree_set(field(), 0..3), proptest::collection::btree_set(field(), 0..2)).prop_map(
        |(fields, unset, flags)| {
            let mut row = SeedRow::new(RowOrigin::Added, 0);
            row.fields = fields;
            row.flags = flags.into_iter().filter(|name| !name.contains(|c: char| !c.is_ascii_lowercase())).collect();
            row.fields.extend(row.flags.iter().map(|name| (name.clone(), String::new())));
            row.unset = unset.into_iter().filter(|name| !row.fields.contains_key(name)).collect();
            row
        },
    )
}

fn menu_rows() -> impl Strategy<Value = Vec<SeedRow>> {
    (proptest::collection::vec(row(), 1..4), proptest::option::of(row()), any::<bool>()).prop_map(
        |(mut rows, single, numbered)| {
            if let Some(mut own) = single {
                own.flags.clear();
                own.origin = if numbered { RowOrigin::Number(4) } else { RowOrigin::Single };
                rows.insert(0, own);
            }
            rows
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_rows_survive_printing(menus in proptest::collection::btree_map(menu(), menu_rows(), 0..4)) {
        let seed = Seed { order: menus.keys().rev().cloned().collect(), menus, ..Seed::default() };
        survives(&seed)?;
    }

    #[test]
    fn rows_named_by_any_text_survive_printing(names in proptest::collection::btree_set(value(), 1..5), kind in 0..3) {
        let menu: MenuPath = "/some/menu".parse().unwrap();
        let rows: Vec<SeedRow> = names.iter().map(|name| {
            let found = |field: &str| RowOrigin::Found(BTreeMap::from([(field.to_owned(), name.clone())]));
            let named = ("name".to_owned(), name.clone());
            let (origin, fields) = match kind {
                0 => (RowOrigin::Named(name.clone()), vec![named]),
                1 => (found("name"), vec![named]),
                _ => (found("default-name"), vec![named, ("default-name".to_owned(), name.clone())]),
            };
            SeedRow { fields: fields.into_iter().collect(), ..SeedRow::new(origin, 0) }
        }).collect();
        survives(&Seed { order: vec![menu.clone()], menus: BTreeMap::from([(menu, rows)]), ..Seed::default() })?;
    }

    #[test]
    fn whatever_was_understood_survives_printing(text in "(/[a-c]{1,2}( [a-c])?\n((add|set|set [01]|set x|set \\[find name=[ab]\\]|remove [01]|enable y|move 1 0|:put|#|x)( [a-c]=([a-z]|\"[ -~]{0,4}\"|\\$x|\\{1;2\\})| ![a-c]| fib)?\n){0,5}){0,4}") {
        let seed = parse(text.as_bytes()).rows();
        survives(&seed)?;
    }

    #[test]
    fn lines_stay_within_the_width_of_the_console(value in "[ -~]{0,300}") {
        let menu: MenuPath = "/system/note".parse().unwrap();
        let row = Row { id: None, fields: BTreeMap::from([("note".to_owned(), value)]) };
        let printed = print(&Seed::from_rows([(menu, vec![row])]), Style::Compact);
        for line in printed.split(|b| *b == b'\n') {
            prop_assert!(line.len() <= 80, "{}", String::from_utf8_lossy(line));
        }
        prop_assert!(printed.is_ascii());
    }
}

#[test]
fn rows_of_a_device_are_printed_as_the_device_would() {
    let row = |id: Option<&str>, fields: &[(&str, &str)]| Row {
        id: id.map(|id| RowId(id.to_owned())),
        fields: fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let seed = Seed::from_rows([
        ("/ip/dns".parse().unwrap(), vec![row(None, &[("servers", "9.9.9.9,1.1.1.1")])]),
        (
            "/ip/firewall/filter".parse().unwrap(),
            vec![row(
                Some("*1"),
                &[
                    ("chain", "input"),
                    ("comment", "Büro; \"say $5?\""),
                    ("in-interface-list", "!LAN"),
                    ("src-port", ""),
                ],
            )],
        ),
    ]);
    let expected = "/ip dns\nset servers=9.9.9.9,1.1.1.1\n/ip firewall filter\n\
                    add chain=input comment=\"B\\C3\\BCro; \\\"say \\$5\\?\\\"\" in-interface-list=!LAN \\\n    src-port=\"\"\n";
    assert_eq!(String::from_utf8(print(&seed, Style::Compact)).unwrap(), expected);
    let terse = String::from_utf8(print(&seed, Style::Terse)).unwrap();
    assert!(terse.starts_with("/ip dns set servers=9.9.9.9,1.1.1.1\n/ip firewall filter add chain=input "), "{terse}");
}

#[test]
fn a_field_that_no_export_can_spell_is_left_out_and_breaks_nothing() {
    let row = Row {
        id: None,
        fields: BTreeMap::from([("bad name=\n/x".to_owned(), "y".to_owned()), ("ok".into(), "z".into())]),
    };
    let printed = print(&Seed::from_rows([("/a".parse().unwrap(), vec![row])]), Style::Compact);
    assert_eq!(printed, b"/a\nset ok=z\n");
}
