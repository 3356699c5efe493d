//! The journal in the router's own database: one row an operation, one row a record.
//!
//! State, events and journal share the file, so that a merge is one transaction. Every function runs inside a write or
//! read op of the caller.

use sqlx::{Row, SqliteConnection, query};
use ulid::Ulid;

use crate::device::DeviceFacts;
use crate::error::Error;
use crate::op::journal::RECORD_FORMAT;
use crate::op::{JournalState, Plan, Record};

const INSERT_OP: &str = "INSERT INTO reconcile_op
    (op_id, idempotency_key, request, purpose, state, plan, sealed, fencing_token, planned_ms)
    VALUES (?1, ?2, ?3, ?4, 'planned', ?5, ?6, ?7, ?8)";
const SELECT_OPEN: &str = "SELECT id, op_id, request, purpose, state, plan, sealed FROM reconcile_op
    WHERE state IN ('planned', 'confirm_intent', 'undoing')";
const SELECT_BY_KEY: &str = "SELECT id, op_id, request, purpose, state, plan, sealed FROM reconcile_op
    WHERE idempotency_key = ?1";
const SELECT_STATE: &str = "SELECT id, state FROM reconcile_op WHERE op_id = ?1";
const SELECT_RECORDS: &str = "SELECT format, body FROM reconcile_record WHERE op = ?1 ORDER BY seq";
const INSERT_RECORD: &str = "INSERT INTO reconcile_record (op, seq, format, record, body)
    VALUES (?1, (SELECT COALESCE(MAX(seq), 0) + 1 FROM reconcile_record WHERE op = ?1), ?2, ?3, ?4)";
const UPDATE_OP: &str = "UPDATE reconcile_op SET state = ?2, sealed = COALESCE(?3, sealed) WHERE id = ?1";
const END_OP: &str = "UPDATE reconcile_op SET state = ?2, sealed = NULL, ended_ms = ?3 WHERE id = ?1";
const SELECT_DEVICE: &str = "SELECT serial, facts FROM reconcile_device WHERE id = 1";
const UPSERT_DEVICE: &str = "INSERT INTO reconcile_device (id, serial, facts, seen_ms) VALUES (1, ?1, ?2, ?3)
    ON CONFLICT (id) DO UPDATE SET facts = excluded.facts, seen_ms = excluded.seen_ms";

/// What an operation was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Change,
    Heal,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Heal => "heal",
        }
    }
}

/// An operation as the journal holds it.
#[derive(Debug)]
pub(crate) struct StoredOp {
    pub(crate) op_id: Ulid,
    pub(crate) request: Vec<u8>,
    pub(crate) purpose: Purpose,
    pub(crate) state: JournalState,
    pub(crate) plan: Plan,
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) records: Vec<Record>,
}

/// What is written with a plan.
#[derive(Debug, Clone)]
pub(crate) struct NewOp {
    pub(crate) key: Option<Ulid>,
    pub(crate) request: [u8; 16],
    pub(crate) purpose: Purpose,
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) token: u64,
    pub(crate) now_ms: i64,
}

/// Writes the plan; refuses while another operation is open.
pub(crate) async fn insert(conn: &mut SqliteConnection, plan: &Plan, new: &NewOp) -> Result<(), Error> {
    if let Some(row) = query(SELECT_OPEN).fetch_optional(&mut *conn).await? {
        let router = plan.router.parse().map_err(|error| Error::corrupt("router of a plan", error))?;
        return Err(Error::OperationOpen { router, op_id: ulid(&row, "op_id")? });
    }
    let body = serde_json::to_string(plan).map_err(|error| Error::corrupt("plan", error))?;
    query(INSERT_OP)
        .bind(plan.op_id.to_bytes().to_vec())
        .bind(new.key.map(|key| key.to_bytes().to_vec()))
        .bind(new.request.to_vec())
        .bind(new.purpose.as_str())
        .bind(body)
        .bind(new.sealed.clone())
        .bind(i64::try_from(new.token).unwrap_or(i64::MAX))
        .bind(new.now_ms)
        .execute(&mut *conn)
        .await?;
    Ok(())
}

/// Appends records and moves the operation's state; an ended operation loses its secrets and takes no more records.
pub(crate) async fn append(
    conn: &mut SqliteConnection,
    op_id: Ulid,
    records: &[Record],
    sealed: Option<Vec<u8>>,
    now_ms: i64,
) -> Result<JournalState, Error> {
    let row = query(SELECT_STATE).bind(op_id.to_bytes().to_vec()).fetch_optional(&mut *conn).await?;
    let row = row.ok_or_else(|| Error::corrupt("operation", format!("{op_id} is not there")))?;
    let (id, before): (i64, JournalState) = (row.try_get("id")?, state(&row)?);
    if !before.is_open() {
        return Ok(before);
    }
    let after = records.iter().fold(before, JournalState::then);
    for record in records {
        let body = serde_json::to_string(record).map_err(|error| Error::corrupt("record", error))?;
        query(INSERT_RECORD)
            .bind(id)
            .bind(i64::from(RECORD_FORMAT))
            .bind(record.name())
            .bind(body)
            .execute(&mut *conn)
            .await?;
    }
    if after.is_open() {
        query(UPDATE_OP).bind(id).bind(after.as_str()).bind(sealed).execute(&mut *conn).await?;
    } else {
        query(END_OP).bind(id).bind(after.as_str()).bind(now_ms).execute(&mut *conn).await?;
    }
    Ok(after)
}

