//! Every event type any crate of the workspace names is in a class by a rule of its own.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nasnet_events::{ClassRules, EventType, Level, types};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The types named by `EventType::from_static("..")`, `EventType::parse("..")` and lists called `EVENT_TYPES`.
fn named_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for call in ["EventType::from_static(\"", "EventType::parse(\""] {
        for (at, _) in text.match_indices(call) {
            let rest = &text[at + call.len()..];
            found.extend(rest.find('"').map(|end| &rest[..end]));
        }
    }
    for (at, _) in text.match_indices("const EVENT_TYPES") {
        let list = &text[at..];
        found.extend(list[..list.find("];").unwrap_or(list.len())].split('"').skip(1).step_by(2));
    }
    found
}

#[test]
fn every_type_the_workspace_names_is_classified_by_a_rule() {
    // Looked up when the test runs: a target directory may be shared by clones.
    let own = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let root = Path::new(&own).parent().unwrap();
    let mut files = Vec::new();
    for member in
        ["nasnet-reconcile/src", "nasnet-locking/src", "nasnet-dbmanager/src", "nasnet-state/src", "examples/src"]
    {
        sources(&root.join(member), &mut files);
    }
    if files.is_empty() {
        // The crate alone, as it is published.
        return;
    }
    let rules = ClassRules::default();
    let (mut unruled, mut named) = (BTreeSet::new(), 0);
    for path in &files {
        for name in named_in(&std::fs::read_to_string(path).unwrap()) {
            let Ok(kind) = EventType::parse(name) else { continue };
            named += 1;
            for level in [Level::Debug, Level::Info, Level::Warning, Level::Error] {
                if rules.explicit(&kind, level).is_none() {
                    unruled.insert(format!("{name} in {}", path.display()));
                }
            }
        }
    }
    assert!(named > 5, "the names are spelled in another way: this test sees {named} of them");
    assert!(unruled.is_empty(), "{unruled:#?}");
}

#[test]
fn every_constant_is_in_the_list_of_all() {
    // The list is made by the same macro; this holds should somebody write a constant beside it.
    let source = include_str!("../src/types.rs");
    let constants =
        source.lines().filter(|line| line.trim_start().starts_with(char::is_uppercase) && line.contains(" = \""));
    let named: BTreeSet<&str> = constants.filter_map(|line| line.split('"').nth(1)).collect();
    let all: BTreeSet<&str> = types::ALL.iter().map(EventType::as_str).collect();
    assert_eq!(named, all);
    assert_eq!(all.len(), types::ALL.len(), "two constants are the same type");
    assert!(all.len() > 80);
}
