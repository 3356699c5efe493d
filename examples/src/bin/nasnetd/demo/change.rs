//! Step 3: a WireGuard client as one change: interface, address, peer and firewall rule, together or not at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nasnet_events::Query;
use nasnet_reconcile::ChangeSet;
use nasnet_reconcile::device::{Device as _, MenuPath, Row};
use nasnet_reconcile::op::{OpOutcome, StepState};
use nasnet_reconcile::routeros::kinds;
use nasnet_state::Resource;
use nasnet_state::layer::deployment::Outcome;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::checks::Checks;
use super::{Demo, Failure};
use futures_util::TryStreamExt as _;

/// What this run calls its things, chosen so that they collide with nothing the router has.
pub(crate) struct Names {
    pub(crate) interface: String,
    pub(crate) listen_port: String,
    pub(crate) address: String,
    pub(crate) peer_address: String,
}

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let names = choose(demo).await?;
    let (psk, peer_key) = (secret(demo, "psk"), public(demo, "peer"));
    demo.secrets.push(psk.clone());
    let comment = format!("wireguard of run {}", demo.summary.run);
    let mut set = ChangeSet::new("add a WireGuard client", "demo")
        .create(
            kinds::WIREGUARD.kind(),
            &names.interface,
            [("name", names.interface.as_str()), ("listen-port", &names.listen_port), ("mtu", "1420")],
        )
        .create(
            kinds::IP_ADDRESS.kind(),
            &names.address,
            [("address", names.address.as_str()), ("interface", &names.interface)],
        )
        .create(
            kinds::WIREGUARD_PEER.kind(),
            format!("{}-peer", names.interface),
            [
                ("interface", names.interface.as_str()),
                ("public-key", &peer_key),
                ("preshared-key", &psk),
                ("allowed-address", &names.peer_address),
                ("endpoint-address", "198.51.100.7"),
                ("endpoint-port", "51820"),
            ],
        );
    let rule = [
        ("chain", "input"),
        ("action", "accept"),
        ("protocol", "udp"),
        ("dst-port", names.listen_port.as_str()),
        ("comment", comment.as_str()),
    ];
    let rule_name = format!("accept {}", names.interface);
    // The rule must stand before the one that drops what is left, where the router has one.
    set = match first_drop(demo).await? {
        Some(drop) => set.create_before(drop, kinds::FIREWALL_FILTER.kind(), rule_name, rule),
        None => set.create(kinds::FIREWALL_FILTER.kind(), rule_name, rule),
    };

    let plan = demo.reconciler.plan(&demo.router_id, &demo.router.device, &set).await?;
    checks.equal("the plan has one step for each part", &plan.steps.len(), &4);
    let key = demo.manager.next_ulid();
    let report = demo.reconciler.apply(&demo.router_id, &demo.router.device, &set, key).await?;
    demo.report("WireGuard client", &report);
    checks.equal("the change is merged", &report.outcome, &OpOutcome::Merged);
    checks.equal("every step was read back", &report.count(StepState::Done), &report.steps.len());
    let again = demo.reconciler.apply(&demo.router_id, &demo.router.device, &set, key).await?;
    checks.equal("the same key answers with the same operation", &again.op_id, &report.op_id);

    let resources = demo.reconciler.resources(&demo.router_id).await?;
    let made: Vec<&Resource> = report.steps.iter().filter_map(|step| resources.get(&step.uid)).collect();
    checks.equal("each part is a resource", &made.len(), &4);
    for resource in &made {
        confirmed(checks, resource);
    }
    let of = |kind: &nasnet_state::KindSchema| made.iter().find(|resource| resource.kind == kind.kind());
    demo.interface = of(&kinds::WIREGUARD).map(|resource| resource.uid);
    demo.rule = of(&kinds::FIREWALL_FILTER).map(|resource| resource.uid);
    captured_key(demo, checks, of(&kinds::WIREGUARD).copied(), &names.interface).await?;

    let uids: Vec<Ulid> = made.iter().map(|resource| resource.uid).collect();
    let mut recorded = 0;
    for uid in uids {
        recorded += demo.reconciler.changes(&demo.router_id, uid).await?.len();
    }
    checks.that("every resource has its events", recorded >= 8, format!("{recorded} events of 4 resources"));
    let applied: Vec<_> =
        demo.events.read(Query::all().kind_prefix("config").correlation_id(report.op_id)).try_collect().await?;
    checks.that("the operation itself is recorded", !applied.is_empty(), format!("{} events", applied.len()));
    Ok(())
}

