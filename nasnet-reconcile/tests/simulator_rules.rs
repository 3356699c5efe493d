//! What the simulated router accepts, refuses, generates and derives, without sockets.
#![cfg(feature = "simulator")]
#![allow(clippy::unwrap_used, missing_docs)]

use nasnet_reconcile::device::MenuPath;
use nasnet_reconcile::simulator::{Denial, DynamicEdit, Request, Response, Sim, SimProfile};
use serde_json::{Value, json};

fn ask_as(sim: &mut Sim, login: &str, method: &str, target: &str, body: Option<Value>) -> (u16, Value) {
    use base64::Engine;
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        authorization: Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login))),
        content_type: Some("application/json".to_owned()),
        body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
        peer: "127.0.0.1".to_owned(),
    };
    let Response { status, body, .. } = sim.handle(&request, 90_000);
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn ask(sim: &mut Sim, method: &str, target: &str, body: Option<Value>) -> (u16, Value) {
    ask_as(sim, "admin:", method, target, body)
}

fn add(sim: &mut Sim, menu: &str, body: Value) -> String {
    let (status, row) = ask(sim, "PUT", &format!("/rest{menu}"), Some(body));
    assert_eq!(status, 201, "{menu}: {row}");
    row[".id"].as_str().unwrap().to_owned()
}

fn refusal(sim: &mut Sim, method: &str, target: &str, body: Value) -> (u16, String) {
    let (status, answer) = ask(sim, method, target, Some(body));
    assert!(status >= 400, "{method} {target} was accepted: {answer}");
    assert_eq!(answer["error"], json!(status));
    (status, answer["detail"].as_str().unwrap_or_default().to_owned())
}

fn rows(sim: &mut Sim, menu: &str) -> Vec<Value> {
    let (status, answer) = ask(sim, "GET", &format!("/rest{menu}"), None);
    assert_eq!(status, 200, "{menu}: {answer}");
    answer.as_array().unwrap().clone()
}

fn menu(path: &str) -> MenuPath {
    path.parse().unwrap()
}

#[test]
fn status_codes_follow_the_rest_contract() {
    let mut sim = Sim::new(SimProfile::default());
    let id = add(&mut sim, "/interface/bridge", json!({"name": "bridge1"}));
    assert_eq!(ask(&mut sim, "GET", &format!("/rest/interface/bridge/{id}"), None).0, 200);
    assert_eq!(ask(&mut sim, "GET", "/rest/interface/bridge/bridge1", None).1[".id"], json!(id));
    let (status, row) = ask(&mut sim, "PATCH", &format!("/rest/interface/bridge/{id}"), Some(json!({"mtu": 9000})));
    assert_eq!((status, &row["mtu"]), (200, &json!("9000")));
    assert_eq!(ask(&mut sim, "DELETE", &format!("/rest/interface/bridge/{id}"), None), (204, Value::Null));
    let again = ask(&mut sim, "DELETE", &format!("/rest/interface/bridge/{id}"), None);
    assert_eq!(again, (404, json!({"error": 404, "message": "Not Found"})));

    let identifier = (400, "missing or invalid resource identifier".to_owned());
    assert_eq!(refusal(&mut sim, "GET", "/rest/ip/address/%2A1", Value::Null), identifier);
    assert_eq!(refusal(&mut sim, "PATCH", "/rest/ip/dns", json!({"servers": "1.1.1.1"})), identifier);
    assert_eq!(refusal(&mut sim, "PUT", "/rest/ip/dns", json!({"servers": "1.1.1.1"})), identifier);
    assert_eq!(refusal(&mut sim, "PUT", "/rest/interface/ethernet", json!({"name": "x"})), identifier);
    assert_eq!(
        refusal(&mut sim, "DELETE", "/rest/interface/ethernet/*1", Value::Null),
        (406, "no such command or directory (remove)".to_owned())
    );
    assert_eq!(
        refusal(&mut sim, "GET", "/rest/ip/nonsense", Value::Null),
        (400, "no such command or directory (nonsense)".to_owned())
    );
    assert_eq!(ask_as(&mut sim, "admin:wrong", "GET", "/rest/ip/address", None).0, 401);
    assert_eq!(ask(&mut sim, "TRACE", "/rest/ip/address", None).0, 503);
    assert_eq!(refusal(&mut sim, "PUT", "/rest/ip/pool", json!([1])).0, 400);
}

