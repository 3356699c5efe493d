//! A secret is nowhere but in the sealed column: not in the file, the events, a diff, a digest's document, a finding, an
//! error or `Debug`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nasnet_state::canonical::{FieldMask, canonical_json};
use nasnet_state::diff::{Edit, diff};
use nasnet_state::layer::configuration::Intent;
use nasnet_state::layer::deployment::DeploymentRecord;
use nasnet_state::validate::{Candidate, Request, Universe, run};
use nasnet_state::{
    Change, ChangeEvent, ConfigurationWrite, Error, FieldName, FieldValue, Fields, KindSchema, MENU_FIELD, MIGRATIONS,
    NewResource, Schemas, Seal, Secret, SecretIntake, SecretPlace, Timestamp, is_sensitive_name, store,
};
use support::{EVERYTHING, TestFile, TestSeal, new_resource, runtime, stamp, uid};

const CANARY: &str = "canary-qL7vT2mXw9";

fn row(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn sealed(uid_number: u128, secret: &str) -> Fields {
    let intake = SecretIntake::store(&TestSeal, uid(uid_number), 1);
    EVERYTHING.parse(&row(&[("name", "wg0"), ("private-key", secret)]), &intake).unwrap().fields
}

#[test]
fn the_canary_is_found_nowhere_but_comes_back_when_asked_for() {
    runtime().block_on(async {
        let file = TestFile::new();
        let mut conn = file.open(MIGRATIONS).await;
        let mut shown = String::new();

        let (old, new) = (sealed(1, CANARY), sealed(1, &format!("{CANARY}2")));
        let mut events = vec![store::create(&mut conn, new_resource(1, "wg0", old.clone()), &stamp(1)).await.unwrap()];
        let write = ConfigurationWrite::spec(new.clone());
        events.extend(store::write_configuration(&mut conn, uid(1), 1, write, &stamp(2)).await.unwrap());
        let mut record = DeploymentRecord::confirmed(2, uid(9), new.clone(), Timestamp::synced(2));
        record.generated = sealed(1, &format!("{CANARY}3"));
        events.push(store::record_deployment(&mut conn, uid(1), record, &stamp(3)).await.unwrap());

        let opaque_row =
            row(&[(MENU_FIELD, "/ppp/secret"), ("name", "bob"), ("password", CANARY), ("ipsec-secret", CANARY)]);
        let intake = SecretIntake::store(&TestSeal, uid(2), 1);
        let opaque = KindSchema::opaque().parse(&opaque_row, &intake).unwrap();
        let new_opaque = NewResource::new(uid(2), nasnet_state::OPAQUE_KIND, 1, "bob", opaque.fields.clone());
        events.push(store::create(&mut conn, new_opaque, &stamp(3)).await.unwrap());

        for event in &events {
            assert!(
                carried(event).secrets().all(|(_, secret)| secret.sealed.is_none()),
                "an event carries sealed bytes"
            );
        }
        let resource = store::get(&mut conn, uid(1)).await.unwrap();
        let spec = resource.configuration.spec.clone();
        let unsealed = Candidate {
            uid: uid(3),
            kind: EVERYTHING.kind(),
            name: "typed".into(),
            generation: 1,
            intent: Intent::Present,
            spec: Fields::new().with("private-key", CANARY),
        };
        let schemas = Schemas::new([&EVERYTHING]);
        let candidates = [unsealed, Candidate::from(&resource)];
        let request = Request { schemas: &schemas, candidates: &candidates, universe: &Universe::new() };
        let validated = run(&request, Timestamp::synced(4));
        assert!(!validated[0].can_apply() && validated[1].can_apply(), "{validated:?}");

        write!(shown, "{resource:?} {events:?} {:?} {validated:?} {opaque:?}", Secret::new(CANARY)).unwrap();
        write!(shown, "{:?} {}", diff(&old, &new), serde_json::to_string(&diff(&old, &new)).unwrap()).unwrap();
        write!(shown, "{} {}", serde_json::to_string(&events).unwrap(), serde_json::to_string(&validated).unwrap())
            .unwrap();
        write!(shown, "{} {:?}", canonical_json(&FieldMask::All, &new), EVERYTHING.print(&new)).unwrap();
        let missing = Fields::new().with(
            "private-key",
            FieldValue::Secret(
                TestSeal
                    .seal(&place(&EVERYTHING.kind(), &"private-key".into(), None), &Secret::new("never stored"))
                    .unwrap(),
            ),
        );
        let error =
            store::write_configuration(&mut conn, uid(1), 2, ConfigurationWrite::spec(missing), &stamp(5)).await;
        assert!(matches!(&error, Err(Error::SecretMissing { field, .. }) if field == "private-key"), "{error:?}");
        write!(shown, "{error:?}").unwrap();

        assert!(!shown.contains("canary"), "a secret is shown: {shown}");
        let bytes = std::fs::read(file.dir.path().join("router.db")).unwrap();
        assert!(bytes.windows(6).any(|window| window == b"ppp/se"), "the scan reads the wrong file");
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "a secret is in the file in clear");

        for (spec, text) in [(&old, CANARY.to_owned()), (&spec, format!("{CANARY}2"))] {
            let (field, reference) = spec.secrets().next().unwrap();
            let stored = store::sealed_secret(&mut conn, uid(1), field, reference.fingerprint).await.unwrap();
            let kind = EVERYTHING.kind();
            let opened = TestSeal.open(&place(&kind, field, Some(1)), &stored).unwrap();
            assert_eq!(opened.expose(), text.as_bytes());
            assert!(TestSeal.open(&place(&kind, field, Some(2)), &stored).is_err(), "moved bytes were opened");
            let revealed = EVERYTHING
                .print_revealed(spec, |field, _| {
                    let open = TestSeal.open(&place(&kind, field, Some(1)), &stored);
                    open.map_err(|source| Error::Seal { action: "open", field: field.to_string(), source })
                })
                .unwrap();
            assert_eq!(revealed["private-key"], text);
        }

        store::delete(&mut conn, uid(1), 2, &stamp(6)).await.unwrap();
        let (field, reference) = spec.secrets().next().unwrap();
        let gone = store::sealed_secret(&mut conn, uid(1), field, reference.fingerprint).await;
        assert!(matches!(gone, Err(Error::SecretMissing { .. })), "{gone:?}");
    });
}

