//! Slots, index, list and account, and what may be done with them in one step.

use super::room::Gone;
use super::{Ask, Cache, Key};
use crate::arena::{Arena, Block, Counts, Loan, Owned, Piece};
use crate::budget::Budget;
use crate::lru::{Id, Lru};
use crate::pixels::Spec;
use hashbrown::HashTable;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// In the index and in the list.
    Listed,
    /// In the index; off the list because it was found in use, until its last user says so.
    Parked,
    /// Removed while in use; goes with its last user.
    Leaving,
}

/// What an entry holds, and whose it is: for the last of its users, if that was asked for.
pub(super) struct Label {
    pub spec: Spec,
    pub cache: Arc<Cache>,
    id: Id,
}

impl Label {
    /// Bytes of memory that an entry takes beside its pages and what its arrays are called.
    pub fn footprint(pieces: usize) -> usize {
        Block::<Self>::footprint(pieces) + size_of::<Self>() - size_of::<Spec>()
    }
}

impl Owned for Label {
    type Owner = (Arc<Cache>, Id);

    fn owner(&self) -> Self::Owner {
        (self.cache.clone(), self.id)
    }

    fn told((cache, id): Self::Owner) {
        cache.told(id);
    }
}

pub(super) struct Entry {
    pub key: Key,
    pub block: Block<Label>,
    /// Bytes charged beside the block's.
    pub meta: usize,
    pub phase: Phase,
    /// The count of sweeps when it was last used.
    pub epoch: u32,
}

impl Entry {
    pub fn bytes(&self) -> usize {
        self.block.len() + self.meta
    }
}

pub(super) struct State {
    pub budget: Budget,
    pub arena: Arena,
    pub slots: Lru<Entry>,
    pub index: HashTable<Id>,
    pub counts: Counts,
    /// Output buffers that nobody uses, on the account.
    pub spare: Vec<Piece>,
    /// Bytes of the entries in the list: those that can go, unless they turn out to be in use.
    pub idle: usize,
    /// Bytes of the entries that were found in use.
    pub pinned: usize,
    /// Bytes on the account of what left its place and is about to go.
    pub leaving: usize,
    /// Bytes of books on the account.
    pub books: usize,
    pub logical: usize,
    pub epoch: u32,
    pub generation: u64,
    pub forks: u64,
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,
    pub refused: u64,
}

/// Slots and index with nothing in them, and their bytes on the account.
pub(super) struct Bookkeeping {
    pub index: HashTable<Id>,
    pub slots: Lru<Entry>,
    pub counts: Option<Counts>,
    pub bytes: usize,
}

