//! The RouterOS REST adapter: [`RestDevice`] speaks HTTP/1.1 to `http://host:port/rest`.
//!
//! One connection per device carries one request at a time, because RouterOS keeps one session per login and address
//! and lets it do one command at a time. Every value travels as a string, ids travel raw (`*1A`), and every write ends
//! in one of the four outcomes of [`WriteOutcome`]: what was provably not sent is `NotSent`, and whatever was sent
//! without a whole and trustworthy answer is `Unknown`.

mod answer;
mod class;
mod connection;
pub(crate) mod duration;
pub(crate) mod json;
mod options;

use async_trait::async_trait;
use hyper::Method;

pub use self::options::{Password, RestOptions};

use self::answer::{Expect, read_error, rows, write_outcome};
use self::class::Aim;
use self::connection::{Failure, Link, Reply};
use self::json::{ControlBytes, push_object};
use crate::device::{
    Device, DeviceError, DeviceFacts, ErrorClass, MenuPath, RawFields, Row, RowId, WriteOp, WriteOutcome,
};

/// One router reached through RouterOS' REST API.
///
/// # Cancel safety
///
/// A dropped call closes its connection; the next call opens another. A dropped write may have reached the router.
pub struct RestDevice {
    link: Link,
}

impl std::fmt::Debug for RestDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestDevice").field("address", &self.link.address()).finish_non_exhaustive()
    }
}

impl RestDevice {
    /// Names a router; nothing is sent before the first call.
    pub fn new(options: RestOptions) -> Self {
        Self { link: Link::new(options) }
    }

    async fn read(&self, path: &str) -> Result<Reply, DeviceError> {
        self.link.exchange(&Method::GET, &format!("/rest{path}"), None).await.map_err(|failure| match failure {
            Failure::NotSent(cause) => DeviceError::Unreachable { address: self.link.address().to_owned(), cause },
            Failure::NoAnswer(cause) => {
                DeviceError::NoAnswer { address: self.link.address().to_owned(), request: format!("GET {path}"), cause }
            }
        })
    }

    async fn print(&self, path: &str) -> Result<Vec<Row>, DeviceError> {
        let reply = self.read(path).await?;
        let request = format!("GET {path}");
        match reply.status {
            200 => rows(&reply, &request),
            404 => Err(DeviceError::Refused {
                request,
                class: ErrorClass::NoSuchMenu,
                detail: answer::refusal(&reply, Aim::Menu).map(|refusal| refusal.detail).unwrap_or_default(),
            }),
            _ => Err(read_error(&reply, &request, Aim::Menu)),
        }
    }

    /// Reads a menu of one row; a router without that menu gives no fields.
    async fn print_one(&self, path: &str) -> Result<RawFields, DeviceError> {
        match self.print(path).await {
            Ok(rows) => Ok(rows.into_iter().next().map(|row| row.fields).unwrap_or_default()),
            Err(DeviceError::Refused { class: ErrorClass::NoSuchMenu, .. }) => Ok(RawFields::new()),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, request: WriteRequest<'_>) -> WriteOutcome {
        match self.link.exchange(&request.method, &request.path, request.body).await {
            Ok(reply) => write_outcome(&reply, request.aim, request.expect, request.sent),
            Err(Failure::NotSent(cause)) => {
                WriteOutcome::NotSent(DeviceError::Unreachable { address: self.link.address().to_owned(), cause })
            }
            Err(Failure::NoAnswer(hint)) => WriteOutcome::Unknown { hint },
        }
    }
}

struct WriteRequest<'a> {
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
    aim: Aim,
    expect: Expect,
    sent: &'a RawFields,
}

fn body_of(fields: &RawFields, unset: &[String]) -> Vec<u8> {
    let mut body = Vec::new();
    let set = fields.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let cleared = unset.iter().filter(|key| !fields.contains_key(*key)).map(|key| (key.as_str(), ""));
    push_object(&mut body, set.chain(cleared), ControlBytes::Escaped);
    body
}