#[test]
fn a_menu_of_one_row_is_changed_by_post_set() {
    let mut sim = Sim::new(SimProfile::default());
    assert_eq!(ask(&mut sim, "POST", "/rest/ip/dns/set", Some(json!({"servers": "9.9.9.9"}))), (200, json!([])));
    let (_, dns) = ask(&mut sim, "GET", "/rest/ip/dns", None);
    assert_eq!(dns["servers"], json!("9.9.9.9"));
    assert!(dns.get(".id").is_none());
}

#[test]
fn unknown_arguments_bad_values_and_missing_references_are_refused() {
    let mut sim = Sim::new(SimProfile::default());
    let mut detail = |menu: &str, body: Value| refusal(&mut sim, "PUT", &format!("/rest{menu}"), body).1;
    assert_eq!(
        detail("/ip/address", json!({"address": "10.0.0.1/24", "interface": "ether1", "colour": "red"})),
        "unknown parameter colour"
    );
    assert_eq!(
        detail("/ip/address", json!({"address": "10.0.0.999/24", "interface": "ether1"})),
        "invalid value for argument address"
    );
    for (menu, body, argument) in [
        ("/ip/address", json!({"address": "10.0.0.1/24", "interface": "nope"}), "interface"),
        ("/interface/vlan", json!({"interface": "nope", "vlan-id": "5"}), "interface"),
        ("/interface/bridge/port", json!({"bridge": "nope", "interface": "ether2"}), "bridge"),
        ("/interface/wireguard/peers", json!({"interface": "ether1"}), "interface"),
        ("/interface/list/member", json!({"interface": "ether1", "list": "WAN"}), "list"),
        ("/ip/firewall/filter", json!({"chain": "input", "in-interface": "!nope"}), "in-interface"),
        ("/ip/firewall/filter", json!({"chain": "input", "in-interface-list": "WAN"}), "in-interface-list"),
        ("/ip/firewall/filter", json!({"chain": "input", "action": "explode"}), "action"),
        ("/ip/route", json!({"gateway": "10.0.0.1%nope"}), "gateway"),
    ] {
        assert_eq!(detail(menu, body), format!("input does not match any value of {argument}"), "{menu}");
    }
    assert_eq!(detail("/ip/firewall/filter", json!({"action": "drop"})), "missing value(s) of argument(s) chain");
}

#[test]
fn what_must_be_unique_is_refused_twice() {
    let mut sim = Sim::new(SimProfile::default());
    add(&mut sim, "/interface/bridge", json!({"name": "lan"}));
    add(&mut sim, "/interface/wireguard", json!({"name": "wg0"}));
    let name_taken = (400, "failure: already have interface with such name".to_owned());
    for (menu, body) in [
        ("/interface/bridge", json!({"name": "lan"})),
        ("/interface/wireguard", json!({"name": "lan"})),
        ("/interface/vlan", json!({"name": "ether1", "interface": "lan", "vlan-id": 3})),
        ("/interface/veth", json!({"name": "lo"})),
        ("/interface/gre", json!({"name": "wg0"})),
    ] {
        assert_eq!(refusal(&mut sim, "PUT", &format!("/rest{menu}"), body), name_taken, "{menu}");
    }
    assert_eq!(refusal(&mut sim, "PATCH", "/rest/interface/ethernet/*1", json!({"name": "wg0"})), name_taken);

    let address = json!({"address": "10.0.0.1/24", "interface": "lan"});
    add(&mut sim, "/ip/address", address.clone());
    assert_eq!(refusal(&mut sim, "PUT", "/rest/ip/address", address).1, "failure: already have such address");
    let peer = json!({"interface": "wg0", "public-key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="});
    add(&mut sim, "/interface/wireguard/peers", peer.clone());
    assert!(refusal(&mut sim, "PUT", "/rest/interface/wireguard/peers", peer).1.contains("already have peer"));
    let port = json!({"bridge": "lan", "interface": "ether2"});
    add(&mut sim, "/interface/bridge/port", port.clone());
    assert!(refusal(&mut sim, "PUT", "/rest/interface/bridge/port", port).1.contains("already added"));
}

