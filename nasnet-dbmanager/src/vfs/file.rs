//! The open file: forwards every call to the file of the underlying VFS and tells the meter about writes.
#![expect(unsafe_code, reason = "SQLite calls its file methods through C function pointers")]

use std::ffi::{c_int, c_void};
use std::ptr;

use libsqlite3_sys as ffi;

#[cfg(feature = "fault-injection")]
use super::fault::hook::Watched;
use super::meter::{Meter, Part};

/// The file object SQLite holds; the object of the underlying VFS follows it in the same allocation.
///
/// `base` must come first: SQLite sees only a `sqlite3_file`. The alignment is what SQLite gives its allocations, and
/// keeps the object behind it aligned on 32-bit machines too.
#[repr(C, align(8))]
pub(super) struct MeteredFile {
    base: ffi::sqlite3_file,
    tap: Option<Tap>,
    /// What faults and records know the file by; files without a name are left alone.
    #[cfg(feature = "fault-injection")]
    watched: Option<Watched>,
}

/// Where the writes of a file are counted.
pub(super) struct Tap {
    pub(super) meter: Meter,
    pub(super) part: Part,
}

/// Bytes SQLite must allocate for one file, given what the underlying VFS asks for.
pub(super) fn allocation_bytes(underlying: c_int) -> Option<c_int> {
    c_int::try_from(size_of::<MeteredFile>()).ok()?.checked_add(underlying)
}

/// Prepares a file object before the underlying one is opened.
///
/// # Safety
/// `file` must point to an allocation of [`allocation_bytes`] that holds no open file.
pub(super) unsafe fn prepare(file: *mut ffi::sqlite3_file) {
    let unopened = MeteredFile {
        base: ffi::sqlite3_file { pMethods: ptr::null() },
        tap: None,
        #[cfg(feature = "fault-injection")]
        watched: None,
    };
    // SAFETY: the caller hands over an allocation large and aligned enough for both objects, and nothing in it is
    // live, so both may be overwritten.
    unsafe {
        file.cast::<MeteredFile>().write(unopened);
        (*underlying(file)).pMethods = ptr::null();
    }
}

/// Completes a file object after the underlying one was opened, successfully or not.
///
/// # Safety
/// `file` must have gone through [`prepare`], and then through the `xOpen` of the underlying VFS.
pub(super) unsafe fn complete(file: *mut ffi::sqlite3_file, tap: Option<Tap>) {
    // SAFETY: both objects were initialised by `prepare`; SQLite lets no other thread see the file before `xOpen`
    // returns. The methods of an opened file are valid for as long as it is open.
    unsafe {
        let Some(methods) = (*underlying(file)).pMethods.as_ref() else {
            // Not opened: without methods SQLite will not close it either.
            return;
        };
        let metered = &mut *file.cast::<MeteredFile>();
        metered.tap = tap;
        metered.base.pMethods = match methods.iVersion {
            ..=1 => &METHODS_1,
            2 => &METHODS_2,
            3.. => &METHODS_3,
        };
    }
}

/// Lets faults and records see the calls of a file.
///
/// # Safety
/// As [`complete`], right after it.
#[cfg(feature = "fault-injection")]
pub(super) unsafe fn watch(file: *mut ffi::sqlite3_file, watched: Watched) {
    // SAFETY: the object was initialised by `prepare`, and no other thread sees the file before `xOpen` returns.
    unsafe { (*file.cast::<MeteredFile>()).watched = Some(watched) };
}

/// What faults and records know the file by.
#[cfg(feature = "fault-injection")]
fn watched<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a Watched> {
    // SAFETY: SQLite calls methods only between `xOpen` and `xClose`, when the object is initialised; `watched` does
    // not change in between, and no caller keeps the reference beyond its call.
    unsafe { (*file.cast::<MeteredFile>()).watched.as_ref() }
}

/// The underlying file of an allocation.
///
/// # Safety
/// `file` must point to an allocation of [`allocation_bytes`].
pub(super) unsafe fn underlying(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: the allocation holds a `MeteredFile` followed by the underlying file, so one past the first is inside.
    unsafe { file.cast::<MeteredFile>().add(1).cast() }
}

/// Calls a method of the underlying file, or yields `$missing` when it has none.
macro_rules! forward {
    ($file:ident, $missing:expr, $method:ident ( $($argument:expr),* )) => {
        // SAFETY: SQLite calls methods only on files whose `xOpen` left methods in place, which `complete` does only
        // when the underlying file has its own; the arguments are passed on as SQLite gave them.
        unsafe {
            let underlying = underlying($file);
            match (*(*underlying).pMethods).$method {
                Some(method) => method(underlying, $($argument),*),
                None => $missing,
            }
        }
    };
}

