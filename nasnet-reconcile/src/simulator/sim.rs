//! The simulated router.

use super::admin::Admin;
use super::base;
use super::dispatch::{self, Router, menu_of_target, split_target};
use super::fault::{Fault, FaultPlan, FaultRule};
use super::log::{LogEntry, RequestLog};
use super::login;
use super::message::{Delivery, Request, Response};
use super::profile::SimProfile;
use super::refusal::Refusal;
use super::seed::{self, SeedMenu, SeedReport};
use super::store::Store;

/// One simulated router: its configuration, its faults and what was asked of it.
///
/// It does no I/O and reads no clock: [`Sim::handle`] maps a request to a response.
pub struct Sim {
    pub(crate) profile: SimProfile,
    pub(crate) store: Store,
    sessions: Vec<(String, String)>,
    faults: FaultPlan,
    log: RequestLog,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Sim {
    /// Makes a router without configuration: its ports, services, groups, and the user `admin` with an empty password.
    pub fn new(profile: SimProfile) -> Self {
        let mut store = Store::new(profile.random_seed);
        base::fill(&mut store, &profile);
        Self::with_store(profile, store)
    }

    pub(crate) fn with_store(profile: SimProfile, store: Store) -> Self {
        Self { profile, store, sessions: Vec::new(), faults: FaultPlan::default(), log: RequestLog::default() }
    }

    /// Loads the configuration of an export. Nothing is refused or dropped; what a router would have refused is loaded
    /// as it is and reported.
    pub fn seed(&mut self, menus: &[SeedMenu]) -> SeedReport {
        seed::load(&mut self.store, menus)
    }

    /// Returns which router this is.
    pub fn profile(&self) -> &SimProfile {
        &self.profile
    }

    /// Answers a request; `uptime_ms` is the router's clock.
    pub fn handle(&mut self, request: &Request, uptime_ms: u64) -> Response {
        let fault = self.faults.meet(&request.method, &menu_of_target(&request.method, &request.target));
        let (mut response, committed) = match fault {
            Some(Fault::DropBeforeCommit) => (Response::json(0, Vec::new()), false),
            Some(Fault::Unauthorized) => (refused(&Refusal::unauthorized()), false),
            Some(Fault::ServiceUnavailable) => (Response::html(503, "Service Unavailable"), false),
            _ => self.answer(request, uptime_ms),
        };
        let half = response.body.len() / 2;
        response.delivery = match fault {
            Some(Fault::NeverAnswer) => Delivery::Never,
            Some(Fault::DropBeforeCommit | Fault::DropAfterCommit) => Delivery::Dropped,
            // An answer without a body has no middle.
            Some(Fault::CutBody) if half == 0 => Delivery::Dropped,
            Some(Fault::CutBody) => Delivery::Cut { bytes: half },
            Some(Fault::DelayReply { by_ms }) => Delivery::Delayed { by_ms },
            _ => Delivery::Whole,
        };
        if fault == Some(Fault::TruncatedJson) {
            response.body.truncate(half);
        }
        self.log.push(LogEntry {
            number: 0,
            at_ms: uptime_ms,
            method: request.method.clone(),
            path: split_target(&request.target).0.to_owned(),
            status: response.status,
            committed,
            delivery: response.delivery,
            fault: fault.map(Fault::id),
        });
        response
    }

    fn answer(&mut self, request: &Request, uptime_ms: u64) -> (Response, bool) {
        if split_target(&request.target).0.strip_prefix("/rest").is_none_or(|rest| !rest.starts_with('/')) {
            return (Response::html(404, "Not Found"), false);
        }
        let (name, rights) = match login::authenticate(&self.store, &self.profile, request) {
            Ok(login) => login,
            Err(refusal) => return (refused(&refusal), false),
        };
        let session = (name, request.peer.clone());
        if !self.sessions.contains(&session) {
            self.sessions.push(session);
        }
        let router =
            Router { store: &mut self.store, profile: &self.profile, sessions: &self.sessions, uptime_ms, rights };
        match router.dispatch(request) {
            Ok(dispatch::Answer { response, committed }) => (response, committed),
            Err(refusal) => (refused(&refusal), false),
        }
    }

    /// Changes the configuration the way another administrator would: past the REST API, by the router's own rules.
    ///
    /// # Errors
    ///
    /// Returns the first refusal the closure returns; nothing is changed then.
    pub fn edit<T>(&mut self, edits: impl FnOnce(&mut Admin<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut changed = self.store.clone();
        let result = edits(&mut Admin { store: &mut changed, profile: &self.profile })?;
        self.store = changed;
        Ok(result)
    }

    /// Adds a rule for a fault.
    pub fn inject(&mut self, rule: FaultRule) {
        self.faults.push(rule);
    }

    /// Forgets the faults that have not happened yet.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Counts the rules whose faults have not all happened yet.
    pub fn pending_faults(&self) -> usize {
        self.faults.pending()
    }

    /// Returns the newest requests, oldest first.
    pub fn log(&self) -> Vec<LogEntry> {
        self.log.entries()
    }
}

fn refused(refusal: &Refusal) -> Response {
    Response::json(refusal.status, refusal.body())
}
