//! Step 11: secrets are looked for where they must not be, and the figures are taken.

use std::path::Path;

use nasnet_state::store;

use super::checks::Checks;
use super::stale_holder::WriteError;
use super::{Demo, Failure, flash_bytes};

pub(crate) async fn step(demo: &mut Demo, checks: &mut Checks) -> Result<(), Failure> {
    let mut files = 0;
    let mut leaks = Vec::new();
    let needles: Vec<Vec<u8>> = demo.secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
    // The simulator is the router: it may know its own secrets. Everything else may not.
    let own = demo.manager.data_dir().join("simulator");
    for root in [demo.manager.data_dir(), demo.manager.run_dir(), &demo.cold] {
        scan(root, &own, &needles, &mut files, &mut leaks)?;
    }
    checks.that("no file holds a secret in clear", leaks.is_empty() && files > 3, format!("{files} files, {leaks:?}"));

    let database = demo.manager.router(&demo.router_id).await?;
    let stored = database
        .read::<_, WriteError, _>(nasnet_dbmanager::Cause::new("demo-read"), |conn| {
            Box::pin(async move { Ok(store::names(conn).await?.len()) })
        })
        .await?;
    checks.that("the resources are all there", stored > 0, stored);
    demo.summary.flash_bytes = flash_bytes(&demo.manager);
    let written: u64 = demo.summary.flash_bytes.values().sum();
    checks.that("what reached flash was counted", written > 0, written);
    Ok(())
}

/// Looks for secrets in every file below a directory.
fn scan(
    directory: &Path,
    except: &Path,
    needles: &[Vec<u8>],
    files: &mut usize,
    leaks: &mut Vec<String>,
) -> Result<(), Failure> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path == except {
            continue;
        }
        if path.is_dir() {
            scan(&path, except, needles, files, leaks)?;
        } else if path.is_file() {
            *files += 1;
            let bytes = std::fs::read(&path)?;
            let found = needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == needle));
            if found {
                leaks.push(path.display().to_string());
            }
        }
    }
    Ok(())
}