impl State {
    /// An empty one for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            budget: Budget::new(limit),
            arena: Arena::new(limit),
            slots: Lru::default(),
            index: HashTable::new(),
            counts: Counts::default(),
            spare: Vec::new(),
            idle: 0,
            pinned: 0,
            leaving: 0,
            books: 0,
            logical: 0,
            epoch: 0,
            generation: 0,
            forks: 0,
            hits: 0,
            misses: 0,
            evictions: 0,
            refused: 0,
        }
    }

    pub fn find(&self, key: Ask<'_>) -> Option<Id> {
        let same = |&id: &Id| self.slots.get(id).is_some_and(|e| key.is(&e.key));
        self.index.find(key.hash(), same).copied()
    }

    /// Lends an entry that can be found, and makes it the most recently used.
    #[inline]
    pub fn pin(&mut self, id: Id) -> Option<Loan<Label>> {
        let entry = self.slots.get_mut(id)?;
        let loan = entry.block.lend()?;
        if entry.phase == Phase::Listed {
            entry.epoch = self.epoch;
            self.slots.link(id);
        }
        Some(loan)
    }

    /// Puts an entry into the list, as the most recently used.
    pub fn list(&mut self, id: Id) {
        let Some(entry) = self.slots.get_mut(id) else { return };
        entry.phase = Phase::Listed;
        entry.epoch = self.epoch;
        self.idle += entry.bytes();
        self.slots.link(id);
    }

    /// Whether a listed entry is in use; if so it is parked.
    pub fn park(&mut self, id: Id) -> bool {
        let Some(entry) = self.slots.get_mut(id) else { return false };
        if !entry.block.ask() {
            return false;
        }
        entry.phase = Phase::Parked;
        let bytes = entry.bytes();
        self.idle -= bytes;
        self.pinned += bytes;
        self.slots.unlink(id);
        true
    }

    /// Somebody was told that the last use of an entry has ended which was parked or removed. By
    /// now it may be in use again, settled, or gone, and its slot another's: what is to be done
    /// follows from what the slot holds, not from who comes.
    pub fn told(&mut self, id: Id) -> Option<Entry> {
        let entry = self.slots.get(id)?;
        if entry.phase == Phase::Listed || entry.block.ask() {
            return None;
        }
        if entry.phase == Phase::Leaving {
            return self.take(id);
        }
        self.pinned -= entry.bytes();
        self.list(id);
        None
    }

    /// Parks whatever is in use, so that `pinned` is exact. What was not used since the last sweep
    /// was not begun to be used either, and lies behind all that was.
    pub fn sweep(&mut self) {
        let mut at = self.slots.newest();
        while let Some(id) = at
            && self.slots.get(id).is_some_and(|e| e.epoch == self.epoch)
        {
            at = self.slots.older(id);
            self.park(id);
        }
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Whether so many bytes can go.
    pub fn can_free(&mut self, bytes: usize) -> bool {
        let mut sum: usize = self.spare.iter().map(Piece::len).sum();
        let most = sum;
        let mut at = self.slots.oldest();
        while sum < bytes {
            let Some(id) = at.filter(|_| bytes <= self.idle + most) else { return false };
            at = self.slots.newer(id);
            let bytes = self.slots.get(id).map_or(0, Entry::bytes);
            sum += if self.park(id) { 0 } else { bytes };
        }
        true
    }

    /// The entry to evict next.
    pub fn oldest(&mut self) -> Option<Id> {
        while let Some(id) = self.slots.oldest() {
            if !self.park(id) {
                return Some(id);
            }
        }
        None
    }

    /// Takes an entry out of the index, if it is still there; out of its slot too unless it is in
    /// use.
    pub fn remove(&mut self, id: Id) -> Option<Entry> {
        let entry = self.slots.get(id).filter(|e| e.phase != Phase::Leaving)?;
        let in_use = entry.phase == Phase::Parked || self.park(id);
        let entry = self.slots.get_mut(id)?;
        if in_use {
            entry.phase = Phase::Leaving;
        }
        if let Ok(found) = self.index.find_entry(entry.key.hash(), |&other| other == id) {
            found.remove();
        }
        if in_use { None } else { self.take(id) }
    }

    /// Whether more is owned than the budget, of what is not about to go.
    pub fn is_over(&self) -> bool {
        self.budget.shortfall(0) > self.leaving
    }

    /// Bytes owned, or promised to what is on its way in, that are not about to go.
    pub fn staying(&self) -> usize {
        self.budget.owned() - self.leaving
    }

    /// Empties a slot. Its bytes stay on the account until [`Cache::dispose`] has seen them go.
    pub fn take(&mut self, id: Id) -> Option<Entry> {
        let entry = self.slots.remove(id)?;
        self.leaving += entry.bytes();
        match entry.phase {
            Phase::Listed => self.idle -= entry.bytes(),
            Phase::Parked | Phase::Leaving => self.pinned -= entry.bytes(),
        }
        self.logical -= entry.block.label().spec.logical();
        Some(entry)
    }

    /// Evicts, at most so many entries at once.
    pub fn evict_to(&mut self, to: usize, most: usize, gone: &mut Gone) {
        if self.staying() > to {
            self.drop_outputs(gone);
        }
        while self.staying() > to && gone.entries.len() < most {
            let Some(id) = self.oldest() else { break };
            self.evictions += 1;
            gone.entries.extend(self.remove(id));
        }
    }

    /// Gives up the output buffers that nobody uses.
    pub fn drop_outputs(&mut self, gone: &mut Gone) {
        for piece in self.spare.drain(..) {
            self.leaving += piece.len();
            gone.pieces.push(piece);
        }
    }

    /// Bytes of slots and index.
    pub fn bookkeeping(&self) -> usize {
        self.slots.footprint() + self.index.allocation_size() + self.counts.footprint()
    }

    /// Gives the bookkeeping up when nothing is kept in it; its bytes stay on the account until
    /// [`Cache::free`] has freed it.
    pub fn trim(&mut self) -> Option<Bookkeeping> {
        if !self.slots.is_empty() {
            return None;
        }
        let before = self.bookkeeping();
        let (index, slots) = (std::mem::take(&mut self.index), std::mem::take(&mut self.slots));
        // Entries on their way out, or lost to a fork, have theirs still.
        let counts = self.counts.are_home().then(|| std::mem::take(&mut self.counts));
        let bytes = before - self.bookkeeping();
        Some(Bookkeeping { index, slots, counts, bytes })
    }

    /// An upper bound of what the bookkeeping grows by for one more entry.
    pub fn growth(&self) -> usize {
        let table = if self.index.capacity() <= self.slots.len() {
            // 5 bytes a bucket, at most 32/7 buckets an entry where removed ones left marks.
            24 * (self.slots.len() + 1) + 1024
        } else {
            0
        };
        self.slots.growth() + self.counts.growth() + table
    }

    /// Puts an entry into a slot and the index; `promised` covers the growth.
    pub fn enter(
        &mut self,
        key: Key,
        (cache, spec): (Arc<Cache>, Spec),
        pieces: Box<[Piece]>,
        meta: usize,
        promised: usize,
    ) -> Id {
        let before = if promised > 0 { self.bookkeeping() } else { 0 };
        let (hash, logical) = (key.hash(), spec.logical());
        let count = self.counts.take();
        let id = self.slots.insert_with(|id| {
            let block = Block::new(pieces, Label { spec, cache, id }, count);
            Entry { key, block, meta, phase: Phase::Listed, epoch: 0 }
        });
        let slots = &self.slots;
        let rehash = |&id: &Id| slots.get(id).map_or(0, |e| e.key.hash());
        self.index.insert_unique(hash, id, rehash);
        self.logical += logical;
        self.list(id);
        if promised > 0 {
            let grown = self.bookkeeping() - before;
            self.budget.settle(grown);
            self.budget.unclaim(promised.saturating_sub(grown));
        }
        id
    }
}
