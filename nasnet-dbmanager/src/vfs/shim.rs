//! The VFS object: opens files wrapped by a meter and forwards everything else to the default VFS.
#![expect(unsafe_code, reason = "a VFS is a table of C function pointers that SQLite owns from registration on")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use libsqlite3_sys as ffi;

use super::file::{self, Tap};
use super::meter::{Meter, Part};
use crate::error::Error;

/// The name under which connections ask for this VFS.
pub const NAME: &str = "nasnet";

/// [`NAME`] as SQLite takes it.
const C_NAME: &CStr = c"nasnet";

/// The function a VFS gives out by name from a loaded library.
type Symbol = unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char);

/// Registers the VFS with SQLite; the first call does it, later ones return its result.
///
/// It does not become the default VFS: a connection uses it only when it names it.
///
/// # Errors
/// [`Error::Vfs`] when SQLite refuses it or has no default VFS to pass through to.
pub fn register() -> Result<(), Error> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    match *REGISTERED.get_or_init(register_once) {
        ffi::SQLITE_OK => Ok(()),
        code => Err(Error::Vfs { code }),
    }
}

fn register_once() -> c_int {
    // SAFETY: both functions may be called at any time from any thread; a null name asks for the default VFS, which
    // is never freed.
    let default = unsafe {
        match ffi::sqlite3_initialize() {
            ffi::SQLITE_OK => ffi::sqlite3_vfs_find(ptr::null()),
            code => return code,
        }
    };
    // SAFETY: SQLite returns null or a VFS that lives as long as the process.
    let Some(base) = (unsafe { default.as_ref() }) else {
        return ffi::SQLITE_NOTFOUND;
    };
    let Some(file_bytes) = file::allocation_bytes(base.szOsFile) else {
        return ffi::SQLITE_TOOBIG;
    };
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        iVersion: base.iVersion.min(3),
        szOsFile: file_bytes,
        mxPathname: base.mxPathname,
        pNext: ptr::null_mut(),
        zName: C_NAME.as_ptr(),
        pAppData: default.cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: Some(dl_open),
        xDlError: Some(dl_error),
        xDlSym: Some(dl_sym),
        xDlClose: Some(dl_close),
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: Some(last_error),
        xCurrentTimeInt64: Some(current_time_ms),
        xSetSystemCall: Some(set_system_call),
        xGetSystemCall: Some(get_system_call),
        xNextSystemCall: Some(next_system_call),
    }));
    // SAFETY: the object is leaked, so it stays valid for as long as SQLite keeps it in its list.
    unsafe { ffi::sqlite3_vfs_register(vfs, 0) }
}

/// Calls a function of the default VFS, or yields `$missing` when it has none.
macro_rules! forward {
    ($vfs:ident, $missing:expr, $function:ident ( $($argument:expr),* )) => {
        // SAFETY: SQLite passes the VFS that `register_once` made, whose application data is the default VFS; the
        // arguments are passed on as SQLite gave them, with the default VFS in the place of this one.
        unsafe {
            let base = (*$vfs).pAppData.cast::<ffi::sqlite3_vfs>();
            match (*base).$function {
                Some(function) => function(base, $($argument),*),
                None => $missing,
            }
        }
    };
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite allocates `szOsFile` bytes for each file, as `register_once` asked, and passes them unopened.
    let underlying = unsafe {
        file::prepare(file);
        file::underlying(file)
    };
    // SAFETY: the name is the one SQLite passed to this `xOpen`.
    #[cfg(feature = "fault-injection")]
    let path = unsafe { path_of(name) };
    #[cfg(feature = "fault-injection")]
    let existed = match path.as_deref().map(super::fault::hook::before_open).transpose() {
        Ok(existed) => existed.unwrap_or(true),
        Err(code) => return code,
    };
    let result = forward!(vfs, ffi::SQLITE_CANTOPEN, xOpen(name, underlying, flags, out_flags));
    // SAFETY: the name is the one SQLite passed to this `xOpen`, together with its flags.
    let tap = unsafe { tap_for(name, flags) };
    // SAFETY: `prepare` ran above, and the underlying `xOpen` after it.
    unsafe { file::complete(file, tap) };
    #[cfg(feature = "fault-injection")]
    if let (Some(path), ffi::SQLITE_OK) = (path, result) {
        // SAFETY: `complete` ran right above.
        unsafe { file::watch(file, super::fault::hook::Watched::opened(path, existed, flags)) };
    }
    result
}

