//! The one cache of `system.db`: tokens and settings, in bounded memory, never older than the last commit.
//!
//! A commit of any connection of any process changes `PRAGMA data_version` of the connection kept here, so asking for
//! it tells whether what is remembered still holds. That is one step of SQLite instead of a transaction and a query,
//! and no write path can forget to invalidate anything.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Mutex as AsyncMutex;

use super::api_keys::ApiKey;
use super::last_use::{GRAIN_MS, Used};
use super::sessions::Session;
use super::settings::Setting;
use crate::connection::{Guarded, Role, Target};
use crate::driver::during;
use crate::error::Error;

/// Most remembered answers.
const ANSWERS_MAX: usize = 1024;

/// Most remembered uses; forgetting them costs a write to memory each.
const USES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Session([u8; 32]),
    ApiKey(String),
    Setting(String, String),
}

/// Only what exists is remembered for tokens, so that presenting random ones pushes nothing out.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Session(Session),
    ApiKey(ApiKey),
    Setting(Option<Setting>),
}

/// What was remembered, or the version to remember a fresh answer under.
#[expect(clippy::large_enum_variant, reason = "it lives on the stack between the question and the answer")]
pub(super) enum Recall {
    Known(Answer),
    Ask { version: Version },
}

#[derive(Debug)]
pub(super) struct LookUps {
    target: Target,
    /// Opened when first needed, closed with the database.
    conn: AsyncMutex<Watch>,
    remembered: Mutex<Remembered>,
    used: Mutex<HashMap<Used, i64>>,
}

#[derive(Debug)]
enum Watch {
    Idle,
    Open(Box<Guarded>),
    Closed,
}

/// Which connection said it, and what it said: the numbers of two connections cannot be compared.
pub(super) type Version = (u64, i64);

#[derive(Debug, Default)]
struct Remembered {
    version: Version,
    connections: u64,
    answers: HashMap<Question, Answer>,
    /// Oldest first.
    order: VecDeque<Question>,
    hits: u64,
}

impl LookUps {
    pub(super) fn new(target: Target) -> Self {
        Self { target, conn: AsyncMutex::new(Watch::Idle), remembered: Mutex::default(), used: Mutex::default() }
    }

    /// Returns a remembered answer if nothing was committed since it was given.
    pub(super) async fn recall(&self, question: &Question) -> Result<Recall, Error> {
        let version = self.version().await?;
        let mut remembered = self.remembered();
        if remembered.version != version {
            remembered.answers.clear();
            remembered.order.clear();
            remembered.version = version;
        }
        match remembered.answers.get(question).cloned() {
            Some(answer) => {
                remembered.hits += 1;
                Ok(Recall::Known(answer))
            }
            None => Ok(Recall::Ask { version }),
        }
    }

    /// Remembers an answer that was read after `version` was; a commit in between makes the version another one.
    pub(super) fn remember(&self, version: Version, question: Question, answer: Answer) {
        let mut remembered = self.remembered();
        if remembered.version != version {
            return;
        }
        if remembered.answers.insert(question.clone(), answer).is_none() {
            remembered.order.push_back(question);
        }
        while remembered.answers.len() > ANSWERS_MAX {
            let Some(oldest) = remembered.order.pop_front() else { break };
            remembered.answers.remove(&oldest);
        }
    }

    /// Tells whether a use is worth noting: not more than once a minute for each.
    pub(super) fn worth_noting(&self, used: Used, wall_ms: i64) -> bool {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&used).is_some_and(|last| (wall_ms - last).unsigned_abs() < GRAIN_MS.unsigned_abs()) {
            return false;
        }
        if all.len() >= USES_MAX {
            all.clear();
        }
        all.insert(used, wall_ms);
        true
    }

    /// How many questions were answered from memory.
    pub(super) fn hits(&self) -> u64 {
        self.remembered().hits
    }

    async fn version(&self) -> Result<Version, Error> {
        let mut watch = self.conn.lock().await;
        if matches!(*watch, Watch::Closed) {
            return Err(Error::Closed { path: self.target.path.clone() });
        }
        // Taken out while in use: a caller who stops waiting drops the connection instead of leaving a statement in it.
        let mut guarded = match std::mem::replace(&mut *watch, Watch::Idle) {
            Watch::Open(guarded) => guarded,
            _ => {
                let guarded = Box::new(self.target.connect(Role::Reader).await?);
                self.remembered().connections += 1;
                guarded
            }
        };
        let version = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut guarded.conn).await;
        let version = version.map_err(during("ask for the data version"))?;
        *watch = Watch::Open(guarded);
        Ok((self.remembered().connections, version))
    }

    pub(super) async fn close(&self) {
        let mut watch = self.conn.lock().await;
        if let Watch::Open(guarded) = std::mem::replace(&mut *watch, Watch::Closed)
            && let Err(error) = guarded.close().await
        {
            tracing::warn!(%error, "closing the connection of the look-ups failed");
        }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
