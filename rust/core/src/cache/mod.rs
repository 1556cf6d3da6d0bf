//! A cache of pixels with a strict byte budget: least recently used goes first, what is in use
//! stays, what does not fit is refused.
//!
//! One lock guards an account, the slots and their index. Bytes are claimed before memory is
//! taken and stay on the account until the system has them back; pages are written, discarded
//! and mapped with the lock released. An evicted entry's pages serve the newcomer directly where
//! they fit, so a full cache in steady state makes no system call.

mod key;
mod pin;
mod room;
mod writer;

use crate::arena::{Arena, Block, Loan, page};
use crate::budget::Budget;
use crate::lru::{Id, Lru};
use crate::pixels::Spec;
use crate::proc::fork::{self, Forked, lock};
use hashbrown::HashTable;
pub use key::{Key, Part};
pub use pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
pub use writer::{Existing, Reservation, Writer};

/// Counters and bytes of a cache at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries that can be found.
    pub entries: usize,
    /// Bytes owned: pages, bookkeeping, and entries that are gone but still in use.
    pub bytes: usize,
    /// Bytes that may be owned.
    pub budget: usize,
    /// The most bytes ever owned or promised at once.
    pub peak: usize,
    /// Bytes of the arrays as their users see them.
    pub logical: usize,
    /// Bytes of entries in use, which cannot be evicted.
    pub pinned: usize,
    /// Bytes of arrays served from outside the budget that are still in use.
    pub lent: usize,
    /// Look-ups that found an entry.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that were made to go for others.
    pub evictions: u64,
    /// Entries that did not fit.
    pub refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Being written or waiting for its bytes; not in the index.
    Coming,
    /// In the index.
    Live,
    /// Removed while in use; goes with its last user.
    Leaving,
}

struct Entry {
    key: Key,
    /// What the arrays are, once the entry is there.
    spec: Option<Arc<Spec>>,
    block: Block,
    /// Bytes charged beside the block's.
    meta: usize,
    phase: Phase,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.block.len() + self.meta
    }
}

struct State {
    budget: Budget,
    arena: Arena,
    slots: Lru<Entry>,
    index: HashTable<Id>,
    /// Bytes of the live entries that are not in use: those that can go.
    idle: usize,
    pinned: usize,
    /// Bytes on the account of entries that left their slots and are about to go.
    leaving: usize,
    logical: usize,
    generation: u64,
    forks: u64,
    hits: u64,
    misses: u64,
    evictions: u64,
    refused: u64,
}

/// See the module.
pub struct Cache {
    state: Mutex<State>,
    lent: AtomicUsize,
}

