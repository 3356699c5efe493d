//! Step 6: a process that outlived its lease is fenced out in the middle of its write.

use std::process::Stdio;
use std::time::Duration;

use nasnet_dbmanager::{Cause, Scope};
use nasnet_events::{EventType, Expected, NewEvent, StreamAppend, StreamName};
use nasnet_locking::{AcquireRequest, LockInfo, LockKey};
use nasnet_state::layer::metadata::Notes;
use nasnet_state::{Stamp, store};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use ulid::Ulid;

use super::checks::Checks;
use super::stale_holder::{Line, WriteError};
use super::{Demo, Failure, timestamp};

/// How long the parent waits for the child's short lease to run out; it is granted as soon as that happens.
const WAIT: Duration = Duration::from_secs(10);

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let resource = demo.interface.ok_or_else(|| Failure::new("the change set of step 3 left no resource"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("stale-holder")
        .arg("--data")
        .arg(demo.manager.data_dir())
        .arg("--run")
        .arg(demo.manager.run_dir())
        .arg("--router")
        .arg(demo.router_id.as_str())
        .arg("--resource")
        .arg(resource.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| Failure::new("the child has no stdin"))?;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| Failure::new("the child has no stdout"))?).lines();

    let Line::Acquired { token: stale } = next(&mut lines).await? else {
        return Err(Failure::new("the child did not say that it holds the lease"));
    };
    let key = LockKey::resource(&demo.router_id, resource)?;
    let request = AcquireRequest::exclusive(key.clone(), LockInfo::new("nasnetd", "demo"));
    let refused = demo.locks.acquire(request.clone()).await;
    checks.that(
        "while the lease runs, a second holder is refused and told who has it",
        matches!(&refused, Err(nasnet_locking::Error::Held { holder, .. }) if holder.info.actor == "stale-holder"),
        refused.as_ref().err().map_or_else(|| "granted".to_owned(), ToString::to_string),
    );
    drop(refused);
    // Waits until the child's lease has run out, then takes over and writes under the new token.
    let guard = demo.locks.acquire(request.wait(WAIT)).await?;
    let fresh = guard.token().get();
    checks.that("the token of the second holder is higher", fresh > stale, format!("{stale} then {fresh}"));
    let wanted = format!("written under token {fresh}");
    write_notes(demo, resource, &wanted, guard.write_right()).await?;

    go_on(&mut stdin).await?;
    match next(&mut lines).await? {
        Line::Wrote { committed, fenced, detail } => {
            checks.that("the stale write did not commit", !committed, &detail);
            checks.that("it was refused because of its token", fenced, &detail);
        }
        Line::Acquired { .. } => return Err(Failure::new("the child acquired a second lease")),
    }
    let status = child.wait().await?;
    checks.that("the child ended by itself", status.success(), status);

    let database = demo.manager.router(&demo.router_id).await?;
    let notes = database
        .read::<_, WriteError, _>(Cause::new("demo-read"), move |conn| {
            Box::pin(async move { Ok(store::get(conn, resource).await?.metadata.notes.description) })
        })
        .await?;
    checks.equal("the database holds what the current holder wrote", &notes, &wanted);
    guard.release().await?;
    demo.operation("stale write of a second process", "Fenced");
    Ok(())
}

/// Changes a resource the way every writer must: state, its event and the fence check in one transaction.
async fn write_notes(
    demo: &Demo,
    resource: Ulid,
    text: &str,
    right: nasnet_locking::WriteRight,
) -> Result<(), Failure> {
    let database = demo.manager.router(&demo.router_id).await?;
    let (events, scope) = (demo.events.clone(), Scope::Router(demo.router_id.clone()));
    let (now, id, text) = (demo.manager.now(), demo.manager.next_ulid(), text.to_owned());
    let pending = database
        .write::<_, WriteError, _>(Cause::new("demo-write"), move |conn| {
            Box::pin(async move {
                right.check(conn).await?;
                let version = store::get(conn, resource).await?.versions.metadata;
                let notes = Notes { description: text, ..Notes::default() };
                let stamp = Stamp::new(timestamp(&now), "nasnetd");
                let Some(change) = store::write_notes(conn, resource, version, notes, &stamp).await? else {
                    return Ok(None);
                };
                let kind = EventType::parse(change.event_type())?;
                let append = StreamAppend {
                    stream: StreamName::parse(&format!("resource/{resource}"))?,
                    expected: Expected::Any,
                    events: vec![NewEvent::new(id, kind, &change)?],
                };
                Ok(Some(events.append_in(conn, &scope, vec![append]).await?))
            })
        })
        .await?;
    if let Some(pending) = pending {
        demo.events.published(pending).await;
    }
    Ok(())
}

async fn next(lines: &mut tokio::io::Lines<BufReader<ChildStdout>>) -> Result<Line, Failure> {
    let line = tokio::time::timeout(WAIT, lines.next_line())
        .await
        .map_err(|_| Failure::new("the child said nothing for ten seconds"))??
        .ok_or_else(|| Failure::new("the child ended without saying why"))?;
    Ok(serde_json::from_str(&line)?)
}

async fn go_on(stdin: &mut ChildStdin) -> Result<(), Failure> {
    stdin.write_all(b"go on\n").await?;
    Ok(stdin.flush().await?)
}
