//! Step 4: somebody edits the router behind our back.

use nasnet_reconcile::device::{Device as _, MenuPath};
use nasnet_reconcile::drift::DriftClass;
use nasnet_reconcile::op::OpOutcome;
use nasnet_state::FieldValue;
use nasnet_state::diff::Verdict;

use super::change::field;
use super::checks::Checks;
use super::{Demo, Failure, progress};

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let (Some(interface), Some(rule)) = (demo.interface, demo.rule) else {
        return Err(Failure::new("the change set of step 3 left no resources"));
    };
    let interfaces: MenuPath = "/interface/wireguard".parse()?;
    let filter: MenuPath = "/ip/firewall/filter".parse()?;
    let resources = demo.reconciler.resources(&demo.router_id).await?;
    let name = resources.get(&interface).map(|resource| resource.name.clone()).unwrap_or_default();
    let comment = resources
        .get(&rule)
        .and_then(|resource| resource.configuration.spec.text("comment").map(str::to_owned))
        .unwrap_or_default();
    let rule_row = find(demo, &filter, |row| field(row, "comment").starts_with(&comment)).await?;
    let interface_row = find(demo, &interfaces, |row| field(row, "name") == name).await?;
    let removed = demo.router.server.sim().with(|sim| {
        sim.edit(|admin| {
            admin.set(&interfaces, &interface_row, &[("mtu", "1280")])?;
            admin.remove(&filter, &rule_row)
        })
    });
    removed?;

    let report = demo.reconciler.detect_drift(&demo.router_id, &demo.router.device).await?;
    let mut found: Vec<_> = report.drifted().map(|drift| (drift.uid, drift.class)).collect();
    found.sort();
    let mut wanted = vec![(interface, DriftClass::Changed), (rule, DriftClass::RowMissing)];
    wanted.sort();
    checks.equal("exactly the two edits are found", &found, &wanted);
    for drift in report.drifted() {
        for state in drift.fields.iter().filter(|state| state.verdict == Verdict::DeviceDrift) {
            progress(&format!(
                "      drift: {} {} {}: confirmed {}, found {}",
                drift.kind,
                drift.name,
                state.field.as_str(),
                shown_or_nothing(state.base.as_ref()),
                shown_or_nothing(state.actual.as_ref())
            ));
        }
    }
    let fields: Vec<_> = report
        .drifted()
        .filter(|drift| drift.uid == interface)
        .flat_map(|drift| drift.fields.iter().filter(|state| state.verdict == Verdict::DeviceDrift))
        .map(|state| {
            (
                state.field.as_str().to_owned(),
                shown_or_nothing(state.base.as_ref()),
                shown_or_nothing(state.actual.as_ref()),
            )
        })
        .collect();
    let mtu = vec![("mtu".to_owned(), "1420".to_owned(), "1280".to_owned())];
    checks.equal("the report names the field with both values", &fields, &mtu);

    let healed = demo.reconciler.heal(&demo.router_id, &demo.router.device, &report).await?;
    demo.report("healing of a foreign edit", &healed);
    checks.equal("healing is merged", &healed.outcome, &OpOutcome::Merged);
    let row = demo.router.device.get(&interfaces, &interface_row).await?;
    checks.equal("the router has the confirmed value again", &row.as_ref().map(|row| field(row, "mtu")), &Some("1420"));
    find(demo, &filter, |row| field(row, "comment").starts_with(&comment)).await?;
    let after = demo.reconciler.detect_drift(&demo.router_id, &demo.router.device).await?;
    checks.equal("no drift is left", &after.drifted().count(), &0);
    Ok(())
}

/// Prints a value the way its JSON form does; secrets have none but a fingerprint.
pub(crate) fn shown(value: &FieldValue) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

fn shown_or_nothing(value: Option<&FieldValue>) -> String {
    value.map_or_else(|| "nothing".to_owned(), shown)
}

async fn find(
    demo: &Demo,
    menu: &MenuPath,
    is_it: impl Fn(&nasnet_reconcile::device::Row) -> bool,
) -> Result<nasnet_reconcile::device::RowId, Failure> {
    let rows = demo.router.device.list(menu).await?;
    let row = rows.into_iter().find(|row| is_it(row));
    row.and_then(|row| row.id).ok_or_else(|| Failure::new(format!("the row is not in {menu} any more")))
}
