//! What the GNU C library's allocator offers.

use super::arenas::{self, Arena};
use super::detect::{Within, function};
use super::stats::Stats;
use std::ffi::{c_int, c_void};

/// `mallopt`'s names for what it sets.
pub mod param {
    use std::ffi::c_int;
    /// How much free memory at an arena's top makes the next large free trim it.
    pub const TRIM_THRESHOLD: c_int = -1;
    /// How much is kept there, and taken ahead.
    pub const TOP_PAD: c_int = -2;
    /// From which size on an allocation is a map of its own.
    pub const MMAP_THRESHOLD: c_int = -3;
    /// How many arenas there may be.
    pub const ARENA_MAX: c_int = -8;
}

/// What `mallinfo2` returns.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Mallinfo2 {
    pub arena: usize,
    pub ordblks: usize,
    pub smblks: usize,
    pub hblks: usize,
    pub hblkhd: usize,
    pub usmblks: usize,
    pub fsmblks: usize,
    pub uordblks: usize,
    pub fordblks: usize,
    pub keepcost: usize,
}

/// What `mallinfo`, its older form, returns: numbers that wrap.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Mallinfo {
    pub arena: c_int,
    pub ordblks: c_int,
    pub smblks: c_int,
    pub hblks: c_int,
    pub hblkhd: c_int,
    pub usmblks: c_int,
    pub fsmblks: c_int,
    pub uordblks: c_int,
    pub fordblks: c_int,
    pub keepcost: c_int,
}

/// The functions, each where it was found.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Glibc {
    pub malloc: Option<unsafe extern "C" fn(usize) -> *mut c_void>,
    pub free: Option<unsafe extern "C" fn(*mut c_void)>,
    pub malloc_trim: Option<unsafe extern "C" fn(usize) -> c_int>,
    pub mallopt: Option<unsafe extern "C" fn(c_int, c_int) -> c_int>,
    pub mallinfo2: Option<unsafe extern "C" fn() -> Mallinfo2>,
    pub mallinfo: Option<unsafe extern "C" fn() -> Mallinfo>,
    pub malloc_info: Option<unsafe extern "C" fn(c_int, *mut libc::FILE) -> c_int>,
}

impl Glibc {
    /// Finds what the object has.
    pub fn find(within: &Within<'_>) -> Self {
        Self {
            malloc: function!(within, c"malloc"),
            free: function!(within, c"free"),
            malloc_trim: function!(within, c"malloc_trim"),
            mallopt: function!(within, c"mallopt"),
            mallinfo2: function!(within, c"mallinfo2"),
            mallinfo: function!(within, c"mallinfo"),
            malloc_info: function!(within, c"malloc_info"),
        }
    }

    /// Sets one of [`param`]; `false` where the library refuses, `None` where it has no `mallopt`.
    pub fn set(&self, param: c_int, value: usize) -> Option<bool> {
        let mallopt = self.mallopt?;
        let Ok(value) = c_int::try_from(value) else { return Some(false) };
        // SAFETY: takes two numbers, checks both, and holds the allocator's own locks.
        Some(unsafe { mallopt(param, value) } == 1)
    }

    /// Lets the bins of every arena and the top of the main one go.
    pub fn trim(&self) -> Option<bool> {
        // SAFETY: takes a number; safe against other threads by the allocator's own locks.
        self.malloc_trim.map(|trim| unsafe { trim(0) } == 1)
    }

    /// What every arena holds, the main one first. Walks all free memory under each arena's lock.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub fn arenas(&self) -> Option<Vec<Arena>> {
        let malloc_info = self.malloc_info?;
        let (mut text, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: both places outlive the stream, which is closed below.
        let stream = unsafe { libc::open_memstream(&mut text, &mut len) };
        if stream.is_null() {
            return None;
        }
        // SAFETY: an open stream, and the only set of options there is.
        let done = unsafe { malloc_info(0, stream) } == 0;
        // SAFETY: the stream was opened above and is not used again.
        let closed = unsafe { libc::fclose(stream) } == 0;
        if text.is_null() {
            return None;
        }
        // SAFETY: once closed, a memory stream leaves `len` bytes at `text`, which are the
        // caller's until freed.
        let found = unsafe {
            let written = std::slice::from_raw_parts(text.cast::<u8>(), len);
            let found = arenas::parse(written);
            libc::free(text.cast());
            found
        };
        (done && closed && !found.is_empty()).then_some(found)
    }

    /// Elsewhere there is none.
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    pub fn arenas(&self) -> Option<Vec<Arena>> {
        None
    }

    /// What it counts.
    pub fn stats(&self) -> Stats {
        let arenas = self.arenas();
        let mut stats = Stats {
            arenas: arenas.as_ref().map(|found| found.len() as u64),
            tops: arenas.as_deref().and_then(arenas::tops),
            ..Stats::default()
        };
        if let Some([arena, maps, used, free]) = self.sums() {
            stats.mapped = Some(arena + maps);
            stats.in_use = Some(used + maps);
            stats.free = Some(free);
        }
        stats
    }

    /// Bytes in maps of their own.
    pub fn maps(&self) -> Option<u64> {
        self.sums().map(|[_, maps, ..]| maps)
    }

    /// Bytes of all arenas and in maps of their own; in the former, used and free.
    fn sums(&self) -> Option<[u64; 4]> {
        if let Some(ask) = self.mallinfo2 {
            // SAFETY: takes nothing and returns numbers.
            let info = unsafe { ask() };
            return Some([info.arena, info.hblkhd, info.uordblks, info.fordblks].map(|n| n as u64));
        }
        // SAFETY: as above.
        let info = self.mallinfo.map(|ask| unsafe { ask() })?;
        // Beyond 2 GiB they turn negative, beyond 4 they begin anew.
        Some([info.arena, info.hblkhd, info.uordblks, info.fordblks].map(|n| u64::from(n as u32)))
    }
}
