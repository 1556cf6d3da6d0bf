//! Which address ranges of the slabs are free: best fit, coalesced, no memory of its own touched.

use std::collections::{BTreeMap, BTreeSet};

/// Free ranges of addresses, indexed by place and by size. Lengths are bytes, page multiples.
#[derive(Default)]
pub struct Runs {
    by_place: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
}

impl Runs {
    /// Takes `len` bytes from the smallest range that has them.
    pub fn take(&mut self, len: usize) -> Option<usize> {
        let &(found, at) = self.by_size.range((len, 0)..).next()?;
        self.remove(at, found);
        if found > len {
            self.insert(at + len, found - len);
        }
        Some(at)
    }

    /// Gives a range back inside the slab `[from, to)`; returns the coalesced range.
    pub fn give(&mut self, at: usize, len: usize, (from, to): (usize, usize)) -> (usize, usize) {
        let (mut start, mut end) = (at, at + len);
        if let Some((&left, &n)) = self.by_place.range(from..at).next_back()
            && left + n == at
        {
            self.remove(left, n);
            start = left;
        }
        if end < to
            && let Some(&n) = self.by_place.get(&end)
        {
            self.remove(end, n);
            end += n;
        }
        self.insert(start, end - start);
        (start, end - start)
    }

    /// Forgets a free range, because its slab goes away.
    pub fn remove(&mut self, at: usize, len: usize) {
        self.by_place.remove(&at);
        self.by_size.remove(&(len, at));
    }

    /// Whether exactly this range is free.
    pub fn has(&self, at: usize, len: usize) -> bool {
        self.by_place.get(&at) == Some(&len)
    }

    /// Makes a range free as it is.
    pub fn insert(&mut self, at: usize, len: usize) {
        self.by_place.insert(at, len);
        self.by_size.insert((len, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLAB: usize = 64;

    proptest! {
        #[test]
        fn never_overlap_and_coalesce(ops in prop::collection::vec((any::<bool>(), 1usize..20), 1..300)) {
            let mut runs = Runs::default();
            runs.insert(SLAB, SLAB);
            runs.insert(2 * SLAB, SLAB); // adjacent slabs must not grow together
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (take, n) in ops {
                if take || taken.is_empty() {
                    if let Some(at) = runs.take(n) {
                        prop_assert!(taken.iter().all(|&(a, l)| at + n <= a || a + l <= at));
                        prop_assert!(at / SLAB == (at + n - 1) / SLAB);
                        taken.push((at, n));
                    }
                } else {
                    let (at, len) = taken.swap_remove(n % taken.len());
                    let slab = at / SLAB * SLAB;
                    runs.give(at, len, (slab, slab + SLAB));
                }
                let free: usize = runs.by_place.values().sum();
                let used: usize = taken.iter().map(|t| t.1).sum();
                prop_assert_eq!(free + used, 2 * SLAB);
                prop_assert_eq!(runs.by_place.len(), runs.by_size.len());
            }
            for (at, len) in taken {
                let slab = at / SLAB * SLAB;
                runs.give(at, len, (slab, slab + SLAB));
            }
            prop_assert_eq!(runs.by_place.into_iter().collect::<Vec<_>>(), vec![(SLAB, SLAB), (2 * SLAB, SLAB)]);
        }
    }
}
