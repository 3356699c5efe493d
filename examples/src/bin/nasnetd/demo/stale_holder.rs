//! The process that oversleeps its lease: it takes the lease, goes on only after somebody else has taken over and
//! written, and then tries to finish its own write.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nasnet_dbmanager::{Cause, DbManager, Options, RouterId};
use nasnet_locking::{AcquireRequest, LockInfo, LockKey, LockManager, LockOptions};
use nasnet_state::layer::metadata::Notes;
use nasnet_state::{Stamp, store};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{schema_sets, timestamp};

/// Short, so that the demo need not wait long for it to run out.
const TTL: Duration = Duration::from_millis(400);

/// What the parent hands over.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) data: PathBuf,
    #[arg(long)]
    pub(crate) run: PathBuf,
    #[arg(long)]
    pub(crate) router: RouterId,
    #[arg(long)]
    pub(crate) resource: Ulid,
}

/// One line of the child's stdout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// The lease is held.
    Acquired {
        /// Its token.
        token: u64,
    },
    /// The write ended.
    Wrote {
        /// Whether it committed.
        committed: bool,
        /// Whether it was refused because of the token.
        fenced: bool,
        /// What the child saw.
        detail: String,
    },
}

/// Why a write of the child or of its successor did not commit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Db(#[from] nasnet_dbmanager::Error),
    #[error(transparent)]
    State(#[from] nasnet_state::Error),
    #[error(transparent)]
    Lock(#[from] nasnet_locking::Error),
    #[error(transparent)]
    Events(#[from] nasnet_events::Error),
}

/// Runs the child.
pub(crate) async fn run(args: Args) -> ExitCode {
    match hold(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => crate::fail(1, &why),
    }
}

async fn hold(args: Args) -> Result<(), String> {
    let options = Options::new(&args.data).run_dir(&args.run).schemas(schema_sets());
    let manager = DbManager::open(options).await.map_err(text)?;
    let locks = LockManager::open(&manager, LockOptions::default()).await.map_err(text)?;
    let key = LockKey::resource(&args.router, args.resource).map_err(text)?;
    let request = AcquireRequest::exclusive(key, LockInfo::new("stale-holder", "oversleep a lease")).ttl(TTL);
    let guard = locks.acquire(request).await.map_err(text)?;
    say(&Line::Acquired { token: guard.token().get() })?;

    // The parent answers when it has taken the lease over and written: this process sleeps all the while.
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(text)?;

    let right = guard.write_right();
    let now = manager.now();
    let database = manager.router(&args.router).await.map_err(text)?;
    let written: Result<(), WriteError> = database
        .write(Cause::new("demo-stale-write"), move |conn| {
            Box::pin(async move {
                let notes = Notes { description: "written by a stale holder".to_owned(), ..Notes::default() };
                let version = store::get(conn, args.resource).await?.versions.metadata;
                store::write_notes(conn, args.resource, version, notes, &Stamp::new(timestamp(&now), "stale-holder"))
                    .await?;
                // In the middle of its write: the row is changed, and the check takes the change with it.
                right.check(conn).await?;
                Ok(())
            })
        })
        .await;
    say(&match written {
        Ok(()) => Line::Wrote { committed: true, fenced: false, detail: "committed".to_owned() },
        Err(error) => {
            let fenced = matches!(error, WriteError::Lock(nasnet_locking::Error::Fenced { .. }));
            Line::Wrote { committed: false, fenced, detail: error.to_string() }
        }
    })?;
    drop(guard);
    locks.shutdown().await.map_err(text)?;
    drop(database);
    manager.shutdown().await.map_err(text)
}

fn say(line: &Line) -> Result<(), String> {
    let mut text = serde_json::to_string(line).map_err(|error| error.to_string())?;
    text.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| error.to_string())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
