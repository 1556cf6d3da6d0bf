//! What gperftools' tcmalloc offers to C.

use super::detect::{Within, function, text};
use super::stats::Stats;
use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

/// The functions, each where it was found.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Tcmalloc {
    pub release: unsafe extern "C" fn(),
    pub get: Option<unsafe extern "C" fn(*const c_char, *mut usize) -> c_int>,
    pub set: Option<unsafe extern "C" fn(*const c_char, usize) -> c_int>,
    pub version: Option<Version>,
}

/// `tc_version`: each place may be null.
pub type Version =
    unsafe extern "C" fn(*mut c_int, *mut c_int, *mut *const c_char) -> *const c_char;

impl Tcmalloc {
    /// Finds what the object has.
    pub fn find(within: &Within<'_>) -> Option<Self> {
        let release: Option<unsafe extern "C" fn()> =
            function!(within, c"MallocExtension_ReleaseFreeMemory");
        Some(Self {
            release: release?,
            get: function!(within, c"MallocExtension_GetNumericProperty"),
            set: function!(within, c"MallocExtension_SetNumericProperty"),
            version: function!(within, c"tc_version"),
        })
    }

    /// As it says it.
    pub fn version(&self) -> Option<String> {
        let ask = self.version?;
        // SAFETY: the places may be null; it returns a string that is part of the library.
        unsafe { text(ask(null_mut(), null_mut(), null_mut())) }
    }

    /// Lets all free spans of pages go.
    pub fn release(&self) {
        // SAFETY: takes nothing; safe against other threads by the allocator's own lock.
        unsafe { (self.release)() }
    }

    /// What it counts.
    pub fn stats(&self) -> Stats {
        let parts = [
            c"tcmalloc.pageheap_free_bytes",
            c"tcmalloc.central_cache_free_bytes",
            c"tcmalloc.transfer_cache_free_bytes",
            c"tcmalloc.thread_cache_free_bytes",
        ];
        let unmapped = self.get(c"tcmalloc.pageheap_unmapped_bytes");
        let mapped = self.get(c"generic.heap_size").zip(unmapped);
        Stats {
            in_use: self.get(c"generic.current_allocated_bytes"),
            free: parts.iter().map(|name| self.get(name)).sum(),
            mapped: mapped.map(|(size, unmapped)| size.saturating_sub(unmapped)),
            arenas: None,
            tops: None,
        }
    }

    /// Whether every span that becomes free goes back to the system at once.
    pub fn set_aggressive(&self, on: bool) -> Result<(), String> {
        let name = c"tcmalloc.aggressive_memory_decommit";
        let set = self.set.ok_or("it has no MallocExtension_SetNumericProperty")?;
        // SAFETY: a string and a number; names that it does not know it refuses.
        match unsafe { set(name.as_ptr(), usize::from(on)) } {
            0 => Err("this version has no such property".to_owned()),
            _ => Ok(()),
        }
    }

    fn get(&self, name: &CStr) -> Option<u64> {
        let get = self.get?;
        let mut value = 0;
        // SAFETY: a string and a place for one number; names that it does not know it refuses.
        (unsafe { get(name.as_ptr(), &mut value) } != 0).then_some(value as u64)
    }
}
