//! Who may come in, as complete operations: users with their passwords, sessions and API keys with their tokens.

use std::net::IpAddr;
use std::time::Duration;

use super::api_keys::{self, ApiKey, NewApiKey};
use super::db::SystemDb;
use super::last_use::{self, Used};
use super::look_up::{Answer, Question, Recall};
use super::sessions::{self, Session, TokenCheck};
use super::token::{self, Token};
use super::users::{self, PasswordHash, User};
use super::{name, password};
use crate::error::Error;
use crate::id::Cause;
use ulid::Ulid;

const USER: Cause = Cause::new("user");
const SESSION: Cause = Cause::new("session");
const API_KEY: Cause = Cause::new("api-key");

/// The users of the system database; see [`users`].
#[derive(Debug, Clone, Copy)]
pub struct Users<'a>(pub(super) &'a SystemDb);

impl Users<'_> {
    /// Creates a user.
    ///
    /// # Errors
    /// As [`users::create`]; [`Error::Encode`] for an empty or overlong password; [`Error::Overloaded`] when too many
    /// passwords wait to be hashed.
    pub async fn create(&self, user: &str, password: &str, role: &str) -> Result<User, Error> {
        // Before the work: a refused name must not cost a hash.
        users::check(user)?;
        name::check("role", role)?;
        let hash = PasswordHash(password::hash(password).await?);
        let (user, role, now, id) = (user.to_owned(), role.to_owned(), self.0.now(), self.0.next_id());
        self.0
            .write(USER, move |conn| {
                Box::pin(async move {
                    users::create(conn, id, &user, &hash, &role, &now).await?;
                    users::get(conn, &user).await?.ok_or_else(|| users::missing(&user))
                })
            })
            .await
    }

    /// Checks a password; `None` when it is wrong, the user does not exist or is disabled, which take equally long.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many passwords wait to be checked, or an error of the database.
    pub async fn authenticate(&self, user: &str, password: &str) -> Result<Option<User>, Error> {
        let known = users::check(user).is_ok();
        let name = user.to_owned();
        let stored = if known {
            self.0.read(USER, move |conn| Box::pin(async move { users::hash(conn, &name).await })).await?
        } else {
            None
        };
        if !password::verify(password, stored.map(|hash| hash.0)).await? {
            return Ok(None);
        }
        self.get(user).await.map(|user| user.filter(|user| !user.disabled))
    }

    /// Returns a user.
    ///
    /// # Errors
    /// As [`users::get`].
    pub async fn get(&self, user: &str) -> Result<Option<User>, Error> {
        let user = user.to_owned();
        self.0.read(USER, move |conn| Box::pin(async move { users::get(conn, &user).await })).await
    }

    /// Returns up to `limit` users by name, those after the name `after`; the empty name starts at the beginning.
    ///
    /// # Errors
    /// As [`users::list`].
    pub async fn list(&self, after: &str, limit: u32) -> Result<Vec<User>, Error> {
        let after = after.to_owned();
        self.0.read(USER, move |conn| Box::pin(async move { users::list(conn, &after, limit).await })).await
    }

    /// Gives a user another password and revokes every session.
    ///
    /// # Errors
    /// As [`users::set_password`] and [`Users::create`].
    pub async fn set_password(&self, user: &str, password: &str) -> Result<(), Error> {
        let hash = PasswordHash(password::hash(password).await?);
        let (user, now) = (user.to_owned(), self.0.now());
        self.0
            .write(USER, move |conn| {
                Box::pin(async move {
                    users::set_password(conn, &user, &hash, &now).await?;
                    sessions::revoke_all(conn, &user, &now).await.map(|_| ())
                })
            })
            .await
    }

    /// Gives a user another role, which holds for running sessions too.
    ///
    /// # Errors
    /// As [`users::set_role`].
    pub async fn set_role(&self, user: &str, role: &str) -> Result<(), Error> {
        let (user, role, now) = (user.to_owned(), role.to_owned(), self.0.now());
        self.0.write(USER, move |conn| Box::pin(async move { users::set_role(conn, &user, &role, &now).await })).await
    }

    /// Refuses a user with all sessions and keys from now on.
    ///
    /// # Errors
    /// As [`users::set_disabled`].
    pub async fn disable(&self, user: &str) -> Result<(), Error> {
        self.set_disabled(user, true).await
    }

    /// Admits a disabled user again, with the sessions and keys that were not revoked.
    ///
    /// # Errors
    /// As [`users::set_disabled`].
    pub async fn enable(&self, user: &str) -> Result<(), Error> {
        self.set_disabled(user, false).await
    }

    async fn set_disabled(&self, user: &str, disabled: bool) -> Result<(), Error> {
        let (user, now) = (user.to_owned(), self.0.now());
        self.0
            .write(USER, move |conn| Box::pin(async move { users::set_disabled(conn, &user, disabled, &now).await }))
            .await
    }

    /// Removes a user with all sessions and keys; returns whether there was one.
    ///
    /// # Errors
    /// As [`users::remove`].
    pub async fn remove(&self, user: &str) -> Result<bool, Error> {
        let user = user.to_owned();
        self.0.write(USER, move |conn| Box::pin(async move { users::remove(conn, &user).await })).await
    }
}