fn row_path(menu: &MenuPath, id: &RowId) -> Option<String> {
    // Anything else would name another resource: ids are `*` and hexadecimal digits, and travel raw.
    let digits = id.0.strip_prefix('*')?;
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| format!("{menu}/{id}"))
}

#[async_trait]
impl Device for RestDevice {
    async fn facts(&self) -> Result<DeviceFacts, DeviceError> {
        let mut identity = self.print_one("/system/identity").await?;
        let mut resource = self.print_one("/system/resource").await?;
        let mut board = self.print_one("/system/routerboard").await?;
        let take = |fields: &mut RawFields, key: &str| fields.remove(key).unwrap_or_default();
        let mut serial = take(&mut board, "serial-number");
        if serial.is_empty() {
            // A virtual router has no serial number; its licence id is what tells it from another.
            let mut license = self.print_one("/system/license").await?;
            serial = license.remove("system-id").or_else(|| license.remove("software-id")).unwrap_or_default();
        }
        let uptime = take(&mut resource, "uptime");
        let uptime_ms = duration::parse_ms(&uptime).ok_or_else(|| DeviceError::Malformed {
            request: "GET /system/resource".to_owned(),
            cause: format!("uptime {uptime:?} is no duration"),
        })?;
        Ok(DeviceFacts {
            identity: take(&mut identity, "name"),
            version: take(&mut resource, "version"),
            board: take(&mut resource, "board-name"),
            architecture: take(&mut resource, "architecture-name"),
            serial,
            uptime_ms,
        })
    }

    async fn list(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError> {
        self.print(menu.as_str()).await
    }

    async fn get(&self, menu: &MenuPath, id: &RowId) -> Result<Option<Row>, DeviceError> {
        let Some(path) = row_path(menu, id) else { return Ok(None) };
        let reply = self.read(&path).await?;
        let request = format!("GET {path}");
        match reply.status {
            200 => Ok(rows(&reply, &request)?.into_iter().next()),
            404 => Ok(None),
            _ => match read_error(&reply, &request, Aim::Row) {
                DeviceError::Refused { class: ErrorClass::NoSuchItem, .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn write(&self, op: &WriteOp) -> WriteOutcome {
        let no_fields = RawFields::new();
        let no_such_row = || WriteOutcome::Rejected {
            class: ErrorClass::NoSuchItem,
            detail: "the id does not have the form of a row id".to_owned(),
        };
        let request = match op {
            WriteOp::Add { menu, fields } => WriteRequest {
                method: Method::PUT,
                path: format!("/rest{menu}"),
                body: Some(body_of(fields, &[])),
                aim: Aim::Add,
                expect: Expect::RowWithId,
                sent: fields,
            },
            WriteOp::Set { menu, id: Some(id), fields, unset } => {
                let Some(path) = row_path(menu, id) else { return no_such_row() };
                WriteRequest {
                    method: Method::PATCH,
                    path: format!("/rest{path}"),
                    body: Some(body_of(fields, unset)),
                    aim: Aim::Row,
                    expect: Expect::RowOrNothing,
                    sent: fields,
                }
            }
            WriteOp::Set { menu, id: None, fields, unset } => WriteRequest {
                method: Method::POST,
                path: format!("/rest{menu}/set"),
                body: Some(body_of(fields, unset)),
                aim: Aim::Menu,
                expect: Expect::RowOrNothing,
                sent: fields,
            },
            WriteOp::Remove { menu, id } => {
                let Some(path) = row_path(menu, id) else { return no_such_row() };
                WriteRequest {
                    method: Method::DELETE,
                    path: format!("/rest{path}"),
                    body: None,
                    aim: Aim::Row,
                    expect: Expect::Nothing,
                    sent: &no_fields,
                }
            }
        };
        self.send(request).await
    }
}
