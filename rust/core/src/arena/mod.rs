//! Where the bytes of entries live: never in malloc, and gone from the process when freed.
//!
//! Blocks up to [`Arena::run_max`] are contiguous runs of pages inside large slabs of address
//! space; a freed run is discarded page by page, so it leaves both the resident set and the
//! cgroup's charge although its slab stays. That rules out huge pages in slabs: discarding half
//! of one frees nothing. Larger blocks are maps of their own, started at a huge-page boundary,
//! with an exact tail. Slabs keep the number of maps small when there are 10^5 entries.
//!
//! Ownership makes the rest of the core free of `unsafe`: a [`Block`] owns its pages, lends them
//! as [`Loan`]s or one [`LoanMut`], and cannot be discarded while lent. A loan that is dropped
//! instead of returned leaks its block; it never dangles.
#![allow(unsafe_code)]

mod os;
mod runs;

use crate::error::Result;
pub use os::page;
use runs::Runs;
use std::ptr::NonNull;

const SLAB: usize = 64 << 20;
const RUN_MAX: usize = 1 << 20;
/// At most this many maps per full budget: the kernel's default allows 65 530 in all.
const MAPS: usize = 4096;
const EXCLUSIVE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Run,
    Map,
}

/// Pages with one owner. Dropping a block leaks it: give it to [`Block::discard`].
#[derive(Debug)]
#[must_use]
pub struct Block {
    ptr: NonNull<u8>,
    len: usize,
    home: Home,
    loans: u32,
}

/// Pages lent for reading.
#[derive(Debug)]
#[must_use]
pub struct Loan {
    ptr: NonNull<u8>,
    len: usize,
}

/// Pages lent to one writer.
#[derive(Debug)]
#[must_use]
pub struct LoanMut {
    ptr: NonNull<u8>,
    len: usize,
}

/// A range of a slab whose pages are gone; to be given to [`Arena::refill`].
#[derive(Debug)]
#[must_use]
pub struct Hole {
    at: usize,
    len: usize,
}

/// A stretch of address space that runs are cut from. Dropping it unmaps it.
#[derive(Debug)]
pub struct Slab {
    base: NonNull<u8>,
}

// SAFETY: a block is the only owner of its pages, and the pages belong to no thread.
unsafe impl Send for Block {}
// SAFETY: through `&Block` only the address and length can be read.
unsafe impl Sync for Block {}
// SAFETY: a loan reads pages that nobody writes: writing needs the exclusive loan, which a block
// hands out only while no other loan exists; and it keeps the block from being discarded.
unsafe impl Send for Loan {}
// SAFETY: as above; shared reads of immutable bytes.
unsafe impl Sync for Loan {}
// SAFETY: the exclusive loan is the only access to its pages, from whichever thread holds it.
unsafe impl Send for LoanMut {}
// SAFETY: `&LoanMut` gives no access to the bytes.
unsafe impl Sync for LoanMut {}
// SAFETY: a slab is an address range; unmapping it may happen on any thread.
unsafe impl Send for Slab {}
// SAFETY: `&Slab` gives no access to memory.
unsafe impl Sync for Slab {}

impl Block {
    /// A block of its own pages, for lengths above [`Arena::run_max`]. Takes no lock and touches
    /// no memory; the system may refuse.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn map(len: usize) -> Result<Self> {
        let ptr = os::map(len, map_align(len))?;
        if len >= os::HUGE {
            os::advise_pages(ptr, len, true);
        }
        Ok(Self { ptr, len, home: Home::Map, loans: 0 })
    }

    /// A block without pages.
    pub fn empty() -> Self {
        Self { ptr: dangling(), len: 0, home: Home::Run, loans: 0 }
    }

    /// Bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether anybody holds a loan.
    pub fn is_lent(&self) -> bool {
        self.loans > 0
    }

    /// Whether this block can become one of `len` bytes without new pages: runs are cut, maps
    /// must fit exactly (cutting a map would leave half of a huge page charged).
    pub fn can_become(&self, len: usize) -> bool {
        self.loans == 0 && len > 0 && (self.len == len || self.home == Home::Run && self.len > len)
    }

    /// Cuts a run after `len` bytes and returns the rest; `None` when there is no rest.
    pub fn cut(&mut self, len: usize) -> Option<Block> {
        if self.home != Home::Run || self.loans > 0 || len >= self.len {
            return None;
        }
        // SAFETY: `len < self.len`, so the sum stays inside the block's pages.
        let ptr = unsafe { self.ptr.add(len) };
        let rest = Self { ptr, len: self.len - len, home: Home::Run, loans: 0 };
        self.len = len;
        Some(rest)
    }

    /// Lends the pages for reading; `None` while they are being written.
    pub fn lend(&mut self) -> Option<Loan> {
        if self.loans >= EXCLUSIVE - 1 {
            return None;
        }
        self.loans += 1;
        Some(Loan { ptr: self.ptr, len: self.len })
    }

    /// Lends the pages for writing; `None` while anybody else has them.
    pub fn lend_mut(&mut self) -> Option<LoanMut> {
        if self.loans > 0 {
            return None;
        }
        self.loans = EXCLUSIVE;
        Some(LoanMut { ptr: self.ptr, len: self.len })
    }

    /// Takes a loan back; a loan of another block is leaked, and with it that block.
    pub fn settle(&mut self, loan: Loan) {
        if loan.ptr == self.ptr && loan.len == self.len && self.loans != EXCLUSIVE {
            self.loans = self.loans.saturating_sub(1);
        }
    }

    /// Takes the exclusive loan back.
    pub fn settle_mut(&mut self, loan: LoanMut) {
        if loan.ptr == self.ptr && loan.len == self.len && self.loans == EXCLUSIVE {
            self.loans = 0;
        }
    }

    /// Gives the pages back to the system: a system call, so not under a lock. The hole of a run
    /// goes to [`Arena::refill`].
    ///
    /// # Errors
    /// The block itself, when it is lent or the system keeps the pages: they still exist.
    pub fn discard(self) -> std::result::Result<Option<Hole>, Block> {
        if self.loans > 0 {
            return Err(self);
        }
        if self.len == 0 {
            return Ok(None);
        }
        // SAFETY: the block owns these pages and lends them to nobody; `self` ends here.
        let done = unsafe {
            match self.home {
                Home::Run => os::discard(self.ptr, self.len),
                Home::Map => os::unmap(self.ptr, self.len, map_align(self.len)),
            }
        };
        if !done {
            return Err(self);
        }
        let hole = Hole { at: self.ptr.as_ptr().expose_provenance(), len: self.len };
        Ok((self.home == Home::Run).then_some(hole))
    }
}

