//! All chance in this process comes from one seed, and its wall clock cannot be relied on.
//!
//! Hash maps, `tokio::select!`, UUIDs and the rest ask the C library for random bytes, each in its own way. Defining its two
//! functions here reaches all of them, so that a seed gives the same run every time. That holds for one run in a process:
//! some take their bytes only once. The wall clock steps by up to an hour either way between any two readings: whoever decides
//! anything by it, or compares it between pods, goes wrong here.
#![allow(unsafe_code, reason = "functions of the C library are defined")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Whether chance comes from the seed yet.
static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);
/// Readings of the wall clock so far.
static READINGS: AtomicU64 = AtomicU64::new(0);
/// What the wall clock says on average, in seconds since 1970.
const YEAR_2027: i64 = 1_800_000_000;
/// How far it may be off either way, in seconds.
const OFF: u64 = 3600;

/// From here on this process has no chance of its own.
pub fn seed(seed: u64) {
    STATE.store(seed, Ordering::Relaxed);
    SEEDED.store(true, Ordering::Relaxed);
    fastrand::seed(seed);
}

/// SplitMix64.
pub(crate) fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

/// The C library's, in its place.
///
/// # Safety
/// `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: libc::c_uint) -> libc::ssize_t {
    if !SEEDED.load(Ordering::Relaxed) {
        // SAFETY: the system's own call, with the caller's own arguments.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) };
        return libc::ssize_t::try_from(got).unwrap_or(-1);
    }
    for at in 0..len {
        let (state, byte) = next(STATE.load(Ordering::Relaxed));
        STATE.store(state, Ordering::Relaxed);
        // SAFETY: `at` is below `len`, for which the caller has made room.
        let place = unsafe { buffer.add(at) };
        // SAFETY: as above; a byte needs no alignment.
        unsafe { place.write(byte.to_le_bytes()[0]) };
    }
    libc::ssize_t::try_from(len).unwrap_or(-1)
}

/// The C library's, in its place: only the wall clock is another one.
///
/// # Safety
/// `time` may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if SEEDED.load(Ordering::Relaxed) && clock == libc::CLOCK_REALTIME {
        let (_, step) = next(READINGS.fetch_add(1, Ordering::Relaxed));
        let off = i64::try_from(step % (2 * OFF)).unwrap_or(0);
        let now = libc::timespec { tv_sec: YEAR_2027 + off, tv_nsec: 0 };
        // SAFETY: the caller gives a place for it.
        unsafe { time.write(now) };
        return 0;
    }
    // SAFETY: the system's own call, with the caller's own arguments.
    let done = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    libc::c_int::try_from(done).unwrap_or(-1)
}
