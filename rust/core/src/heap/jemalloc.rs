//! What jemalloc offers: one function that reads and writes by name.

use super::detect::{Within, errno, function, text};
use super::stats::Stats;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{MaybeUninit, size_of};
use std::ptr::null_mut;
use std::time::Duration;

type Mallctl =
    unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> c_int;

/// So many unused pages may stay after a purge: others allocate meanwhile.
const LITTLE: usize = 256;
/// How often a purge is tried, and the pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(2);

/// The function.
#[derive(Debug, Clone)]
pub struct Jemalloc {
    /// `mallctl`.
    pub mallctl: Mallctl,
}

/// Types that `mallctl` reads and writes: plain numbers, `bool` and pointers.
trait Plain: Copy {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for usize {}
impl Plain for isize {}
impl Plain for bool {}
impl Plain for *const c_char {}

impl Jemalloc {
    /// Finds it, with or without its prefix.
    pub fn find(within: &Within<'_>) -> Option<Self> {
        let mallctl: Option<Mallctl> = function!(within, c"mallctl");
        let mallctl = mallctl.or_else(|| function!(within, c"je_mallctl"))?;
        Some(Self { mallctl })
    }

    /// As jemalloc says it.
    pub fn version(&self) -> Option<String> {
        let version: *const c_char = self.read(c"version").ok()?;
        // SAFETY: by that name jemalloc returns a string that is part of it.
        unsafe { text(version) }
    }

    /// Lets this thread's cache go; returns jemalloc's error number.
    pub fn flush(&self) -> c_int {
        self.act(c"thread.tcache.flush")
    }

    /// Lets all arenas' unused pages go; returns jemalloc's error number.
    ///
    /// An arena in which a thread is giving pages back at this moment is passed over, as threads
    /// do that end: what is left then is tried again.
    pub fn purge(&self) -> c_int {
        for _ in 1..TRIES {
            let failed = self.purge_once();
            if failed != 0 || self.unused().is_none_or(|unused| unused <= LITTLE) {
                return failed;
            }
            std::thread::sleep(PAUSE);
        }
        self.purge_once()
    }

    fn purge_once(&self) -> c_int {
        match self.act(c"arena.4096.purge") {
            0 => 0,
            // Version 4 has the number of arenas for all of them.
            first => match self.read::<u32>(c"arenas.narenas") {
                Ok(n) => self.act(&name(&format!("arena.{n}.purge"))),
                Err(_) => first,
            },
        }
    }

    /// Pages that are kept and not used.
    fn unused(&self) -> Option<usize> {
        let _ = self.write(c"epoch", 1_u64);
        let dirty = self.read::<usize>(c"stats.arenas.4096.pdirty").ok()?;
        Some(dirty.saturating_add(self.read(c"stats.arenas.4096.pmuzzy").unwrap_or(0)))
    }

    /// What it counts. Its free bytes are those of resident pages.
    pub fn stats(&self) -> Stats {
        // Without a new epoch the figures are those of the last one.
        let _ = self.write(c"epoch", 1_u64);
        let read = |name| self.read::<usize>(name).ok().map(|n| n as u64);
        let (in_use, resident) = (read(c"stats.allocated"), read(c"stats.resident"));
        Stats {
            in_use,
            free: resident.zip(in_use).map(|(resident, used)| resident.saturating_sub(used)),
            mapped: read(c"stats.mapped"),
            arenas: self.read::<u32>(c"arenas.narenas").ok().map(u64::from),
            tops: None,
        }
    }

    /// Whether threads of its own give unused pages back.
    pub fn set_background(&self, on: bool) -> Result<(), String> {
        self.write(c"background_thread", on).map_err(errno)
    }

    /// How long unused pages of the kind (`dirty` or `muzzy`) are kept, in arenas to come and in
    /// those that exist: how many of the latter took it, and how many there are.
    pub fn set_decay(&self, kind: &str, milliseconds: isize) -> Result<(u32, u32), String> {
        self.write(&name(&format!("arenas.{kind}_decay_ms")), milliseconds).map_err(errno)?;
        let arenas = self.read::<u32>(c"arenas.narenas").map_err(errno)?;
        let set = |arena: &u32| {
            self.write(&name(&format!("arena.{arena}.{kind}_decay_ms")), milliseconds).is_ok()
        };
        let took = (0..arenas).filter(set).count();
        Ok((u32::try_from(took).unwrap_or(arenas), arenas))
    }

    fn act(&self, name: &CStr) -> c_int {
        // SAFETY: a name that neither reads nor writes a value; unknown ones are refused.
        unsafe { (self.mallctl)(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) }
    }

    fn read<T: Plain>(&self, name: &CStr) -> Result<T, c_int> {
        let mut value = MaybeUninit::<T>::zeroed();
        let mut len = size_of::<T>();
        let out = value.as_mut_ptr().cast();
        // SAFETY: `out` has room for `len` bytes; jemalloc refuses a length that is not the value's.
        let failed = unsafe { (self.mallctl)(name.as_ptr(), out, &mut len, null_mut(), 0) };
        if failed != 0 {
            return Err(failed);
        }
        // SAFETY: zero, or what jemalloc wrote, is a value of each of these types.
        Ok(unsafe { value.assume_init() })
    }

    fn write<T: Plain>(&self, name: &CStr, mut value: T) -> Result<(), c_int> {
        let given = (&raw mut value).cast();
        // SAFETY: reads as many bytes as `value` has; other lengths than its own it refuses.
        let failed =
            unsafe { (self.mallctl)(name.as_ptr(), null_mut(), null_mut(), given, size_of::<T>()) };
        if failed == 0 { Ok(()) } else { Err(failed) }
    }
}

/// Names are made of letters, digits and dots.
fn name(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
