//! What the store promises: one writer's version never stands in another's way, conflicts tell what was found, damage
//! stays where it is, and nothing is written when nothing changes.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use nasnet_state::layer::configuration::Settings;
use nasnet_state::layer::deployment::{DeploymentRecord, Outcome};
use nasnet_state::layer::metadata::{Notes, Source};
use nasnet_state::layer::runtime::Runtime;
use nasnet_state::store::{self, Filter};
use nasnet_state::{
    Change, ConfigurationWrite, Error, FieldValue, Fields, KindName, KindSchema, MENU_FIELD, MIGRATIONS, NewResource,
    OPAQUE_KIND, RUNTIME_MIGRATIONS, Timestamp, UniqueNames, history, opaque_name,
};
use sqlx::{Executor, Row, SqliteConnection};
use support::{EVERYTHING, TestFile, new_resource, runtime, stamp, uid, with_store};

async fn total_changes(conn: &mut SqliteConnection) -> i64 {
    sqlx::query("SELECT total_changes() AS n").fetch_one(conn).await.unwrap().get("n")
}

#[test]
fn a_created_resource_reads_back_by_uid_name_and_id() {
    with_store(async |conn: &mut SqliteConnection| {
        let spec = Fields::new().with("mtu", 1420_i64).with("comment", "to the \u{1f600}\n moon");
        let new = new_resource(1, "vlan 10", spec.clone()).source(Source::Import);
        let event = store::create(conn, new, &stamp(5)).await.unwrap();
        let resource = store::get(conn, uid(1)).await.unwrap();
        assert_eq!(event.event_type(), "resource.created");
        assert_eq!(event.apply_to(None).unwrap(), resource);
        assert_eq!((&resource.configuration.spec, resource.configuration.generation), (&spec, 1));
        assert_eq!((&resource.metadata.created, &resource.metadata.source), (&stamp(5), &Source::Import));
        assert!(resource.id.as_str().starts_with("test.everything:vlan-10:"), "{}", resource.id);
        let kind = EVERYTHING.kind();
        assert_eq!(store::find(conn, &kind, "vlan 10").await.unwrap().unwrap(), resource);
        assert_eq!(store::get_by_id(conn, &resource.id).await.unwrap().unwrap(), resource);
        assert_eq!(store::names(conn).await.unwrap(), [(uid(1), kind, "vlan 10".to_owned())]);
        assert!(matches!(store::get(conn, uid(2)).await, Err(Error::NotFound { uid: missing }) if missing == uid(2)));
    });
}

#[test]
fn a_write_with_a_version_that_has_moved_on_is_a_conflict_that_tells_both() {
    with_store(async |conn: &mut SqliteConnection| {
        store::create(conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        let write = |mtu: i64| ConfigurationWrite::spec(Fields::new().with("mtu", mtu));
        store::write_configuration(conn, uid(1), 1, write(1400), &stamp(2)).await.unwrap().unwrap();
        let error = store::write_configuration(conn, uid(1), 1, write(1300), &stamp(3)).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { layer: "configuration", expected: 1, actual: 2, .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("configuration of resource {} is at version 2, not 1", uid(1)));
        assert!(!error.is_retryable());
        let stored = store::get(conn, uid(1)).await.unwrap().configuration;
        assert_eq!((stored.spec, stored.generation), (Fields::new().with("mtu", 1400_i64), 2));
        let error = store::delete(conn, uid(1), 1, &stamp(3)).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { expected: 1, actual: 2, .. }), "{error:?}");
    });
}

#[test]
fn a_write_that_changes_nothing_writes_nothing() {
    with_store(async |conn: &mut SqliteConnection| {
        let spec = Fields::new().with("mtu", 1420_i64);
        store::create(conn, new_resource(1, "a", spec.clone()), &stamp(1)).await.unwrap();
        let before = total_changes(conn).await;
        let write =
            ConfigurationWrite { spec: Some(spec), settings: Some(Settings::default()), name: Some("a".into()) };
        assert_eq!(store::write_configuration(conn, uid(1), 1, write, &stamp(2)).await.unwrap(), None);
        assert_eq!(store::write_notes(conn, uid(1), 1, Notes::default(), &stamp(2)).await.unwrap(), None);
        assert_eq!(total_changes(conn).await, before);
        assert_eq!(store::get(conn, uid(1)).await.unwrap().versions.configuration, 1);
    });
}

