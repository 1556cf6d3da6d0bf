//! Where the bytes of entries live: never in malloc, and gone from the process when freed.
//!
//! A [`Piece`] is a range of pages. Pieces up to [`Arena::run_max`] are runs of pages inside large
//! slabs of address space; a freed run is discarded page by page, so it leaves both the resident
//! set and the cgroup's charge although its slab stays. That rules out huge pages in slabs:
//! discarding half of one frees nothing. Larger pieces are maps of their own, started at a
//! huge-page boundary, with an exact tail. Slabs keep the number of maps small when there are 10^5
//! entries.
//!
//! Ownership makes the rest of the core free of `unsafe`: a [`Block`] owns pieces, lends them as
//! [`Loan`]s, and cannot be taken apart while lent. A loan that is dropped instead of ended leaks
//! its block; it never dangles.
#![allow(unsafe_code)]

mod block;
mod count;
mod os;
mod piece;
mod runs;

use crate::error::Result;
pub use block::{Block, Loan, Owned};
pub use count::{Count, Counts};
pub use os::page;
pub use piece::{Hole, Piece};
use runs::Runs;
use std::ptr::NonNull;

const SLAB: usize = 64 << 20;
const RUN_MAX: usize = 1 << 20;
/// At most this many maps per full budget: the kernel's default allows 65 530 in all.
const MAPS: usize = 4096;

/// A stretch of address space that runs are cut from. Dropping it unmaps it.
#[derive(Debug)]
pub struct Slab {
    base: NonNull<u8>,
}

// SAFETY: a slab is an address range; unmapping it may happen on any thread.
unsafe impl Send for Slab {}
// SAFETY: `&Slab` gives no access to memory.
unsafe impl Sync for Slab {}

impl Slab {
    fn new() -> Result<Self> {
        let base = os::map(SLAB, SLAB)?;
        os::advise_pages(base, SLAB, false);
        Ok(Self { base })
    }

    fn range(&self) -> (usize, usize) {
        let at = self.base.as_ptr().expose_provenance();
        (at, at + SLAB)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: slabs are dropped only when every run of theirs is free (`Arena::refill`,
        // `Arena::drop`), so no block or loan points into this one.
        unsafe { os::unmap(self.base, SLAB, SLAB) };
    }
}

/// Finds out what is asked of the system once.
pub fn prepare() {
    os::page();
    os::has_huge_pages();
}

/// Slabs and their free runs. Its owner's lock guards it; it calls the system only for the
/// address space of a new slab.
pub struct Arena {
    slabs: Vec<Slab>,
    free: Runs,
    run_max: usize,
}

impl Arena {
    /// An arena for about `budget` bytes.
    pub fn new(budget: usize) -> Self {
        let mut arena = Self { slabs: Vec::new(), free: Runs::default(), run_max: RUN_MAX };
        arena.fit(budget);
        arena
    }

    /// Chooses which pieces are runs for a budget; those that exist stay what they are.
    pub fn fit(&mut self, budget: usize) {
        self.run_max = (budget / MAPS).clamp(RUN_MAX, SLAB / 4);
    }

    /// The longest contiguous piece that is a run; longer ones are maps.
    pub fn run_max(&self) -> usize {
        self.run_max
    }

    /// Bytes of the piece that holds `bytes`: whole pages, and whole huge pages where that adds
    /// less than a thirty-second. The tail of a map costs a fault for each of its small pages.
    pub fn piece_len(&self, bytes: usize) -> Option<usize> {
        let len = bytes.checked_next_multiple_of(page())?;
        let huge = len.checked_next_multiple_of(os::HUGE).filter(|&huge| huge - len <= len / 32);
        if len > self.run_max { huge.or(Some(len)) } else { Some(len) }
    }

    /// A run of at least `len` bytes, up to [`run_max`](Self::run_max), in whole pages that are
    /// untouched.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`] when the system refuses address space.
    pub fn run(&mut self, len: usize) -> Result<Piece> {
        let len = len.clamp(1, SLAB).next_multiple_of(page());
        let at = match self.free.take(len) {
            Some(at) => at,
            None => {
                let slab = Slab::new()?;
                let at = slab.range().0;
                self.slabs.push(slab);
                if len < SLAB {
                    self.free.insert(at + len, SLAB - len);
                }
                at
            }
        };
        let refused = crate::error::Error::OutOfMemory { bytes: len, errno: 0 };
        let ptr = NonNull::new(std::ptr::with_exposed_provenance_mut(at)).ok_or(refused)?;
        // SAFETY: the range was free, so it is inside a slab of this arena's and nobody else's
        // until its hole comes back; only whole pages are ever taken, so it shares none; slabs with ranges that are not free are never unmapped.
        Ok(unsafe { Piece::run(ptr, len) })
    }

