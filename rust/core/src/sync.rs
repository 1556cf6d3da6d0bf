//! What the cache's threads meet at. With `--cfg shuttle` they are a scheduler's, which chooses who
//! goes on after each step.

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};

use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of this machine. Each thread that finds it unknown looks for itself: nobody waits, as
/// with `OnceLock`, for a thread that a fork has taken away in the middle of it.
pub(crate) struct Fact(AtomicUsize);

impl Fact {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// What `find` finds, which is always the same and less than `usize::MAX`.
    #[inline]
    pub(crate) fn get(&self, find: impl FnOnce() -> usize) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => {
                let found = find();
                self.0.store(found.wrapping_add(1), Ordering::Relaxed);
                found
            }
            known => known - 1,
        }
    }
}
