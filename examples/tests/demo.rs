//! The main job as a user runs it, and what it does with input it cannot use.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

struct Site {
    root: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// Runs the demo on this site with its own run directory.
    fn demo(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nasnetd"));
        command.arg("demo").arg("--data").arg(self.data()).arg("--run").arg(self.root.path().join("run"));
        // The run directory of a test is not in memory, and the warning about it is not what is tested.
        command.args(arguments).env("RUST_LOG", "error");
        command
    }
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "stdout holds one JSON object: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Asserts that a run was refused with one clear line.
fn refused(output: &Output, names: &str) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("nasnetd:")).count(), 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(names), "{said:?} does not name {names:?}");
    assert!(output.stdout.is_empty());
}

/// Every file below a directory with the digest of its content.
fn content(directory: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let digest = Sha256::digest(std::fs::read(&path).unwrap());
                files.insert(path, digest.iter().map(|byte| format!("{byte:02x}")).collect());
            }
        }
    }
    files
}

#[test]
fn the_main_job_holds_and_goes_on_from_itself() {
    let site = Site::new();
    for run in 1..=2 {
        let output = site.demo(&["--json"]);
        let summary = summary(&output);
        let failed: Vec<_> = summary["steps"].as_array().unwrap().iter().filter(|step| step["ok"] != true).collect();
        assert!(failed.is_empty(), "run {run}: {failed:#?}");
        assert_eq!(summary["ok"], true);
        assert_eq!(summary["run"], run);
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn a_broken_line_is_named_and_the_rest_is_loaded() {
    let site = Site::new();
    let export = site.root.path().join("broken.rsc");
    let text = "# 2026-01-01 00:00:00 by RouterOS 7.16\n/interface bridge\nadd name=lan\n/ip address\n\
                add address=\"192.168.1.1/24 interface=lan\n/ip address\nadd address=192.168.2.1/24 interface=lan\n";
    std::fs::write(&export, text).unwrap();
    let output = site.demo(&["--json", "--export", export.to_str().unwrap()]);
    let summary = summary(&output);
    let errors = summary["export_errors"].as_array().unwrap();
    assert!(!errors.is_empty());
    assert!(errors[0].as_str().unwrap().contains("line 5"), "{errors:?}");
    assert_eq!(summary["ok"], true, "{summary:#}");
    assert!(summary["import"]["rows in the export"].as_u64().unwrap() >= 1);
}

#[test]
fn input_that_cannot_be_used_changes_nothing() {
    let site = Site::new();
    refused(&site.demo(&["--export", "no-such-file.rsc"]), "no-such-file.rsc");
    let prose = site.root.path().join("prose.txt");
    std::fs::write(&prose, "Dear router,\nplease be configured.\n").unwrap();
    refused(&site.demo(&["--export", prose.to_str().unwrap()]), "prose.txt");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&site.demo(&["--port", &port]), &port);
    assert!(!site.data().exists(), "nothing was made");

    std::fs::create_dir(site.data()).unwrap();
    std::fs::write(site.data().join("letter.txt"), "mine").unwrap();
    let before = content(&site.data());
    refused(&site.demo(&[]), "letter.txt");
    assert_eq!(content(&site.data()), before);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let site = Site::new();
    // A file where the directory should be: also root cannot write into that.
    std::fs::write(site.data(), "a file").unwrap();
    refused(&site.demo(&[]), "data");
    assert_eq!(std::fs::read(site.data()).unwrap(), b"a file");
}

#[test]
fn another_export_than_the_first_is_refused() {
    let site = Site::new();
    assert_eq!(site.demo(&["--json"]).status.code(), Some(0));
    let other = site.root.path().join("other.rsc");
    std::fs::write(&other, "/system identity\nset name=other\n").unwrap();
    let before = content(&site.data());
    refused(&site.demo(&["--export", other.to_str().unwrap()]), "another export");
    assert_eq!(content(&site.data()), before);
}

#[test]
fn a_run_that_ended_between_loss_and_restore_is_mended_by_the_next() {
    let site = Site::new();
    assert_eq!(site.demo(&["--json"]).status.code(), Some(0));
    std::fs::remove_dir_all(site.data().join("routers/branch-office")).unwrap();
    let output = site.demo(&["--json"]);
    assert_eq!(summary(&output)["ok"], true);
}

#[tokio::test]
async fn a_database_with_a_newer_schema_is_refused_untouched() {
    use nasnet_dbmanager::{DbManager, FileKind, Migration, Options, SchemaSet};

    let site = Site::new();
    assert_eq!(site.demo(&["--json"]).status.code(), Some(0));
    // A later program leaves a schema behind that this one does not know.
    let mut sets = nasnet_reconcile::schema_sets();
    let set = sets.iter_mut().find(|set| set.file == FileKind::Router).unwrap();
    let version = set.migrations.iter().map(|migration| migration.version).max().unwrap() + 1;
    set.migrations.push(Migration {
        version,
        name: "from_the_future",
        up: "CREATE TABLE from_the_future (id INTEGER PRIMARY KEY) STRICT;",
        down: "DROP TABLE from_the_future;",
    });
    let name = SchemaSet::clone(set).name;
    let options = Options::new(site.data()).run_dir(site.root.path().join("run")).schemas(sets);
    let manager = DbManager::open(options).await.unwrap();
    let router = manager.routers().await.unwrap().remove(0);
    drop(manager.router(&router.id).await.unwrap());
    manager.shutdown().await.unwrap();

    let before = content(&site.data());
    refused(&site.demo(&[]), name);
    assert_eq!(content(&site.data()), before);
}