#[test]
fn a_wireguard_interface_gets_its_keys_and_a_port_of_its_own() {
    let mut sim = Sim::new(SimProfile::default());
    let id = add(&mut sim, "/interface/wireguard", json!({}));
    let (_, first) = ask(&mut sim, "GET", &format!("/rest/interface/wireguard/{id}"), None);
    assert_eq!(first["name"], json!("wireguard1"));
    assert_eq!(first["listen-port"], json!("13231"));
    assert_eq!(first["mtu"], json!("1420"));
    let id = add(&mut sim, "/interface/wireguard", json!({"name": "wg1", "private-key": first["private-key"]}));
    let (_, second) = ask(&mut sim, "GET", &format!("/rest/interface/wireguard/{id}"), None);
    assert_eq!(second["public-key"], first["public-key"], "the public key follows from the private key");
    assert_eq!(second["listen-port"], json!("13232"));
    let id = add(&mut sim, "/interface/wireguard", json!({"name": "wg2"}));
    let (_, third) = ask(&mut sim, "GET", &format!("/rest/interface/wireguard/{id}"), None);
    assert_ne!(third["private-key"], first["private-key"]);
    let (status, _) =
        ask(&mut sim, "PATCH", &format!("/rest/interface/wireguard/{id}"), Some(json!({"public-key": "x"})));
    assert_eq!(status, 400, "the public key cannot be set");
}

#[test]
fn interface_lists_all_types_with_the_ids_of_their_own_menus() {
    let mut sim = Sim::new(SimProfile::default());
    let id = add(&mut sim, "/interface/wireguard", json!({"name": "wg0"}));
    let all = rows(&mut sim, "/interface");
    assert_eq!(all.iter().filter(|row| row["type"] == json!("ether")).count(), 5);
    let wg = all.iter().find(|row| row["name"] == json!("wg0")).unwrap();
    assert_eq!((&wg[".id"], &wg["type"], &wg["running"]), (&json!(id), &json!("wg"), &json!("true")));
    let target = format!("/rest/interface/{id}");
    assert_eq!(ask(&mut sim, "PATCH", &target, Some(json!({"disabled": "true"}))).0, 200);
    assert_eq!(rows(&mut sim, "/interface/wireguard")[0]["disabled"], json!("true"));
    assert_eq!(refusal(&mut sim, "PATCH", &target, json!({"listen-port": "1"})).1, "unknown parameter listen-port");
    assert_eq!(refusal(&mut sim, "DELETE", &target, Value::Null).0, 406);
}

#[test]
fn an_address_has_a_network_and_a_connected_route_that_cannot_be_touched() {
    let mut sim = Sim::new(SimProfile::default());
    let id = add(&mut sim, "/ip/address", json!({"address": "192.168.88.1/24", "interface": "ether2"}));
    assert_eq!(rows(&mut sim, "/ip/address")[0]["network"], json!("192.168.88.0"));
    let routes = rows(&mut sim, "/ip/route");
    assert_eq!(routes.len(), 1);
    assert_eq!(
        (&routes[0]["dst-address"], &routes[0]["gateway"], &routes[0]["dynamic"]),
        (&json!("192.168.88.0/24"), &json!("ether2"), &json!("true"))
    );
    let route = format!("/rest/ip/route/{}", routes[0][".id"].as_str().unwrap());
    assert!(refusal(&mut sim, "PATCH", &route, json!({"distance": "5"})).1.contains("dynamic"));
    assert!(refusal(&mut sim, "DELETE", &route, Value::Null).1.contains("dynamic"));

    let address = format!("/rest/ip/address/{id}");
    assert_eq!(ask(&mut sim, "PATCH", &address, Some(json!({"disabled": true}))).0, 200);
    assert!(rows(&mut sim, "/ip/route").is_empty());
    assert_eq!(ask(&mut sim, "PATCH", &address, Some(json!({"disabled": false, "address": "10.9.0.1"}))).0, 200);
    assert_eq!(rows(&mut sim, "/ip/address")[0]["address"], json!("10.9.0.1/32"));
    let route = rows(&mut sim, "/ip/route").remove(0);
    assert_eq!(route["dst-address"], json!("10.9.0.1/32"));
    assert_ne!(route[".id"], routes[0][".id"], "the old route is gone with its id");
}

