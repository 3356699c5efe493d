//! From an HTTP request to the command it stands for, and back.

use serde_json::Value;

use super::interfaces;
use super::message::{Request, Response};
use super::profile::{ControlCharacters, SimProfile};
use super::query;
use super::refusal::Refusal;
use super::spec;
use super::store::{Store, id_of, id_text};
use super::view::{self, Secrets};
use super::world::{World, is_read_only, shape};
use super::write;
use crate::device::RawFields;
use crate::routeros::menus::Shape;
use crate::routeros::rest::json::{self, ControlBytes, push_object};
use crate::routeros::text;

/// What the login may do (S10).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) policy: bool,
    pub(crate) secrets: Secrets,
}

/// What a request was answered with, and whether it changed the configuration.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) committed: bool,
}

/// The parts of a router a request works on.
pub(crate) struct Router<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) profile: &'a SimProfile,
    pub(crate) sessions: &'a [(String, String)],
    pub(crate) uptime_ms: u64,
    pub(crate) rights: Rights,
}

/// What a path names.
enum Resource {
    Menu(String),
    Row { menu: String, id: u64 },
}

/// Splits a target into path and query.
pub(crate) fn split_target(target: &str) -> (&str, &str) {
    target.split_once('?').unwrap_or((target, ""))
}

/// Returns the menu a target goes to, without row id and command.
pub(crate) fn menu_of_target(method: &str, target: &str) -> String {
    let path = split_target(target).0.strip_prefix("/rest").unwrap_or_default().trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((menu, last)) if method == "POST" || last.starts_with('*') => menu.to_owned(),
        _ => path.to_owned(),
    }
}

