//! What the conformance suite needs of a store: another holder, a clock that tests move, a death and a guarded write.
#![allow(async_fn_in_trait)]

use std::time::Duration;

use nasnet_dbmanager::{Cause, DbManager};
use nasnet_locking::{Error, LockManager, LockOptions, WriteRight};

use super::{World, open, options, r1};

/// A store of leases and a database of guarded rows.
pub trait Backend {
    /// Opens a manager that stands for another process, or another node.
    async fn manager(&self, options: LockOptions) -> LockManager;
    /// Lets time pass on the clock that leases end by.
    async fn pass(&self, by: Duration);
    /// Ends the session of a manager the way a killed process does.
    async fn kill(&self, locks: &LockManager);
    /// Writes a row, after the fence and in its transaction.
    async fn write(&self, right: &WriteRight, who: &'static str) -> Result<(), Error>;
    /// Returns who wrote, in order.
    async fn written(&self) -> Vec<(String, i64)>;
}

pub struct Sqlite {
    world: World,
    db: DbManager,
}

impl Sqlite {
    pub async fn new() -> Self {
        let world = World::new();
        let mut options = options(world.data.path(), world.run.path());
        options.clock = std::sync::Arc::new(world.clock.clone());
        let db = open(options).await;
        let create = "CREATE TABLE guarded (who TEXT NOT NULL, token INTEGER NOT NULL) STRICT";
        let router = db.router(&r1()).await.unwrap();
        router
            .write(Cause::new("test"), move |conn| {
                Box::pin(async move {
                    sqlx::query(create).execute(conn).await.map_err(|source| Error::Db(source.into()))?;
                    Ok::<_, Error>(())
                })
            })
            .await
            .unwrap();
        Self { world, db }
    }
}

impl Backend for Sqlite {
    async fn manager(&self, options: LockOptions) -> LockManager {
        LockManager::open(&self.db, options).await.unwrap()
    }

    async fn pass(&self, by: Duration) {
        self.world.advance(by);
    }

    async fn kill(&self, locks: &LockManager) {
        // What the kernel does when the process dies: the lock on the session file is gone.
        let file = self.world.run.path().join("sessions").join(locks.session().to_string());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, b"").unwrap();
    }

    async fn write(&self, right: &WriteRight, who: &'static str) -> Result<(), Error> {
        let (router, right) = (self.db.router(&r1()).await?, right.clone());
        router
            .write(Cause::new("test"), move |conn| {
                Box::pin(async move {
                    right.check(conn).await?;
                    sqlx::query("INSERT INTO guarded (who, token) VALUES (?1, ?2)")
                        .bind(who)
                        .bind(i64::try_from(right.token().get()).unwrap())
                        .execute(conn)
                        .await
                        .map_err(|source| Error::Db(source.into()))?;
                    Ok(())
                })
            })
            .await
    }

    async fn written(&self) -> Vec<(String, i64)> {
        let router = self.db.router(&r1()).await.unwrap();
        router
            .read(Cause::new("test"), |conn| {
                Box::pin(async move {
                    sqlx::query_as("SELECT who, token FROM guarded ORDER BY rowid")
                        .fetch_all(conn)
                        .await
                        .map_err(|source| Error::Db(source.into()))
                })
            })
            .await
            .unwrap()
    }
}
