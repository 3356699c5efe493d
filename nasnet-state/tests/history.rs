//! Invariant: the stored state equals the fold of the events, at every position, for random sequences of operations.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use nasnet_state::layer::configuration::{Intent, Settings};
use nasnet_state::layer::deployment::{DeploymentRecord, Outcome};
use nasnet_state::layer::metadata::Notes;
use nasnet_state::{Change, ChangeEvent, ConfigurationWrite, Error, Fields, Resource, Timestamp, history, store};
use proptest::prelude::*;
use sqlx::{Connection, SqliteConnection};
use support::{EVERYTHING, new_resource, stamp, uid, with_store};

#[derive(Debug, Clone)]
enum Op {
    Configure(u8, Fields),
    Intend(u8, Intent),
    Rename(u8, u8),
    Deploy(u8, Outcome),
    Describe(u8, String),
    Delete(u8),
    Create(u8),
    Stale(u8, Fields),
}

fn any_fields() -> impl Strategy<Value = Fields> {
    let few = |field: &'static str, values: &'static [&'static str]| {
        proptest::option::of(proptest::sample::select(values)).prop_map(move |text| (field, text))
    };
    let fields = (
        few("mtu", &["1500", "1420"]),
        few("allowed-address", &["10.0.0.0/8", "10.0.0.0/8,10.1.0.0/16", "10.2.0.0/16"]),
        few("comment", &["a", "é"]),
    );
    fields.prop_map(|(a, b, c)| {
        let present = [a, b, c].into_iter().filter_map(|(field, text)| Some((field, text?)));
        present.map(|(field, text)| (field.into(), EVERYTHING.field(field).unwrap().parse(text).unwrap())).collect()
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    let which = 0_u8..3;
    prop_oneof![
        3 => (which.clone(), any_fields()).prop_map(|(at, fields)| Op::Configure(at, fields)),
        1 => (which.clone(), prop_oneof![Just(Intent::Present), Just(Intent::Paused)]).prop_map(|(at, intent)| Op::Intend(at, intent)),
        1 => (which.clone(), 0_u8..4).prop_map(|(at, name)| Op::Rename(at, name)),
        2 => (which.clone(), prop_oneof![Just(Outcome::Confirmed), Just(Outcome::Failed)]).prop_map(|(at, outcome)| Op::Deploy(at, outcome)),
        1 => (which.clone(), "[a-z]{0,3}").prop_map(|(at, text)| Op::Describe(at, text)),
        1 => which.clone().prop_map(Op::Delete),
        2 => which.clone().prop_map(Op::Create),
        1 => (which, any_fields()).prop_map(|(at, fields)| Op::Stale(at, fields)),
    ]
}

/// Runs one operation as a caller would: in a transaction, keeping the event only when it commits.
async fn run(conn: &mut SqliteConnection, op: &Op, now: i64) -> Result<Option<ChangeEvent>, Error> {
    let stamp = stamp(now);
    let mut tx = conn.begin().await.unwrap();
    let event = match op {
        Op::Create(at) => {
            let new = new_resource(u128::from(*at), &format!("n{at}"), Fields::new());
            store::create(&mut tx, new, &stamp).await.map(Some)
        }
        Op::Configure(at, fields) => {
            let version = version(&mut tx, *at).await?;
            let write = ConfigurationWrite::spec(fields.clone());
            store::write_configuration(&mut tx, uid(u128::from(*at)), version, write, &stamp).await
        }
        Op::Stale(at, fields) => {
            let version = version(&mut tx, *at).await? + 1;
            let write = ConfigurationWrite::spec(fields.clone());
            store::write_configuration(&mut tx, uid(u128::from(*at)), version, write, &stamp).await
        }
        Op::Intend(at, intent) => {
            let version = version(&mut tx, *at).await?;
            let write = ConfigurationWrite::settings(Settings { intent: *intent, ..Settings::default() });
            store::write_configuration(&mut tx, uid(u128::from(*at)), version, write, &stamp).await
        }
        Op::Rename(at, name) => {
            let version = version(&mut tx, *at).await?;
            let write = ConfigurationWrite::default().renamed(format!("n{name}"));
            store::write_configuration(&mut tx, uid(u128::from(*at)), version, write, &stamp).await
        }
        Op::Deploy(at, outcome) => {
            let resource = store::get(&mut tx, uid(u128::from(*at))).await?;
            let configuration = resource.configuration;
            let confirmed = DeploymentRecord::confirmed(
                configuration.generation,
                uid(99),
                configuration.spec,
                Timestamp::unsynced(now),
            );
            let record = DeploymentRecord { outcome: *outcome, ..confirmed };
            store::record_deployment(&mut tx, resource.uid, record, &stamp).await.map(Some)
        }
        Op::Describe(at, text) => {
            let resource = store::get(&mut tx, uid(u128::from(*at))).await?;
            let notes = Notes { description: text.clone(), ..Notes::default() };
            store::write_notes(&mut tx, resource.uid, resource.versions.metadata, notes, &stamp).await
        }
        Op::Delete(at) => {
            let version = version(&mut tx, *at).await?;
            store::delete(&mut tx, uid(u128::from(*at)), version, &stamp).await.map(Some)
        }
    }?;
    tx.commit().await.unwrap();
    Ok(event)
}

async fn version(conn: &mut SqliteConnection, at: u8) -> Result<u64, Error> {
    Ok(store::get(conn, uid(u128::from(at))).await?.versions.configuration)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_stored_state_is_the_fold_of_the_events_at_every_position(ops in proptest::collection::vec(any_op(), 1..40)) {
        with_store(async |conn: &mut SqliteConnection| {
            let mut events: Vec<(usize, ChangeEvent)> = Vec::new();
            let mut seen: Vec<(usize, Resource)> = Vec::new();
            for (position, op) in ops.iter().enumerate() {
                match run(conn, op, i64::try_from(position).unwrap()).await {
                    Ok(Some(event)) => {
                        // As it will be read back from the log.
                        let json = serde_json::to_string(&event).unwrap();
                        prop_assert_eq!(&serde_json::from_str::<ChangeEvent>(&json).unwrap(), &event, "{}", json);
                        seen.push((position, store::get(conn, event.uid).await.unwrap()));
                        events.push((position, event));
                    }
                    Ok(None) => {}
                    Err(error) => {
                        let expected = matches!(
                            error,
                            Error::NotFound { .. } | Error::Deleted { .. } | Error::NameTaken { .. } | Error::UidTaken { .. } | Error::Conflict { .. }
                        );
                        prop_assert!(expected, "{:?}", error);
                    }
                }
            }
            for (position, stored) in seen {
                let of_resource = events.iter().filter(|(_, event)| event.uid == stored.uid).cloned();
                let folded = history::at(of_resource, &position).unwrap().unwrap();
                prop_assert_eq!(folded.position, position);
                prop_assert_eq!(folded.resource, stored);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_history_with_a_gap_is_refused(ops in proptest::collection::vec(any_op(), 8..40), lost in any::<prop::sample::Index>()) {
        let events = with_store(async |conn: &mut SqliteConnection| {
            let mut events = Vec::new();
            for (position, op) in ops.iter().enumerate() {
                events.extend(run(conn, op, i64::try_from(position).unwrap()).await.ok().flatten());
            }
            events
        });
        let of_one: Vec<ChangeEvent> = events.into_iter().filter(|event| event.uid == uid(0)).collect();
        if of_one.len() > 1 {
            let lost = lost.index(of_one.len() - 1);
            let next_of_the_same_layer = of_one[lost + 1..].iter().any(|event| same_layer(event, &of_one[lost]));
            let kept = of_one.iter().enumerate().filter(|(at, _)| *at != lost).map(|(at, event)| (at, event.clone()));
            let folded = history::fold(kept);
            if lost == 0 || next_of_the_same_layer {
                prop_assert!(matches!(folded, Err(Error::BrokenHistory { .. })), "{:?}", folded);
            }
        }
    }
}

fn same_layer(one: &ChangeEvent, other: &ChangeEvent) -> bool {
    let layer = |event: &ChangeEvent| match event.change {
        Change::Configured { .. } => Some(1),
        Change::Deployed(_) => Some(2),
        Change::Described { .. } => Some(3),
        _ => None,
    };
    layer(one).is_some() && layer(one) == layer(other)
}

#[test]
fn no_event_means_no_resource_and_nothing_goes_on_after_a_deletion() {
    assert!(history::fold(std::iter::empty::<(u64, ChangeEvent)>()).unwrap().is_none());
    let event = |change| ChangeEvent { uid: uid(1), stamp: stamp(1), change };
    assert!(matches!(history::fold([(1, event(Change::Deleted))]), Err(Error::BrokenHistory { .. })));
}