/// The sessions of the system database; see [`sessions`].
#[derive(Debug, Clone, Copy)]
pub struct Sessions<'a>(pub(super) &'a SystemDb);

impl Sessions<'_> {
    /// Issues a session for a user whose password was checked; the token is shown this once.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the user does not exist or is disabled, or an error of the database.
    pub async fn issue(&self, user: &str, ttl: Duration, ip_address: Option<IpAddr>) -> Result<(Token, Ulid), Error> {
        let token = Token::session()?;
        let hash = token::hash_of(token.expose()).unwrap_or_default();
        let (user, now, id) = (user.to_owned(), self.0.now(), self.0.next_id());
        let done: Result<(), Error> = self
            .0
            .write(SESSION, move |conn| {
                Box::pin(async move { sessions::insert(conn, id, &hash, &user, ttl, ip_address, &now).await })
            })
            .await;
        done.map(|()| (token, id))
    }

    /// Checks a presented token. Once a revocation, of any process, is answered, the token is refused.
    ///
    /// # Errors
    /// An error of the database.
    pub async fn check(&self, presented: &str) -> Result<TokenCheck<Session>, Error> {
        let Some(hash) = token::hash_of(presented) else { return Ok(TokenCheck::Unknown) };
        let question = Question::Session(hash);
        let session = match self.0.look_ups().recall(&question).await? {
            Recall::Known(Answer::Session(session)) => Some(session),
            Recall::Known(_) => None,
            Recall::Ask { version } => {
                let found: Option<Session> = self
                    .0
                    .read(SESSION, move |conn| Box::pin(async move { sessions::find(conn, &hash).await }))
                    .await?;
                if let Some(session) = &found {
                    self.0.look_ups().remember(version, question, Answer::Session(session.clone()));
                }
                found
            }
        };
        let Some(session) = session else { return Ok(TokenCheck::Unknown) };
        let checked = session.check(&self.0.now());
        if let TokenCheck::Valid(session) = &checked {
            self.0.note_use(Used::Session(session.id)).await;
        }
        Ok(checked)
    }

    /// Returns the sessions of a user, ended ones included.
    ///
    /// # Errors
    /// As [`sessions::list`].
    pub async fn list(&self, user: &str) -> Result<Vec<Session>, Error> {
        let user = user.to_owned();
        let mut all: Vec<Session> =
            self.0.read(SESSION, move |conn| Box::pin(async move { sessions::list(conn, &user).await })).await?;
        let used = all.iter().map(|session| Used::Session(session.id)).collect();
        let noted = last_use::noted(self.0.runtime(), used).await?;
        for (session, noted) in all.iter_mut().zip(noted) {
            session.last_seen_ms = session.last_seen_ms.max(noted);
        }
        Ok(all)
    }

    /// Revokes a session; returns whether it was not revoked before.
    ///
    /// # Errors
    /// As [`sessions::revoke`].
    pub async fn revoke(&self, id: Ulid) -> Result<bool, Error> {
        let now = self.0.now();
        self.0.write(SESSION, move |conn| Box::pin(async move { sessions::revoke(conn, id, &now).await })).await
    }

    /// Revokes every session of a user; returns how many.
    ///
    /// # Errors
    /// As [`sessions::revoke_all`].
    pub async fn revoke_all(&self, user: &str) -> Result<u64, Error> {
        let (user, now) = (user.to_owned(), self.0.now());
        self.0.write(SESSION, move |conn| Box::pin(async move { sessions::revoke_all(conn, &user, &now).await })).await
    }

    /// Removes sessions that ended longer ago than `keep`; returns how many.
    ///
    /// # Errors
    /// As [`sessions::prune`].
    pub async fn prune(&self, keep: Duration) -> Result<u64, Error> {
        let now = self.0.now();
        self.0.write(SESSION, move |conn| Box::pin(async move { sessions::prune(conn, keep, &now).await })).await
    }
}