/// Returns the state of an operation.
pub(crate) async fn state_of(conn: &mut SqliteConnection, op_id: Ulid) -> Result<JournalState, Error> {
    match query(SELECT_STATE).bind(op_id.to_bytes().to_vec()).fetch_optional(&mut *conn).await? {
        Some(row) => state(&row),
        None => Ok(JournalState::None),
    }
}

/// Returns the open operation, if there is one.
pub(crate) async fn open_op(conn: &mut SqliteConnection) -> Result<Option<StoredOp>, Error> {
    let row = query(SELECT_OPEN).fetch_optional(&mut *conn).await?;
    match row {
        Some(row) => decode(conn, &row).await.map(Some),
        None => Ok(None),
    }
}

/// Returns the operation that was asked for under a key.
pub(crate) async fn by_key(conn: &mut SqliteConnection, key: Ulid) -> Result<Option<StoredOp>, Error> {
    let row = query(SELECT_BY_KEY).bind(key.to_bytes().to_vec()).fetch_optional(&mut *conn).await?;
    match row {
        Some(row) => decode(conn, &row).await.map(Some),
        None => Ok(None),
    }
}

async fn decode(conn: &mut SqliteConnection, row: &sqlx::sqlite::SqliteRow) -> Result<StoredOp, Error> {
    let plan: String = row.try_get("plan")?;
    let plan: Plan = serde_json::from_str(&plan).map_err(|error| Error::corrupt("plan", error))?;
    if !plan.is_intact() {
        return Err(Error::corrupt("plan", format!("its hash does not cover its steps: {}", plan.op_id)));
    }
    let id: i64 = row.try_get("id")?;
    let purpose = match row.try_get::<String, _>("purpose")?.as_str() {
        "heal" => Purpose::Heal,
        _ => Purpose::Change,
    };
    let mut records = vec![Record::OpPlanned { plan: Box::new(plan.clone()) }];
    for record in query(SELECT_RECORDS).bind(id).fetch_all(&mut *conn).await? {
        let format: i64 = record.try_get("format")?;
        if format != i64::from(RECORD_FORMAT) {
            return Err(Error::corrupt("record", format!("format {format} is not known")));
        }
        let body: String = record.try_get("body")?;
        records.push(serde_json::from_str(&body).map_err(|error| Error::corrupt("record", error))?);
    }
    Ok(StoredOp {
        op_id: ulid(row, "op_id")?,
        request: row.try_get("request")?,
        purpose,
        state: state(row)?,
        plan,
        sealed: row.try_get("sealed")?,
        records,
    })
}

fn state(row: &sqlx::sqlite::SqliteRow) -> Result<JournalState, Error> {
    let text: String = row.try_get("state")?;
    JournalState::parse(&text).ok_or_else(|| Error::corrupt("state of an operation", text))
}

fn ulid(row: &sqlx::sqlite::SqliteRow, column: &str) -> Result<Ulid, Error> {
    let bytes: Vec<u8> = row.try_get(column)?;
    let bytes = <[u8; 16]>::try_from(bytes.as_slice()).map_err(|error| Error::corrupt("id of an operation", error))?;
    Ok(Ulid::from_bytes(bytes))
}

/// Returns the facts of the device the file belongs to.
pub(crate) async fn device(conn: &mut SqliteConnection) -> Result<Option<DeviceFacts>, Error> {
    let Some(row) = query(SELECT_DEVICE).fetch_optional(&mut *conn).await? else { return Ok(None) };
    let facts: String = row.try_get("facts")?;
    let mut facts: DeviceFacts = serde_json::from_str(&facts).map_err(|error| Error::corrupt("facts", error))?;
    facts.serial = row.try_get("serial")?;
    Ok(Some(facts))
}

/// Remembers the device. The serial number is written once and never changes.
pub(crate) async fn put_device(conn: &mut SqliteConnection, facts: &DeviceFacts, now_ms: i64) -> Result<(), Error> {
    let body = serde_json::to_string(facts).map_err(|error| Error::corrupt("facts", error))?;
    query(UPSERT_DEVICE).bind(&facts.serial).bind(body).bind(now_ms).execute(&mut *conn).await?;
    Ok(())
}
