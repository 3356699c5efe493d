//! Step 5: the router does what it was asked and the answer is lost.

use nasnet_reconcile::ChangeSet;
use nasnet_reconcile::device::{Device as _, MenuPath};
use nasnet_reconcile::op::OpOutcome;
use nasnet_reconcile::routeros::kinds;
use nasnet_reconcile::simulator::{Fault, FaultRule};

use super::change::{field, public};
use super::checks::Checks;
use super::{Demo, Failure};

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let interface = demo.interface.ok_or_else(|| Failure::new("the change set of step 3 left no interface"))?;
    let resources = demo.reconciler.resources(&demo.router_id).await?;
    let name = resources.get(&interface).map(|resource| resource.name.clone()).unwrap_or_default();
    let peers: MenuPath = "/interface/wireguard/peers".parse()?;
    let key = public(demo, "second peer");
    let set = ChangeSet::new("add a second peer", "demo").create(
        kinds::WIREGUARD_PEER.kind(),
        format!("{name}-second-peer"),
        [("interface", name.as_str()), ("public-key", &key), ("allowed-address", "10.0.0.2/32")],
    );
    let sent_before = puts(demo);
    demo.router.server.sim().with(|sim| {
        sim.inject(FaultRule::next(Fault::DropAfterCommit).on_method("PUT").on_menu(peers.clone()));
    });
    let report = demo.reconciler.apply(&demo.router_id, &demo.router.device, &set, demo.manager.next_ulid()).await?;
    demo.report("peer whose reply was lost", &report);
    let waiting = demo.router.server.sim().with(|sim| sim.pending_faults());
    checks.equal("the reply really was lost", &waiting, &0);
    checks.equal("the operation ends as done", &report.outcome, &OpOutcome::Merged);
    let rows = demo.router.device.list(&peers).await?;
    let same = rows.iter().filter(|row| field(row, "public-key") == key).count();
    checks.equal("the router has the peer once", &same, &1);
    checks.equal("it was sent once", &(puts(demo) - sent_before), &1);
    Ok(())
}

/// Counts the peers this process sent.
fn puts(demo: &Demo) -> usize {
    let log = demo.router.server.sim().with(|sim| sim.log());
    log.iter().filter(|entry| entry.method == "PUT" && entry.path.contains("/interface/wireguard/peers")).count()
}
