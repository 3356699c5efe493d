//! The meter of the VFS says what SQLite really writes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use nasnet_dbmanager::vfs::{self, Written};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

const PAGE: u64 = 4096;
/// A page and its frame header.
const FRAME: u64 = PAGE + 24;
const WAL_HEADER: u64 = 32;

fn options(path: &Path, journal: SqliteJournalMode) -> SqliteConnectOptions {
    vfs::register().unwrap();
    SqliteConnectOptions::new()
        .filename(path)
        .vfs(vfs::NAME)
        .create_if_missing(true)
        .page_size(4096)
        .auto_vacuum(SqliteAutoVacuum::None)
        .journal_mode(journal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "0")
}

async fn with_table(path: &Path, journal: SqliteJournalMode) -> SqliteConnection {
    let mut connection = options(path, journal).connect().await.unwrap();
    sqlx::query("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT) STRICT").execute(&mut connection).await.unwrap();
    connection
}

async fn insert(connection: &mut SqliteConnection, value: &str) {
    sqlx::query("INSERT INTO t (v) VALUES (?)").bind(value).execute(connection).await.unwrap();
}

fn file_bytes(path: &Path, suffix: &str) -> u64 {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    std::fs::metadata(name).unwrap().len()
}

#[tokio::test]
async fn an_insert_with_full_sync_writes_whole_frames_and_syncs_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut connection = with_table(&path, SqliteJournalMode::Wal).await;
    insert(&mut connection, "first").await;

    let before = vfs::written(&path);
    insert(&mut connection, "second").await;
    let written = vfs::written(&path) - before;

    assert_eq!(written.bytes, FRAME, "one page changed: {written:?}");
    assert_eq!(written.wal_bytes, written.bytes);
    assert_eq!((written.db_bytes, written.journal_bytes), (0, 0));
    assert_eq!(written.syncs, 1);
    assert_eq!(written.dirty_4k_bytes, 2 * PAGE, "a frame lies across two pages");
}

#[tokio::test]
async fn the_wal_counted_is_the_wal_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut connection = with_table(&path, SqliteJournalMode::Wal).await;
    for _ in 0..20 {
        insert(&mut connection, &"x".repeat(1500)).await;
    }
    let written = vfs::written(&path);
    assert_eq!(written.wal_bytes, file_bytes(&path, "-wal"));
    assert_eq!((written.wal_bytes - WAL_HEADER) % FRAME, 0);

    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
    let checkpoint = vfs::written(&path) - written;
    assert_eq!(checkpoint.wal_bytes, 0);
    assert_eq!(checkpoint.db_bytes, file_bytes(&path, ""), "every page was in the WAL");
    assert_eq!(checkpoint.dirty_4k_bytes, checkpoint.db_bytes);
    assert!(checkpoint.syncs >= 1 && checkpoint.truncates >= 1, "{checkpoint:?}");
}

#[tokio::test]
async fn reading_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut writer = with_table(&path, SqliteJournalMode::Wal).await;
    insert(&mut writer, "row").await;

    let mut reader = options(&path, SqliteJournalMode::Wal).pragma("query_only", "on").connect().await.unwrap();
    let before = vfs::written(&path);
    for _ in 0..10 {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM t").fetch_one(&mut reader).await.unwrap();
        assert_eq!(count, 1);
    }
    assert_eq!(vfs::written(&path) - before, Written::default());
}

#[tokio::test]
async fn a_rollback_journal_counts_as_part_of_its_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut connection = with_table(&path, SqliteJournalMode::Delete).await;
    insert(&mut connection, "first").await;

    let before = vfs::written(&path);
    insert(&mut connection, "second").await;
    let written = vfs::written(&path) - before;

    assert!(written.journal_bytes > PAGE, "the old page and a header: {written:?}");
    assert_eq!(written.db_bytes % PAGE, 0);
    assert!(written.db_bytes > 0);
    assert_eq!(written.bytes, written.db_bytes + written.journal_bytes);
    assert!(written.syncs >= 2, "journal and database: {written:?}");
}

