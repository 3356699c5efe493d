//! Another process of a test: the test's own program, run again for its ignored test `child`.

use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Command, ExitStatus, Stdio};

const TASK: &str = "NASNET_EVENTS_TEST_CHILD";

/// What this process is to do as a child; `None` when it is none. From here on it ends with its parent, even when that is
/// killed: the pipe does.
pub fn task() -> Option<String> {
    let task = std::env::var(TASK).ok()?;
    std::thread::spawn(|| {
        drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        std::process::exit(1);
    });
    Some(task)
}

/// A child that never outlives the test, however it ends.
pub struct Child {
    process: std::process::Child,
    said: BufReader<ChildStdout>,
}

impl Child {
    pub fn spawn(task: impl Display) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(TASK, task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    /// What it says, to its end; the test harness says some of it.
    pub fn lines(&mut self) -> impl Iterator<Item = String> {
        (&mut self.said).lines().map_while(Result::ok)
    }

    /// Reads on until it says this.
    pub fn until(&mut self, words: &str) {
        assert!(self.lines().any(|line| line.starts_with(words)), "the child has ended before {words:?}");
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits until it ends by itself, and not for want of a parent.
    pub fn wait(&mut self) -> ExitStatus {
        let input = self.process.stdin.take();
        let status = self.process.wait().unwrap();
        drop(input);
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
