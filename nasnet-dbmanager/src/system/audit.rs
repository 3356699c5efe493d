//! The audit log: who did what to whom, and from where.
//!
//! It is append-only in the file itself: triggers refuse every UPDATE, every DELETE beyond the retention mark, and
//! every lowering of the mark. Entries never hold secrets; what is put into `details` is the caller's responsibility.

use std::net::IpAddr;

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
    async fn oversized_details_and_odd_names_are_refused() {
        let mut scratch = Scratch::new().await;
        let large = AuditEntry::new("a", "b").details(Value::String("x".repeat(70_000)));
        assert!(matches!(append_in(&mut scratch.conn, &large, &now()).await, Err(Error::Constraint { .. })));
        let odd = AuditEntry::new("A b", "b");
        assert!(matches!(append_in(&mut scratch.conn, &odd, &now()).await, Err(Error::InvalidName { .. })));
    }
}