#[test]
fn the_text_of_a_refused_dynamic_edit_is_switched() {
    let profile = SimProfile { dynamic_edit: DynamicEdit::NotFound, ..SimProfile::default() };
    let mut sim = Sim::new(profile);
    add(&mut sim, "/ip/address", json!({"address": "192.168.88.1/24", "interface": "ether2"}));
    let route = format!("/rest/ip/route/{}", rows(&mut sim, "/ip/route")[0][".id"].as_str().unwrap());
    assert_eq!(refusal(&mut sim, "PATCH", &route, json!({"distance": "5"})).0, 404);
}

#[test]
fn references_follow_a_rename_and_keep_the_id_of_what_was_removed() {
    let mut sim = Sim::new(SimProfile::default());
    let bridge = add(&mut sim, "/interface/bridge", json!({"name": "lan"}));
    add(&mut sim, "/interface/bridge/port", json!({"bridge": "lan", "interface": "ether2"}));
    add(&mut sim, "/ip/address", json!({"address": "10.0.0.1/24", "interface": "lan"}));
    add(&mut sim, "/ip/firewall/filter", json!({"chain": "input", "in-interface": "!lan"}));
    add(&mut sim, "/ip/arp", json!({"address": "10.0.0.2", "interface": "lan"}));
    let target = format!("/rest/interface/bridge/{bridge}");
    assert_eq!(ask(&mut sim, "PATCH", &target, Some(json!({"name": "home"}))).0, 200);
    assert_eq!(rows(&mut sim, "/interface/bridge/port")[0]["bridge"], json!("home"));
    assert_eq!(rows(&mut sim, "/ip/address")[0]["interface"], json!("home"));
    assert_eq!(rows(&mut sim, "/ip/firewall/filter")[0]["in-interface"], json!("!home"));
    assert_eq!(rows(&mut sim, "/ip/arp")[0]["interface"], json!("home"));
    assert_eq!(rows(&mut sim, "/ip/route")[0]["gateway"], json!("home"));

    assert_eq!(ask(&mut sim, "DELETE", &target, None).0, 204);
    let address = rows(&mut sim, "/ip/address").remove(0);
    assert_eq!((&address["interface"], &address["invalid"]), (&json!(bridge), &json!("true")));
    assert!(rows(&mut sim, "/ip/route").is_empty());
    let target = format!("/rest/ip/address/{}", address[".id"].as_str().unwrap());
    assert_eq!(ask(&mut sim, "PATCH", &target, Some(json!({"comment": "orphan"}))).0, 200);
}

#[test]
fn built_in_rows_cannot_be_removed() {
    let mut sim = Sim::new(SimProfile::default());
    let all = rows(&mut sim, "/interface/list").remove(0);
    let target = format!("/rest/interface/list/{}", all[".id"].as_str().unwrap());
    assert!(refusal(&mut sim, "DELETE", &target, Value::Null).1.contains("builtin"));
}

