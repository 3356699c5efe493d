//! The audit log: who did what to whom, and from where.
//!
//! It is append-only in the file itself: triggers refuse every UPDATE, every DELETE beyond the retention mark, and
//! every lowering of the mark. Entries never hold secrets; what is put into `details` is the caller's responsibility.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{column, name};
use crate::clock::{BootId, ClockQuality, Now};
use crate::error::Error;

// Ids go on after the newest entry, and after the mark when nothing is left beyond it.
const APPEND: &str = "
    INSERT INTO audit_log (id, category, action, actor, target, details, ip_address, wall_ms, quality, boot)
    SELECT MAX(COALESCE((SELECT MAX(id) FROM audit_log), 0), retained_through) + 1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9
    FROM audit_retention
    RETURNING id";

const LIST: &str = "
    SELECT id, category, action, actor, target, details, ip_address, wall_ms, quality, boot
    FROM audit_log WHERE id < ?1 ORDER BY id DESC LIMIT ?2";

const MOVE_MARK: &str = "UPDATE audit_retention SET retained_through = MAX(retained_through, ?1)";

const PRUNE: &str = "DELETE FROM audit_log WHERE id <= ?1";

// The newest entry of each category that is beyond a limit: looks at every entry, as retention must.
const EXCESS: &str = "
    SELECT category, MAX(id) AS through FROM (
        SELECT category, id, wall_ms, quality,
               ROW_NUMBER() OVER newest AS rows,
               SUM(LENGTH(category) + LENGTH(action) + COALESCE(LENGTH(actor), 0) + COALESCE(LENGTH(target), 0)
                   + COALESCE(LENGTH(details), 0) + 64) OVER newest AS bytes
        FROM audit_log
        WINDOW newest AS (PARTITION BY category ORDER BY id DESC)
    )
    WHERE rows > ?1 OR bytes > ?2 OR (quality = 'synced' AND wall_ms < ?3)
    GROUP BY category";

const PRUNE_CATEGORY: &str = "DELETE FROM audit_log WHERE id <= ?1 AND category = ?2";

/// For the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: &[(&str, &str)] = &[
    ("audit::APPEND", APPEND),
    ("audit::LIST", LIST),
    ("audit::MOVE_MARK", MOVE_MARK),
    ("audit::PRUNE", PRUNE),
    ("audit::EXCESS", EXCESS),
    ("audit::PRUNE_CATEGORY", PRUNE_CATEGORY),
];

/// The category of the entries this crate writes.
const OWN_CATEGORY: &str = "storage";

/// An entry to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    category: String,
    action: String,
    actor: Option<String>,
    target: Option<String>,
    details: Option<Value>,
    ip_address: Option<IpAddr>,
}

impl AuditEntry {
    /// Starts an entry: a category such as `locking`, and an action such as `lock.stolen`.
    pub fn new(category: impl Into<String>, action: impl Into<String>) -> Self {
        Self {
            category: category.into(),
            action: action.into(),
            actor: None,
            target: None,
            details: None,
            ip_address: None,
        }
    }

    /// Names who did it.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// Names what it was done to.
    #[must_use]
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Adds whatever else is worth keeping, up to 64 KiB of JSON; never a secret.
    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds where the request came from.
    #[must_use]
    pub fn ip_address(mut self, address: IpAddr) -> Self {
        self.ip_address = Some(address);
        self
    }
}

/// A stored entry.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AuditRecord {
    /// Its place in the log; ids grow and are not reused.
    pub id: u64,
    /// What kind of thing happened; retention is counted by it.
    pub category: String,
    /// What was done.
    pub action: String,
    /// Who did it.
    pub actor: Option<String>,
    /// What it was done to.
    pub target: Option<String>,
    /// Whatever else was worth keeping.
    pub details: Option<Value>,
    /// Where the request came from.
    pub ip_address: Option<IpAddr>,
    /// When, by the wall clock.
    pub wall_ms: i64,
    /// How far that clock could be trusted.
    pub quality: ClockQuality,
    /// In which boot.
    pub boot: BootId,
}

