//! A session on a PostgreSQL server: an advisory lock of one connection, which the server drops with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Executor;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};

use crate::error::Error;
use crate::store::postgres::failed;
use crate::store::postgres::rows::{FREED, SessionId};

/// A machine that vanished is noticed after about ten seconds instead of the two hours TCP takes by default.
const SETTINGS: &str = "
SET idle_session_timeout = 0;
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 2;
SET tcp_keepalives_count = 3";
const HOLD: &str = "SELECT pg_try_advisory_lock($1)";

/// The session that is current, and how to begin the next one.
#[derive(Debug)]
pub(super) struct Sessions {
    connect: PgConnectOptions,
    freed: Arc<Notify>,
    current: Mutex<Current>,
    /// Becomes true when the manager gives up its session: no other one begins.
    end: watch::Receiver<bool>,
}

#[derive(Debug, Clone)]
struct Current {
    id: SessionId,
    alive: Arc<AtomicBool>,
}

/// Ends the session when it is dropped.
#[derive(Debug)]
pub(crate) struct Life(watch::Sender<bool>);

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.0.send(true);
    }
}

impl Sessions {
    pub(super) async fn begin(
        connect: PgConnectOptions,
        freed: Arc<Notify>,
        id: SessionId,
    ) -> Result<(Self, Life), Error> {
        let (life, end) = watch::channel(false);
        let current = hold(&connect, &freed, id, end.clone()).await?;
        Ok((Self { connect, freed, current: Mutex::new(current), end }, Life(life)))
    }

    pub(super) fn id(&self) -> SessionId {
        self.current().id
    }

    /// Tells whether the connection that holds the session is known to be lost.
    pub(super) fn is_lost(&self) -> bool {
        !self.current().alive.load(Ordering::SeqCst)
    }

    /// Begins another session after `lost`, unless that has been done.
    pub(super) async fn begin_another(&self, lost: SessionId, next: SessionId) -> Result<(), Error> {
        if self.id() != lost {
            return Ok(());
        }
        if *self.end.borrow() {
            return Err(Error::Closed);
        }
        let begun = hold(&self.connect, &self.freed, next, self.end.clone()).await?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.id == lost {
            *current = begun;
        }
        Ok(())
    }

    fn current(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes the lock of a session on a connection of its own and keeps it until the end of either.
async fn hold(
    connect: &PgConnectOptions,
    freed: &Arc<Notify>,
    id: SessionId,
    mut end: watch::Receiver<bool>,
) -> Result<Current, Error> {
    let fail = || failed("begin a session");
    let pool = PgPoolOptions::new().max_connections(1).max_lifetime(None).idle_timeout(None);
    let pool = pool.connect_with(connect.clone()).await.map_err(fail())?;
    let mut listener = PgListener::connect_with(&pool).await.map_err(fail())?;
    // A connection that is opened again does not hold the lock any more.
    listener.eager_reconnect(false);
    listener.execute(sqlx::raw_sql(SETTINGS)).await.map_err(fail())?;
    if !sqlx::query_scalar::<_, bool>(HOLD).bind(id.lock()).fetch_one(&mut listener).await.map_err(fail())? {
        return Err(Error::SessionEnded);
    }
    listener.listen(FREED).await.map_err(fail())?;
    let alive = Arc::new(AtomicBool::new(true));
    let current = Current { id, alive: Arc::clone(&alive) };
    let freed = Arc::clone(freed);
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                heard = listener.try_recv() => heard,
                _ = end.wait_for(|ended| *ended) => break,
            };
            match heard {
                Ok(Some(_)) => freed.notify_waiters(),
                lost => {
                    tracing::warn!(session = %id.0, error = ?lost.err(), "the session with the lease store is lost");
                    break;
                }
            }
        }
        alive.store(false, Ordering::SeqCst);
        freed.notify_waiters();
        // The lock goes with the connection, which goes with the pool.
        drop(listener);
        pool.close().await;
    });
    Ok(current)
}
