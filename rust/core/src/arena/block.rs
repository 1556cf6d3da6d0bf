//! Pieces that are lent as a whole, without a lock to give them back.
//!
//! A word among its like counts the loans; its top bit says that the owner wants to be told when the last
//! one ends. Loans begin under the owner's lock, from `&Block`, or from another loan. They end
//! wherever their users drop them, with one atomic step, and only if the owner has asked does the
//! last one have to find the owner. So a look-up takes one lock, not two.
#![allow(unsafe_code)]

use super::count::Count;
use super::piece::Piece;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::ptr::NonNull;

const ASKED: u32 = 1 << 31;
/// So many loans at once, and there are no more: far from what would reach [`ASKED`].
const MOST: u32 = 1 << 30;

#[derive(Debug)]
struct Body<T> {
    pieces: Box<[Piece]>,
    label: T,
}

/// Pieces with one owner and a label that says what they hold. Dropping a block leaks it.
#[derive(Debug)]
#[must_use]
pub struct Block<T> {
    body: NonNull<Body<T>>,
    pins: Count,
    len: usize,
}

/// A label that knows the block's owner.
pub trait Owned {
    /// The way to the owner.
    type Owner;

    /// The way to the owner, which outlives the label.
    fn owner(&self) -> Self::Owner;

    /// The last loan has ended, and the owner had asked to be told.
    fn told(owner: Self::Owner);
}

/// A block lent for reading, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Loan<T: Owned> {
    body: NonNull<Body<T>>,
    pins: NonNull<AtomicU32>,
}

// SAFETY: a block owns its pieces and its label alone.
unsafe impl<T: Send + Sync> Send for Block<T> {}
// SAFETY: through `&Block` one gets loans, which read pieces and label: see below.
unsafe impl<T: Send + Sync> Sync for Block<T> {}
// SAFETY: a loan gives shared access to pieces and label, which nobody writes while it exists; the
// last of them may be ended, but nothing is dropped by that.
unsafe impl<T: Owned + Sync> Send for Loan<T> {}
// SAFETY: as above.
unsafe impl<T: Owned + Sync> Sync for Loan<T> {}

impl<T> Block<T> {
    /// A block of these pieces, whose loans are counted by a fresh `pins`.
    pub fn new(pieces: Box<[Piece]>, label: T, pins: Count) -> Self {
        let len = pieces.iter().map(Piece::len).sum();
        let body = Box::new(Body { pieces, label });
        Self { body: NonNull::from(Box::leak(body)), pins, len }
    }

    /// Bytes of memory that a block of so many pieces takes beside them, without its label.
    pub fn footprint(pieces: usize) -> usize {
        size_of::<Body<T>>() - size_of::<T>() + pieces * size_of::<Piece>() + 32
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the block holds.
    pub fn label(&self) -> &T {
        &self.body().label
    }

    /// Whether anybody holds a loan.
    pub fn is_lent(&self) -> bool {
        self.pins.word().load(Ordering::Acquire) & !ASKED > 0
    }

    /// Whether anybody holds a loan; if so, the last one says when it ends: see [`Owned::told`].
    pub fn ask(&self) -> bool {
        let pins = self.pins.word();
        let lent = pins.fetch_or(ASKED, Ordering::AcqRel) & !ASKED > 0;
        if !lent {
            pins.fetch_and(!ASKED, Ordering::Relaxed);
        }
        lent
    }

    /// Lends the pieces and the label for reading; `None` when too many have them.
    pub fn lend(&self) -> Option<Loan<T>>
    where
        T: Owned,
    {
        lend(self.body, self.pins.word().into())
    }

    /// The pieces, the label, and the count to be given back.
    ///
    /// # Errors
    /// The block itself while it is lent.
    pub fn into_parts(self) -> Result<(Box<[Piece]>, T, Count), Self> {
        if self.is_lent() {
            return Err(self);
        }
        // SAFETY: `body` came out of a `Box` in `new` and is freed here alone, where the block ends.
        // No loan exists, and none can begin: that takes a block or a loan. What the ended ones did
        // has happened before: each ended with a release, and `is_lent` acquired.
        let body = unsafe { Box::from_raw(self.body.as_ptr()) };
        Ok((body.pieces, body.label, self.pins))
    }

    fn body(&self) -> &Body<T> {
        // SAFETY: the body lives until `into_parts`, which consumes the block, and is never
        // written to.
        unsafe { self.body.as_ref() }
    }
}

impl<T: Owned> Loan<T> {
    /// What the block holds.
    pub fn label(&self) -> &T {
        &self.body().label
    }

    /// The pieces' bytes, in order.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.body().pieces.iter().map(Piece::bytes)
    }

    /// The bytes of the first piece.
    pub fn first(&self) -> &[u8] {
        self.body().pieces.first().map_or(&[], Piece::bytes)
    }

    /// Another loan of the same block; `None` when there are too many.
    pub fn again(&self) -> Option<Self> {
        lend(self.body, self.pins)
    }

    fn body(&self) -> &Body<T> {
        // SAFETY: while this loan counts, `into_parts` gives the block back, so the body lives.
        unsafe { self.body.as_ref() }
    }
}

impl<T: Owned> Drop for Loan<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: until the step that ends it this loan counts, so the block keeps its `Count` and
        // with it the word; after that nothing of either is touched.
        let pins = unsafe { self.pins.as_ref() };
        let mut seen = 1; // most are the only one, and nobody asks
        loop {
            // The label may be gone right after that step: who is to be told is found out before.
            let owner = (seen == ASKED | 1).then(|| self.label().owner());
            let next = seen - 1;
            match pins.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return owner.map_or((), T::told),
                Err(now) => seen = now,
            }
        }
    }
}

/// Counts one more loan.
#[inline]
fn lend<T: Owned>(body: NonNull<Body<T>>, pins: NonNull<AtomicU32>) -> Option<Loan<T>> {
    // SAFETY: the callers hold the block or a loan of it, either of which keeps body and word.
    let word = unsafe { pins.as_ref() };
    if word.fetch_add(1, Ordering::Relaxed) & !ASKED >= MOST {
        // Not the last: at least the caller's own, or `MOST` others, still count.
        word.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    Some(Loan { body, pins })
}