/// Appends an entry and returns its id; it is kept if and only if the surrounding transaction commits.
///
/// # Errors
/// [`Error::InvalidName`] for a category or action of another form, or an error of the database.
pub async fn append_in(conn: &mut SqliteConnection, entry: &AuditEntry, now: &Now) -> Result<u64, Error> {
    name::check("audit category", &entry.category)?;
    name::check("audit action", &entry.action)?;
    let id: i64 = sqlx::query_scalar(APPEND)
        .bind(&entry.category)
        .bind(&entry.action)
        .bind(&entry.actor)
        .bind(&entry.target)
        .bind(entry.details.as_ref().map(Value::to_string))
        .bind(entry.ip_address.map(|address| address.to_string()))
        .bind(now.wall_ms)
        .bind(now.quality.as_str())
        .bind(&now.boot.as_bytes()[..])
        .fetch_one(conn)
        .await?;
    column::unsigned("audit id", id)
}

/// Returns up to `limit` entries, the newest first, starting below the id `before` if there is one.
///
/// # Errors
/// [`Error::Decode`] for a damaged entry, or an error of the database.
pub async fn list(conn: &mut SqliteConnection, before: Option<u64>, limit: u32) -> Result<Vec<AuditRecord>, Error> {
    let before = before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
    sqlx::query(LIST).bind(before).bind(limit).fetch_all(conn).await?.iter().map(decode).collect()
}

/// Removes the entries up to the id `through` and appends how many they were; returns that number.
///
/// # Errors
/// An error of the database; a mark beyond the newest entry violates a constraint.
pub async fn prune(conn: &mut SqliteConnection, through: u64, now: &Now) -> Result<u64, Error> {
    let stored = column::signed("audit id", through)?;
    sqlx::query(MOVE_MARK).bind(stored).execute(&mut *conn).await?;
    let removed = sqlx::query(PRUNE).bind(stored).execute(&mut *conn).await?.rows_affected();
    if removed > 0 {
        let entry = AuditEntry::new(OWN_CATEGORY, "audit.pruned")
            .details(json!({ "removed": removed, "retained_through": through }));
        append_in(conn, &entry, now).await?;
    }
    Ok(removed)
}

/// What is kept of each category.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditLimits {
    /// How old an entry may be. Entries written with an unsynced clock have no age.
    pub age: Duration,
    /// How many entries.
    pub rows: u32,
    /// How many bytes of text, with 64 for the rest of each entry.
    pub bytes: u32,
}

impl Default for AuditLimits {
    /// Thirty days, 10,000 entries and 2 MB.
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 86_400), rows: 10_000, bytes: 2_000_000 }
    }
}

/// Removes the entries of each category that are beyond its limits and appends how many they were; returns that number.
/// With an unsynced clock nothing is too old.
///
/// # Errors
/// An error of the database.
pub async fn retain(conn: &mut SqliteConnection, limits: &AuditLimits, now: &Now) -> Result<u64, Error> {
    let age_ms = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
    let cut_off = match now.quality {
        ClockQuality::Synced => now.wall_ms.saturating_sub(age_ms),
        ClockQuality::Unsynced => i64::MIN,
    };
    let excess: Vec<(String, i64)> =
        sqlx::query_as(EXCESS).bind(limits.rows).bind(limits.bytes).bind(cut_off).fetch_all(&mut *conn).await?;
    let Some(through) = excess.iter().map(|(_, through)| *through).max() else { return Ok(0) };
    sqlx::query(MOVE_MARK).bind(through).execute(&mut *conn).await?;
    let mut removed = serde_json::Map::new();
    let mut total = 0;
    for (category, through) in excess {
        let done = sqlx::query(PRUNE_CATEGORY).bind(through).bind(&category).execute(&mut *conn).await?;
        total += done.rows_affected();
        removed.insert(category, done.rows_affected().into());
    }
    let entry = AuditEntry::new(OWN_CATEGORY, "audit.pruned")
        .details(json!({ "removed": removed, "retained_through": through }));
    append_in(conn, &entry, now).await?;
    Ok(total)
}

