//! Small file systems, mounted in a mount namespace of this process: none outlives it.
//!
//! It needs the right to mount. Where that is missing, a campaign fails if `CI` is `true` and says aloud that it was skipped
//! if not.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::Failure;

/// Says that this process has a mount namespace of its own.
const INSIDE: &str = "NASNET_SOAK_NAMESPACE";
const MIB: u64 = 1024 * 1024;

/// Goes into a mount namespace of its own; `false` when the campaign is skipped.
pub(crate) fn enter(campaign: &str) -> Result<bool, Failure> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let can = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"]).output();
    if can.is_ok_and(|output| output.status.success()) {
        let error = Command::new("unshare")
            .arg("-m")
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        return Err(error.into());
    }
    skip(campaign, "the right to mount (run it as root)")?;
    Ok(false)
}

/// Says aloud that a campaign is skipped; fails in CI.
pub(crate) fn skip(campaign: &str, needs: &str) -> Result<(), Failure> {
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        return Err(format!("campaign {campaign} needs {needs}, and must run in CI").into());
    }
    eprintln!("SKIPPED: campaign {campaign} needs {needs}");
    Ok(())
}

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tmpfs,
    Ext4,
    /// ext4 without a journal.
    Ext4Bare,
    Ext3,
    Ext2,
    Xfs,
    Btrfs,
    Vfat,
    F2fs,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Tmpfs,
        Self::Ext4,
        Self::Ext4Bare,
        Self::Ext2,
        Self::Ext3,
        Self::Xfs,
        Self::Btrfs,
        Self::Vfat,
        Self::F2fs,
    ];

    /// The name the kernel has for it.
    const fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 | Self::Ext4Bare => "ext4",
            Self::Ext3 => "ext3",
            Self::Ext2 => "ext2",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::F2fs => "f2fs",
        }
    }

    /// Size of the whole; the smallest its maker takes, and at least what the fleet needs.
    const fn bytes(self) -> u64 {
        match self {
            Self::Tmpfs => 2 * MIB,
            Self::Ext4 | Self::Ext4Bare | Self::Ext3 | Self::Ext2 | Self::Vfat => 8 * MIB,
            Self::Xfs => 16 * MIB,
            Self::Btrfs | Self::F2fs => 64 * MIB,
        }
    }

    /// The command that makes it, but for the image.
    const fn maker(self) -> &'static [&'static str] {
        match self {
            Self::Tmpfs => &[],
            Self::Ext4 => &["mkfs.ext4", "-q", "-F"],
            Self::Ext4Bare => &["mkfs.ext4", "-q", "-F", "-O", "^has_journal"],
            Self::Ext3 => &["mkfs.ext3", "-q", "-F"],
            Self::Ext2 => &["mkfs.ext2", "-q", "-F"],
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "--unsupported"],
            Self::Btrfs => &["mkfs.btrfs", "-q", "-f", "--mixed"],
            Self::Vfat => &["mkfs.vfat"],
            Self::F2fs => &["mkfs.f2fs", "-q", "-f"],
        }
    }

    /// Those that can be made and mounted here, always in the same order.
    pub(crate) fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Kind>> = OnceLock::new();
        AVAILABLE.get_or_init(|| Self::known().into_iter().filter(|kind| kind.can_be_mounted()).collect())
    }

    /// Tries it: a container may have no loop devices.
    fn can_be_mounted(&self) -> bool {
        match Mounted::new(*self) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("SKIPPED: {self:?} takes no part: {error}");
                false
            }
        }
    }

    /// Those that this kernel knows and what is installed can make.
    fn known() -> Vec<Self> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let installed = |maker: &str| path.split(':').any(|dir| Path::new(dir).join(maker).exists());
        let can = |kind: &Self| {
            known.lines().any(|line| line.split_whitespace().last() == Some(kind.name()))
                && kind.maker().first().is_none_or(|maker| installed(maker))
        };
        Self::ALL.into_iter().filter(can).collect()
    }

    /// Whether its driver can be told to give up, as after a journal that could not be written.
    pub(crate) const fn can_abort(self) -> bool {
        matches!(self, Self::Ext4 | Self::Ext4Bare | Self::Ext3 | Self::Ext2)
    }
}

/// A mounted file system of its own.
pub(crate) struct Mounted {
    kind: Kind,
    dir: TempDir,
    place: TempDir,
}

impl Mounted {
    /// Makes one and mounts it.
    pub(crate) fn new(kind: Kind) -> Result<Self, Failure> {
        Self::with(kind, &[])
    }

    /// Makes one with room for `inodes` files and directories.
    pub(crate) fn with_inodes(kind: Kind, inodes: u64) -> Result<Self, Failure> {
        Self::with(kind, &["-N".to_owned(), inodes.to_string()])
    }

    fn with(kind: Kind, inodes: &[String]) -> Result<Self, Failure> {
        let mounted = Self { kind, dir: TempDir::new()?, place: TempDir::new_in("/dev/shm")? };
        if let [maker, options @ ..] = kind.maker() {
            std::fs::File::create(mounted.image())?.set_len(kind.bytes())?;
            run(Command::new(maker).args(options).args(inodes).arg(mounted.image()))?;
            mounted.mount("rw")?;
        } else {
            let inodes = inodes.get(1).map(|inodes| format!(",nr_inodes={inodes}")).unwrap_or_default();
            let options = format!("size={}{inodes}", kind.bytes());
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(mounted.dir.path()))?;
        }
        Ok(mounted)
    }

    fn image(&self) -> PathBuf {
        self.place.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Mounts it, with the given options, where it is not mounted.
    pub(crate) fn mount(&self, options: &str) -> Result<(), Failure> {
        let options = format!("loop,{options}");
        let name = self.kind.name();
        run(Command::new("mount").args(["-t", name, "-o", &options]).arg(self.image()).arg(self.path()))
    }

    /// Files of it that this process has open.
    pub(crate) fn open_files(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut open = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            // The directory that is being read is gone by the time it is looked at.
            let Ok(path) = std::fs::read_link(entry?.path()) else { continue };
            if path.starts_with(self.path()) {
                open.push(path);
            }
        }
        Ok(open)
    }

    /// Changes the options it is mounted with.
    pub(crate) fn remount(&self, options: &str) -> Result<(), Failure> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.path()))
    }

    /// Takes it out of its directory; files that are open stay open.
    pub(crate) fn unmount(&self) -> Result<(), Failure> {
        run(Command::new("umount").arg("-l").arg(self.path()))
    }

    /// Lets its driver give up, as after a journal that could not be written: from then on it takes no write.
    pub(crate) fn abort(&self) -> Result<(), Failure> {
        // The driver answers the remount that asks for it, or says that it is broken now.
        let asked = self.remount("abort");
        let probe = self.path().join("probe");
        match std::fs::write(&probe, b"probe") {
            Err(_) => Ok(()),
            Ok(()) => Err(format!("{:?} takes writes after an abort ({asked:?})", self.kind).into()),
        }
    }

    /// Repairs it, as its owner would after a crash. Only what is not mounted.
    pub(crate) fn repair(&self) -> Result<(), Failure> {
        if !self.kind.can_abort() {
            return Ok(());
        }
        let status = Command::new("e2fsck").args(["-p", "-f"]).arg(self.image()).output()?.status;
        // 1 says that something was repaired.
        if matches!(status.code(), Some(0 | 1)) { Ok(()) } else { Err(format!("e2fsck ended with {status}").into()) }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever cannot be unmounted goes with the namespace.
        Command::new("umount").arg("-l").arg(self.dir.path()).output().ok();
    }
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}
