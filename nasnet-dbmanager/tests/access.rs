//! Users, sessions and keys: who comes in, who no longer does, and what that costs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasnet_dbmanager::system::api_keys::NewApiKey;
use nasnet_dbmanager::system::sessions::TokenCheck;
use nasnet_dbmanager::{Cause, DbManager, Error, ManualClock, NewRouter, Options, RouterId};

const HOUR: Duration = Duration::from_secs(3600);
const PASSWORD: &str = "canary-correct-horse";

async fn open(directory: &Path, clock: &ManualClock) -> DbManager {
    let mut options = Options::new(directory.join("data")).run_dir(directory.join("run"));
    options.clock = Arc::new(clock.clone());
    DbManager::open(options).await.unwrap()
}

struct Fleet {
    directory: tempfile::TempDir,
    clock: ManualClock,
    manager: DbManager,
}

async fn fleet() -> Fleet {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(1_800_000_000_000);
    let manager = open(directory.path(), &clock).await;
    manager.system().users().create("alice", PASSWORD, "admin").await.unwrap();
    Fleet { directory, clock, manager }
}

#[tokio::test]
async fn only_the_right_password_of_an_enabled_user_gets_in() {
    let Fleet { manager, directory: _directory, .. } = fleet().await;
    let users = manager.system().users();
    assert_eq!(users.authenticate("alice", PASSWORD).await.unwrap().unwrap().role, "admin");
    for (user, password) in [("alice", "wrong"), ("alice", ""), ("bob", PASSWORD), ("Alice", PASSWORD), ("", "")] {
        assert!(users.authenticate(user, password).await.unwrap().is_none(), "{user} {password}");
    }
    users.disable("alice").await.unwrap();
    assert!(users.authenticate("alice", PASSWORD).await.unwrap().is_none());
    users.enable("alice").await.unwrap();
    let (token, _) = manager.system().sessions().issue("alice", HOUR, None).await.unwrap();
    users.set_password("alice", "another").await.unwrap();
    assert!(users.authenticate("alice", PASSWORD).await.unwrap().is_none());
    assert!(users.authenticate("alice", "another").await.unwrap().is_some());
    let check = manager.system().sessions().check(token.expose()).await.unwrap();
    assert_eq!(check, TokenCheck::Revoked, "a new password ends what the old one opened");
    assert!(matches!(users.create("alice", "x", "admin").await, Err(Error::Exists { .. })));
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_revoked_session_is_refused_at_once_though_it_was_remembered() {
    let Fleet { manager, directory: _directory, .. } = fleet().await;
    let system = manager.system();
    let (token, id) = system.sessions().issue("alice", HOUR, Some("192.0.2.1".parse().unwrap())).await.unwrap();
    for _ in 0..5 {
        assert_eq!(system.sessions().check(token.expose()).await.unwrap().valid().unwrap().user, "alice");
    }
    assert!(system.cache_hits() >= 4, "{}", system.cache_hits());
    assert!(system.sessions().revoke(id).await.unwrap());
    assert_eq!(system.sessions().check(token.expose()).await.unwrap(), TokenCheck::Revoked);
    assert!(!system.sessions().revoke(id).await.unwrap());

    let (token, _) = system.sessions().issue("alice", HOUR, None).await.unwrap();
    assert!(system.sessions().check(token.expose()).await.unwrap().valid().is_some());
    system.users().disable("alice").await.unwrap();
    assert_eq!(system.sessions().check(token.expose()).await.unwrap(), TokenCheck::Revoked);
    assert!(matches!(system.sessions().issue("alice", HOUR, None).await, Err(Error::NotFound { .. })));
    system.users().remove("alice").await.unwrap();
    assert_eq!(system.sessions().check(token.expose()).await.unwrap(), TokenCheck::Unknown);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_another_process_or_a_plain_statement_commits_is_seen_by_the_next_look_up() {
    let Fleet { directory, clock, manager } = fleet().await;
    let other = open(directory.path(), &clock).await;
    let (token, id) = manager.system().sessions().issue("alice", HOUR, None).await.unwrap();
    manager.system().settings().put("ui", "theme", &1, 1).await.unwrap();
    for manager in [&manager, &other] {
        for _ in 0..3 {
            assert!(manager.system().sessions().check(token.expose()).await.unwrap().valid().is_some());
            assert_eq!(manager.system().settings().get("ui", "theme").await.unwrap().unwrap().value, 1);
        }
    }
    // No repository is involved, so none can forget to invalidate anything.
    let done: Result<(), Error> = other
        .system()
        .write(Cause::new("test"), |conn| {
            Box::pin(async move {
                sqlx::query("UPDATE global_settings SET value = '2'").execute(conn).await?;
                Ok(())
            })
        })
        .await;
    done.unwrap();
    other.system().sessions().revoke(id).await.unwrap();
    for manager in [&manager, &other] {
        assert_eq!(manager.system().sessions().check(token.expose()).await.unwrap(), TokenCheck::Revoked);
        assert_eq!(manager.system().settings().get("ui", "theme").await.unwrap().unwrap().value, 2);
    }
    other.shutdown().await.unwrap();
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_session_ends_by_the_boot_clock_and_across_boots_by_a_synced_one() {
    let Fleet { directory, clock, manager } = fleet().await;
    let (token, _) = manager.system().sessions().issue("alice", HOUR, None).await.unwrap();
    clock.set_wall_ms(1_900_000_000_000);
    let check = manager.system().sessions().check(token.expose()).await.unwrap();
    assert!(check.valid().is_some(), "a jump of the wall clock ends nothing within a boot");
    manager.shutdown().await.unwrap();

    clock.reboot();
    clock.set_wall_ms(1_000);
    clock.set_quality(nasnet_dbmanager::ClockQuality::Unsynced);
    let manager = open(directory.path(), &clock).await;
    let check = manager.system().sessions().check(token.expose()).await.unwrap();
    assert_eq!(check, TokenCheck::AgeUnknown, "nobody knows how long the router was off");
    clock.set_wall_ms(1_800_000_000_000 + 60_000);
    clock.set_quality(nasnet_dbmanager::ClockQuality::Synced);
    assert!(manager.system().sessions().check(token.expose()).await.unwrap().valid().is_some());
    clock.set_wall_ms(1_800_000_000_000 + 3_600_000);
    assert_eq!(manager.system().sessions().check(token.expose()).await.unwrap(), TokenCheck::Expired);
    assert_eq!(manager.system().sessions().prune(Duration::from_secs(60)).await.unwrap(), 0);
    clock.set_wall_ms(1_800_000_000_000 + 2 * 3_600_000);
    assert_eq!(manager.system().sessions().prune(Duration::from_secs(60)).await.unwrap(), 1);
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_key_opens_its_scopes_until_it_is_revoked_and_its_prefix_alone_opens_nothing() {
    let Fleet { manager, directory: _directory, .. } = fleet().await;
    let keys = manager.system().api_keys();
    let new = NewApiKey::new("alice", "backup-job").scope("routers.read").scope("backup");
    let (key, id) = keys.issue(new).await.unwrap();
    let found = keys.check(key.expose()).await.unwrap().valid().unwrap();
    assert_eq!(
        (found.user.as_str(), found.scopes.as_slice()),
        ("alice", &["routers.read".to_owned(), "backup".to_owned()][..])
    );
    assert!(key.expose().starts_with(&found.prefix));
    let forged = format!("{}x", &key.expose()[..key.expose().len() - 1]);
    for odd in ["", "nsk_", &found.prefix, &format!("{}_", found.prefix), &forged, &"x".repeat(5000)] {
        assert_eq!(keys.check(odd).await.unwrap(), TokenCheck::Unknown, "{odd}");
    }
    assert_eq!(keys.list("alice").await.unwrap()[0].last_used_ms, Some(1_800_000_000_000));
    keys.revoke(id).await.unwrap();
    assert_eq!(keys.check(key.expose()).await.unwrap(), TokenCheck::Revoked);
    assert!(matches!(keys.issue(NewApiKey::new("bob", "x")).await, Err(Error::NotFound { .. })));
    assert!(matches!(keys.issue(NewApiKey::new("alice", "x").scope("A B")).await, Err(Error::InvalidName { .. })));
    assert!(keys.remove(id).await.unwrap());
    manager.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_thousand_checks_write_nothing_to_flash_and_one_row_a_day_is_written_back() {
    let Fleet { directory, clock, manager } = fleet().await;
    let (token, _) = manager.system().sessions().issue("alice", HOUR * 240, None).await.unwrap();
    let before = manager.system().written().bytes;
    for _ in 0..1000 {
        assert!(manager.system().sessions().check(token.expose()).await.unwrap().valid().is_some());
        clock.advance(Duration::from_millis(100));
    }
    assert_eq!(manager.system().written().bytes, before);
    let seen = manager.system().sessions().list("alice").await.unwrap()[0].last_seen_ms.unwrap();
    assert!((seen - clock_ms(&clock)).abs() <= 60_000, "{seen}");
    assert_eq!(manager.system().write_back_last_use().await.unwrap(), 1);
    let before = manager.system().written().bytes;
    clock.advance(Duration::from_secs(120));
    assert!(manager.system().sessions().check(token.expose()).await.unwrap().valid().is_some());
    assert_eq!(manager.system().write_back_last_use().await.unwrap(), 0, "the same day");
    assert_eq!(manager.system().written().bytes, before);
    clock.advance(Duration::from_secs(86_400));
    assert!(manager.system().sessions().check(token.expose()).await.unwrap().valid().is_some());
    manager.shutdown().await.unwrap();
    std::fs::remove_dir_all(directory.path().join("run")).unwrap();
    let manager = open(directory.path(), &clock).await;
    let seen = manager.system().sessions().list("alice").await.unwrap()[0].last_seen_ms.unwrap();
    assert_eq!(seen, clock_ms(&clock), "shutdown wrote the new day back");
    manager.shutdown().await.unwrap();
}

fn clock_ms(clock: &ManualClock) -> i64 {
    use nasnet_dbmanager::Clock;
    clock.now().wall_ms
}

#[tokio::test]
async fn no_password_token_or_hash_is_in_debug_output_errors_or_files() {
    let Fleet { directory, manager, .. } = fleet().await;
    let system = manager.system();
    let (token, _) = system.sessions().issue("alice", HOUR, None).await.unwrap();
    let (key, _) = system.api_keys().issue(NewApiKey::new("alice", "job")).await.unwrap();
    let shown = format!(
        "{token:?} {key:?} {:?} {:?} {:?} {:?} {manager:?}",
        system.sessions().check(token.expose()).await.unwrap(),
        system.api_keys().check(key.expose()).await.unwrap(),
        system.users().get("alice").await.unwrap(),
        system.users().create("alice", PASSWORD, "x").await,
    );
    let secret_parts = [PASSWORD, &token.expose()[4..], &key.expose()[13..], "argon2id"];
    for secret in secret_parts {
        assert!(!shown.contains(secret), "{shown}");
    }
    manager.shutdown().await.unwrap();
    for entry in ["data/system.db", "run/runtime.db"] {
        let bytes = std::fs::read(directory.path().join(entry)).unwrap();
        for secret in &secret_parts[..3] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{entry}");
        }
    }
}

#[tokio::test]
async fn metrics_live_in_memory_and_leave_one_row_a_day() {
    let Fleet { directory, clock, manager } = fleet().await;
    let metrics = manager.system().fleet_metrics();
    for id in ["r1", "r2"] {
        manager.create_router(NewRouter::new(RouterId::parse(id).unwrap())).await.unwrap();
    }
    let before = manager.system().written().bytes;
    for round in 0..50 {
        for id in ["r1", "r2"] {
            let values = vec![("resources".to_owned(), 10 + round), ("clients".to_owned(), 1)];
            metrics.record(&RouterId::parse(id).unwrap(), values).await.unwrap();
        }
    }
    assert_eq!(manager.system().written().bytes, before);
    assert_eq!(metrics.live().await.unwrap().len(), 4);
    assert!(metrics.save_day().await.unwrap());
    assert!(!metrics.save_day().await.unwrap());
    let day = metrics.days(9).await.unwrap().remove(0);
    assert_eq!((day.routers, day.totals["resources"], day.totals["clients"]), (2, 118, 2));
    metrics.forget(&RouterId::parse("r2").unwrap()).await.unwrap();
    clock.advance(Duration::from_secs(86_400));
    manager.shutdown().await.unwrap();
    let manager = open(directory.path(), &clock).await;
    let days = manager.system().fleet_metrics().days(9).await.unwrap();
    assert_eq!(days.iter().map(|day| day.routers).collect::<Vec<_>>(), [1, 2]);
    manager.shutdown().await.unwrap();
}