fn decode(row: &SqliteRow) -> Result<AuditRecord, Error> {
    let address = |text: &str| {
        text.parse().map_err(|_| Error::Decode { what: "audit address", detail: format!("{text:?} is none") })
    };
    Ok(AuditRecord {
        id: column::unsigned("audit id", row.try_get("id")?)?,
        category: row.try_get("category")?,
        action: row.try_get("action")?,
        actor: row.try_get("actor")?,
        target: row.try_get("target")?,
        details: column::optional(row, "details", |text: &str| column::json("audit details", text))?,
        ip_address: column::optional(row, "ip_address", address)?,
        wall_ms: row.try_get("wall_ms")?,
        quality: row.try_get::<&str, _>("quality")?.parse()?,
        boot: BootId::from_bytes(column::bytes_16("boot id", row.try_get("boot")?)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::scratch::{Scratch, now};

    async fn append_all(scratch: &mut Scratch, count: u64) {
        for index in 0..count {
            let entry = AuditEntry::new("config", "resource.changed").details(json!({ "index": index }));
            append_in(&mut scratch.conn, &entry, &now()).await.expect("append");
        }
    }

    #[tokio::test]
    async fn an_entry_comes_back_whole_and_the_newest_first() {
        let mut scratch = Scratch::new().await;
        let entry = AuditEntry::new("auth", "login.failed")
            .actor("alice")
            .target("r1")
            .details(json!({ "attempt": 3 }))
            .ip_address("2001:db8::1".parse().expect("address"));
        let bare = AuditEntry::new("auth", "logout");
        assert_eq!(append_in(&mut scratch.conn, &entry, &now()).await.expect("append"), 1);
        assert_eq!(append_in(&mut scratch.conn, &bare, &now()).await.expect("append"), 2);

        let records = list(&mut scratch.conn, None, 10).await.expect("list");
        assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!((records[0].actor.as_ref(), records[0].details.as_ref()), (None, None));
        let first = &records[1];
        assert_eq!((&*first.category, &*first.action), ("auth", "login.failed"));
        assert_eq!((first.actor.as_deref(), first.target.as_deref()), (Some("alice"), Some("r1")));
        assert_eq!(first.details, Some(json!({ "attempt": 3 })));
        assert_eq!(first.ip_address, entry.ip_address);
        assert_eq!((first.wall_ms, first.quality, first.boot), (now().wall_ms, now().quality, now().boot));

        let older = list(&mut scratch.conn, Some(2), 10).await.expect("list");
        assert_eq!(older.iter().map(|record| record.id).collect::<Vec<_>>(), [1]);
    }

    #[tokio::test]
    async fn the_file_itself_refuses_every_change_but_an_append() {
        let mut scratch = Scratch::new().await;
        append_all(&mut scratch, 3).await;
        for sql in [
            "UPDATE audit_log SET actor = 'nobody'",
            "UPDATE audit_log SET id = 9 WHERE id = 3",
            "UPDATE OR REPLACE audit_log SET id = 2 WHERE id = 3",
            "DELETE FROM audit_log",
            "DELETE FROM audit_log WHERE id = 3",
            "INSERT OR REPLACE INTO audit_log (id, category, action, wall_ms, quality, boot)
             VALUES (2, 'a', 'b', 0, 'synced', zeroblob(16))",
            "INSERT INTO audit_log (id, category, action, wall_ms, quality, boot)
             VALUES (-5, 'a', 'b', 0, 'synced', zeroblob(16))",
            "UPDATE audit_retention SET retained_through = 4",
            "UPDATE audit_retention SET one = 1, retained_through = -1",
            "DELETE FROM audit_retention",
            "INSERT OR REPLACE INTO audit_retention (one, retained_through) VALUES (1, 3)",
        ] {
            let message = scratch.refusal(sql).await;
            assert!(message.contains("audit log"), "{sql}: {message}");
        }
        let ids: Vec<_> = list(&mut scratch.conn, None, 10).await.expect("list").iter().map(|r| r.id).collect();
        assert_eq!(ids, [3, 2, 1]);
    }

    #[tokio::test]
    async fn pruning_moves_the_mark_leaves_a_trace_and_reuses_no_id() {
        let mut scratch = Scratch::new().await;
        append_all(&mut scratch, 5).await;
        assert_eq!(prune(&mut scratch.conn, 3, &now()).await.expect("prune"), 3);
        let records = list(&mut scratch.conn, None, 10).await.expect("list");
        assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), [6, 5, 4]);
        assert_eq!(records[0].action, "audit.pruned");
        assert_eq!(records[0].details, Some(json!({ "removed": 3, "retained_through": 3 })));

        scratch.refusal("UPDATE audit_retention SET retained_through = 2").await;
        scratch.refusal("DELETE FROM audit_log WHERE id = 4").await;
        assert_eq!(prune(&mut scratch.conn, 2, &now()).await.expect("prune"), 0, "an earlier mark changes nothing");
        assert!(prune(&mut scratch.conn, 100, &now()).await.is_err(), "the mark stays within the log");

        assert_eq!(prune(&mut scratch.conn, 6, &now()).await.expect("prune"), 3);
        let ids: Vec<_> = list(&mut scratch.conn, None, 10).await.expect("list").iter().map(|r| r.id).collect();
        assert_eq!(ids, [7], "the trace comes after the newest entry, though that one is gone");
    }

    #[tokio::test]
    async fn retention_counts_by_category_and_leaves_the_others_alone() {
        let mut scratch = Scratch::new().await;
        let conn = &mut scratch.conn;
        append_in(conn, &AuditEntry::new("auth", "login"), &now()).await.expect("append");
        for _ in 0..5 {
            append_in(conn, &AuditEntry::new("config", "resource.changed"), &now()).await.expect("append");
        }
        let limits = AuditLimits { rows: 2, ..AuditLimits::default() };
        assert_eq!(retain(conn, &limits, &now()).await.expect("retain"), 3);
        let kept: Vec<_> =
            list(conn, None, 10).await.expect("list").iter().map(|r| (r.id, r.category.clone())).collect();
        let kept: Vec<_> = kept.iter().map(|(id, category)| (*id, category.as_str())).collect();
        assert_eq!(kept, [(7, "storage"), (6, "config"), (5, "config"), (1, "auth")]);
        assert_eq!(retain(conn, &limits, &now()).await.expect("retain"), 0, "what fits is left and nothing is written");

        let mut later = now();
        later.wall_ms += 31 * 86_400_000;
        let unsynced = Now { quality: ClockQuality::Unsynced, ..later };
        assert_eq!(retain(conn, &AuditLimits::default(), &unsynced).await.expect("retain"), 0);
        assert_eq!(retain(conn, &AuditLimits::default(), &later).await.expect("retain"), 4);
        let kept: Vec<_> = list(conn, None, 10).await.expect("list").iter().map(|r| r.id).collect();
        assert_eq!(kept, [8], "the trace of the removal alone");

        let small = AuditLimits { bytes: 200, ..AuditLimits::default() };
        append_all(&mut scratch, 9).await;
        assert_eq!(retain(&mut scratch.conn, &small, &now()).await.expect("retain"), 7);
    }

    #[tokio::test]
    async fn oversized_details_and_odd_names_are_refused() {
        let mut scratch = Scratch::new().await;
        let large = AuditEntry::new("a", "b").details(Value::String("x".repeat(70_000)));
        assert!(matches!(append_in(&mut scratch.conn, &large, &now()).await, Err(Error::Constraint { .. })));
        let odd = AuditEntry::new("A b", "b");
        assert!(matches!(append_in(&mut scratch.conn, &odd, &now()).await, Err(Error::InvalidName { .. })));
    }
}
