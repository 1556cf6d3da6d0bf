//! Ranges of pages, each with one owner.
#![allow(unsafe_code)]

use super::os;
use crate::error::Result;
use std::ptr::NonNull;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Run,
    Map,
}

/// Neighbouring pages with one owner. Dropping a piece leaks it: give it to [`Piece::discard`].
#[derive(Debug)]
#[must_use]
pub struct Piece {
    ptr: NonNull<u8>,
    len: usize,
    home: Home,
    /// Whether the pages have served before.
    warm: bool,
}

/// A range of a slab whose pages are gone; to be given to [`super::Arena::refill`].
#[derive(Debug)]
#[must_use]
pub struct Hole {
    pub(super) at: usize,
    pub(super) len: usize,
}

// SAFETY: a piece is the only owner of its pages, and pages belong to no thread.
unsafe impl Send for Piece {}
// SAFETY: `&Piece` gives out bytes for reading only, which `&mut Piece` is needed to write.
unsafe impl Sync for Piece {}

impl Piece {
    /// At least `len` bytes in whole pages of their own map. Takes no lock and touches no memory;
    /// the system may refuse.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`].
    pub fn map(len: usize) -> Result<Self> {
        let refused = crate::error::Error::OutOfMemory { bytes: len, errno: 0 };
        let len = len.max(1).checked_next_multiple_of(os::page()).ok_or(refused)?;
        let ptr = os::map(len, map_align(len))?;
        if len >= os::HUGE {
            os::advise_pages(ptr, len, true);
        }
        Ok(Self { ptr, len, home: Home::Map, warm: false })
    }

    /// # Safety
    /// The range consists of whole pages of a slab that lives longer than the piece, and is part of
    /// no other piece.
    pub(super) unsafe fn run(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, home: Home::Run, warm: false }
    }

    /// Bytes, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is no piece without pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the pages are part of a slab, so that the piece can be cut.
    pub fn is_run(&self) -> bool {
        self.home == Home::Run
    }

    /// Whether this can become a piece of `len` bytes without new pages: runs are cut, maps must
    /// fit exactly (cutting a map would leave half of a huge page charged).
    pub fn can_become(&self, len: usize) -> bool {
        len > 0 && (self.len == len || self.home == Home::Run && self.len > len)
    }

    /// Cuts a run after `len` bytes, a page multiple, and returns the rest; `None` when there is
    /// no rest.
    pub fn cut(&mut self, len: usize) -> Option<Self> {
        let inside = len > 0 && len < self.len && len.is_multiple_of(os::page());
        if self.home != Home::Run || !inside {
            return None;
        }
        // SAFETY: `len < self.len`, so the sum stays inside the piece's pages.
        let ptr = unsafe { self.ptr.add(len) };
        let rest = Self { ptr, len: self.len - len, home: Home::Run, warm: self.warm };
        self.len = len;
        Some(rest)
    }

    /// The bytes; those never written are zero.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the piece owns these mapped pages, anonymous ones are initialised with zeros, and
        // the slice keeps the piece borrowed.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    /// The bytes. Pages that served before still hold what they held.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.warm = true;
        // SAFETY: as in `bytes`, and `&mut self` makes the slice unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Faults new small pages in with one call; much cheaper than one fault for each. Huge pages
    /// are better faulted in one by one as they are written: a page that was just cleared is still
    /// in the core's cache.
    pub fn populate(&mut self) {
        let huge = self.home == Home::Map && os::has_huge_pages();
        let start = if huge { self.len / os::HUGE * os::HUGE } else { 0 };
        if !self.warm && self.len - start > os::page() {
            // SAFETY: the pages are mapped writable and nobody else's, and `start` is inside them.
            unsafe { os::populate(self.ptr.add(start), self.len - start) };
        }
        self.warm = true;
    }

    /// Gives the pages back to the system: a system call, so not under a lock. The hole of a run
    /// goes to [`super::Arena::refill`].
    ///
    /// # Errors
    /// The piece itself, when the system keeps the pages: they still exist.
    pub fn discard(self) -> std::result::Result<Option<Hole>, Self> {
        // SAFETY: the piece owns these pages, and nothing borrows from it: `self` ends here.
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

/// Where maps start: at a huge page if one fits, else wherever they join their neighbours.
fn map_align(len: usize) -> usize {
    if len < os::HUGE { os::page() } else { os::HUGE }
}
