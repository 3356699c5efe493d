//! Step 8: how was it before?

use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::{ChangeSet, When};
use nasnet_state::Resource;

use super::checks::Checks;
use super::drift::shown;
use super::{Demo, Failure, progress};

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let interface = demo.interface.ok_or_else(|| Failure::new("the change set of step 3 left no interface"))?;
    let before = demo.reconciler.changes(&demo.router_id, interface).await?.len();
    let set = ChangeSet::new("lower the MTU", "demo").update(interface, [("mtu", "1400")]);
    let key = demo.manager.next_ulid();
    let report = demo.reconciler.apply(&demo.router_id, &demo.router.device, &set, key).await?;
    demo.report("MTU of the WireGuard interface", &report);
    checks.equal("the change is merged", &report.outcome, &OpOutcome::Merged);

    let changes = demo.reconciler.changes(&demo.router_id, interface).await?;
    let Some((changed_at, _, _)) = changes.get(before) else {
        return Err(Failure::new("the change left no event"));
    };
    let then = demo.reconciler.history_at(&demo.router_id, interface, When::Before(*changed_at)).await?;
    let now = demo.reconciler.history_at(&demo.router_id, interface, When::Now).await?;
    let mtu = |at: &Option<nasnet_state::history::ResourceAt<_>>| {
        let value = at.as_ref().and_then(|at| at.resource.configuration.spec.get("mtu"));
        value.map(shown)
    };
    progress(&format!(
        "      before position {changed_at} the interface's mtu was {}, now it is {}",
        mtu(&then).unwrap_or_default(),
        mtu(&now).unwrap_or_default()
    ));
    checks.equal("history tells the value before the change", &mtu(&then), &Some("1420".to_owned()));
    checks.equal("and the value now", &mtu(&now), &Some("1400".to_owned()));
    let first = demo.reconciler.history_at(&demo.router_id, interface, When::Before(changes[0].0)).await?;
    checks.that("before its first event the resource did not exist", first.is_none(), first.is_some());
    let stored = demo.reconciler.resources(&demo.router_id).await?.remove(&interface);
    let folded = now.map(|at| at.resource);
    checks.that("the fold of all events is what is stored", same(stored.as_ref(), folded.as_ref()), "compared");
    Ok(())
}

/// Compares what is stored with what the events tell, layer by layer.
fn same(stored: Option<&Resource>, folded: Option<&Resource>) -> bool {
    let (Some(stored), Some(folded)) = (stored, folded) else { return false };
    stored.configuration == folded.configuration
        && stored.deployment == folded.deployment
        && stored.metadata == folded.metadata
        && stored.versions == folded.versions
        && stored.name == folded.name
}