#[test]
fn rules_are_ordered_by_place_before_and_move() {
    let mut sim = Sim::new(SimProfile::default());
    let rule = |comment: &str| json!({"chain": "input", "comment": comment});
    let first = add(&mut sim, "/ip/firewall/filter", rule("a"));
    let second = add(&mut sim, "/ip/firewall/filter", rule("b"));
    let mut placed = rule("c");
    placed["place-before"] = json!(first);
    let third = add(&mut sim, "/ip/firewall/filter", placed);
    let order = |sim: &mut Sim| -> Vec<String> {
        rows(sim, "/ip/firewall/filter").iter().map(|row| row["comment"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(order(&mut sim), ["c", "a", "b"]);
    let body = json!({"numbers": second, "destination": third});
    assert_eq!(ask(&mut sim, "POST", "/rest/ip/firewall/filter/move", Some(body)).0, 200);
    assert_eq!(order(&mut sim), ["b", "c", "a"]);
    assert_eq!(ask(&mut sim, "POST", "/rest/ip/firewall/filter/move", Some(json!({"numbers": third}))).0, 200);
    assert_eq!(order(&mut sim), ["b", "a", "c"]);
    assert!(rows(&mut sim, "/ip/firewall/filter").iter().all(|row| row.get("place-before").is_none()));
    assert_eq!(refusal(&mut sim, "POST", "/rest/ip/pool/move", json!({"numbers": "*1"})).0, 400);
}

#[test]
fn post_commands_work_on_rows_by_id_and_name() {
    let mut sim = Sim::new(SimProfile::default());
    let (status, added) =
        ask(&mut sim, "POST", "/rest/ip/pool/add", Some(json!({"name": "p", "ranges": "10.0.0.2-10.0.0.9"})));
    assert_eq!((status, &added), (200, &json!({"ret": "*1"})));
    assert_eq!(
        ask(&mut sim, "POST", "/rest/ip/pool/set", Some(json!({"numbers": "p", "comment": "x"}))),
        (200, json!([]))
    );
    let get = json!({"number": "*1", "value-name": "comment"});
    assert_eq!(ask(&mut sim, "POST", "/rest/ip/pool/get", Some(get)).1, json!({"ret": "x"}));
    assert_eq!(ask(&mut sim, "POST", "/rest/interface/ethernet/disable", Some(json!({".id": "ether3"}))).0, 200);
    let query = json!({".proplist": ["name"], ".query": ["type=ether", "disabled=true"]});
    assert_eq!(ask(&mut sim, "POST", "/rest/interface/print", Some(query)).1, json!([{"name": "ether3"}]));
    assert_eq!(
        ask(&mut sim, "GET", "/rest/interface?type=ether&name=ether1&.proplist=name,type", None).1,
        json!([{"name": "ether1", "type": "ether"}])
    );
    assert_eq!(refusal(&mut sim, "POST", "/rest/ip/pool/print", json!({"?name": "p"})).0, 400);
    assert_eq!(refusal(&mut sim, "POST", "/rest/ip/pool/unset", json!({".id": "*1"})).0, 400);
    assert_eq!(ask(&mut sim, "POST", "/rest/ip/pool/remove", Some(json!({".id": "*1"}))).0, 200);
    assert!(rows(&mut sim, "/ip/pool").is_empty());
}

#[test]
fn fields_are_cleared_by_nothing_null_and_an_exclamation_mark() {
    let mut sim = Sim::new(SimProfile::default());
    let id =
        add(&mut sim, "/ip/firewall/filter", json!({"chain": "input", "in-interface": "ether1", "protocol": "tcp"}));
    let target = format!("/rest/ip/firewall/filter/{id}");
    for (body, gone) in [(json!({"protocol": ""}), "protocol"), (json!({"!in-interface": ""}), "in-interface")] {
        let (_, row) = ask(&mut sim, "PATCH", &target, Some(body));
        assert!(row.get(gone).is_none(), "{row}");
    }
    ask(&mut sim, "PATCH", &target, Some(json!({"comment": "x"})));
    let (_, row) = ask(&mut sim, "PATCH", &target, Some(json!({"comment": null})));
    assert!(row.get("comment").is_none());
    assert_eq!(refusal(&mut sim, "PATCH", &target, json!({"chain": ""})).1, "invalid value for argument chain");
}

#[test]
fn secrets_and_writes_depend_on_the_group() {
    let mut sim = Sim::new(SimProfile::default());
    add(&mut sim, "/interface/wireguard", json!({"name": "wg0"}));
    sim.edit(|admin| {
        admin.add(&menu("/user/group"), &[("name", "monitor"), ("policy", "read,rest-api")])?;
        admin.add(&menu("/user/group"), &[("name", "local-only"), ("policy", "read,local")])?;
        admin.set_login("eve", "secret", "monitor")?;
        admin.set_login("mallory", "secret", "local-only")
    })
    .unwrap();
    let (status, seen) = ask_as(&mut sim, "eve:secret", "GET", "/rest/interface/wireguard", None);
    assert_eq!(status, 200);
    assert!(seen[0].get("private-key").is_none());
    assert!(seen[0].get("public-key").is_some());
    assert!(rows(&mut sim, "/interface/wireguard")[0].get("private-key").is_some());
    assert!(rows(&mut sim, "/user").iter().all(|user| user.get("password").is_none()));
    let denied =
        ask_as(&mut sim, "eve:secret", "PUT", "/rest/ip/pool", Some(json!({"name": "p", "ranges": "1.1.1.1"})));
    assert_eq!((denied.0, &denied.1["detail"]), (403, &json!("not enough permissions (9)")));
    assert_eq!(ask_as(&mut sim, "mallory:secret", "GET", "/rest/ip/pool", None).0, 403);
    let policy = rows(&mut sim, "/user/group").pop().unwrap()["policy"].as_str().unwrap().to_owned();
    assert!(policy.starts_with("local,read,!telnet"), "{policy}");

    let mut other = Sim::new(SimProfile { denial: Denial::BadRequest, ..SimProfile::default() });
    other.edit(|admin| admin.set_login("bob", "x", "read")).unwrap();
    assert_eq!(ask_as(&mut other, "bob:x", "PUT", "/rest/ip/pool", Some(json!({}))).0, 400);
}

#[test]
fn menus_without_a_table_keep_rows_as_they_are() {
    let mut sim = Sim::new(SimProfile::default());
    let id = add(
        &mut sim,
        "/queue/simple",
        json!({"name": "q", "target": "10.0.0.0/24", "anything": "goes", "max-limit": "1M/2M"}),
    );
    let (_, row) = ask(&mut sim, "GET", &format!("/rest/queue/simple/{id}"), None);
    assert_eq!(row, json!({".id": id, "name": "q", "target": "10.0.0.0/24", "anything": "goes", "max-limit": "1M/2M"}));
}

#[test]
fn an_edit_that_is_refused_changes_nothing() {
    let mut sim = Sim::new(SimProfile::default());
    let refused = sim.edit(|admin| {
        admin.add(&menu("/interface/bridge"), &[("name", "half")])?;
        admin.add(&menu("/ip/address"), &[("address", "10.0.0.1/24"), ("interface", "nope")])
    });
    assert_eq!(refused.unwrap_err().detail.unwrap(), "input does not match any value of interface");
    assert!(rows(&mut sim, "/interface/bridge").is_empty());
}

#[test]
fn every_request_is_in_the_log_with_what_became_of_it() {
    let mut sim = Sim::new(SimProfile::default());
    add(&mut sim, "/interface/bridge", json!({"name": "b"}));
    ask(&mut sim, "PUT", "/rest/interface/bridge", Some(json!({"name": "b"})));
    ask(&mut sim, "GET", "/rest/interface/bridge?name=b", None);
    let log: Vec<_> =
        sim.log().into_iter().map(|entry| (entry.number, entry.method, entry.path, entry.committed)).collect();
    let path = || "/rest/interface/bridge".to_owned();
    let expected = [
        (1, "PUT".to_owned(), path(), true),
        (2, "PUT".to_owned(), path(), false),
        (3, "GET".to_owned(), path(), false),
    ];
    assert_eq!(log, expected);
}