/// Decides where the writes of a file are counted, if at all.
///
/// # Safety
/// `name` and `flags` must be those of a call to `xOpen`.
unsafe fn tap_for(name: ffi::sqlite3_filename, flags: c_int) -> Option<Tap> {
    let part = if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
        Part::Database
    } else if flags & ffi::SQLITE_OPEN_WAL != 0 {
        Part::Wal
    } else if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 {
        Part::Journal
    } else {
        return None;
    };
    if name.is_null() {
        return None;
    }
    // SAFETY: for these three kinds of file SQLite defines the database name of a name given to `xOpen`: a
    // null-terminated string that lives as long as the file is open.
    let database = unsafe { CStr::from_ptr(ffi::sqlite3_filename_database(name)) };
    let path = PathBuf::from(OsStr::from_bytes(database.to_bytes()));
    Some(Tap { meter: Meter::named(path), part })
}

/// The path of a file name given to the VFS; `None` for a temporary file.
///
/// # Safety
/// `name` must be null or a null-terminated string.
#[cfg(feature = "fault-injection")]
unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    if name.is_null() {
        return None;
    }
    // SAFETY: it is a null-terminated string, by the contract of this function.
    let name = unsafe { CStr::from_ptr(name) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite passes a null-terminated name to `xDelete`.
    #[cfg(feature = "fault-injection")]
    let path = unsafe { path_of(name) };
    #[cfg(feature = "fault-injection")]
    if let Some(code) = path.as_deref().and_then(super::fault::hook::before_delete) {
        return code;
    }
    let result = forward!(vfs, ffi::SQLITE_IOERR_DELETE, xDelete(name, sync_directory));
    #[cfg(feature = "fault-injection")]
    if let (Some(path), ffi::SQLITE_OK) = (path, result) {
        super::fault::hook::deleted(&path, sync_directory != 0);
    }
    result
}

unsafe extern "C" fn access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    forward!(vfs, ffi::SQLITE_IOERR_ACCESS, xAccess(name, flags, out))
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    forward!(vfs, ffi::SQLITE_CANTOPEN, xFullPathname(name, len, out))
}

unsafe extern "C" fn dl_open(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> *mut c_void {
    forward!(vfs, ptr::null_mut(), xDlOpen(name))
}

unsafe extern "C" fn dl_error(vfs: *mut ffi::sqlite3_vfs, len: c_int, message: *mut c_char) {
    forward!(vfs, (), xDlError(len, message));
}

unsafe extern "C" fn dl_sym(vfs: *mut ffi::sqlite3_vfs, library: *mut c_void, symbol: *const c_char) -> Option<Symbol> {
    forward!(vfs, None, xDlSym(library, symbol))
}

unsafe extern "C" fn dl_close(vfs: *mut ffi::sqlite3_vfs, library: *mut c_void) {
    forward!(vfs, (), xDlClose(library));
}

unsafe extern "C" fn randomness(vfs: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    forward!(vfs, 0, xRandomness(len, out))
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    forward!(vfs, 0, xSleep(microseconds))
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, julian_day: *mut f64) -> c_int {
    forward!(vfs, ffi::SQLITE_ERROR, xCurrentTime(julian_day))
}

unsafe extern "C" fn last_error(vfs: *mut ffi::sqlite3_vfs, len: c_int, message: *mut c_char) -> c_int {
    forward!(vfs, 0, xGetLastError(len, message))
}

unsafe extern "C" fn current_time_ms(vfs: *mut ffi::sqlite3_vfs, julian_ms: *mut i64) -> c_int {
    forward!(vfs, ffi::SQLITE_ERROR, xCurrentTimeInt64(julian_ms))
}

unsafe extern "C" fn set_system_call(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    call: ffi::sqlite3_syscall_ptr,
) -> c_int {
    forward!(vfs, ffi::SQLITE_NOTFOUND, xSetSystemCall(name, call))
}

unsafe extern "C" fn get_system_call(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> ffi::sqlite3_syscall_ptr {
    forward!(vfs, None, xGetSystemCall(name))
}

unsafe extern "C" fn next_system_call(vfs: *mut ffi::sqlite3_vfs, name: *const c_char) -> *const c_char {
    forward!(vfs, ptr::null(), xNextSystemCall(name))
}