/// The deployment layer must say what the router confirmed.
fn confirmed(checks: &mut Checks, resource: &Resource) {
    let current = resource.deployment.as_ref().and_then(|deployment| deployment.current.as_ref());
    let record = current.map(|revision| &revision.record);
    let rows = record.map_or(0, |record| record.rows.iter().filter(|row| row.id.is_some()).count());
    checks.that(
        format!("{} is confirmed, with its row's handle", resource.kind),
        record.is_some_and(|record| record.outcome == Outcome::Confirmed) && rows == 1,
        format!("{:?}, {rows} rows", record.map(|record| record.outcome)),
    );
}

/// The router made a key pair; its public half must be in the deployment layer.
async fn captured_key(
    demo: &Demo,
    checks: &mut Checks,
    interface: Option<&Resource>,
    name: &str,
) -> Result<(), Failure> {
    let menu: MenuPath = "/interface/wireguard".parse()?;
    let row = demo.router.device.list(&menu).await?.into_iter().find(|row| field(row, "name") == name);
    let on_router = row.as_ref().map(|row| field(row, "public-key").to_owned());
    let revision = interface.and_then(|resource| resource.deployment.as_ref()?.current.as_ref());
    let captured = revision.and_then(|revision| revision.record.generated.text("public-key")).map(str::to_owned);
    checks.that(
        "the public key the router generated is captured",
        captured.is_some() && captured == on_router,
        format!("{captured:?} stored, {on_router:?} on the router"),
    );
    Ok(())
}

pub(crate) fn field<'a>(row: &'a Row, name: &str) -> &'a str {
    row.fields.get(name).map_or("", String::as_str)
}

/// Chooses names, a port and a subnet that the router does not use.
async fn choose(demo: &Demo) -> Result<Names, Failure> {
    let mut used = String::new();
    for menu in ["/interface/wireguard", "/ip/address", "/ip/route", "/interface"] {
        for row in demo.router.device.list(&menu.parse()?).await? {
            for name in ["name", "listen-port", "address", "dst-address"] {
                used.push_str(field(&row, name));
                used.push('\n');
            }
        }
    }
    let free = |text: &str| !used.lines().any(|line| line.starts_with(text));
    let run = demo.summary.run;
    let number = (run..run + 10_000).find(|n| free(&format!("wg-nasnet{n}"))).unwrap_or(run);
    let port = (51_820..u64::from(u16::MAX)).find(|port| free(&port.to_string())).unwrap_or(51_820);
    let (high, low) = (0..=u16::MAX)
        .map(|n| (n / 256, n % 256))
        .map(|(high, low)| (255 - high % 128, low))
        .find(|(high, low)| free(&format!("10.{high}.{low}.")))
        .unwrap_or((255, 0));
    Ok(Names {
        interface: format!("wg-nasnet{number}"),
        listen_port: port.to_string(),
        address: format!("10.{high}.{low}.1/24"),
        peer_address: format!("10.{high}.{low}.2/32"),
    })
}

/// Finds the first rule of the input chain that drops packets.
async fn first_drop(demo: &Demo) -> Result<Option<Ulid>, Failure> {
    let rows = demo.router.device.list(&"/ip/firewall/filter".parse()?).await?;
    let Some(row) = rows.iter().find(|row| {
        field(row, "chain") == "input" && field(row, "action") == "drop" && field(row, "dynamic") != "true"
    }) else {
        return Ok(None);
    };
    let handle = row.id.as_ref().map(ToString::to_string);
    let resources = demo.reconciler.resources(&demo.router_id).await?;
    Ok(resources
        .values()
        .filter(|resource| resource.kind == kinds::FIREWALL_FILTER.kind())
        .find(|resource| {
            let revision = resource.deployment.as_ref().and_then(|deployment| deployment.current.as_ref());
            revision.is_some_and(|revision| revision.record.rows.iter().any(|row| row.id == handle))
        })
        .map(|resource| resource.uid))
}

/// A key of this run: 32 bytes nobody else uses.
pub(crate) fn secret(demo: &Demo, what: &str) -> String {
    let seed = format!("{what} {} {}", demo.manager.fleet_id(), demo.manager.next_ulid());
    BASE64.encode(Sha256::digest(seed))
}

/// A public key of this run. Any 32 bytes are one.
pub(crate) fn public(demo: &Demo, what: &str) -> String {
    secret(demo, what)
}