    /// Makes a hole free again. A slab that is free as a whole is returned, to be dropped
    /// outside the lock; one is kept, so that a cache around a slab's edge does not map and unmap.
    pub fn refill(&mut self, hole: Hole) -> Option<Slab> {
        let range = (hole.at & !(SLAB - 1), (hole.at & !(SLAB - 1)) + SLAB);
        let (at, len) = self.free.give(hole.at, hole.len, range);
        if len < SLAB || self.slabs.len() < 2 {
            return None;
        }
        let index = self.slabs.iter().position(|s| s.range().0 == at)?;
        self.free.remove(at, len);
        Some(self.slabs.swap_remove(index))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for slab in self.slabs.drain(..) {
            // A slab with a run that was never given back stays mapped: somebody may read it.
            if !self.free.has(slab.range().0, SLAB) {
                std::mem::forget(slab);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0usize) * page()
    }

    /// A label that counts how often its owner is told.
    #[derive(Debug)]
    struct Tally(usize, Arc<AtomicUsize>);

    impl Tally {
        fn told(&self) -> usize {
            self.1.load(Ordering::Relaxed)
        }
    }

    impl Owned for Tally {
        type Owner = Arc<AtomicUsize>;

        fn owner(&self) -> Self::Owner {
            self.1.clone()
        }

        fn told(owner: Self::Owner) {
            owner.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn loans_keep_pieces() {
        let mut arena = Arena::new(1 << 30);
        let mut piece = arena.run(3 * page()).expect("memory");
        piece.bytes_mut().fill(7);
        let mut rest = piece.cut(2 * page()).expect("three pages");
        assert!(piece.cut(page() / 2).is_none());
        let last = rest.cut(page());
        assert!(last.is_none(), "one page is not cut");
        assert_eq!((piece.len(), rest.len()), (2 * page(), page()));
        let mut counts = Counts::default();
        let block = Block::new([piece, rest].into(), Tally(1, Arc::default()), counts.take());
        let (a, b) = (block.lend().expect("few"), block.lend().expect("few"));
        let c = b.again().expect("few");
        let block = block.into_parts().expect_err("lent");
        assert!(a.pieces().flatten().chain(b.first()).all(|&x| x == 7));
        drop(a);
        assert!(block.ask());
        drop(b);
        assert_eq!(block.label().told(), 0, "neither asked nor the last, then not the last");
        drop(c);
        assert_eq!(block.label().told(), 1, "the last one tells");
        assert!(!block.ask(), "nobody is left to tell");
        let (pieces, label, count) = block.into_parts().expect("free");
        counts.give(count);
        assert!(counts.are_home());
        assert_eq!((label.0, label.told(), pieces.len()), (1, 1, 2));
        for piece in pieces {
            let hole = piece.discard().expect("free").expect("a run");
            assert!(arena.refill(hole).is_none());
        }
    }

    /// One thread owns a block and asks, the others begin and end loans: of all that were asked,
    /// exactly the last one tells.
    #[test]
    fn the_last_loan_tells() {
        let mut counts = Counts::default();
        for round in 0..500usize {
            let label = Tally(round, Arc::default());
            let block = Block::new(Box::default(), label, counts.take());
            let first = block.lend().expect("few");
            std::thread::scope(|s| {
                for _ in 0..3 {
                    let mine = first.again().expect("few");
                    s.spawn(move || {
                        let another = mine.again().expect("few");
                        assert_eq!(another.label().0, round);
                        drop((mine, another));
                    });
                }
                assert!(block.ask());
                drop(first);
            });
            assert_eq!(block.label().told(), 1);
            counts.give(block.into_parts().expect("free").2);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn freed_pages_leave_the_process() {
        let mut arena = Arena::new(256 << 20);
        let len = 25 * page();
        let mut runs: Vec<Piece> = (0..1200).map(|_| arena.run(len).expect("memory")).collect();
        let mut maps: Vec<Piece> = (0..10).map(|_| Piece::map(5 << 20).expect("memory")).collect();
        let before = resident();
        for piece in runs.iter_mut().chain(&mut maps) {
            piece.populate();
            piece.bytes_mut().fill(1);
        }
        let full = resident();
        assert!(full - before > (1200 * len + (50 << 20)) * 97 / 100);
        // Every second run: no slab becomes empty, the memory is returned all the same.
        let (mut kept, mut i) = (Vec::new(), 0);
        for piece in runs {
            i += 1;
            if i % 2 == 0 {
                kept.push(piece);
            } else if let Ok(Some(hole)) = piece.discard() {
                assert!(arena.refill(hole).is_none());
            }
        }
        assert!(full - resident() > 600 * len * 97 / 100);
        for piece in kept.into_iter().chain(maps) {
            if let Ok(Some(hole)) = piece.discard() {
                drop(arena.refill(hole));
            }
        }
        assert!(resident() < before + (4 << 20));
        assert_eq!(arena.slabs.len(), 1);
    }
}
