//! What the demo found: steps, their checks, and the figures around them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// One thing a step claims, and whether it held.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    /// The claim, as a sentence.
    pub(crate) what: String,
    /// Whether it held.
    pub(crate) held: bool,
    /// What was seen.
    pub(crate) seen: String,
}

/// One step of the demo.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Step {
    /// Its number in the README's order.
    pub(crate) number: u8,
    /// What it does.
    pub(crate) title: &'static str,
    /// What it claims.
    pub(crate) checks: Vec<Check>,
    /// How long it took.
    pub(crate) millis: u64,
    /// Whether all of its checks held, and it made any.
    pub(crate) ok: bool,
}

/// Events and bytes of one tier.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TierFigures {
    /// Events in the tier.
    pub(crate) events: u64,
    /// Bytes they take there.
    pub(crate) bytes: u64,
}

/// Everything the demo reports; the `--json` output.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    /// Whether every check of every step held.
    pub(crate) ok: bool,
    /// How many times the demo has run on this data directory, this one included.
    pub(crate) run: u64,
    /// The data directory.
    pub(crate) data: String,
    /// Lines of the export that could not be read: line, column, reason.
    pub(crate) export_errors: Vec<String>,
    /// Figures of the import.
    pub(crate) import: BTreeMap<&'static str, u64>,
    /// The steps in order.
    pub(crate) steps: Vec<Step>,
    /// Events per tier.
    pub(crate) tiers: BTreeMap<&'static str, TierFigures>,
    /// Bytes written through the metered VFS to files on flash, per database.
    pub(crate) flash_bytes: BTreeMap<String, u64>,
    /// Operations by name, with their outcomes.
    pub(crate) operations: Vec<(String, String)>,
    /// Wall time of the whole run.
    pub(crate) millis: u64,
}

impl Summary {
    /// Returns the figures as people read them.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nrun {} on {}", self.run, self.data)?;
        writeln!(out, "\n  step                                                        checks      ms")?;
        for step in &self.steps {
            let held = step.checks.iter().filter(|check| check.held).count();
            let mark = if step.ok { "ok  " } else { "FAIL" };
            writeln!(
                out,
                "  {mark} {}. {:<52} {held:>3}/{:<3} {:>6}",
                step.number,
                step.title,
                step.checks.len(),
                step.millis
            )?;
            for check in step.checks.iter().filter(|check| !check.held) {
                writeln!(out, "         did not hold: {} (seen: {})", check.what, check.seen)?;
            }
        }
        writeln!(out, "\n  import")?;
        for (name, count) in &self.import {
            writeln!(out, "    {name:<44} {count:>10}")?;
        }
        writeln!(out, "\n  events                                             events       bytes")?;
        for (tier, figures) in &self.tiers {
            writeln!(out, "    {tier:<44} {:>10} {:>11}", figures.events, figures.bytes)?;
        }
        writeln!(out, "\n  flash bytes written by this run (db + WAL + journal)")?;
        for (database, bytes) in &self.flash_bytes {
            writeln!(out, "    {database:<44} {bytes:>10}")?;
        }
        writeln!(out, "    {:<44} {:>10}", "sum", self.flash_bytes.values().sum::<u64>())?;
        writeln!(out, "\n  operations")?;
        for (name, outcome) in &self.operations {
            writeln!(out, "    {name:<44} {outcome}")?;
        }
        if !self.export_errors.is_empty() {
            writeln!(out, "\n  lines of the export that could not be read: {}", self.export_errors.len())?;
            for error in self.export_errors.iter().take(10) {
                writeln!(out, "    {error}")?;
            }
        }
        let verdict = if self.ok { "every check held" } else { "NOT every check held" };
        writeln!(out, "\n{verdict}; {:.1} s", self.millis as f64 / 1000.0)
    }
}
