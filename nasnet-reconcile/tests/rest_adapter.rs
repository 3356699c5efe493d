//! The REST adapter against the simulator over real sockets.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use nasnet_reconcile::device::{Device, DeviceError, ErrorClass, MenuPath, RawFields, RowId, WriteOp, WriteOutcome};
use nasnet_reconcile::routeros::menus;
use nasnet_reconcile::routeros::rest::{Password, RestDevice, RestOptions};
use nasnet_reconcile::simulator::{Sim, SimError, SimProfile, SimServer};

fn menu(path: &str) -> MenuPath {
    path.parse().unwrap()
}

fn fields<const N: usize>(pairs: [(&str, &str); N]) -> RawFields {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn start() -> (SimServer, RestDevice) {
    let server = SimServer::start(Sim::new(SimProfile::default()), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let device = device(&server, "");
    (server, device)
}

fn device(server: &SimServer, password: &str) -> RestDevice {
    RestDevice::new(RestOptions::plain("127.0.0.1", server.address().port(), "admin", Password::new(password)))
}

fn add<const N: usize>(path: &str, pairs: [(&str, &str); N]) -> WriteOp {
    WriteOp::Add { menu: menu(path), fields: fields(pairs) }
}

fn class(outcome: WriteOutcome) -> ErrorClass {
    match outcome {
        WriteOutcome::Rejected { class, .. } => class,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn rows_are_added_read_changed_and_removed() {
    let (server, device) = start().await;
    let list = menu("/interface/wireguard");
    let WriteOutcome::Done { row: Some(row) } = device.write(&add("/interface/wireguard", [("name", "wg0")])).await
    else {
        panic!("not added")
    };
    let id = row.id.clone().unwrap();
    assert_eq!(row.fields["listen-port"], "13231");
    assert!(!row.fields["public-key"].is_empty());
    assert_eq!(device.get(&list, &id).await.unwrap().unwrap(), row);
    assert_eq!(device.list(&list).await.unwrap(), [row]);

    let set = WriteOp::Set {
        menu: list.clone(),
        id: Some(id.clone()),
        fields: fields([("comment", "office \"HQ\" \\ caf\u{e9}\n")]),
        unset: vec![],
    };
    let WriteOutcome::Done { row: Some(row) } = device.write(&set).await else { panic!("not set") };
    assert_eq!(row.fields["comment"], "office \"HQ\" \\ caf\u{e9}\n");
    let unset = WriteOp::Set {
        menu: list.clone(),
        id: Some(id.clone()),
        fields: fields([]),
        unset: vec!["comment".to_owned()],
    };
    let WriteOutcome::Done { row: Some(row) } = device.write(&unset).await else { panic!("not unset") };
    assert!(!row.fields.contains_key("comment"));

    let remove = WriteOp::Remove { menu: list.clone(), id: id.clone() };
    assert_eq!(device.write(&remove).await, WriteOutcome::Done { row: None });
    assert_eq!(class(device.write(&remove).await), ErrorClass::NoSuchItem);
    assert_eq!(device.get(&list, &id).await.unwrap(), None);
    server.shutdown().await;
}

#[tokio::test]
async fn a_menu_of_one_row_is_a_row_without_an_id() {
    let (server, device) = start().await;
    let dns = menu("/ip/dns");
    let set = WriteOp::Set { menu: dns.clone(), id: None, fields: fields([("servers", "9.9.9.9")]), unset: vec![] };
    assert_eq!(device.write(&set).await, WriteOutcome::Done { row: None });
    let rows = device.list(&dns).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].id.as_ref(), rows[0].fields["servers"].as_str()), (None, "9.9.9.9"));
    server.shutdown().await;
}

#[tokio::test]
async fn the_facts_say_which_router_it_is() {
    let (server, device) = start().await;
    let facts = device.facts().await.unwrap();
    assert_eq!(facts.identity, "MikroTik");
    assert_eq!(facts.version, "7.16.2 (stable)");
    assert_eq!(facts.serial, "HH70A000001");
    server.shutdown().await;

    let chr = SimServer::start(Sim::new(SimProfile::chr_7_16()), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let facts = self::device(&chr, "").facts().await.unwrap();
    assert!(!facts.serial.is_empty(), "a virtual router is known by its licence");
    chr.shutdown().await;
}

#[tokio::test]
async fn refusals_have_their_classes() {
    let (server, device) = start().await;
    device.write(&add("/ip/address", [("address", "10.0.0.1/24"), ("interface", "ether1")])).await;
    let route = device.list(&menu("/ip/route")).await.unwrap().remove(0).id.unwrap();
    let set_route =
        WriteOp::Set { menu: menu("/ip/route"), id: Some(route), fields: fields([("distance", "9")]), unset: vec![] };
    let missing = WriteOp::Remove { menu: menu("/ip/address"), id: RowId("*FFFF".to_owned()) };
    let hostile = WriteOp::Remove { menu: menu("/ip/address"), id: RowId("../route/*1".to_owned()) };
    let port = WriteOp::Remove { menu: menu("/interface/ethernet"), id: RowId("*1".to_owned()) };
    let cases = [
        (add("/ip/address", [("address", "10.0.0.1/24"), ("interface", "ether1")]), ErrorClass::AlreadyExists),
        (add("/ip/address", [("address", "10.0.0.2/24"), ("interface", "nope")]), ErrorClass::MissingReference),
        (add("/ip/address", [("address", "tomorrow"), ("interface", "ether1")]), ErrorClass::InvalidValue),
        (add("/ip/address", [("colour", "red")]), ErrorClass::UnknownField),
        (add("/no/such/menu", [("a", "b")]), ErrorClass::NoSuchMenu),
        (add("/interface/ethernet", [("name", "x")]), ErrorClass::NoSuchMenu),
        (set_route, ErrorClass::ReadOnlyRow),
        (missing, ErrorClass::NoSuchItem),
        (hostile, ErrorClass::NoSuchItem),
        (port, ErrorClass::NoSuchMenu),
    ];
    for (op, expected) in cases {
        assert_eq!(class(device.write(&op).await), expected, "{op:?}");
    }
    let refused = device.list(&menu("/no/such/menu")).await.unwrap_err();
    assert!(matches!(refused, DeviceError::Refused { class: ErrorClass::NoSuchMenu, .. }), "{refused:?}");
    let wrong = self::device(&server, "hunter2");
    let refused = wrong.list(&menu("/ip/address")).await.unwrap_err();
    assert!(matches!(refused, DeviceError::Refused { class: ErrorClass::NotPermitted, .. }), "{refused:?}");
    assert!(!format!("{refused} {refused:?} {wrong:?}").contains("hunter2"));
    server.shutdown().await;
}

#[tokio::test]
async fn every_known_menu_can_be_observed_over_one_connection() {
    let (server, device) = start().await;
    for (path, shape) in menus::KNOWN {
        let rows = device.list(&menu(path)).await.unwrap();
        if *shape == menus::Shape::Singleton {
            assert!(rows.len() == 1 && rows[0].id.is_none(), "{path}");
        }
    }
    server.shutdown().await;
}

#[tokio::test]
async fn bytes_that_are_no_json_come_and_go_unharmed() {
    let (server, device) = start().await;
    // A control character and a byte of Latin-1, carried through Rust text.
    let comment = "bell\u{7} caf\u{10FFE9}";
    let op = add("/ip/pool", [("name", "p"), ("ranges", "10.0.0.2-10.0.0.3"), ("comment", comment)]);
    let WriteOutcome::Done { row: Some(row) } = device.write(&op).await else { panic!("not added") };
    assert_eq!(row.fields["comment"], comment);
    let raw = raw_reply(&server).await;
    assert!(raw.windows(9).any(|part| part == b"bell\x07 caf" as &[u8]), "the simulator prints control bytes raw");
    assert!(raw.contains(&0xE9), "and bytes that are no UTF-8");
    server.shutdown().await;
}

async fn raw_reply(server: &SimServer) -> Vec<u8> {
    let address = server.address();
    let exchange = move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let head =
            "GET /rest/ip/pool HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWRtaW46\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        reply
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

#[tokio::test]
async fn a_port_in_use_and_an_open_address_are_errors() {
    let (server, _) = start().await;
    let taken = SimServer::start(Sim::new(SimProfile::default()), server.address()).await.unwrap_err();
    assert!(matches!(taken, SimError::AddressInUse { address } if address == server.address()), "{taken:?}");
    let open = SimServer::start(Sim::new(SimProfile::default()), "0.0.0.0:0".parse().unwrap()).await.unwrap_err();
    assert!(matches!(open, SimError::NotLoopback { .. }), "{open:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn an_edit_behind_the_adapters_back_is_seen_by_the_next_read() {
    let (server, device) = start().await;
    let pool = menu("/ip/pool");
    server.sim().with(|sim| sim.edit(|admin| admin.add(&pool, &[("name", "p"), ("ranges", "10.0.0.2")])).unwrap());
    assert_eq!(device.list(&pool).await.unwrap()[0].fields["name"], "p");
    server.shutdown().await;
}
