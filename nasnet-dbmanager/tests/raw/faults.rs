//! Raw operations on media that fail.

use super::*;
use nasnet_dbmanager::vfs::fault::{Fault, Operation};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_that_fails_is_typed_and_nothing_but_it_is_lost() {
    let dirs = Dirs::new();
    let fleet = Fleet::open(&dirs).await;
    for (on, db) in fleet.both() {
        put_raw(&db, 0, 0).await.unwrap();
        let (mut k, mut expected, mut struck) = (0, vec![(0, 0)], 0);
        for (operation, code) in common::COMMIT_FAULTS {
            for nth in 1..20 {
                k += 1;
                let armed = Fault::fail(operation, nth, code).arm(dirs.root()).unwrap();
                let answer = put_raw(&db, k, k).await;
                let fired = armed.fired();
                drop(armed);
                struck += fired;
                let there = all(&db).await;
                match &answer {
                    Ok(()) => expected.push((k, k)),
                    Err(Error::Unknown { .. }) => expected.extend(there.last().filter(|row| row.0 == k)),
                    Err(Error::NoSpace { .. }) => assert_eq!(code, Fault::FULL),
                    Err(Error::Medium { code: found, .. }) => assert_eq!(*found, code),
                    Err(Error::Storage { .. }) => assert_eq!(code, Fault::NOMEM),
                    Err(other) => unreachable!("{on} {operation:?} {nth} {code}: {other:?}"),
                }
                k += 1;
                put_raw(&db, k, k).await.unwrap();
                expected.push((k, k));
                assert_eq!(all(&db).await, expected, "{on} {operation:?} {nth} {code}");
                if fired == 0 {
                    break;
                }
            }
        }
        assert!(struck >= 3, "{on} {struck}");
    }
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_of_a_group_that_loses_the_transaction_is_told_apart_from_its_neighbours() {
    const MANY: &str = "WITH RECURSIVE n (i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
                        INSERT INTO kv (k, v) SELECT i, i FROM n";
    for code in [Fault::FULL, Fault::IOERR_WRITE] {
        let dirs = Dirs::new();
        let fleet = Fleet::open(&dirs).await;
        for (on, db) in fleet.both() {
            let root = dirs.root().to_owned();
            let answers = as_one_group(
                &db,
                vec![
                    Box::new(|raw| put_in(raw, 1, 1)),
                    Box::new(move |raw| {
                        // Far more than the cache holds, so that it must be written before the commit.
                        let _armed = Fault::fail(Operation::Write, 3, code).arm(&root).unwrap();
                        raw.execute(MANY, &[]).map(drop)
                    }),
                    Box::new(|raw| put_in(raw, 3, 3)),
                ],
            )
            .await;
            assert!(matches!(answers[0], Err(Error::NotApplied)), "{on} {answers:?}");
            let own = match code {
                Fault::FULL => matches!(answers[1], Err(Error::NoSpace { .. })),
                _ => matches!(answers[1], Err(Error::Medium { code: Fault::IOERR_WRITE, .. })),
            };
            assert!(own, "{on} {answers:?}");
            assert!(answers[2].is_ok(), "{on} {answers:?}");
            assert_eq!(all(&db).await, [(3, 3)], "{on}");
        }
        fleet.shutdown().await;
    }
}
