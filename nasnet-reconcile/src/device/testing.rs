//! A device in memory that does what it is told, including the wrong thing.
//!
//! It is a double for tests and documentation: rows, handles, unique fields and generated fields behave as on a router,
//! and every single answer can be scripted. For RouterOS behaviour in full use the simulator.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Device, DeviceError, DeviceFacts, ErrorClass, MenuPath, RawFields, Row, RowId, WriteOp, WriteOutcome};

/// What happens to one write instead of the usual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The device stores it, but the answer is lost.
    LostReply,
    /// The request is lost; the caller cannot tell.
    LostRequest,
    /// The connection could not be made.
    NotSent,
    /// The device says no.
    Reject(ErrorClass),
    /// The device stores another value for one field and says yes.
    Store {
        /// The field.
        field: String,
        /// The value it stores.
        value: String,
    },
}

type Generator = Arc<dyn Fn(&mut RawFields) + Send + Sync>;

#[derive(Default)]
struct State {
    facts: DeviceFacts,
    menus: BTreeMap<MenuPath, Vec<Row>>,
    unique: BTreeMap<MenuPath, String>,
    generators: BTreeMap<MenuPath, Generator>,
    hidden: BTreeSet<String>,
    next_id: u64,
    faults: VecDeque<Option<Fault>>,
    failing_reads: u64,
    writes: u64,
    reads: u64,
}

/// A device in memory. Cloning gives another handle to the same rows.
#[derive(Clone, Default)]
pub struct ScriptedDevice(Arc<Mutex<State>>);

impl ScriptedDevice {
    /// Creates an empty device with a serial number.
    pub fn new(serial: &str) -> Self {
        let device = Self::default();
        device.state().facts = DeviceFacts {
            identity: "scripted".to_owned(),
            version: "7.20".to_owned(),
            board: "memory".to_owned(),
            architecture: "arm64".to_owned(),
            serial: serial.to_owned(),
            uptime_ms: 60_000,
        };
        device
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of a test thread must not hide what it was about.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a menu refuse two rows with the same value of a field.
    pub fn unique(&self, menu: &MenuPath, field: &str) {
        self.state().unique.insert(menu.clone(), field.to_owned());
    }

    /// Lets the device complete every new row of a menu, such as with a generated key.
    pub fn generate(&self, menu: &MenuPath, complete: impl Fn(&mut RawFields) + Send + Sync + 'static) {
        self.state().generators.insert(menu.clone(), Arc::new(complete));
    }

    /// Lets the device keep a field to itself: it stores it and never prints it.
    pub fn hide(&self, field: &str) {
        self.state().hidden.insert(field.to_owned());
    }

    /// Swaps the device behind the address.
    pub fn replace_by(&self, serial: &str) {
        self.state().facts.serial = serial.to_owned();
    }

    /// Adds a row behind everybody's back and returns its handle.
    pub fn put(&self, menu: &MenuPath, fields: &[(&str, &str)]) -> RowId {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut state = self.state();
        let id = state.fresh_id();
        state.menus.entry(menu.clone()).or_default().push(Row { id: Some(id.clone()), fields });
        id
    }

    /// Changes a field of a row behind everybody's back; `None` clears it. Returns whether the row exists.
    pub fn edit(&self, menu: &MenuPath, id: &RowId, field: &str, value: Option<&str>) -> bool {
        let mut state = self.state();
        let Some(row) = state.row_mut(menu, id) else { return false };
        match value {
            Some(value) => row.fields.insert(field.to_owned(), value.to_owned()),
            None => row.fields.remove(field),
        };
        true
    }

    /// Removes a row behind everybody's back. Returns whether it existed.
    pub fn take(&self, menu: &MenuPath, id: &RowId) -> bool {
        let mut state = self.state();
        let rows = state.menus.entry(menu.clone()).or_default();
        let before = rows.len();
        rows.retain(|row| row.id.as_ref() != Some(id));
        rows.len() < before
    }

    /// Scripts the next write that is not scripted yet: `None` lets it pass.
    pub fn next_write(&self, fault: Option<Fault>) {
        self.state().faults.push_back(fault);
    }

    /// Lets the next `n` reads fail.
    pub fn fail_reads(&self, n: u64) {
        self.state().failing_reads = n;
    }

    /// Returns the rows as stored, hidden fields included.
    pub fn stored(&self, menu: &MenuPath) -> Vec<Row> {
        self.state().menus.get(menu).cloned().unwrap_or_default()
    }

    /// Returns how many writes arrived at the caller's side, scripted ones included.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Returns how many reads were asked for.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Reads a menu without waiting, for callers without a runtime.
    ///
    /// # Errors
    ///
    /// Scripted to fail.
    pub fn list_now(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError> {
        let mut state = self.state();
        state.reads += 1;
        if state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err(no_answer(menu));
        }
        let rows = state.menus.get(menu).cloned().unwrap_or_default();
        Ok(rows.into_iter().map(|row| state.printed(row)).collect())
    }

    /// Writes without waiting, for callers without a runtime.
    pub fn write_now(&self, op: &WriteOp) -> WriteOutcome {
        let mut state = self.state();
        state.writes += 1;
        let fault = state.faults.pop_front().flatten();
        match fault {
            Some(Fault::LostRequest) => WriteOutcome::Unknown { hint: "request lost".to_owned() },
            Some(Fault::NotSent) => WriteOutcome::NotSent(DeviceError::Unreachable {
                address: "memory".to_owned(),
                cause: "connection refused".to_owned(),
            }),
            Some(Fault::Reject(class)) => WriteOutcome::Rejected { class, detail: "scripted refusal".to_owned() },
            Some(Fault::LostReply) => match state.perform(op, None) {
                WriteOutcome::Done { .. } => WriteOutcome::Unknown { hint: "reply lost".to_owned() },
                refused => refused,
            },
            Some(Fault::Store { field, value }) => state.perform(op, Some((field, value))),
            None => state.perform(op, None),
        }
    }
}

impl State {
    fn fresh_id(&mut self) -> RowId {
        self.next_id += 1;
        RowId(format!("*{:X}", self.next_id))
    }

