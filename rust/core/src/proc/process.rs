//! Which process this is, at less than the cost of a system call.
//!
//! A word in a page that the kernel empties in every child with memory of its own
//! (`MADV_WIPEONFORK`, Linux 4.14) says so. Where there is no such page it is the process's number,
//! and how many forks the C library's handlers saw: a child has its parent's number where both are
//! the first of their namespaces. Only such a one that no handler saw is then taken for its parent.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Which process it is.
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

/// How many names were given. Those of a child come after all that its parent had given by then.
static GIVEN: AtomicU64 = AtomicU64::new(0);

/// The name in a word that is empty in a new process.
fn named(word: &AtomicU64) -> u64 {
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
    number(FORKS.load(Relaxed), std::process::id())
}

fn number(forks: u32, pid: u32) -> u64 {
    u64::from(forks) << 32 | u64::from(pid)
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
        // SAFETY: what is published is the start of a writable page that is never unmapped, and that
        // nobody reaches but as this word.
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
        let advised = |advice| unsafe { libc::madvise(page, length, advice) } == 0;
        // Emulators have agreed to any advice and done nothing; BoringSSL asks them the same.
        if !advised(-1) && advised(libc::MADV_WIPEONFORK) {
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
    use std::sync::Barrier;

    #[test]
    fn threads_agree_on_a_name() {
        let first = Process::this();
        for _ in 0..500 {
            let (word, start) = (AtomicU64::new(0), Barrier::new(4));
            let ask = || {
                start.wait();
                (Process::this(), named(&word))
            };
            let names: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let name = named(&word);
            assert!(name != 0 && names.iter().all(|found| *found == (first, name)));
        }
    }

    #[test]
    fn without_a_page_forks_are_counted() {
        assert_ne!(number(0, 1), number(1, 1));
        assert_ne!(number(1, 2), number(2, 1));
        assert_eq!(numbered(), numbered());
    }

    /// What a child finds; `false`, too, where there can be none.
    #[cfg(target_os = "linux")]
    fn in_child(make: fn() -> libc::c_long, holds: &dyn Fn() -> bool) -> bool {
        let child = make();
        if child == 0 {
            // SAFETY: ends the child at once, with nothing of the parent's run.
            unsafe { libc::_exit(i32::from(!holds())) };
        }
        let mut status = -1;
        // SAFETY: waits for the child of above, into a local.
        let waited = child > 0 && unsafe { libc::waitpid(child as _, &raw mut status, 0) } > 0;
        waited && status == 0
    }

    #[cfg(target_os = "linux")]
    fn forks() -> libc::c_long {
        // SAFETY: the children here compare words and end: nothing they do needs another thread.
        unsafe { libc::fork().into() }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_is_neither_its_parent_nor_one_before() {
        let _registers = crate::proc::reader::Reader::new(std::path::Path::new("/"));
        let (first, counted) = (Process::this(), FORKS.load(Relaxed));
        assert!(in_child(forks, &|| {
            let child = Process::this();
            let grandchild = || Process::this() != child && Process::this() != first;
            FORKS.load(Relaxed) == counted + 1
                && child != first
                && child == Process::this()
                && in_child(forks, &grandchild)
        }));
        assert_eq!(Process::this(), first);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_that_no_handler_saw_is_known_by_its_page() {
        // SAFETY: as in `forks`.
        let raw = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        let first = Process::this();
        let counted = FORKS.load(Relaxed);
        assert!(in_child(raw, &|| Process::this() != first && FORKS.load(Relaxed) == counted));
    }
}
