//! Scripted faults: which request meets which misfortune.

use crate::device::MenuPath;

/// A misfortune of one request. Refused connections (F01) are the HTTP front end's:
/// [`SimServer::refuse_connections`](super::SimServer::refuse_connections).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// F02: the command is done, no answer ever comes and the connection stays open.
    NeverAnswer,
    /// F03: the connection closes before the command is done.
    DropBeforeCommit,
    /// F04: the command is done and the connection closes without an answer.
    DropAfterCommit,
    /// F05: the command is done and the connection closes in the middle of the answer's body.
    CutBody,
    /// F06: the command is done and the answer comes late.
    DelayReply {
        /// How late.
        by_ms: u64,
    },
    /// F08: the login is refused, as after a password change.
    Unauthorized,
    /// F09: a page of HTML with status 503 instead of an answer, and the command is not done.
    ServiceUnavailable,
    /// F10: the command is done and the answer's JSON breaks off in the middle.
    TruncatedJson,
}

impl Fault {
    /// Returns the fault's id in the table of behaviours.
    pub fn id(self) -> &'static str {
        match self {
            Self::NeverAnswer => "F02",
            Self::DropBeforeCommit => "F03",
            Self::DropAfterCommit => "F04",
            Self::CutBody => "F05",
            Self::DelayReply { .. } => "F06",
            Self::Unauthorized => "F08",
            Self::ServiceUnavailable => "F09",
            Self::TruncatedJson => "F10",
        }
    }
}

/// A fault and the requests it meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    fault: Fault,
    method: Option<String>,
    menu: Option<MenuPath>,
    skip: u32,
    times: u32,
}

impl FaultRule {
    /// Meets the next request, whatever it is.
    pub fn next(fault: Fault) -> Self {
        Self { fault, method: None, menu: None, skip: 0, times: 1 }
    }

    /// Meets only requests with this method.
    #[must_use]
    pub fn on_method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Meets only requests to this menu and its rows.
    #[must_use]
    pub fn on_menu(mut self, menu: MenuPath) -> Self {
        self.menu = Some(menu);
        self
    }

    /// Lets this many matching requests pass first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.skip = requests;
        self
    }

    /// Meets this many matching requests instead of one.
    #[must_use]
    pub fn times(mut self, requests: u32) -> Self {
        self.times = requests;
        self
    }
}

/// The rules that are still waiting for their requests.
#[derive(Debug, Default)]
pub(crate) struct FaultPlan {
    rules: Vec<FaultRule>,
}

impl FaultPlan {
    pub(crate) fn push(&mut self, rule: FaultRule) {
        self.rules.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn pending(&self) -> usize {
        self.rules.len()
    }

    /// Returns the fault a request meets, and counts it. The first matching rule decides.
    pub(crate) fn meet(&mut self, method: &str, menu: &str) -> Option<Fault> {
        let matches = |rule: &FaultRule| {
            rule.method.as_deref().is_none_or(|wanted| wanted == method)
                && rule.menu.as_ref().is_none_or(|wanted| wanted.as_str() == menu)
        };
        let index = self.rules.iter().position(matches)?;
        let rule = &mut self.rules[index];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        let fault = rule.fault;
        rule.times = rule.times.saturating_sub(1);
        if rule.times == 0 {
            self.rules.remove(index);
        }
        Some(fault)
    }
}
