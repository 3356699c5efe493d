//! Random commands against a model that is too simple to be wrong.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use nasnet_reconcile::device::{MenuPath, RowId};
use nasnet_reconcile::simulator::{Sim, SimProfile};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Command {
    Add { menu: usize, name: usize },
    Rename { row: usize, name: usize },
    Remove { row: usize },
    Restart,
}

const MENUS: [&str; 3] = ["/interface/bridge", "/interface/wireguard", "/interface/veth"];

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => (0..MENUS.len(), 0..8_usize).prop_map(|(menu, name)| Command::Add { menu, name }),
        2 => (0..12_usize, 0..8_usize).prop_map(|(row, name)| Command::Rename { row, name }),
        3 => (0..12_usize).prop_map(|row| Command::Remove { row }),
        1 => Just(Command::Restart),
    ]
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelRow {
    menu: MenuPath,
    id: RowId,
    name: String,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn names_stay_unique_and_no_id_is_handed_out_twice(commands in proptest::collection::vec(command(), 1..40)) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sim.json");
        let mut sim = Sim::new(SimProfile::default());
        let mut model: Vec<ModelRow> = Vec::new();
        let mut seen: BTreeSet<RowId> = BTreeSet::new();
        for command in commands {
            match command {
                Command::Add { menu, name } => {
                    let (menu, name) = (MENUS[menu].parse::<MenuPath>().unwrap(), format!("n{name}"));
                    let added = sim.edit(|admin| admin.add(&menu, &[("name", &name)]));
                    prop_assert_eq!(added.is_ok(), model.iter().all(|row| row.name != name));
                    if let Ok(id) = added {
                        prop_assert!(seen.insert(id.clone()), "{} was handed out twice", id);
                        model.push(ModelRow { menu, id, name });
                    }
                }
                Command::Rename { row, name } => {
                    let Some(row) = model.get(row).cloned() else { continue };
                    let name = format!("n{name}");
                    let free = model.iter().all(|other| other.id == row.id || other.name != name);
                    let renamed = sim.edit(|admin| admin.set(&row.menu, &row.id, &[("name", &name)]));
                    prop_assert_eq!(renamed.is_ok(), free);
                    if free {
                        model.iter_mut().find(|other| other.id == row.id).unwrap().name = name;
                    }
                }
                Command::Remove { row } => {
                    if row < model.len() {
                        let row = model.remove(row);
                        sim.edit(|admin| admin.remove(&row.menu, &row.id)).unwrap();
                        prop_assert!(sim.edit(|admin| admin.remove(&row.menu, &row.id)).is_err());
                    }
                }
                Command::Restart => {
                    sim.save(&file).unwrap();
                    sim = Sim::load(&file).unwrap().unwrap();
                }
            }
            for menu in MENUS {
                let menu: MenuPath = menu.parse().unwrap();
                let rows = sim.edit(|admin| Ok(admin.rows(&menu))).unwrap();
                let kept: Vec<(RowId, String)> =
                    rows.into_iter().map(|mut row| (row.id.unwrap(), row.fields.remove("name").unwrap())).collect();
                let expected: Vec<(RowId, String)> = model
                    .iter()
                    .filter(|row| row.menu == menu)
                    .map(|row| (row.id.clone(), row.name.clone()))
                    .collect();
                prop_assert_eq!(kept, expected);
            }
        }
    }
}
