//! Time: what the wall clock says, how far it can be trusted, and how long this boot has lasted.
//!
//! The wall clock is for people. Age is measured by boot id and boot time, which survive a clock step; order comes
//! from positions. Storage functions take [`Now`] as an argument; only loops own a [`Clock`].

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::Error;

/// The first instant of 2024 UTC in Unix milliseconds; a clock before it has never been set.
const UNSYNCED_BEFORE_MS: i64 = 1_704_067_200_000;

/// How far a wall-clock reading can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClockQuality {
    /// The clock shows a plausible date.
    Synced,
    /// The clock shows a date before 2024, or its owner says it has not been set.
    Unsynced,
}

impl ClockQuality {
    /// Judges a wall-clock reading by its date alone.
    pub const fn of_wall_ms(wall_ms: i64) -> Self {
        if wall_ms < UNSYNCED_BEFORE_MS { Self::Unsynced } else { Self::Synced }
    }

    /// Returns the stored spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Unsynced => "unsynced",
        }
    }
}

impl fmt::Display for ClockQuality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ClockQuality {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "synced" => Ok(Self::Synced),
            "unsynced" => Ok(Self::Unsynced),
            _ => Err(Error::Decode { what: "clock quality", detail: format!("unknown value {text:?}") }),
        }
    }
}

/// Identifies one boot of the machine; boot times are comparable only within the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId([u8; 16]);

impl BootId {
    /// Returns the id of the running boot.
    ///
    /// It comes from `/proc/sys/kernel/random/boot_id`. Where that cannot be read, a random id is made once per
    /// process: ages from an earlier process then count as ages from an earlier boot, which is safe.
    pub fn current() -> Self {
        static CURRENT: OnceLock<BootId> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or_else(Self::random)
        })
    }

    /// Makes an id from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn random() -> Self {
        let mut bytes = [0; 16];
        if getrandom::fill(&mut bytes).is_err() {
            bytes[..4].copy_from_slice(&std::process::id().to_be_bytes());
            bytes[4..12].copy_from_slice(&boottime_ms().to_be_bytes());
        }
        Self(bytes)
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

impl FromStr for BootId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse_uuid(text)
            .map(Self)
            .ok_or_else(|| Error::Decode { what: "boot id", detail: format!("{text:?} is not a UUID") })
    }
}

/// Parses the 8-4-4-4-12 form.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 36 || [8, 13, 18, 23].iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let mut digits = text.iter().filter(|&&byte| byte != b'-').map(|&byte| char::from(byte).to_digit(16));
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        let value = digits.next()?? * 16 + digits.next()??;
        *byte = u8::try_from(value).ok()?;
    }
    digits.next().is_none().then_some(bytes)
}

/// One reading of a [`Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time in Unix milliseconds; may step in either direction.
    pub wall_ms: i64,
    /// How far `wall_ms` can be trusted.
    pub quality: ClockQuality,
    /// The boot in which the reading was taken.
    pub boot: BootId,
    /// Milliseconds since that boot, suspended time included; never decreases within a boot.
    pub boottime_ms: u64,
}

impl Now {
    /// Returns how long ago an earlier reading was taken, or `None` when it belongs to another boot.
    pub fn age_of(&self, boot: BootId, boottime_ms: u64) -> Option<Duration> {
        (boot == self.boot).then(|| Duration::from_millis(self.boottime_ms.saturating_sub(boottime_ms)))
    }
}

/// The source of time, held by loops and by the database manager.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Takes a reading.
    fn now(&self) -> Now;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Makes the clock.
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let wall_ms = wall_ms();
        Now { wall_ms, quality: ClockQuality::of_wall_ms(wall_ms), boot: BootId::current(), boottime_ms: boottime_ms() }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn wall_ms() -> i64 {
    let saturating = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => saturating(after),
        Err(before) => -saturating(before.duration()),
    }
}

fn boottime_ms() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

    let time = rustix::time::clock_gettime(CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(millis)
}

/// A clock that moves only when told to; clones share the same time.
///
/// For tests and replays. Its boot time never goes back, whatever happens to its wall clock.
#[derive(Debug, Clone)]
pub struct ManualClock {
    shared: Arc<Mutex<Manual>>,
}

#[derive(Debug)]
struct Manual {
    wall_ms: i64,
    quality: Option<ClockQuality>,
    boots: u64,
    boottime_ms: u64,
}

impl ManualClock {
    /// Makes a clock that shows `wall_ms` at the start of its first boot.
    pub fn new(wall_ms: i64) -> Self {
        let manual = Manual { wall_ms, quality: None, boots: 1, boottime_ms: 0 };
        Self { shared: Arc::new(Mutex::new(manual)) }
    }

    /// Steps the wall clock, in either direction; boot time is untouched.
    pub fn set_wall_ms(&self, wall_ms: i64) {
        self.lock().wall_ms = wall_ms;
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let mut manual = self.lock();
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        manual.boottime_ms = manual.boottime_ms.saturating_add(ms);
        manual.wall_ms = manual.wall_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX));
    }

    /// Starts another boot: a new boot id, and boot time from zero.
    pub fn reboot(&self) {
        let mut manual = self.lock();
        manual.boots += 1;
        manual.boottime_ms = 0;
    }

    /// Fixes the quality, which otherwise follows from the date.
    pub fn set_quality(&self, quality: ClockQuality) {
        self.lock().quality = Some(quality);
    }

    fn lock(&self) -> MutexGuard<'_, Manual> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        let manual = self.lock();
        let mut boot = [0; 16];
        boot[8..].copy_from_slice(&manual.boots.to_be_bytes());
        Now {
            wall_ms: manual.wall_ms,
            quality: manual.quality.unwrap_or(ClockQuality::of_wall_ms(manual.wall_ms)),
            boot: BootId(boot),
            boottime_ms: manual.boottime_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_unsynced() {
        let clock = ManualClock::new(0);
        assert_eq!(clock.now().quality, ClockQuality::Unsynced);
        clock.set_wall_ms(UNSYNCED_BEFORE_MS);
        assert_eq!(clock.now().quality, ClockQuality::Synced);
        clock.set_quality(ClockQuality::Unsynced);
        assert_eq!(clock.now().quality, ClockQuality::Unsynced);
    }

    #[test]
    fn stepping_the_wall_clock_does_not_change_ages_and_a_reboot_ends_them() {
        let clock = ManualClock::new(2_000_000_000_000);
        let then = clock.now();
        clock.advance(Duration::from_secs(5));
        clock.set_wall_ms(0);
        assert_eq!(clock.now().age_of(then.boot, then.boottime_ms), Some(Duration::from_secs(5)));
        clock.reboot();
        assert_eq!(clock.now().age_of(then.boot, then.boottime_ms), None);
    }

    #[test]
    fn the_boot_id_survives_its_text_form_and_bad_text_is_refused() {
        let id = BootId::current();
        assert_eq!(id.to_string().parse::<BootId>().expect("uuid"), id);
        assert_eq!(id, SystemClock::new().now().boot);
        for text in ["", "0", "00000000-0000-0000-0000-00000000000", "00000000-0000-0000-0000-00000000000g"] {
            assert!(text.parse::<BootId>().is_err(), "{text:?}");
        }
        assert!("000000000000-0000-0000-0000-00000000".parse::<BootId>().is_err());
    }

    #[test]
    fn the_system_clock_moves_forward_within_a_boot() {
        let first = SystemClock.now();
        let second = SystemClock.now();
        assert!(second.boottime_ms >= first.boottime_ms);
        assert!(first.boottime_ms > 0);
    }
}