/// Tells the meter about a call that succeeded.
fn count(file: *mut ffi::sqlite3_file, result: c_int, record: impl FnOnce(&Meter, Part)) {
    if result == ffi::SQLITE_OK {
        // SAFETY: SQLite calls methods only between `xOpen` and `xClose`, when the object is initialised, and `tap`
        // does not change in between, so a shared reference is sound whichever thread calls.
        let tap = unsafe { &(*file.cast::<MeteredFile>()).tap };
        if let Some(tap) = tap {
            record(&tap.meter, tap.part);
        }
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let result = forward!(file, ffi::SQLITE_OK, xClose());
    // SAFETY: SQLite calls `xClose` once and does not use the object afterwards, whatever the result; clearing the
    // methods makes the object the unopened one that `prepare` expects.
    unsafe {
        let metered = &mut *file.cast::<MeteredFile>();
        metered.tap = None;
        #[cfg(feature = "fault-injection")]
        {
            metered.watched = None;
        }
        metered.base.pMethods = ptr::null();
    }
    result
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, len: c_int, offset: i64) -> c_int {
    #[cfg(feature = "fault-injection")]
    if let Some(code) = watched(file).and_then(Watched::before_read) {
        return code;
    }
    forward!(file, ffi::SQLITE_IOERR_READ, xRead(into, len, offset))
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, len: c_int, offset: i64) -> c_int {
    #[cfg(feature = "fault-injection")]
    if let Some(code) = before_write(file, from, len, offset) {
        return code;
    }
    let result = forward!(file, ffi::SQLITE_IOERR_WRITE, xWrite(from, len, offset));
    #[cfg(feature = "fault-injection")]
    if let (Some(watched), ffi::SQLITE_OK) = (watched(file), result) {
        // SAFETY: SQLite passes a buffer of that many bytes, which lives for the call.
        let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), usize::try_from(len).unwrap_or(0)) };
        watched.wrote(u64::try_from(offset).unwrap_or(0), bytes);
    }
    count(file, result, |meter, part| {
        meter.wrote(part, u64::try_from(offset).unwrap_or(0), u64::try_from(len).unwrap_or(0));
    });
    result
}

/// Does what is set up for a write, before it.
#[cfg(feature = "fault-injection")]
fn before_write(file: *mut ffi::sqlite3_file, from: *const c_void, len: c_int, offset: i64) -> Option<c_int> {
    watched(file)?.before_write(usize::try_from(len).unwrap_or(0), |half| {
        let half = c_int::try_from(half).unwrap_or(0);
        // Whether even that succeeds makes no difference to a process about to end.
        let _ = forward!(file, ffi::SQLITE_IOERR_WRITE, xWrite(from, half, offset));
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    #[cfg(feature = "fault-injection")]
    if let Some(code) = watched(file).and_then(Watched::before_truncate) {
        return code;
    }
    let result = forward!(file, ffi::SQLITE_IOERR_TRUNCATE, xTruncate(size));
    #[cfg(feature = "fault-injection")]
    if let (Some(watched), ffi::SQLITE_OK) = (watched(file), result) {
        watched.truncated(u64::try_from(size).unwrap_or(0));
    }
    count(file, result, Meter::truncated);
    result
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    #[cfg(feature = "fault-injection")]
    let begun = match watched(file).map(Watched::before_sync).transpose() {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    let result = forward!(file, ffi::SQLITE_IOERR_FSYNC, xSync(flags));
    #[cfg(feature = "fault-injection")]
    if let (Some(watched), Some(begun), ffi::SQLITE_OK) = (watched(file), begun, result) {
        watched.synced(begun);
    }
    count(file, result, Meter::synced);
    result
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_FSTAT, xFileSize(size))
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_LOCK, xLock(level))
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_UNLOCK, xUnlock(level))
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, xCheckReservedLock(held))
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    forward!(file, ffi::SQLITE_NOTFOUND, xFileControl(operation, argument))
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(file, 0, xSectorSize())
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    forward!(file, 0, xDeviceCharacteristics())
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    mapped: *mut *mut c_void,
) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_SHMMAP, xShmMap(region, bytes, extend, mapped))
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, slots: c_int, flags: c_int) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_SHMLOCK, xShmLock(offset, slots, flags))
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    forward!(file, (), xShmBarrier());
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    forward!(file, ffi::SQLITE_OK, xShmUnmap(delete))
}

unsafe extern "C" fn fetch(file: *mut ffi::sqlite3_file, offset: i64, len: c_int, page: *mut *mut c_void) -> c_int {
    forward!(file, ffi::SQLITE_IOERR_MMAP, xFetch(offset, len, page))
}

unsafe extern "C" fn unfetch(file: *mut ffi::sqlite3_file, offset: i64, page: *mut c_void) -> c_int {
    forward!(file, ffi::SQLITE_OK, xUnfetch(offset, page))
}

/// The methods of files without shared memory; later versions add to them.
static METHODS_1: ffi::sqlite3_io_methods = methods(1);
/// Adds shared memory, which WAL needs.
static METHODS_2: ffi::sqlite3_io_methods = methods(2);
/// Adds memory-mapped reads.
static METHODS_3: ffi::sqlite3_io_methods = methods(3);

/// The method table to pair with an underlying file of that version; SQLite ignores what a version does not have.
const fn methods(version: c_int) -> ffi::sqlite3_io_methods {
    ffi::sqlite3_io_methods {
        iVersion: version,
        xClose: Some(close),
        xRead: Some(read),
        xWrite: Some(write),
        xTruncate: Some(truncate),
        xSync: Some(sync),
        xFileSize: Some(file_size),
        xLock: Some(lock),
        xUnlock: Some(unlock),
        xCheckReservedLock: Some(check_reserved_lock),
        xFileControl: Some(file_control),
        xSectorSize: Some(sector_size),
        xDeviceCharacteristics: Some(device_characteristics),
        xShmMap: Some(shm_map),
        xShmLock: Some(shm_lock),
        xShmBarrier: Some(shm_barrier),
        xShmUnmap: Some(shm_unmap),
        xFetch: Some(fetch),
        xUnfetch: Some(unfetch),
    }
}