    fn row_mut(&mut self, menu: &MenuPath, id: &RowId) -> Option<&mut Row> {
        self.menus.get_mut(menu)?.iter_mut().find(|row| row.id.as_ref() == Some(id))
    }

    fn printed(&self, mut row: Row) -> Row {
        row.fields.retain(|name, _| !self.hidden.contains(name));
        row
    }

    fn clash(&self, menu: &MenuPath, fields: &RawFields, except: Option<&RowId>) -> bool {
        let Some(unique) = self.unique.get(menu) else { return false };
        let Some(value) = fields.get(unique) else { return false };
        let rows = self.menus.get(menu).into_iter().flatten();
        rows.filter(|row| row.id.as_ref() != except).any(|row| row.fields.get(unique) == Some(value))
    }

    fn perform(&mut self, op: &WriteOp, other: Option<(String, String)>) -> WriteOutcome {
        let refuse = |class: ErrorClass, detail: &str| WriteOutcome::Rejected { class, detail: detail.to_owned() };
        match op {
            WriteOp::Add { menu, fields } => {
                let mut fields = fields.clone();
                let before = fields.remove("place-before").map(RowId);
                if self.clash(menu, &fields, None) {
                    return refuse(ErrorClass::AlreadyExists, "already have such a row");
                }
                if let Some(complete) = self.generators.get(menu) {
                    complete(&mut fields);
                }
                fields.extend(other);
                let row = Row { id: Some(self.fresh_id()), fields };
                let rows = self.menus.entry(menu.clone()).or_default();
                let at = match before {
                    None => rows.len(),
                    Some(id) => match rows.iter().position(|row| row.id.as_ref() == Some(&id)) {
                        Some(at) => at,
                        None => return refuse(ErrorClass::NoSuchItem, "no such item to place before"),
                    },
                };
                rows.insert(at, row.clone());
                WriteOutcome::Done { row: Some(self.printed(row)) }
            }
            WriteOp::Set { menu, id, fields, unset } => {
                if self.clash(menu, fields, id.as_ref()) {
                    return refuse(ErrorClass::AlreadyExists, "already have such a row");
                }
                let rows = self.menus.entry(menu.clone()).or_default();
                let Some(row) = rows.iter_mut().find(|row| row.id == *id) else {
                    return refuse(ErrorClass::NoSuchItem, "no such item");
                };
                row.fields.extend(fields.clone());
                row.fields.extend(other);
                row.fields.retain(|name, _| !unset.contains(name));
                let row = row.clone();
                WriteOutcome::Done { row: Some(self.printed(row)) }
            }
            WriteOp::Remove { menu, id } => {
                let rows = self.menus.entry(menu.clone()).or_default();
                let Some(at) = rows.iter().position(|row| row.id.as_ref() == Some(id)) else {
                    return refuse(ErrorClass::NoSuchItem, "no such item");
                };
                rows.remove(at);
                WriteOutcome::Done { row: None }
            }
        }
    }
}

fn no_answer(menu: &MenuPath) -> DeviceError {
    DeviceError::NoAnswer {
        address: "memory".to_owned(),
        request: format!("print {menu}"),
        cause: "scripted to fail".to_owned(),
    }
}

#[async_trait]
impl Device for ScriptedDevice {
    async fn facts(&self) -> Result<DeviceFacts, DeviceError> {
        Ok(self.state().facts.clone())
    }

    async fn list(&self, menu: &MenuPath) -> Result<Vec<Row>, DeviceError> {
        self.list_now(menu)
    }

    async fn get(&self, menu: &MenuPath, id: &RowId) -> Result<Option<Row>, DeviceError> {
        Ok(self.list_now(menu)?.into_iter().find(|row| row.id.as_ref() == Some(id)))
    }

    async fn write(&self, op: &WriteOp) -> WriteOutcome {
        self.write_now(op)
    }
}

impl std::fmt::Debug for ScriptedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("ScriptedDevice")
            .field("serial", &state.facts.serial)
            .field("menus", &state.menus.len())
            .finish()
    }
}
