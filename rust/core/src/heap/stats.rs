//! What an allocator counts.

use super::detect::{Allocator, Calls};

/// Bytes as the allocator counts them; `None` where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Handed out, with the allocator's own overhead.
    pub in_use: Option<u64>,
    /// Kept free. An upper bound of what could be given back: pieces of pages that are in use
    /// count, and so do pages that went back to the system already.
    pub free: Option<u64>,
    /// Taken from the system.
    pub mapped: Option<u64>,
    /// Arenas that exist.
    pub arenas: Option<u64>,
    /// Free bytes at the tops of threads' arenas, which glibc's `malloc_trim` does not reach.
    pub tops: Option<u64>,
}

/// Asks the allocator. May walk all of its free memory and hold its locks for that long.
pub fn stats(allocator: &Allocator) -> Stats {
    match &allocator.calls {
        Calls::Glibc(glibc) => glibc.stats(),
        Calls::Jemalloc(jemalloc) => jemalloc.stats(),
        Calls::Mimalloc(mimalloc) => mimalloc.stats(),
        Calls::Tcmalloc(tcmalloc) => tcmalloc.stats(),
        Calls::Macos(_) | Calls::Musl | Calls::Windows | Calls::Unknown(_) => Stats::default(),
    }
}
