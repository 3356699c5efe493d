//! What is written to flash is charged to its causes, added up for all processes, and bounded.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;

use common::{Dirs, put_in, with_router};
use nasnet_dbmanager::{BudgetLevel, Cause, DbManager, Error, FlashBudget, ManualClock};

const MERGE: Cause = Cause::new("test-merge");
const AUDIT: Cause = Cause::new("test-audit").critical();
const CACHE: Cause = Cause::new("test-cache").low();
/// Noon of a day.
const NOON_MS: i64 = 1_800_014_400_000;

fn bytes_of(report: &nasnet_dbmanager::FlashReport, cause: &str) -> u64 {
    report.charges.iter().find(|charge| charge.cause == cause).map_or(0, |charge| charge.bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_on_flash_has_a_cause() {
    let dirs = Dirs::new();
    let manager = dirs.open().await;
    let router = with_router(&manager, "home").await;
    let before = manager.flash_report().await.unwrap();
    let written = router.written();
    for k in 0..100 {
        let cause = if k % 2 == 0 { MERGE } else { AUDIT };
        let done: Result<(), Error> = router.write(cause, move |conn| Box::pin(put_in(conn, k, k))).await;
        done.unwrap();
    }
    router.checkpoint().await.unwrap();
    let after = manager.flash_report().await.unwrap();
    let bytes = (router.written() - written).bytes;
    assert_eq!(after.spent - before.spent, bytes);
    assert_eq!(after.spent, after.charges.iter().map(|charge| charge.bytes).sum::<u64>());
    let of = |cause| bytes_of(&after, cause) - bytes_of(&before, cause);
    assert!(of("test-merge") > 50 * 4096 && of("test-audit") > 50 * 4096, "{after:?}");
    assert!(of("checkpoint") >= 4096, "{after:?}");
    assert_eq!(of("test-merge") + of("test-audit") + of("checkpoint"), bytes);
    // Writing what is in memory costs nothing.
    let spent = after.spent;
    for k in 0..20_i64 {
        let done: Result<(), Error> = manager
            .runtime()
            .write(MERGE, move |conn| {
                Box::pin(async move {
                    sqlx::query("INSERT INTO flash_ledger VALUES (?1, 'test', 0, 0, 0)").bind(-k).execute(conn).await?;
                    Ok(())
                })
            })
            .await;
        done.unwrap();
    }
    assert_eq!(manager.flash_report().await.unwrap().spent, spent);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_budget_refuses_what_is_low_and_never_what_is_critical() {
    let dirs = Dirs::new();
    let clock = ManualClock::new(NOON_MS);
    let mut options = dirs.options();
    options.clock = Arc::new(clock);
    options.budget = FlashBudget { bytes_per_day: 4_000_000, burst: 0, reserve_for_critical: 500_000 };
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    assert_eq!(manager.flash_level(), BudgetLevel::Ample);
    let put = async |cause: Cause, k: i64| -> Result<(), Error> {
        router.write(cause, move |conn| Box::pin(put_in(conn, k, k))).await
    };
    let mut levels = Vec::new();
    for k in 0..600 {
        put(AUDIT, k).await.unwrap();
        levels.push(manager.flash_level());
        let low = put(CACHE, 10_000).await;
        assert_eq!(low.is_ok(), levels.last() == Some(&BudgetLevel::Ample), "{low:?} at {:?}", levels.last());
        if let Err(error) = low {
            assert!(matches!(error, Error::OverBudget { cause: "test-cache", .. }) && error.is_retryable(), "{error}");
        }
    }
    levels.dedup();
    let all = [BudgetLevel::Ample, BudgetLevel::Scarce, BudgetLevel::Reserved, BudgetLevel::Overdrawn];
    assert_eq!(levels, all);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_added_up_is_spent() {
    let dirs = Dirs::new();
    let mut options = dirs.options();
    options.clock = Arc::new(ManualClock::new(NOON_MS));
    options.budget = FlashBudget { bytes_per_day: 1_000_000, burst: 0, reserve_for_critical: 100_000 };
    let manager = DbManager::open(options).await.unwrap();
    let router = with_router(&manager, "home").await;
    // Adding up waits for its turn to write as long as this is not released.
    let (holding, held) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let runtime = manager.runtime().clone();
    let blocking = tokio::spawn(async move {
        let done: Result<(), Error> = runtime
            .write(MERGE, |_| {
                Box::pin(async move {
                    holding.send(()).unwrap();
                    released.await.unwrap();
                    Ok(())
                })
            })
            .await;
        done
    });
    held.await.unwrap();
    let mut k = 0;
    while manager.flash_level() != BudgetLevel::Overdrawn {
        let done: Result<(), Error> = router.write(AUDIT, move |conn| Box::pin(put_in(conn, k, k))).await;
        done.unwrap();
        k += 1;
    }
    let adding_up = tokio::spawn({
        let manager = manager.clone();
        async move { manager.flash_report().await }
    });
    while manager.runtime().queue_depth() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(manager.flash_level(), BudgetLevel::Overdrawn);
    release.send(()).unwrap();
    blocking.await.unwrap().unwrap();
    adding_up.await.unwrap().unwrap();
    assert_eq!(manager.flash_level(), BudgetLevel::Overdrawn);
    manager.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_day_goes_on_after_a_boot_and_ends_with_the_day() {
    let dirs = Dirs::new();
    let clock = ManualClock::new(NOON_MS);
    let mut options = dirs.options();
    options.clock = Arc::new(clock.clone());
    let manager = DbManager::open(options.clone()).await.unwrap();
    let router = with_router(&manager, "home").await;
    for k in 0..200 {
        let done: Result<(), Error> = router.write(MERGE, move |conn| Box::pin(put_in(conn, k, k))).await;
        done.unwrap();
    }
    drop(router);
    let spent = manager.flash_report().await.unwrap().spent;
    manager.shutdown().await.unwrap();

    // A boot clears the run directory.
    std::fs::remove_dir_all(dirs.run()).unwrap();
    clock.reboot();
    let manager = DbManager::open(options.clone()).await.unwrap();
    let report = manager.flash_report().await.unwrap();
    assert!(report.spent >= spent, "{} then {}", spent, report.spent);
    let earlier = bytes_of(&report, "earlier-today");
    // Closing writes a little more.
    assert!((spent..spent + 100_000).contains(&earlier), "{spent} then {earlier}");
    manager.shutdown().await.unwrap();

    // Opened again without a boot, nothing is counted twice.
    let manager = DbManager::open(options).await.unwrap();
    assert_eq!(bytes_of(&manager.flash_report().await.unwrap(), "earlier-today"), earlier);
    clock.advance(std::time::Duration::from_secs(86_400));
    assert!(manager.flash_report().await.unwrap().spent < spent / 2);
    manager.shutdown().await.unwrap();
}