#[tokio::test]
async fn databases_do_not_mix_though_one_is_attached_to_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a.db"), directory.path().join("b.db"));
    let mut first = with_table(&a, SqliteJournalMode::Wal).await;
    with_table(&b, SqliteJournalMode::Wal).await.close().await.unwrap();
    sqlx::query("ATTACH ? AS b").bind(b.to_str().unwrap()).execute(&mut first).await.unwrap();

    let before = (vfs::written(&a), vfs::written(&b));
    sqlx::query("INSERT INTO b.t (v) VALUES ('x')").execute(&mut first).await.unwrap();
    assert_eq!(vfs::written(&a) - before.0, Written::default());
    assert!((vfs::written(&b) - before.1).bytes >= FRAME);
}

#[tokio::test]
async fn counts_go_on_when_a_database_is_closed_and_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let connection = with_table(&path, SqliteJournalMode::Wal).await;
    let open = vfs::written(&path);
    connection.close().await.unwrap();
    let closed = vfs::written(&path);
    assert!((closed - open).db_bytes > 0, "closing the last connection checkpoints");

    let mut connection = options(&path, SqliteJournalMode::Wal).connect().await.unwrap();
    insert(&mut connection, "x").await;
    assert!(vfs::written(&path).bytes > closed.bytes);
}

#[tokio::test]
async fn memory_mapped_reads_go_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut writer = with_table(&path, SqliteJournalMode::Wal).await;
    for _ in 0..200 {
        insert(&mut writer, &"x".repeat(1000)).await;
    }
    writer.close().await.unwrap();
    let mut reader = options(&path, SqliteJournalMode::Wal).pragma("mmap_size", "1048576").connect().await.unwrap();
    let sum: i64 = sqlx::query_scalar("SELECT SUM(LENGTH(v)) FROM t").fetch_one(&mut reader).await.unwrap();
    assert_eq!(sum, 200_000);
    let mapped: i64 = sqlx::query_scalar("PRAGMA mmap_size").fetch_one(&mut reader).await.unwrap();
    assert_eq!(mapped, 1_048_576);
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error_and_counts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none/a.db");
    assert!(options(&path, SqliteJournalMode::Wal).connect().await.is_err());
    assert!(options(directory.path(), SqliteJournalMode::Wal).connect().await.is_err());
    assert_eq!(vfs::written(&path), Written::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_databases_written_at_once_each_keep_their_own_exact_count() {
    let directory = tempfile::tempdir().unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|index| {
            let path = directory.path().join(format!("{index}.db"));
            tokio::spawn(async move {
                let mut connection = with_table(&path, SqliteJournalMode::Wal).await;
                let mut reader = options(&path, SqliteJournalMode::Wal).connect().await.unwrap();
                for row in 0..30 + index {
                    insert(&mut connection, "some text").await;
                    let last: i64 = sqlx::query_scalar("SELECT MAX(id) FROM t").fetch_one(&mut reader).await.unwrap();
                    assert_eq!(last, row + 1);
                }
                assert_eq!(vfs::written(&path).wal_bytes, file_bytes(&path, "-wal"));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn integrity_holds_after_rollbacks_vacuum_and_journal_mode_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut connection = with_table(&path, SqliteJournalMode::Wal).await;
    for round in 0..5 {
        for _ in 0..50 {
            insert(&mut connection, &"y".repeat(700)).await;
        }
        let mut transaction = connection.begin().await.unwrap();
        sqlx::query("DELETE FROM t").execute(&mut *transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        sqlx::query("DELETE FROM t WHERE id % 3 = 0").execute(&mut connection).await.unwrap();
        let mode = if round % 2 == 0 { "PRAGMA journal_mode = DELETE" } else { "PRAGMA journal_mode = WAL" };
        sqlx::query(mode).execute(&mut connection).await.unwrap();
        sqlx::query("VACUUM").execute(&mut connection).await.unwrap();
    }
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(verdict, "ok");
}