impl Router<'_> {
    /// Performs a request of a login that was accepted.
    pub(crate) fn dispatch(mut self, request: &Request) -> Result<Answer, Refusal> {
        let (path, query) = split_target(&request.target);
        if path.to_ascii_uppercase().contains("%2A") {
            return Err(Refusal::identifier()); // S17
        }
        let path = percent_decode(path);
        let path = path.strip_prefix("/rest").unwrap_or_default().trim_end_matches('/');
        match request.method.as_str() {
            "GET" => self.get(path, query).map(unchanged),
            "PUT" => self.put(path, &request.body).map(changed),
            "PATCH" => self.patch(path, &request.body).map(changed),
            "DELETE" => self.delete(path).map(changed),
            "POST" => self.post(path, &request.body),
            _ => Ok(unchanged(Response::html(503, "Service Unavailable"))), // S15
        }
    }

    fn world(&self) -> World<'_> {
        World { store: self.store, profile: self.profile, sessions: self.sessions, uptime_ms: self.uptime_ms }
    }

    fn resolve(&self, path: &str) -> Result<Resource, Refusal> {
        let unknown = |name: &str| Refusal::no_command(400, name);
        let (parent, last) = path.rsplit_once('/').ok_or_else(|| unknown(path))?;
        if last.starts_with('*') {
            shape(self.store, parent).ok_or_else(|| unknown(parent.rsplit('/').next().unwrap_or_default()))?;
            let id = id_of(last).ok_or_else(Refusal::identifier)?;
            return Ok(Resource::Row { menu: parent.to_owned(), id });
        }
        if shape(self.store, path).is_some() {
            return Ok(Resource::Menu(path.to_owned()));
        }
        // S18: rows that have names can be named.
        let named = self
            .world()
            .rows(parent, Secrets::Hidden)
            .into_iter()
            .find(|row| row.get("name").is_some_and(|name| name == last));
        match named.and_then(|row| id_of(row.get(".id")?)) {
            Some(id) => Ok(Resource::Row { menu: parent.to_owned(), id }),
            None => Err(unknown(last)),
        }
    }

    fn print_row(&self, menu: &str, id: u64) -> Result<RawFields, Refusal> {
        if menu != "/interface"
            && let Some(row) = self.store.row(menu, id)
        {
            return Ok(view::row(self.store, menu, row, self.rights.secrets));
        }
        let text = id_text(id);
        let mut rows = self.world().rows(menu, self.rights.secrets).into_iter();
        rows.find(|row| row.get(".id") == Some(&text)).ok_or_else(Refusal::not_found)
    }

    fn get(&self, path: &str, query: &str) -> Result<Response, Refusal> {
        self.require(self.rights.read)?;
        let (proplist, conditions) = parse_query(query);
        match self.resolve(path)? {
            Resource::Row { menu, id } => {
                let mut row = self.print_row(&menu, id)?;
                if let Some(names) = &proplist {
                    query::project(&mut row, names);
                }
                Ok(self.object(200, &row))
            }
            Resource::Menu(menu) if shape(self.store, &menu) == Some(Shape::Singleton) => {
                let mut row = self.world().singleton(&menu, self.rights.secrets);
                if let Some(names) = &proplist {
                    query::project(&mut row, names);
                }
                Ok(self.object(200, &row))
            }
            Resource::Menu(menu) => {
                let mut rows = self.world().rows(&menu, self.rights.secrets);
                query::filter(&mut rows, &conditions);
                if let Some(names) = &proplist {
                    rows.iter_mut().for_each(|row| query::project(row, names));
                }
                Ok(self.array(&rows))
            }
        }
    }

    fn put(&mut self, path: &str, body: &[u8]) -> Result<Response, Refusal> {
        let Resource::Menu(menu) = self.resolve(path)? else { return Err(Refusal::identifier()) };
        let arguments = arguments_of(body)?;
        let id = self.add(&menu, arguments)?;
        let row = self.print_row(&menu, id)?;
        Ok(self.object(201, &row)) // S11
    }

    fn add(&mut self, menu: &str, arguments: RawFields) -> Result<u64, Refusal> {
        self.require_write(menu)?;
        // S06: a menu of one row and a menu without `add` have nothing to name a new row with.
        if shape(self.store, menu) != Some(Shape::List) || is_read_only(menu) || menu == "/interface" {
            return Err(Refusal::identifier());
        }
        write::add(self.store, menu, arguments)
    }

    fn patch(&mut self, path: &str, body: &[u8]) -> Result<Response, Refusal> {
        let Resource::Row { menu, id } = self.resolve(path)? else { return Err(Refusal::identifier()) };
        self.set(&menu, id, &arguments_of(body)?)?;
        let row = self.print_row(&menu, id)?;
        Ok(self.object(200, &row))
    }

    fn set(&mut self, menu: &str, id: u64, arguments: &RawFields) -> Result<(), Refusal> {
        self.require_write(menu)?;
        if is_read_only(menu) {
            return Err(Refusal::no_command(400, "set"));
        }
        let mut owner = menu;
        if menu == "/interface" {
            // S02a: only what all interfaces have can be changed here.
            if let Some(name) = arguments
                .keys()
                .find(|name| !matches!(name.as_str(), "name" | "mtu" | "l2mtu" | "comment" | "disabled"))
            {
                return Err(Refusal::unknown_parameter(name));
            }
            owner = interfaces::menu_of(self.store, id).ok_or_else(Refusal::not_found)?;
        }
        write::set(self.store, self.profile, owner, id, arguments)
    }

    fn delete(&mut self, path: &str) -> Result<Response, Refusal> {
        let Resource::Row { menu, id } = self.resolve(path)? else { return Err(Refusal::identifier()) };
        self.remove(&menu, id)?;
        Ok(Response::json(204, Vec::new()))
    }

    fn remove(&mut self, menu: &str, id: u64) -> Result<(), Refusal> {
        self.require_write(menu)?;
        if is_read_only(menu) || menu == "/interface" {
            return Err(Refusal::no_command(406, "remove"));
        }
        write::remove(self.store, menu, id)
    }

    /// S25: console commands.
    fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer, Refusal> {
        let (menu, command) = path.rsplit_once('/').ok_or_else(|| Refusal::no_command(400, path))?;
        let shape = shape(self.store, menu).ok_or_else(|| Refusal::no_command(400, command))?;
        let mut body = body_of(body)?;
        if let Some(key) = body.keys().find(|key| key.starts_with('?')) {
            return Err(Refusal::unknown_parameter(key)); // S21
        }
        if command == "print" {
            return self.print(menu, shape, body).map(unchanged);
        }
        let targets = body.remove(".id").or_else(|| body.remove("numbers")).map(json::scalar);
        let arguments = scalars(body)?;
        let done = || changed(Response::json(200, b"[]".to_vec()));
        match (command, shape) {
            ("get", _) => self.get_value(menu, shape, targets, &arguments).map(unchanged),
            ("set", Shape::Singleton) if !is_read_only(menu) => {
                self.require_write(menu)?;
                write::set_singleton(self.store, menu, &arguments)?;
                Ok(done())
            }
            ("add", Shape::List) => {
                let id = self.add(menu, arguments)?;
                Ok(changed(self.object(200, &RawFields::from([("ret".to_owned(), id_text(id))]))))
            }
            ("set" | "enable" | "disable", Shape::List) => {
                let arguments = match command {
                    "enable" => RawFields::from([("disabled".to_owned(), "false".to_owned())]),
                    "disable" => RawFields::from([("disabled".to_owned(), "true".to_owned())]),
                    _ => arguments,
                };
                // F12: several rows are changed one after the other, up to the first that is refused.
                for id in self.ids(menu, targets.as_deref())? {
                    self.set(menu, id, &arguments)?;
                }
                Ok(done())
            }
            ("remove", Shape::List) => {
                for id in self.ids(menu, targets.as_deref())? {
                    self.remove(menu, id)?;
                }
                Ok(done())
            }
            ("move", Shape::List) => {
                self.require_write(menu)?;
                if !spec::is_ordered(menu) {
                    return Err(Refusal::no_command(400, command));
                }
                let ids = self.ids(menu, targets.as_deref())?;
                write::move_rows(self.store, menu, &ids, arguments.get("destination").map(String::as_str))?;
                Ok(done())
            }
            _ => Err(Refusal::no_command(400, command)),
        }
    }

    fn ids(&self, menu: &str, targets: Option<&str>) -> Result<Vec<u64>, Refusal> {
        let targets = targets.filter(|targets| !targets.is_empty()).ok_or_else(Refusal::identifier)?;
        let rows = self.world().rows(menu, Secrets::Hidden);
        let one = |target: &str| {
            let key = if target.starts_with('*') { ".id" } else { "name" };
            let wanted = id_of(target).map_or_else(|| target.to_owned(), id_text);
            let row = rows.iter().find(|row| row.get(key) == Some(&wanted)).ok_or_else(Refusal::not_found)?;
            row.get(".id").and_then(|id| id_of(id)).ok_or_else(Refusal::not_found)
        };
        targets.split(',').map(one).collect()
    }

    fn get_value(
        &self,
        menu: &str,
        shape: Shape,
        target: Option<String>,
        arguments: &RawFields,
    ) -> Result<Response, Refusal> {
        self.require(self.rights.read)?;
        let row = match shape {
            Shape::Singleton => self.world().singleton(menu, self.rights.secrets),
            Shape::List => {
                let target = target.or_else(|| arguments.get("number").cloned());
                let id = self.ids(menu, target.as_deref())?.first().copied().ok_or_else(Refusal::identifier)?;
                self.print_row(menu, id)?
            }
        };
        match arguments.get("value-name") {
            Some(name) => {
                let value = row.get(name).cloned().ok_or_else(|| Refusal::no_match("value-name"))?;
                Ok(self.object(200, &RawFields::from([("ret".to_owned(), value)])))
            }
            None => Ok(self.object(200, &row)),
        }
    }

    fn print(&self, menu: &str, shape: Shape, mut body: serde_json::Map<String, Value>) -> Result<Response, Refusal> {
        self.require(self.rights.read)?;
        let proplist = body.remove(".proplist").map(words).transpose()?;
        let query = body.remove(".query").map(words).transpose()?.unwrap_or_default();
        let mut rows = match shape {
            Shape::Singleton => vec![self.world().singleton(menu, self.rights.secrets)],
            Shape::List => self.world().rows(menu, self.rights.secrets),
        };
        query::evaluate(&mut rows, &query)?;
        if let Some(names) = &proplist {
            rows.iter_mut().for_each(|row| query::project(row, names));
        }
        Ok(self.array(&rows))
    }

    fn require(&self, right: bool) -> Result<(), Refusal> {
        if right { Ok(()) } else { Err(Refusal::no_permission(super::login::denial_status(self.profile))) }
    }

    fn require_write(&self, menu: &str) -> Result<(), Refusal> {
        let of_users = menu == "/user" || menu.starts_with("/user/");
        self.require(self.rights.write && (self.rights.policy || !of_users))
    }

    fn control(&self) -> ControlBytes {
        match self.profile.control_characters {
            ControlCharacters::Raw => ControlBytes::Raw,
            ControlCharacters::Escaped => ControlBytes::Escaped,
        }
    }

    fn object(&self, status: u16, row: &RawFields) -> Response {
        let mut body = Vec::new();
        push_object(&mut body, row.iter().map(|(name, value)| (name.as_str(), value.as_str())), self.control());
        Response::json(status, body)
    }

    fn array(&self, rows: &[RawFields]) -> Response {
        let mut body = vec![b'['];
        for (index, row) in rows.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            push_object(&mut body, row.iter().map(|(name, value)| (name.as_str(), value.as_str())), self.control());
        }
        body.push(b']');
        Response::json(200, body)
    }
}