impl Cache {
    /// A cache of `limit` bytes; 0 keeps nothing.
    pub fn new(limit: usize) -> Arc<Self> {
        let state = State {
            budget: Budget::new(limit),
            arena: Arena::new(limit),
            slots: Lru::default(),
            index: HashTable::new(),
            idle: 0,
            pinned: 0,
            leaving: 0,
            logical: 0,
            generation: 0,
            forks: 0,
            hits: 0,
            misses: 0,
            evictions: 0,
            refused: 0,
        };
        let cache = Arc::new(Self { state: Mutex::new(state), lent: AtomicUsize::new(0) });
        fork::register(&cache);
        key::seed();
        page();
        cache
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The entry of a key, made the most recently used and kept while the pin lives.
    pub fn get(self: &Arc<Self>, key: &Key) -> Option<Pin> {
        let mut state = self.lock();
        match state.find(key) {
            Some(id) => {
                state.hits += 1;
                state.pin(id).map(|loan| Pin::new(self.clone(), id, loan))
            }
            None => {
                state.misses += 1;
                None
            }
        }
    }

    /// [`get`](Self::get) that counts nothing.
    pub fn peek(self: &Arc<Self>, key: &Key) -> Option<Pin> {
        let mut state = self.lock();
        let id = state.find(key)?;
        state.pin(id).map(|loan| Pin::new(self.clone(), id, loan))
    }

    /// Whether a key has an entry; counts nothing and changes no order.
    pub fn contains(&self, key: &Key) -> bool {
        self.lock().find(key).is_some()
    }

    /// Entries that can be found.
    pub fn len(&self) -> usize {
        self.lock().index.len()
    }

    /// Whether no entry can be found.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that may be owned.
    pub fn limit(&self) -> usize {
        self.lock().budget.limit()
    }

    /// Grows by one with every [`clear`](Self::clear): what was begun before is not kept after.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Counters and bytes.
    pub fn stats(&self) -> Stats {
        let s = self.lock();
        Stats {
            entries: s.index.len(),
            bytes: s.budget.held(),
            budget: s.budget.limit(),
            peak: s.budget.peak(),
            logical: s.logical,
            pinned: s.pinned,
            lent: self.lent.load(Ordering::Relaxed),
            hits: s.hits,
            misses: s.misses,
            evictions: s.evictions,
            refused: s.refused,
        }
    }

    /// Counts arrays served from outside the budget; the caller subtracts them when they go.
    pub fn lend(&self, bytes: usize) {
        self.lent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends [`lend`](Self::lend).
    pub fn unlend(&self, bytes: usize) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Removes one entry, if it is there; what is in use goes with its last user.
    pub fn remove(&self, key: &Key) -> bool {
        let mut state = self.lock();
        let found = state.find(key);
        let gone = found.and_then(|id| state.remove(id));
        drop(state);
        self.dispose(gone.into_iter().collect(), 0);
        found.is_some()
    }

    /// Evicts until at most `to` bytes are owned or only pinned entries are left. Returns the
    /// bytes given back to the system.
    pub fn evict(&self, to: usize) -> usize {
        self.shrink(|_| to)
    }

    /// Changes the budget and shrinks to it. Returns the bytes still owned above it: those of
    /// pinned entries, which go as their users do.
    pub fn resize(&self, limit: usize) -> usize {
        self.shrink(|budget| {
            budget.set_limit(limit);
            limit
        });
        self.lock().budget.shortfall(0)
    }

    /// Evicts until no more is owned than `to` says, and gives up bookkeeping that is empty.
    fn shrink(&self, to: impl FnOnce(&mut Budget) -> usize) -> usize {
        let mut gone = Gone::new();
        let mut state = self.lock();
        let to = to(&mut state.budget);
        let limit = state.budget.limit();
        state.arena.fit(limit);
        state.evict_to(to, &mut gone);
        let spare = if state.staying() > to { state.trim() } else { None };
        drop(state);
        self.drop_spare(spare);
        self.dispose(gone, 0).0
    }

    /// Removes every entry; what is in use goes with its last user, what is being loaded is not
    /// kept. Returns the bytes given back to the system.
    pub fn clear(&self) -> usize {
        let mut state = self.lock();
        state.generation += 1;
        let ids: Vec<Id> = state.index.iter().copied().collect();
        let mut gone = Gone::default();
        for id in ids {
            gone.extend(state.remove(id));
        }
        let spare = state.trim();
        drop(state);
        self.drop_spare(spare);
        self.dispose(gone, 0).0
    }

    /// Frees bookkeeping that is empty, then takes it off the account.
    fn drop_spare(&self, spare: Option<(HashTable<Id>, Lru<Entry>, usize)>) {
        if let Some((index, slots, bytes)) = spare {
            drop((index, slots));
            self.lock().budget.release(bytes);
        }
    }

    /// Shrinks to a budget that was lowered below what was in use or on its way in.
    fn settle_over(&self) {
        self.shrink(|budget| budget.limit());
    }
}

/// What left its slot and still exists: discarded and dropped once the lock is released.
type Gone = Vec<Entry>;

impl State {
    fn find(&self, key: &Key) -> Option<Id> {
        let same = |&id: &Id| self.slots.get(id).is_some_and(|e| e.key == *key);
        self.index.find(key.hash(), same).copied()
    }

    /// Lends a live entry's bytes and makes it the most recently used.
    fn pin(&mut self, id: Id) -> Option<Loan> {
        let entry = self.slots.get_mut(id)?;
        let first = !entry.block.is_lent();
        let loan = entry.block.lend()?;
        let (bytes, phase) = (entry.bytes(), entry.phase);
        if first {
            self.pinned += bytes;
            self.idle -= if phase == Phase::Live { bytes } else { 0 };
        }
        if phase == Phase::Live {
            self.slots.link(id);
        }
        Some(loan)
    }

    fn spec(&self, id: Id) -> Arc<Spec> {
        self.slots.get(id).and_then(|e| e.spec.clone()).unwrap_or_default()
    }

    /// Takes a loan back; an entry that was removed meanwhile goes with its last loan.
    #[inline]
    fn unpin(&mut self, id: Id, loan: Loan) -> Option<Entry> {
        let entry = self.slots.get_mut(id)?;
        entry.block.settle(loan);
        if entry.block.is_lent() {
            return None;
        }
        let (bytes, phase) = (entry.bytes(), entry.phase);
        self.pinned -= bytes;
        if phase == Phase::Leaving {
            return self.take(id);
        }
        self.idle += bytes;
        if !self.slots.is_linked(id) {
            self.slots.link(id);
        }
        None
    }

    /// The entry to evict next. Entries in use that are met on the way leave the list until
    /// they are not, so that each is met once, however long it is used.
    fn oldest(&mut self) -> Option<Id> {
        loop {
            let id = self.slots.oldest()?;
            if self.slots.get(id).is_some_and(|e| !e.block.is_lent()) {
                return Some(id);
            }
            self.slots.unlink(id);
        }
    }

    /// Takes an entry out of the index; out of its slot too unless it is in use.
    fn remove(&mut self, id: Id) -> Option<Entry> {
        let entry = self.slots.get_mut(id)?;
        let hash = entry.key.hash();
        let lent = entry.block.is_lent();
        if lent {
            entry.phase = Phase::Leaving;
            self.slots.unlink(id);
        }
        if let Ok(found) = self.index.find_entry(hash, |&other| other == id) {
            found.remove();
        }
        if lent { None } else { self.take(id) }
    }

    /// Whether more is owned than the budget, of what is not about to go.
    fn is_over(&self) -> bool {
        self.budget.shortfall(0) > self.leaving
    }

    /// Bytes owned that are not about to go.
    fn staying(&self) -> usize {
        self.budget.held() - self.leaving
    }

    /// Empties a slot. Its bytes stay on the account until [`Cache::dispose`] has seen them go.
    fn take(&mut self, id: Id) -> Option<Entry> {
        let entry = self.slots.remove(id)?;
        self.leaving += entry.bytes();
        if entry.phase == Phase::Live {
            self.idle -= entry.bytes();
        }
        if entry.phase != Phase::Coming {
            self.logical -= entry.spec.as_ref().map_or(0, |s| s.logical());
        }
        Some(entry)
    }

    fn evict_to(&mut self, to: usize, gone: &mut Gone) {
        while self.staying() > to {
            let Some(id) = self.oldest() else { break };
            self.evictions += 1;
            gone.extend(self.remove(id));
        }
    }

    /// Bytes of slots and index.
    fn bookkeeping(&self) -> usize {
        self.slots.footprint() + self.index.allocation_size()
    }

    /// Gives the bookkeeping up when nothing is kept in it; its bytes stay on the account until
    /// [`Cache::drop_spare`] has freed it.
    fn trim(&mut self) -> Option<(HashTable<Id>, Lru<Entry>, usize)> {
        if !self.slots.is_empty() {
            return None;
        }
        let bytes = self.bookkeeping();
        Some((std::mem::take(&mut self.index), std::mem::take(&mut self.slots), bytes))
    }
}

impl Forked for Cache {
    fn hold(self: Arc<Self>) -> Box<dyn std::any::Any> {
        fork::hold(self, |cache| &cache.state)
    }

    fn forked(&self) {
        self.lock().forks += 1;
    }

    /// Reservations of threads that are gone are given back. What one of them was writing or
    /// giving back to the system stays on the account: nobody can say how far it got.
    fn in_child(&self) {
        let mut state = self.lock();
        let coming = |e: &Entry| e.phase == Phase::Coming && !e.block.is_lent();
        let ids: Vec<Id> =
            state.slots.ids().filter(|&id| state.slots.get(id).is_some_and(coming)).collect();
        let mut gone = Gone::default();
        for id in ids {
            gone.extend(state.take(id));
        }
        state.budget.forget_claims();
        drop(state);
        self.dispose(gone, 0);
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ids: Vec<Id> = state.slots.ids().collect();
        for id in ids {
            if let Some(Ok(Some(hole))) = state.slots.remove(id).map(|e| e.block.discard()) {
                drop(state.arena.refill(hole));
            }
        }
    }
}