#[test]
fn notes_and_deployments_never_stand_in_the_way_of_a_configuration_edit() {
    with_store(async |conn: &mut SqliteConnection| {
        store::create(conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        let notes = Notes { is_favorite: true, ..Notes::default() };
        store::write_notes(conn, uid(1), 1, notes, &stamp(2)).await.unwrap().unwrap();
        let metadata = store::get(conn, uid(1)).await.unwrap().metadata;
        assert_eq!((metadata.created, metadata.updated), (stamp(1), stamp(2)));
        let record = DeploymentRecord::confirmed(1, uid(50), Fields::new(), Timestamp::synced(3));
        store::record_deployment(conn, uid(1), record, &stamp(3)).await.unwrap();
        let write = ConfigurationWrite::spec(Fields::new().with("mtu", 1400_i64));
        assert!(store::write_configuration(conn, uid(1), 1, write, &stamp(4)).await.unwrap().is_some());
    });
}

#[test]
fn the_pointer_moves_only_to_confirmed_revisions_and_revisions_stay() {
    with_store(async |conn: &mut SqliteConnection| {
        store::create(conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        let applied = Fields::new().with("mtu", 1400_i64);
        let confirmed = DeploymentRecord::confirmed(1, uid(50), applied.clone(), Timestamp::synced(3));
        let failed = DeploymentRecord { outcome: Outcome::Failed, operation: uid(51), ..confirmed.clone() };
        let first = store::record_deployment(conn, uid(1), confirmed, &stamp(3)).await.unwrap();
        let second = store::record_deployment(conn, uid(1), failed.clone(), &stamp(4)).await.unwrap();
        assert_eq!((first.event_type(), second.event_type()), ("resource.deployed", "resource.deploy_failed"));
        let deployment = store::get(conn, uid(1)).await.unwrap().deployment.unwrap();
        let current = deployment.current.unwrap();
        assert_eq!((current.revision, &current.record.last_applied), (1, &applied));
        assert_eq!((deployment.latest.revision, deployment.latest.outcome), (2, Outcome::Failed));
        let rows = sqlx::query("SELECT revision FROM resource_deployment").fetch_all(&mut *conn).await.unwrap();
        assert_eq!(rows.len(), 2);
        let future = DeploymentRecord { generation: 9, ..failed };
        assert!(matches!(store::record_deployment(conn, uid(1), future, &stamp(5)).await, Err(Error::Invalid { .. })));
    });
}

#[test]
fn a_deleted_resource_leaves_a_tombstone_and_frees_its_name() {
    with_store(async |conn: &mut SqliteConnection| {
        store::create(conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        let taken = store::create(conn, new_resource(2, "a", Fields::new()), &stamp(1)).await.unwrap_err();
        assert!(matches!(&taken, Error::NameTaken { name, .. } if name == "a"), "{taken:?}");
        let event = store::delete(conn, uid(1), 1, &stamp(2)).await.unwrap();
        assert_eq!((event.event_type(), &event.change), ("resource.deleted", &Change::Deleted));
        assert_eq!(store::get(conn, uid(1)).await.unwrap().deleted, Some(stamp(2)));
        assert_eq!(store::find(conn, &EVERYTHING.kind(), "a").await.unwrap(), None);
        assert!(store::list(conn, &Filter::default(), None, 10).await.unwrap().resources.is_empty());
        let write = ConfigurationWrite::spec(Fields::new().with("mtu", 1_i64));
        assert!(matches!(
            store::write_configuration(conn, uid(1), 1, write, &stamp(3)).await,
            Err(Error::Deleted { .. })
        ));
        store::create(conn, new_resource(2, "a", Fields::new()), &stamp(3)).await.unwrap();
        let reused = store::create(conn, new_resource(1, "b", Fields::new()), &stamp(4)).await.unwrap_err();
        assert!(matches!(reused, Error::UidTaken { uid: taken } if taken == uid(1)), "{reused:?}");
    });
}

#[test]
fn a_protected_resource_is_not_deleted_and_a_rename_onto_a_taken_name_is_refused() {
    with_store(async |conn: &mut SqliteConnection| {
        store::create(conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        store::create(conn, new_resource(2, "b", Fields::new()), &stamp(1)).await.unwrap();
        let protect = ConfigurationWrite::settings(Settings { prevent_destroy: true, ..Settings::default() });
        let event = store::write_configuration(conn, uid(1), 1, protect, &stamp(2)).await.unwrap().unwrap();
        assert!(event.apply_to(None).is_err());
        assert_eq!(store::get(conn, uid(1)).await.unwrap().configuration.generation, 1, "protection is no new meaning");
        assert!(matches!(store::delete(conn, uid(1), 2, &stamp(3)).await, Err(Error::Protected { .. })));
        let rename = |name: &str| ConfigurationWrite::default().renamed(name);
        let taken = store::write_configuration(conn, uid(2), 1, rename("a"), &stamp(3)).await.unwrap_err();
        assert!(matches!(taken, Error::NameTaken { .. }), "{taken:?}");
        store::write_configuration(conn, uid(2), 1, rename("c"), &stamp(3)).await.unwrap().unwrap();
        assert_eq!(store::get(conn, uid(2)).await.unwrap().name, "c");
    });
}

#[test]
fn an_import_of_2000_rows_takes_a_handful_of_statements_and_pages_back_in_order() {
    with_store(async |conn: &mut SqliteConnection| {
        let mut names = UniqueNames::new();
        let new: Vec<NewResource> = (0..2_000_u32)
            .map(|row| {
                let menu = if row % 2 == 0 { "/ip/dns/static" } else { "/queue/simple" };
                let fields = Fields::new().with(MENU_FIELD, menu).with("name", format!("row {}", row % 700));
                let name = names.next(&OPAQUE_KIND, &opaque_name(menu, &fields));
                NewResource::new(uid(u128::from(row)), OPAQUE_KIND, KindSchema::opaque().revision, name, fields)
            })
            .collect();
        let wanted: BTreeMap<_, _> = new.iter().map(|new| (new.name.clone(), new.spec.clone())).collect();
        let events = store::create_many(conn, new, &stamp(1)).await.unwrap();
        assert_eq!(events.len(), 2_000);

        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = store::list(conn, &Filter { kind: Some(OPAQUE_KIND) }, after.as_ref(), 300).await.unwrap();
            assert!(page.malformed.is_empty());
            listed.extend(page.resources);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(listed.len(), 2_000);
        assert!(listed.iter().map(|resource| &resource.name).is_sorted());
        let ids: BTreeSet<_> = listed.iter().map(|resource| resource.id.clone()).collect();
        assert_eq!(ids.len(), 2_000);
        let read: BTreeMap<_, _> =
            listed.into_iter().map(|resource| (resource.name, resource.configuration.spec)).collect();
        assert_eq!(read, wanted);
    });
}

#[test]
fn pages_over_all_kinds_neither_skip_nor_repeat() {
    with_store(async |conn: &mut SqliteConnection| {
        for (number, kind) in ["a.x", "a.x", "a.y", "b", "b", "b"].iter().enumerate() {
            let number = u128::try_from(number).unwrap();
            let kind: KindName = kind.parse().unwrap();
            let new = NewResource::new(uid(number), kind, 1, format!("r{number}"), Fields::new());
            store::create(conn, new, &stamp(1)).await.unwrap();
        }
        for limit in 1..8 {
            let (mut names, mut after) = (Vec::new(), None);
            loop {
                let page = store::list(conn, &Filter::default(), after.as_ref(), limit).await.unwrap();
                names.extend(page.resources.into_iter().map(|resource| resource.name));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(names, ["r0", "r1", "r2", "r3", "r4", "r5"], "limit {limit}");
        }
    });
}

#[test]
fn a_damaged_row_is_named_and_the_rest_of_the_list_is_readable() {
    with_store(async |conn: &mut SqliteConnection| {
        for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
            let number = u128::try_from(number).unwrap();
            store::create(conn, new_resource(number, name, Fields::new()), &stamp(1)).await.unwrap();
        }
        conn.execute("UPDATE resource SET configuration = '{\"spec\":{\"mtu\":{\"int\":' WHERE name = 'b'")
            .await
            .unwrap();
        conn.execute("UPDATE resource SET metadata = '[]' WHERE name = 'c'").await.unwrap();
        let page = store::list(conn, &Filter::default(), None, 10).await.unwrap();
        assert_eq!(page.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a", "d"]);
        let damage: Vec<_> = page
            .malformed
            .iter()
            .map(|error| match error {
                Error::Malformed { uid, layer, .. } => (uid.clone(), *layer),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(damage, [(uid(1).to_string(), "configuration"), (uid(2).to_string(), "metadata")]);
        assert!(matches!(store::get(conn, uid(1)).await, Err(Error::Malformed { layer: "configuration", .. })));
    });
}

#[test]
fn recording_runtime_changes_no_version_and_no_byte_of_the_routers_file() {
    runtime().block_on(async {
        let (flash, tmpfs) = (TestFile::new(), TestFile::new());
        let mut conn = flash.open(MIGRATIONS).await;
        let mut volatile = tmpfs.open(RUNTIME_MIGRATIONS).await;
        store::create(&mut conn, new_resource(1, "a", Fields::new()), &stamp(1)).await.unwrap();
        let before = std::fs::read(flash.dir.path().join("router.db")).unwrap();
        let seen = |mtu: i64| {
            let fields = Fields::new().with("mtu", mtu).with("running", true);
            Runtime::of_reading(&fields, &BTreeSet::from(["private-key".into()]), Timestamp::synced(mtu))
        };
        store::runtime::record_many(&mut volatile, "r1", &[(uid(1), seen(1)), (uid(2), seen(2))]).await.unwrap();
        store::runtime::record(&mut volatile, "r1", uid(1), &seen(3)).await.unwrap();
        store::runtime::record(&mut volatile, "r2", uid(1), &seen(4)).await.unwrap();
        assert_eq!(store::runtime::get(&mut volatile, "r1", uid(1)).await.unwrap(), Some(seen(3)));
        assert_eq!(seen(3).fields().get("mtu"), Some(&FieldValue::Int(3)));
        store::runtime::forget_scope(&mut volatile, "r1").await.unwrap();
        assert_eq!(store::runtime::get(&mut volatile, "r1", uid(2)).await.unwrap(), None);
        assert_eq!(store::runtime::get(&mut volatile, "r2", uid(1)).await.unwrap(), Some(seen(4)));
        store::runtime::forget(&mut volatile, "r2", uid(1)).await.unwrap();
        assert_eq!(store::runtime::get(&mut volatile, "r2", uid(1)).await.unwrap(), None);
        assert_eq!(std::fs::read(flash.dir.path().join("router.db")).unwrap(), before);
        assert_eq!(store::get(&mut conn, uid(1)).await.unwrap().versions.configuration, 1);
    });
}

#[test]
fn the_migrations_go_up_and_down_again() {
    runtime().block_on(async {
        for migrations in [MIGRATIONS, RUNTIME_MIGRATIONS] {
            let file = TestFile::new();
            let mut conn = file.open(migrations).await;
            let tables = "SELECT count(*) AS n FROM sqlite_schema";
            assert!(conn.fetch_one(tables).await.unwrap().get::<i64, _>("n") > 0);
            for migration in migrations.iter().rev() {
                conn.execute(migration.down).await.unwrap();
            }
            assert_eq!(conn.fetch_one(tables).await.unwrap().get::<i64, _>("n"), 0);
        }
    });
}

#[test]
fn a_whole_import_is_deployed_at_once_and_refused_as_a_whole() {
    with_store(async |conn: &mut SqliteConnection| {
        let new = (0..50).map(|number| new_resource(number, &format!("n{number}"), Fields::new())).collect();
        let created = store::create_many(conn, new, &stamp(1)).await.unwrap();
        let record = || DeploymentRecord::confirmed(1, uid(99), Fields::new(), Timestamp::synced(2));
        let records = (0..50).map(|number| (uid(number), record())).collect();
        let deployed = store::record_deployments(conn, records, &stamp(2)).await.unwrap();
        for (created, deployed) in created.into_iter().zip(deployed) {
            let folded = history::fold([(1, created), (2, deployed)]).unwrap().unwrap().resource;
            assert_eq!(store::get(conn, folded.uid).await.unwrap(), folded);
        }
        store::delete(conn, uid(3), 1, &stamp(3)).await.unwrap();
        let before = total_changes(conn).await;
        for (other, refused) in [(3, "is deleted"), (70, "does not exist"), (1, "already in use")] {
            let records = vec![(uid(1), record()), (uid(other), record())];
            let error = store::record_deployments(conn, records, &stamp(4)).await.unwrap_err();
            assert!(error.to_string().contains(refused), "{error}");
        }
        assert_eq!(total_changes(conn).await, before);
    });
}