/// The API keys of the system database; see [`api_keys`].
#[derive(Debug, Clone, Copy)]
pub struct ApiKeys<'a>(pub(super) &'a SystemDb);

impl ApiKeys<'_> {
    /// Issues a key; its text is shown this once.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the user does not exist or is disabled, [`Error::InvalidName`], or an error of the
    /// database.
    pub async fn issue(&self, new: NewApiKey) -> Result<(Token, Ulid), Error> {
        new.check()?;
        let (key, now, id) = (Token::api_key()?, self.0.now(), self.0.next_id());
        let stored = key.clone();
        let done: Result<(), Error> = self
            .0
            .write(API_KEY, move |conn| Box::pin(async move { api_keys::insert(conn, id, &stored, &new, &now).await }))
            .await;
        done.map(|()| (key, id))
    }

    /// Checks a presented key. Once a revocation, of any process, is answered, the key is refused.
    ///
    /// # Errors
    /// An error of the database.
    pub async fn check(&self, presented: &str) -> Result<TokenCheck<ApiKey>, Error> {
        let (Some(hash), Some(prefix)) = (token::hash_of(presented), token::prefix_of(presented)) else {
            return Ok(TokenCheck::Unknown);
        };
        let question = Question::ApiKey(prefix.to_owned());
        let key = match self.0.look_ups().recall(&question).await? {
            Recall::Known(Answer::ApiKey(key)) => Some(key),
            Recall::Known(_) => None,
            Recall::Ask { version } => {
                let prefix = prefix.to_owned();
                let found: Option<ApiKey> = self
                    .0
                    .read(API_KEY, move |conn| Box::pin(async move { api_keys::find(conn, &prefix).await }))
                    .await?;
                if let Some(key) = &found {
                    self.0.look_ups().remember(version, question, Answer::ApiKey(key.clone()));
                }
                found
            }
        };
        let Some(key) = key.filter(|key| token::same(&key.hash, &hash)) else { return Ok(TokenCheck::Unknown) };
        let checked = key.check(&self.0.now());
        if let TokenCheck::Valid(key) = &checked {
            self.0.note_use(Used::ApiKey(key.id)).await;
        }
        Ok(checked)
    }

    /// Returns the keys of a user, revoked ones included.
    ///
    /// # Errors
    /// As [`api_keys::list`].
    pub async fn list(&self, user: &str) -> Result<Vec<ApiKey>, Error> {
        let user = user.to_owned();
        let mut all: Vec<ApiKey> =
            self.0.read(API_KEY, move |conn| Box::pin(async move { api_keys::list(conn, &user).await })).await?;
        let used = all.iter().map(|key| Used::ApiKey(key.id)).collect();
        let noted = last_use::noted(self.0.runtime(), used).await?;
        for (key, noted) in all.iter_mut().zip(noted) {
            key.last_used_ms = key.last_used_ms.max(noted);
        }
        Ok(all)
    }

    /// Revokes a key; returns whether it was not revoked before.
    ///
    /// # Errors
    /// As [`api_keys::revoke`].
    pub async fn revoke(&self, id: Ulid) -> Result<bool, Error> {
        let now = self.0.now();
        self.0.write(API_KEY, move |conn| Box::pin(async move { api_keys::revoke(conn, id, &now).await })).await
    }

    /// Removes a key; returns whether there was one.
    ///
    /// # Errors
    /// As [`api_keys::remove`].
    pub async fn remove(&self, id: Ulid) -> Result<bool, Error> {
        self.0.write(API_KEY, move |conn| Box::pin(async move { api_keys::remove(conn, id).await })).await
    }
}
