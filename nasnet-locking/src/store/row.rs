//! A lease and a ticket as columns hold them, and the checks that make values of them: the same for both stores.

use std::time::Duration;

use nasnet_dbmanager::BootId;
use ulid::Ulid;

use crate::error::Error;
use crate::key::KeySet;
use crate::lease::{Broken, Deadline, Lease, LockInfo, Mode, Ticket};
use crate::token::FencingToken;

/// What a lease and a ticket have in common.
#[derive(Debug)]
pub(crate) struct Common<'r> {
    pub(crate) id: &'r [u8],
    pub(crate) session: &'r [u8],
    pub(crate) keys: KeySet,
    pub(crate) mode: &'r str,
    pub(crate) info: LockInfo,
    pub(crate) since_ms: i64,
    pub(crate) boot: BootId,
    pub(crate) deadline_ms: i64,
}

/// The columns of a lease.
#[derive(Debug)]
pub(crate) struct LeaseRow<'r> {
    pub(crate) token: i64,
    pub(crate) common: Common<'r>,
    pub(crate) ttl_ms: i64,
    pub(crate) hold_until_ms: Option<i64>,
    pub(crate) broken_by: Option<String>,
    pub(crate) broken_reason: Option<String>,
}

impl LeaseRow<'_> {
    pub(crate) fn check(self) -> Result<Lease, Error> {
        let Common { id, session, keys, mode, info, since_ms, boot, deadline_ms } = self.common;
        Ok(Lease {
            id: ulid(id)?,
            token: FencingToken::from_sql(self.token)?,
            session: ulid(session)?,
            keys,
            mode: mode_of(mode)?,
            info,
            since_ms,
            ttl: Duration::from_millis(to_u64(self.ttl_ms, "time to live")?),
            deadline: Deadline { boot, boottime_ms: to_u64(deadline_ms, "deadline")? },
            hold_until_ms: self.hold_until_ms.map(|ms| to_u64(ms, "longest hold")).transpose()?,
            broken: self.broken_by.zip(self.broken_reason).map(|(by, reason)| Broken { by, reason }),
        })
    }
}

/// The columns of a ticket.
#[derive(Debug)]
pub(crate) struct TicketRow<'r> {
    pub(crate) number: i64,
    pub(crate) common: Common<'r>,
}

impl TicketRow<'_> {
    pub(crate) fn check(self) -> Result<Ticket, Error> {
        let Common { id, session, keys, mode, info, since_ms, boot, deadline_ms } = self.common;
        Ok(Ticket {
            number: to_u64(self.number, "ticket number")?,
            id: ulid(id)?,
            session: ulid(session)?,
            keys,
            mode: mode_of(mode)?,
            info,
            since_ms,
            deadline: Deadline { boot, boottime_ms: to_u64(deadline_ms, "deadline")? },
        })
    }
}

fn mode_of(mode: &str) -> Result<Mode, Error> {
    match mode {
        "exclusive" => Ok(Mode::Exclusive),
        "shared" => Ok(Mode::Shared),
        other => Err(Error::Corrupt { what: "lease mode", detail: other.to_owned() }),
    }
}

pub(crate) fn ulid(bytes: &[u8]) -> Result<Ulid, Error> {
    let bytes =
        bytes.try_into().map_err(|_| Error::Corrupt { what: "id", detail: format!("{} bytes", bytes.len()) })?;
    Ok(Ulid::from_bytes(bytes))
}

/// Times and numbers beyond what SQL stores are as good as "never".
pub(crate) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn to_u64(number: i64, what: &'static str) -> Result<u64, Error> {
    u64::try_from(number).map_err(|_| Error::Corrupt { what, detail: number.to_string() })
}
