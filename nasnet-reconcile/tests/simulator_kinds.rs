//! The managed kinds understand every row the simulator prints for them.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use nasnet_reconcile::device::{Device, WriteOp, WriteOutcome};
use nasnet_reconcile::routeros::rest::{Password, RestDevice, RestOptions};
use nasnet_reconcile::routeros::{export, kinds};
use nasnet_reconcile::simulator::{Sim, SimProfile, SimServer};
use nasnet_state::{BoxError, Fingerprint, Seal, Secret, SecretIntake, SecretPlace, SecretRef};

/// Fingerprints nothing and seals nothing: only the shape of the fields is looked at.
struct NoSeal;

impl Seal for NoSeal {
    fn seal(&self, place: &SecretPlace<'_>, _: &Secret) -> Result<SecretRef, BoxError> {
        Ok(SecretRef { fingerprint: Fingerprint([0; 16]), version: place.version, sealed: None })
    }

    fn open(&self, _: &SecretPlace<'_>, _: &SecretRef) -> Result<Secret, BoxError> {
        Err("nothing was sealed".into())
    }
}

const EXPORT: &[u8] = br#"# 2025-03-01 09:30:00 by RouterOS 7.16.2
/interface bridge
add admin-mac=48:A9:8A:00:00:01 auto-mac=no name=bridge priority=0x4000 vlan-filtering=yes
/interface wireguard
add listen-port=51820 mtu=1412 name=wg-office
/interface vlan
add interface=bridge name=vlan10 vlan-id=10
/interface list
add name=WAN
add include=WAN name=OUTSIDE
/interface wireguard peers
add allowed-address=10.9.0.2/32,fd00::2/128 endpoint-address=office.example.net endpoint-port=51820 interface=\
    wg-office name=laptop persistent-keepalive=25s public-key="hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
/interface list member
add interface=ether1 list=WAN
/ip address
add address=192.168.88.1/24 comment=LAN interface=bridge network=192.168.88.0
add address=10.255.0.1 interface=wg-office network=10.255.0.2
/ip firewall filter
add action=accept chain=input connection-state=established,related,untracked
add action=drop chain=input connection-state=invalid log=yes log-prefix=bad
add action=accept chain=input dst-port=22,8291 in-interface-list=!WAN protocol=tcp src-address=192.168.88.0/24
add action=drop chain=forward in-interface=ether1 tcp-flags=syn,!ack protocol=tcp
/ip route
add blackhole distance=200 dst-address=10.0.0.0/8
add check-gateway=ping disabled=no distance=1 dst-address=0.0.0.0/0 gateway=192.168.88.254 routing-table=main
"#;

#[tokio::test]
async fn every_row_of_a_managed_kind_is_understood() {
    let mut sim = Sim::new(SimProfile::default());
    let report = sim.seed_from_export(&export::parse(EXPORT).rows());
    assert_eq!(report.problems, []);
    let server = SimServer::start(sim, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let options = RestOptions::plain("127.0.0.1", server.address().port(), "admin", Password::new(""));
    let device = RestDevice::new(options);
    for schema in kinds::ALL {
        let menu = schema.menu.parse().unwrap();
        let rows = device.list(&menu).await.unwrap();
        assert!(!rows.is_empty(), "{menu} has a row to look at");
        for row in rows {
            let parsed = schema.parse(&row.fields, &SecretIntake::compare(&NoSeal)).unwrap();
            assert_eq!(parsed.findings, [], "{menu}: {:?}", row.fields.keys());
            if row.fields.get("dynamic").is_some_and(|dynamic| dynamic == "true") || row.fields.contains_key("builtin")
            {
                continue;
            }
            // What was read may be written back, field by field, and changes nothing.
            let change = schema.print(&parsed.fields);
            let fields = change.into_iter().filter(|(name, _)| is_writable(schema, name)).collect();
            let op = WriteOp::Set { menu: menu.clone(), id: row.id.clone(), fields, unset: Vec::new() };
            match device.write(&op).await {
                WriteOutcome::Done { row: Some(after) } => assert_eq!(after, row, "{menu}"),
                other => panic!("{menu}: {other:?}"),
            }
        }
    }
    server.shutdown().await;
}

fn is_writable(schema: &nasnet_state::KindSchema, name: &str) -> bool {
    schema.fields.iter().any(|field| field.name == name && field.access != nasnet_state::Access::ReadOnly)
}