fn changed(response: Response) -> Answer {
    Answer { response, committed: true }
}

fn unchanged(response: Response) -> Answer {
    Answer { response, committed: false }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    text::from_bytes(&out)
}

fn parse_query(query: &str) -> (Option<Vec<String>>, Vec<(String, String)>) {
    let mut proplist = None;
    let mut conditions = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (percent_decode(name), percent_decode(value));
        if name == ".proplist" {
            proplist = Some(value.split(',').map(str::to_owned).collect());
        } else {
            conditions.push((name, value));
        }
    }
    (proplist, conditions)
}

fn body_of(body: &[u8]) -> Result<serde_json::Map<String, Value>, Refusal> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Map::new());
    }
    match json::parse(body) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(Refusal::malformed_body()),
    }
}

fn arguments_of(body: &[u8]) -> Result<RawFields, Refusal> {
    scalars(body_of(body)?)
}

/// S12: requests may hold numbers, truth values and null beside strings.
fn scalars(body: serde_json::Map<String, Value>) -> Result<RawFields, Refusal> {
    body.into_iter()
        .map(|(name, value)| match value {
            Value::Object(_) => Err(Refusal::malformed_body()),
            Value::Array(items) => {
                let items: Vec<String> = items.into_iter().map(json::scalar).collect();
                Ok((name, items.join(",")))
            }
            value => Ok((name, json::scalar(value))),
        })
        .collect()
}

fn words(value: Value) -> Result<Vec<String>, Refusal> {
    match value {
        Value::String(text) => Ok(text.split(',').map(str::to_owned).collect()),
        Value::Array(items) => Ok(items.into_iter().map(json::scalar).collect()),
        _ => Err(Refusal::malformed_body()),
    }
}
