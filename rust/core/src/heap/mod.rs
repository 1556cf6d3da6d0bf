//! The allocator that this process really uses: which it is, what it holds, and how it gives back
//! what is free.
//!
//! Everything an allocator offers is found by symbol at run time, since a preload may stand in for
//! the C library's. What is not there is an outcome and not an error: `malloc_trim` can be called
//! under every preload, and under most of them does nothing.
//!
//! Bytes given back are never taken from an allocator's answer. Whoever wants them reads the
//! kernel's counters before and after.
#![allow(unsafe_code)]

pub mod advice;
pub mod arenas;
pub mod detect;
pub mod environ;
pub mod glibc;
pub mod jemalloc;
pub mod job;
pub mod loader;
pub mod mimalloc;
pub mod release;
pub mod stats;
pub mod step;
pub mod sweep;
pub mod tcmalloc;
pub mod thread;
pub mod tune;

use detect::Allocator;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The allocator of this process, found out once.
pub fn live() -> &'static Allocator {
    // No lock: one that another thread held at a fork would stay locked in the child.
    static FOUND: AtomicPtr<Allocator> = AtomicPtr::new(ptr::null_mut());
    let found = FOUND.load(Ordering::Acquire);
    let found = if found.is_null() {
        let new = Box::into_raw(Box::new(detect::detect(&loader::System)));
        let none = ptr::null_mut();
        match FOUND.compare_exchange(none, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(first) => {
                // SAFETY: it was made above and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                first
            }
        }
    } else {
        found
    };
    // SAFETY: whatever is stored came from a box, is never freed and never changes.
    unsafe { &*found }
}
