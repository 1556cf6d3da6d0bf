//! Which process this is, at less than the cost of a system call.
//!
//! A word in a page that the kernel empties in every child, however that was made
//! (`MADV_WIPEONFORK`, Linux 4.14), says so. Where there is no such page it is the process's number,
//! and how many forks the C library's handlers saw: a child has its parent's number where both are
//! the first of their namespaces.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Which process it is. No child is equal to its parent, or to one before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u64);

impl Process {
    /// The one that asks.
    pub fn this() -> Self {
        Self(wiped::word().map_or_else(numbered, named))
    }

    /// Its child.
    #[cfg(test)]
    pub fn child(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The name in a word that is empty in a new process.
fn named(word: &AtomicU64) -> u64 {
    // Those of a child come after all that its parent had given by then.
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    match word.load(Relaxed) {
        0 => {
            let new = GIVEN.fetch_add(1, Relaxed) + 1;
            word.compare_exchange(0, new, Relaxed, Relaxed).map_or_else(|first| first, |_| new)
        }
        name => name,
    }
}

/// How many forks this process comes from, as far as the handlers know.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Runs in the child inside `fork`.
pub(super) fn forked() {
    FORKS.fetch_add(1, Relaxed);
}

fn numbered() -> u64 {
    u64::from(FORKS.load(Relaxed)) << 32 | u64::from(std::process::id())
}

#[cfg(target_os = "linux")]
mod wiped {
    use std::ptr::{null_mut, without_provenance_mut};
    use std::sync::atomic::{
        AtomicPtr, AtomicU64,
        Ordering::{AcqRel, Acquire},
    };

    /// Null until it is looked for; [`REFUSED`] where the kernel has none.
    static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
    const REFUSED: *mut AtomicU64 = without_provenance_mut(align_of::<AtomicU64>());

    /// Zero in a new process, and in this one what was put there.
    pub fn word() -> Option<&'static AtomicU64> {
        let known = WORD.load(Acquire);
        let word = if known.is_null() { look() } else { known };
        // SAFETY: what is published is the start of a page of zeros that is never unmapped.
        (word != REFUSED).then(|| unsafe { &*word })
    }

    /// Nobody waits here for a thread that a fork has taken away; of two pages one is given back.
    #[cold]
    fn look() -> *mut AtomicU64 {
        let length = crate::arena::page();
        let found = page(length).unwrap_or(REFUSED);
        match WORD.compare_exchange(null_mut(), found, AcqRel, Acquire) {
            Ok(_) => found,
            Err(first) => {
                if found != REFUSED {
                    // SAFETY: the page of above, which nobody else has seen.
                    unsafe { libc::munmap(found.cast(), length) };
                }
                first
            }
        }
    }

    fn page(length: usize) -> Option<*mut AtomicU64> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address the kernel chooses overlaps nothing.
        let page = unsafe { libc::mmap(null_mut(), length, access, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: of the page that was just made, and nobody else's.
        if unsafe { libc::madvise(page, length, libc::MADV_WIPEONFORK) } == 0 {
            return Some(page.cast());
        }
        // SAFETY: as above.
        unsafe { libc::munmap(page, length) };
        None
    }
}

#[cfg(not(target_os = "linux"))]
mod wiped {
    use std::sync::atomic::AtomicU64;

    /// There is none (untested).
    pub fn word() -> Option<&'static AtomicU64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_of_one_process() {
        let first = Process::this();
        let others: Vec<_> = (0..8).map(|_| std::thread::spawn(Process::this)).collect();
        assert!(others.into_iter().all(|other| other.join().unwrap() == first));
        let word = AtomicU64::new(0);
        let names: Vec<u64> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| named(&word))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(names[0] != 0 && names.iter().all(|name| *name == names[0]));
    }

    #[test]
    fn without_a_page_forks_are_counted() {
        let before = numbered();
        assert_eq!(numbered(), before);
        forked();
        assert_ne!(numbered(), before);
        assert_eq!(numbered() as u32, std::process::id());
    }

    /// One child by the C library, whose handlers run, and one that only the kernel knows of.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_is_neither_its_parent_nor_one_before() {
        assert!(wiped::word().is_some(), "this kernel is older than Linux 4.14");
        let first = Process::this();
        let holds_in_child = |one: &dyn Fn() -> bool, make: fn() -> libc::c_long| {
            let child = make();
            if child == 0 {
                // SAFETY: ends the child at once, with nothing of the parent's run.
                unsafe { libc::_exit(i32::from(!one())) };
            }
            let mut status = -1;
            // SAFETY: waits for the child of above, into a local.
            let waited = unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) };
            waited == child as libc::pid_t && status == 0
        };
        // SAFETY: the children compare words and end: nothing they do needs another thread.
        let raw = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        // SAFETY: as above.
        let forked = || unsafe { libc::c_long::from(libc::fork()) };
        for make in [raw as fn() -> _, forked] {
            assert!(holds_in_child(
                &|| {
                    let child = Process::this();
                    let grandchild = || Process::this() != child && Process::this() != first;
                    child != first && child == Process::this() && holds_in_child(&grandchild, make)
                },
                make
            ));
        }
        assert_eq!(Process::this(), first);
    }
}
