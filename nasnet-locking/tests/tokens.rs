//! Tokens only grow (invariant 7), and leases cost no flash (invariant 11).
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{World, exclusive, manager};
use nasnet_locking::{FencingToken, LockManager, TOKEN_BLOCK, TOKEN_COUNTER};

async fn next(locks: &LockManager) -> FencingToken {
    let guard = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
    let token = guard.token();
    guard.release().await.unwrap();
    token
}

#[tokio::test]
async fn tokens_grow_across_restarts_wiped_tmpfs_reboots_and_clock_jumps() {
    let world = World::new();
    let mut tokens = Vec::new();
    for round in 0..6 {
        let db = world.open().await;
        let locks = manager(&db).await;
        tokens.push(next(&locks).await);
        tokens.push(next(&locks).await);
        world.clock.set_wall_ms(match round {
            0 => 0,
            1 => 3_471_292_800_000, // 2080
            _ => common::WALL_2026_MS,
        });
        tokens.push(next(&locks).await);
        locks.shutdown().await.unwrap();
        drop(locks);
        db.shutdown().await.unwrap();
        drop(db);
        if round % 2 == 1 {
            world.wipe_run_dir();
        }
        if round >= 3 {
            world.clock.reboot();
        }
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn a_restart_on_the_same_tmpfs_goes_on_in_the_same_block() {
    let world = World::new();
    let db = world.open().await;
    let first = next(&manager(&db).await).await;
    let reserved = db.system().counters().get(TOKEN_COUNTER).await.unwrap();
    db.shutdown().await.unwrap();
    drop(db);
    let db = world.open().await;
    let second = next(&manager(&db).await).await;
    assert_eq!(second.get(), first.get() + 1);
    assert_eq!(db.system().counters().get(TOKEN_COUNTER).await.unwrap(), reserved);
}

#[tokio::test]
async fn a_used_up_block_is_followed_by_a_higher_one() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let mut last = next(&locks).await;
    let reserved = db.system().counters().get(TOKEN_COUNTER).await.unwrap();
    for _ in 0..TOKEN_BLOCK {
        let token = next(&locks).await;
        assert!(token > last);
        last = token;
    }
    assert!(db.system().counters().get(TOKEN_COUNTER).await.unwrap() > reserved);
}

#[tokio::test]
async fn a_counter_that_went_back_is_raised_past_what_was_handed_out() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let before = next(&locks).await;
    // As after restoring an old system.db: the next block lies below tokens of this locks.db.
    db.locks()
        .write(nasnet_dbmanager::Cause::new("test"), |conn| {
            Box::pin(async move {
                sqlx::query("UPDATE next_token SET next = 1000000, block_end = 1000000")
                    .execute(conn)
                    .await
                    .map_err(|source| nasnet_locking::Error::Db(source.into()))?;
                Ok::<_, nasnet_locking::Error>(())
            })
        })
        .await
        .unwrap();
    let after = next(&locks).await;
    assert!(after > before && after.get() >= 1_000_000, "{after}");
}

#[tokio::test]
async fn leases_write_no_byte_to_flash_beyond_the_block_of_tokens() {
    let world = World::new();
    let db = world.open().await;
    let locks = manager(&db).await;
    let router = db.router(&common::r1()).await.unwrap();
    next(&locks).await;
    let before = (db.system().written().bytes, router.written().bytes);
    let tmpfs = db.locks().written().bytes;
    for _ in 0..100 {
        let guard = locks.acquire(exclusive("router/r1", "ann")).await.unwrap();
        world.advance(Duration::from_secs(1));
        guard.renew().await.unwrap();
        guard.release().await.unwrap();
    }
    assert_eq!((db.system().written().bytes, router.written().bytes), before);
    assert!(db.locks().written().bytes > tmpfs, "the meter counts");
}