/// The secrets in an event, all in one set of fields.
fn carried(event: &ChangeEvent) -> Fields {
    match &event.change {
        Change::Created(creation) => creation.configuration.spec.clone(),
        Change::Deployed(revision) => {
            let named = |fields: &Fields, suffix: &str| -> Vec<(FieldName, FieldValue)> {
                fields.iter().map(|(name, value)| (format!("{name}{suffix}").into(), value.clone())).collect()
            };
            let applied = named(&revision.record.last_applied, "");
            applied.into_iter().chain(named(&revision.record.generated, " generated")).collect()
        }
        Change::Configured { fields, .. } => fields
            .iter()
            .filter_map(|change| match &change.edit {
                Edit::Replace { after, .. } => Some((change.field.clone(), after.clone()?)),
                _ => None,
            })
            .collect(),
        other => unreachable!("no secret is expected in {other:?}"),
    }
}

fn place<'a>(kind: &'a nasnet_state::KindName, field: &'a FieldName, number: Option<u128>) -> SecretPlace<'a> {
    SecretPlace { kind, uid: number.map(uid), field, version: 1 }
}

#[test]
fn equal_secrets_compare_equal_however_and_wherever_they_were_sealed() {
    let compare = SecretIntake::compare(&TestSeal);
    let seen = EVERYTHING.parse(&row(&[("name", "wg0"), ("private-key", CANARY)]), &compare).unwrap();
    assert!(seen.fields.secrets().all(|(_, secret)| secret.sealed.is_none()), "a reading was sealed");
    assert_eq!(seen.fields, sealed(1, CANARY));
    assert_eq!(sealed(1, CANARY), sealed(2, CANARY));
    assert_ne!(sealed(1, CANARY), sealed(1, "another"));
}

#[test]
fn a_masked_secret_is_hidden_not_changed() {
    let compare = SecretIntake::compare(&TestSeal);
    let seen = EVERYTHING.parse(&row(&[("name", "wg0"), ("private-key", "*****")]), &compare).unwrap();
    assert!(!seen.fields.contains("private-key"));
    assert_eq!(seen.hidden.iter().map(FieldName::as_str).collect::<Vec<_>>(), ["private-key"]);
}

#[test]
fn names_that_sound_secret_are_told_from_those_that_do_not() {
    let secret = [
        "password",
        "secret",
        "ipsec-secret",
        "private-key",
        "preshared-key",
        "wpa2-pre-shared-key",
        "passphrase",
        "auth-key",
        "authentication-password",
        "encryption-key",
        "static-key-0",
        "sim-pin",
        "tcp-md5-key",
        "token",
    ];
    let plain = [
        "public-key",
        "name",
        "comment",
        "show-passwords-policy",
        "key-size",
        "secret-len",
        "host-key-type",
        "address",
    ];
    assert!(secret.iter().all(|name| is_sensitive_name(name)));
    for name in plain {
        assert!(!is_sensitive_name(name), "{name}");
    }
}