impl Loan {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block cannot be discarded nor written while this loan exists (see `Block`),
        // and fresh anonymous pages are zero, so all bytes are initialised.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl LoanMut {
    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as for `Loan::bytes`; this loan is the only access, and `&mut self` makes the
        // slice unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Faults all pages in with one call; much cheaper than one fault per page.
    pub fn populate(&mut self) {
        if self.len > page() {
            // SAFETY: the pages are mapped writable and lent to this loan alone.
            unsafe { os::populate(self.ptr, self.len) };
        }
    }
}

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

    /// Chooses which blocks are runs for a budget; those that exist stay what they are.
    pub fn fit(&mut self, budget: usize) {
        self.run_max = (budget / MAPS).clamp(RUN_MAX, SLAB / 4);
    }

    /// The longest block that is a run; longer ones are maps.
    pub fn run_max(&self) -> usize {
        self.run_max
    }

    /// Bytes of the block that holds `bytes`: whole pages, and whole huge pages where that adds
    /// less than a thirty-second. The tail of a map costs a fault for each of its small pages.
    pub fn block_len(&self, bytes: usize) -> Option<usize> {
        let len = bytes.checked_next_multiple_of(page())?;
        let huge = len.checked_next_multiple_of(os::HUGE).filter(|&huge| huge - len <= len / 32);
        if len > self.run_max { huge.or(Some(len)) } else { Some(len) }
    }

    /// A run of `len` bytes (a page multiple up to [`run_max`](Self::run_max)) of untouched pages.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`] when the system refuses address space.
    pub fn run(&mut self, len: usize) -> Result<Block> {
        if len == 0 {
            return Ok(Block::empty());
        }
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
        let ptr = NonNull::new(std::ptr::with_exposed_provenance_mut(at)).unwrap_or_else(dangling);
        Ok(Block { ptr, len, home: Home::Run, loans: 0 })
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

/// Where maps start: at a huge page if one fits, else wherever they join their neighbours.
fn map_align(len: usize) -> usize {
    if len < os::HUGE { page() } else { os::HUGE }
}

fn dangling() -> NonNull<u8> {
    #[repr(align(64))]
    struct Aligned;
    // Aligned for any element type, and never read, as for every empty slice.
    NonNull::<Aligned>::dangling().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0usize) * page()
    }

    #[test]
    fn loans_keep_pages() {
        let mut arena = Arena::new(1 << 30);
        let mut block = arena.run(2 * page()).expect("memory");
        let mut w = block.lend_mut().expect("free");
        assert!(block.lend().is_none() && block.lend_mut().is_none());
        w.bytes().fill(7);
        block.settle_mut(w);
        let (a, b) = (block.lend().expect("free"), block.lend().expect("free"));
        assert!(block.lend_mut().is_none() && block.cut(page()).is_none());
        let mut block = block.discard().expect_err("lent");
        assert!(a.bytes().iter().chain(b.bytes()).all(|&x| x == 7));
        block.settle(a);
        block.settle(b);
        let rest = block.cut(page()).expect("two pages");
        assert_eq!((block.len(), rest.len()), (page(), page()));
        for b in [block, rest] {
            let hole = b.discard().expect("free").expect("a run");
            assert!(arena.refill(hole).is_none());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn freed_pages_leave_the_process() {
        let mut arena = Arena::new(256 << 20);
        let len = 25 * page();
        let mut blocks: Vec<Block> = (0..1200).map(|_| arena.run(len).expect("memory")).collect();
        let mut maps: Vec<Block> = (0..10).map(|_| Block::map(5 << 20).expect("memory")).collect();
        let before = resident();
        for block in blocks.iter_mut().chain(&mut maps) {
            let mut loan = block.lend_mut().expect("free");
            loan.populate();
            loan.bytes().fill(1);
            block.settle_mut(loan);
        }
        let full = resident();
        assert!(full - before > (1200 * len + (50 << 20)) * 97 / 100);
        // Every second run: no slab becomes empty, the memory is returned all the same.
        let (mut kept, mut i) = (Vec::new(), 0);
        for block in blocks {
            i += 1;
            if i % 2 == 0 {
                kept.push(block);
            } else if let Ok(Some(hole)) = block.discard() {
                assert!(arena.refill(hole).is_none());
            }
        }
        assert!(full - resident() > 600 * len * 97 / 100);
        for block in kept.into_iter().chain(maps) {
            if let Ok(Some(hole)) = block.discard() {
                drop(arena.refill(hole));
            }
        }
        assert!(resident() < before + (4 << 20));
        assert_eq!(arena.slabs.len(), 1);
    }
}
