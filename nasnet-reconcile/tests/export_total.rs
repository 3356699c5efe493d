//! Whatever the bytes are, reading ends, loses nothing it could read and says where it failed.
#![cfg(feature = "routeros")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use nasnet_reconcile::routeros::export::{Export, Style, parse, print};
use proptest::prelude::*;

const HOME_OFFICE: &[u8] = include_bytes!("../../examples/data/home-office.rsc");
const HANDWRITTEN: &[u8] = include_bytes!("fixtures/export/handwritten.rsc");
const LATIN1: &[u8] = include_bytes!("fixtures/export/windows-latin1.rsc");

/// Reads, applies and prints; checks what must hold for every input.
fn read_all(input: &[u8]) -> Export {
    let export = parse(input);
    let lines = u32::try_from(input.iter().filter(|b| **b == b'\n').count() + 1).unwrap();
    for error in &export.errors {
        assert!((1..=lines).contains(&error.line) && error.column >= 1, "{error}");
        assert!(error.excerpt.chars().count() <= 80 && !error.excerpt.contains('\n'));
    }
    for pair in export.statements.windows(2) {
        assert!(pair[0].line <= pair[1].line);
    }
    let seed = export.rows();
    let tally = export.tally();
    assert_eq!(tally.commands + tally.scripts, seed.applied + seed.unapplied.len());
    let again = parse(&print(&seed, Style::Compact));
    assert_eq!(again.errors, []);
    export
}

/// The pieces exports are made of.
const PIECES: &[&[u8]] = &[
    b"/ip address\n",
    b"\nadd ",
    b"\nset ",
    b"[ find ",
    b" ]",
    b"name=",
    b"\"",
    b"\\\n    ",
    b"\\",
    b"\r\n",
    b"{",
    b"}",
    b"(",
    b")",
    b"$x",
    b"#",
    b"\n:put ",
    b";",
    b"!a ",
    b"\n[a@b] > ",
    b"\xE9",
    b"\0",
    b"abc",
    b"0",
    b",",
    b"remove ",
    b"move 1 0",
    b" place-before=0",
    b"disable ",
    b"\t",
    b"~\"^a\"",
    b"*1",
    b" fib ",
    b" .x=1",
    b" b.c=2",
];

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop::sample::select(PIECES), 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_to_their_end(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_all(&input);
    }

    #[test]
    fn any_order_of_familiar_pieces_is_read_to_its_end(input in pieces()) {
        read_all(&input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_damaged_export_is_read_to_its_end(
        which in 0..3_usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut input = [HOME_OFFICE, HANDWRITTEN, LATIN1][which].to_vec();
        for (at, byte, kind) in damage {
            let at = at.index(input.len());
            match kind {
                0 => input[at] = byte,
                1 => input.insert(at, b"\"{[(\\\n]"[usize::from(byte) % 7]),
                2 => drop(input.remove(at)),
                _ => input.truncate(at.max(200)),
            }
            if input.is_empty() { break; }
        }
        read_all(&input);
    }
}

#[test]
fn one_broken_line_costs_one_row() {
    let whole = parse(HOME_OFFICE);
    let text = String::from_utf8(HOME_OFFICE.to_vec()).unwrap();
    let broken = text.replacen("add address=10.77.30.1/24 interface=", "add address=10.77.30.1/24 \"interface=", 1);
    assert_ne!(text, broken);
    let export = read_all(broken.as_bytes());
    assert_eq!(export.errors.len(), 1);
    let line = u32::try_from(text.lines().position(|line| line.starts_with("add address=10.77.30.1/24")).unwrap() + 1);
    assert_eq!((export.errors[0].line, export.errors[0].column), (line.unwrap(), 27));
    assert_eq!(export.tally().commands + 1, whole.tally().commands);
}

/// Hostile inputs, the lines among them of two megabytes. Reading any of them again and again from the same place would take hours.
#[test]
fn hostile_inputs_of_megabytes_are_read_in_a_moment() {
    let long = |unit: &str| unit.repeat(2_000_000 / unit.len());
    let fill = |unit: &str| unit.repeat(500_000 / unit.len());
    let inputs = [
        ("one value", format!("/system note\nset note=\"{}\"", long("a b"))),
        ("one open quote", format!("/system note\nset note=\"{}", long("a b"))),
        ("open quotes", format!("/a\n{}", fill("add a=\"b\n"))),
        ("open braces", format!("/a\n{}", fill("add a={b\n"))),
        ("open scripts", fill(":if (\n")),
        ("open strings in scripts", fill(":put {\"\n")),
        ("nested brackets", format!("/a\nset {}", long("["))),
        ("statements on one line", format!("/a\n{}", long("x;"))),
        ("errors on one line", format!("/a\n{}", long("add ];"))),
        ("continuations", format!("/a\nadd a={}", long("\\\n"))),
        ("backslashes and blanks", format!("/a\nadd a={}", long("\\ "))),
        ("backslashes", format!("/a\nadd a=\"{}", long("\\"))),
        ("lines", format!("/a\n{}", fill("add a=b\n"))),
        ("rows looked for", format!("/a\n{}", fill("set [find name=x] a=b\nadd b=c\n"))),
        ("names", format!("/a\nset {} a=b", fill("x,y,"))),
        ("rows set again", format!("/a\n{}", fill("add b=c\nset [find] a=b\n"))),
        ("moves", format!("/a\n{}", fill("add b=c place-before=0\n"))),
        ("menus", fill("/a b c d\n")),
        ("slashes", long("/")),
        ("prompts", fill("[a@b] > x\n")),
        ("half prompts", fill("[a@b\n")),
    ];
    for (name, input) in inputs {
        let start = Instant::now();
        let export = parse(input.as_bytes());
        let seed = export.rows();
        assert!(start.elapsed() < Duration::from_secs(60), "{name} took {:?}", start.elapsed());
        let tally = export.tally();
        assert_eq!(tally.commands + tally.scripts, seed.applied + seed.unapplied.len(), "{name}");
    }
}
