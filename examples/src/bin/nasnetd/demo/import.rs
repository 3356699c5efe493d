//! Steps 1 and 2: the router is there; its configuration becomes resources.

use std::collections::BTreeSet;

use nasnet_dbmanager::NewRouter;
use nasnet_reconcile::device::{Device as _, MenuPath};
use nasnet_reconcile::routeros::menus;

use super::checks::Checks;
use super::{Demo, Failure, flash_bytes};

/// Step 1: the simulator answers, and nothing of the export was dropped.
pub(crate) async fn started(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let facts = demo.router.device.facts().await?;
    checks.that("the router answers over HTTP", !facts.version.is_empty(), format!("RouterOS {}", facts.version));
    demo.summary.export_errors.clone_from(&demo.router.export_errors);
    let import = &mut demo.summary.import;
    import.insert("lines of the export", demo.router.export_lines);
    import.insert("broken lines", demo.router.export_errors.len() as u64);
    if let Some(seeded) = &demo.router.seeded {
        import.insert("rows in the export", seeded.rows_in_export as u64);
        import.insert("statements kept aside", seeded.unapplied as u64);
        import.insert("values kept that a router would refuse", seeded.unusual as u64);
        checks.equal("every row of the export is on the router", &seeded.rows_loaded, &seeded.rows_in_export);
    } else {
        checks.that("the router is as the last run left it", true, "rows taken up from the data directory");
    }
    Ok(())
}

/// Step 2: databases, registration, import.
pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let address = demo.router.server.address();
    let known = demo.manager.system().routers().get(&demo.router_id).await?;
    if known.is_none() {
        let new = NewRouter::new(demo.router_id.clone())
            .name(&demo.router.model)
            .host(address.ip().to_string())
            .port(address.port());
        demo.manager.create_router(new).await?;
    }
    demo.summary.run = count_run(demo).await?;
    if let Some(report) = demo.reconciler.recover(&demo.router_id, &demo.router.device).await? {
        demo.report("operation left open by an earlier run", &report);
    }

    let menus = observed_menus(&demo.router.menus)?;
    let report = demo.reconciler.import(&demo.router_id, &demo.router.device, &menus).await?;
    let figures = [
        ("rows on the router", report.rows),
        ("resources of managed kinds made", report.created),
        ("resources of opaque rows made", report.created_opaque),
        ("rows already known", report.unchanged + report.refreshed),
        ("rows nobody can own", report.skipped),
        ("menus the router does not have", report.absent),
    ];
    demo.summary.import.extend(figures.map(|(name, count)| (name, count as u64)));
    checks.equal("every menu could be read", &report.unreadable, &Vec::new());
    let accounted = report.created
        + report.created_opaque
        + report.unchanged
        + report.refreshed
        + report.differing.len()
        + report.skipped;
    checks.equal("every row is a resource or one that nobody can own", &accounted, &report.rows);
    let resources = demo.reconciler.resources(&demo.router_id).await?;
    checks.that("the configuration is stored as resources", !resources.is_empty(), resources.len());
    if demo.summary.run == 1 {
        checks.equal("as many as were made", &resources.len(), &(report.created + report.created_opaque));
    } else {
        let new = report.created + report.created_opaque;
        checks.equal("importing again makes no resource twice", &new, &0);
    }

    let before = flash_bytes(&demo.manager);
    let drift = demo.reconciler.detect_drift(&demo.router_id, &demo.router.device).await?;
    let drifted: Vec<_> =
        drift.drifted().map(|drift| format!("{} {}: {:?}", drift.kind, drift.name, drift.class)).collect();
    checks.equal("what was just imported does not differ from the router", &drifted, &Vec::new());
    checks.equal("looking for drift and finding none writes nothing to flash", &flash_bytes(&demo.manager), &before);
    Ok(())
}

/// Counts the runs on this data directory, this one included.
async fn count_run(demo: &Demo) -> Result<u64, Failure> {
    let settings = demo.manager.system();
    let before = settings.settings().get("demo", "runs").await?.and_then(|setting| setting.value.as_u64()).unwrap_or(0);
    settings.settings().put("demo", "runs", &(before + 1), 1).await?;
    Ok(before + 1)
}

/// The adapter's table of menus, and what the export speaks of besides.
fn observed_menus(in_export: &[MenuPath]) -> Result<Vec<MenuPath>, Failure> {
    let mut menus: BTreeSet<MenuPath> = menus::KNOWN.iter().map(|(path, _)| path.parse()).collect::<Result<_, _>>()?;
    menus.extend(in_export.iter().cloned());
    Ok(menus.into_iter().collect())
}
