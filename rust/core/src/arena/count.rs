//! Counts of loans, side by side in memory of their own.
//!
//! Every look-up changes the count of the entry that it finds. Beside the entry's description that
//! would be one more line of memory to wait for; here sixteen entries share a line, and the counts
//! of all of them stay in the core's own cache.
#![allow(unsafe_code)]

use crate::sync::atomic::{AtomicU32, Ordering};
use std::ptr::NonNull;

const CHUNK: usize = 64;
const NONE: u32 = u32::MAX;

type Chunk = [AtomicU32; CHUNK];

/// Where counts come from and go back to.
#[derive(Debug)]
pub struct Counts {
    chunks: Vec<NonNull<Chunk>>,
    /// The first that nobody has; each of those holds the index of the next.
    free: u32,
    /// How many somebody has.
    out: usize,
}

/// A count that is nobody else's. Dropping it instead of giving it back leaks the chunk it is in.
#[derive(Debug)]
#[must_use]
pub struct Count {
    word: NonNull<AtomicU32>,
    index: u32,
}

// SAFETY: chunks are only read and written through atomics.
unsafe impl Send for Counts {}
// SAFETY: as above; `&Counts` gives no access to them.
unsafe impl Sync for Counts {}
// SAFETY: a count is an atomic, which lives as long as the `Count` does: see `word`.
unsafe impl Send for Count {}
// SAFETY: as above.
unsafe impl Sync for Count {}

impl Default for Counts {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: NONE, out: 0 }
    }
}

impl Counts {
    /// Bytes that the next [`take`](Self::take) adds to the footprint.
    pub fn growth(&self) -> usize {
        if self.free == NONE { Self::BYTES } else { 0 }
    }

    /// Bytes of all chunks.
    pub fn footprint(&self) -> usize {
        self.chunks.len() * Self::BYTES
    }

    /// A chunk, its allocator's header, and its place in the list while that moves.
    const BYTES: usize = size_of::<Chunk>() + 16 + size_of::<usize>() * 4;

    /// Whether nobody has any.
    pub fn are_home(&self) -> bool {
        self.out == 0
    }

    /// A count of zero.
    pub fn take(&mut self) -> Count {
        if self.free == NONE {
            self.grow();
        }
        let index = self.free;
        let word = NonNull::from(&self.chunk(index)[index as usize % CHUNK]);
        let count = Count { word, index };
        self.free = count.word().swap(0, Ordering::Relaxed);
        self.out += 1;
        count
    }

    /// Takes a count back. Another's is lost.
    pub fn give(&mut self, count: Count) {
        let place = count.index as usize;
        let ours = self
            .chunks
            .get(place / CHUNK)
            .is_some_and(|_| NonNull::from(&self.chunk(count.index)[place % CHUNK]) == count.word);
        if ours {
            count.word().store(self.free, Ordering::Relaxed);
            self.free = count.index;
            self.out -= 1;
        }
    }

    fn grow(&mut self) {
        let base = self.chunks.len() * CHUNK;
        let word =
            |i: usize| AtomicU32::new(if i + 1 == CHUNK { NONE } else { (base + i + 1) as u32 });
        let chunk = Box::new(std::array::from_fn(word));
        self.chunks.push(NonNull::from(Box::leak(chunk)));
        self.free = base as u32;
    }

    fn chunk(&self, index: u32) -> &Chunk {
        // SAFETY: chunks come out of a `Box` in `grow`, are freed only in `drop`, and are never
        // borrowed but like this.
        unsafe { self.chunks[index as usize / CHUNK].as_ref() }
    }
}

impl Count {
    /// The atomic itself, which stays where it is while this `Count` lives.
    pub(super) fn word(&self) -> &AtomicU32 {
        // SAFETY: a chunk is freed when all of its counts have come back, and `give` takes this one
        // by value.
        unsafe { self.word.as_ref() }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        if !self.are_home() {
            return;
        }
        for chunk in self.chunks.drain(..) {
            // SAFETY: it came out of a `Box` in `grow`. Nobody has a count of any chunk, so nobody
            // has a pointer into this one: those that loans have end before their block gives its
            // count back.
            drop(unsafe { Box::from_raw(chunk.as_ptr()) });
        }
    }
}

// `tests/model_pins` includes this file, where words are only inside of models.
#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn counts_are_nobody_elses_and_one_is_lost() {
        let (mut counts, mut other) = (Counts::default(), Counts::default());
        let mut out = Vec::new();
        for round in 0..400 {
            let grows = counts.growth();
            let before = counts.footprint();
            out.push(counts.take());
            assert_eq!(counts.footprint(), before + grows);
            if round % 3 == 0 {
                counts.give(out.swap_remove(round / 3));
            }
            assert_eq!(out.iter().map(|c| c.word).collect::<HashSet<_>>().len(), out.len());
        }
        for (i, count) in out.iter().enumerate() {
            assert_eq!(count.word().swap(i as u32, Ordering::Relaxed), 0);
        }
        // A stranger's count is not taken for one of the same place.
        other.give(counts.take());
        assert!(other.are_home() && other.growth() > 0);
        let full = counts.footprint();
        while let Some(count) = out.pop() {
            assert_eq!(count.word().load(Ordering::Relaxed), out.len() as u32);
            counts.give(count);
        }
        assert!(!counts.are_home(), "one was lost");
        assert_eq!(counts.footprint(), full);
    }

    #[test]
    fn a_count_that_is_lost_outlives_what_it_came_from() {
        let mut counts = Counts::default();
        let kept = counts.take();
        drop(counts);
        assert_eq!(kept.word().fetch_add(1, Ordering::Relaxed), 0);
        assert_eq!(kept.word().load(Ordering::Relaxed), 1);
    }
}
