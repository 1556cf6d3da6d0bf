//! A cache of pixels with a strict byte budget: least recently used goes first, what is in use
//! stays, what does not fit is refused.
//!
//! One lock guards an account, the slots and their index. Bytes are claimed before memory is
//! taken and stay on the account until the system has them back; pages are written, discarded
//! and mapped with the lock released. An evicted entry's pages serve the newcomer directly where
//! they fit, so a full cache in steady state makes no system call.
//!
//! A look-up lends an entry and takes the lock once: its user ends the loan without it. Whether an
//! entry is in use is found out when somebody wants to know. One that is then leaves the list and
//! has its last user come back to it, so that it is met once, however long it is used.

mod export;
mod key;
mod output;
mod pin;
mod room;
mod state;
mod store;
mod writer;

use crate::arena;
use crate::budget::Budget;
use crate::compact::Books;
use crate::lru::Id;
use crate::proc::fork::{self, Forked, lock};
use crate::simd::Level;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
pub use key::{Ask, Key, Part};
pub use output::Output;
pub use pin::Pin;
use room::Gone;
use state::{Bookkeeping, Entry, State};
use std::ops::Deref;
use std::sync::Arc;
pub use store::Array;
pub use writer::{Existing, Reservation, Writer};

/// Entries are taken out and given back at most so many at once: lists of them are not on the
/// account, and others want the lock.
const BATCH: usize = if cfg!(shuttle) { 1 } else { 128 };

/// So many bytes are given back to the system in some ten microseconds.
const LIGHT: usize = 256 << 10;
/// More than a small entry takes beside its pages.
const BESIDE: usize = 32 << 10;

/// Counters and bytes of a cache at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries that can be found.
    pub entries: usize,
    /// Bytes owned: pages, bookkeeping, entries that are gone but still in use, and what is put
    /// aside for those that are being made.
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

/// See the module.
pub struct Cache {
    state: Mutex<State>,
    lent: AtomicUsize,
    /// Whether arrays that have a smaller form are stored in it.
    compact: bool,
    /// What compact entries share.
    books: Books,
}

impl Cache {
    /// A cache of `limit` bytes; 0 keeps nothing. With `compact`, arrays that have a smaller form
    /// are stored in it.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(limit: usize, compact: bool) -> Owner {
        let (state, books) = (Mutex::new(State::new(limit)), Books::default());
        let cache = Arc::new(Self { state, lent: AtomicUsize::new(0), compact, books });
        fork::register(&cache);
        // What is found out once must not be in the middle of it in a forked child.
        key::seed();
        arena::prepare();
        Level::get();
        Owner(cache)
    }

    /// Lets everything go: at once, or with its last user. Nothing is kept from now on.
    pub fn close(&self) {
        self.clear();
        self.resize(0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The entry of a key, made the most recently used and kept while the pin lives.
    #[inline]
    pub fn get<'k>(&self, key: impl Into<Ask<'k>>) -> Option<Pin> {
        let key = key.into();
        let mut state = self.lock();
        match state.find(key) {
            Some(id) => {
                state.hits += 1;
                state.pin(id).map(Pin::new)
            }
            None => {
                state.misses += 1;
                None
            }
        }
    }

    /// [`get`](Self::get) that counts nothing.
    pub fn peek<'k>(&self, key: impl Into<Ask<'k>>) -> Option<Pin> {
        let mut state = self.lock();
        let id = state.find(key.into())?;
        state.pin(id).map(Pin::new)
    }

    /// Whether a key has an entry; counts nothing and changes no order.
    pub fn contains<'k>(&self, key: impl Into<Ask<'k>>) -> bool {
        self.lock().find(key.into()).is_some()
    }

    /// Whether an entry of so many bytes comes in soon: nothing large has to go for it, or from
    /// under its key. What others do meanwhile may change that.
    pub fn is_soon_in(&self, key: Option<&Key>, bytes: usize) -> bool {
        let state = self.lock();
        let short = state.budget.shortfall(bytes.saturating_add(BESIDE));
        let light = |id: Option<Id>| {
            id.and_then(|id| state.slots.get(id)).is_none_or(|entry| entry.bytes() <= LIGHT)
        };
        let fits = short == 0 || short <= LIGHT && state.spare.is_empty();
        fits && (short == 0 || light(state.slots.oldest()))
            && light(key.and_then(|k| state.find(k.into())))
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
        let mut s = self.lock();
        s.sweep();
        Stats {
            entries: s.index.len(),
            bytes: s.budget.owned(),
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
        let found = state.find(key.into());
        let gone = found.and_then(|id| state.remove(id));
        drop(state);
        self.dispose(gone.into(), 0);
        found.is_some()
    }

    /// Evicts until at most `to` bytes are owned or only pinned entries are left. Returns the
    /// bytes given back to the system.
    pub fn evict(&self, to: usize) -> usize {
        self.shrink(|_| to)
    }

    /// Changes the budget and shrinks to it. Returns the bytes still owned above it: those of
    /// pinned entries, which go as their users do, and of what is on its way in.
    pub fn resize(&self, limit: usize) -> usize {
        self.shrink(|budget| {
            budget.set_limit(limit);
            limit
        });
        self.lock().budget.shortfall(0)
    }

    /// Evicts until no more is owned than `to` says, and gives up bookkeeping that is empty.
    fn shrink(&self, to: impl FnOnce(&mut Budget) -> usize) -> usize {
        let mut state = self.lock();
        let to = to(&mut state.budget);
        let limit = state.budget.limit();
        state.arena.fit(limit);
        // What others bring in meanwhile is not this call's to evict.
        let (mut excess, mut freed) = (state.staying().saturating_sub(to), 0);
        while excess > 0 {
            let (mut gone, before) = (Gone::default(), state.staying());
            state.evict_to(to, BATCH, &mut gone);
            let evicted = before - state.staying();
            if evicted == 0 {
                break;
            }
            excess = excess.saturating_sub(evicted);
            drop(state);
            freed += self.dispose(gone, 0).0;
            state = self.lock();
        }
        let empty = if state.staying() > to { state.trim() } else { None };
        drop(state);
        self.free(empty);
        freed
    }

    /// Removes every entry; what is in use goes with its last user, what is being loaded is not
    /// kept. Returns the bytes given back to the system.
    pub fn clear(&self) -> usize {
        let mut state = self.lock();
        state.generation += 1;
        let ids: Vec<Id> = state.index.iter().copied().collect();
        let mut gone = Gone::default();
        state.drop_outputs(&mut gone);
        let mut freed = 0;
        for ids in ids.chunks(BATCH) {
            // What others have put into one of these slots meanwhile goes, too.
            gone.entries.extend(ids.iter().filter_map(|&id| state.remove(id)));
            drop(state);
            freed += self.dispose(std::mem::take(&mut gone), 0).0;
            state = self.lock();
        }
        drop(state);
        freed += self.dispose(gone, 0).0;
        let empty = self.lock().trim();
        self.free(empty);
        freed
    }

    /// Frees bookkeeping that is empty, then takes it off the account.
    fn free(&self, empty: Option<Bookkeeping>) {
        if let Some(Bookkeeping { index, slots, counts, bytes }) = empty {
            drop((index, slots, counts));
            self.books.clear();
            let mut state = self.lock();
            state.budget.release(bytes);
            self.settle_books(&mut state);
        }
    }

    /// Takes books off the account that are gone.
    fn settle_books(&self, state: &mut State) {
        let bytes = self.books.bytes();
        if bytes < state.books {
            state.budget.release(state.books - bytes);
            state.books = bytes;
        }
    }

    /// Shrinks to a budget that was lowered below what was in use or on its way in.
    fn settle_over(&self) {
        self.shrink(|budget| budget.limit());
    }
}

/// Who made a cache, and closes it when dropped. Entries know their cache, so that without an end
/// each would keep the other.
pub struct Owner(Arc<Cache>);

impl Deref for Owner {
    type Target = Arc<Cache>;

    fn deref(&self) -> &Arc<Cache> {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Forked for Cache {
    fn hold(self: Arc<Self>) -> Box<dyn std::any::Any> {
        fork::hold(self, |cache| &cache.state)
    }

    /// What other threads were promised is forgotten. What they were giving back to the system stays
    /// on the account: nobody can say how far they got, and nobody will say when it is gone.
    fn forked(&self) {
        let mut state = self.lock();
        state.forks += 1;
        state.leaving = 0;
        state.budget.forget_claims();
    }

    /// Settles entries that threads which are gone had ended their use of, without having come back
    /// to say so.
    fn in_child(&self) {
        let mut state = self.lock();
        let ids: Vec<Id> = state.slots.ids().collect();
        let gone = ids.into_iter().filter_map(|id| state.told(id)).collect();
        drop(state);
        self.dispose(Gone { entries: gone, ..Gone::default() }, 0);
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut gone = Gone::default();
        let ids: Vec<Id> = state.slots.ids().collect();
        gone.entries.extend(ids.into_iter().filter_map(|id| state.take(id)));
        state.drop_outputs(&mut gone);
        self.dispose(gone, 0);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;
    use crate::layout::{DType, Layout};
    use crate::pixels::Spec;

    fn put(cache: &Arc<Cache>, key: &Key, nbytes: usize) {
        let layout = Layout::new(DType::new("|u1", 1), &[nbytes]).expect("small");
        let spec = Spec::new([("x".into(), layout)]).expect("small");
        let writer = cache.begin(spec, None).expect("memory").expect("room");
        assert!(writer.publish(*key, Existing::Replace, None));
    }

    #[test]
    fn what_is_large_does_not_go_soon() {
        let (cache, small) = (Cache::new(2 << 20, false), 8 << 10);
        let (a, b) = (Key::single(Part::Text("a")), Key::single(Part::Text("b")));
        assert!(cache.is_soon_in(Some(&a), small), "there is room");
        assert!(!cache.is_soon_in(Some(&a), 4 << 20), "never");
        put(&cache, &a, 1 << 20);
        assert!(cache.is_soon_in(Some(&b), small) && cache.is_soon_in(None, small));
        assert!(!cache.is_soon_in(Some(&a), small), "what is there is large");
        put(&cache, &b, 1000 << 10);
        assert!(!cache.is_soon_in(None, small), "what goes for it is large");
        drop(cache.get(&a));
        put(&cache, &b, 100);
        put(&cache, &Key::single(Part::Text("c")), 1000 << 10);
        assert!(!cache.is_soon_in(Some(&b), small), "the oldest is large");
        drop((cache.get(&a), cache.get(&Key::single(Part::Text("c")))));
        assert!(cache.is_soon_in(Some(&b), small), "the oldest is small");
        cache.resize(64 << 10);
        assert!(!cache.is_soon_in(None, 1 << 20));
    }

    /// A thread takes an entry out, another lowers the budget before the first has seen it go.
    #[test]
    fn counts_that_come_late_go_too() {
        let cache = Cache::new(1 << 20, false);
        let key = Key::single(Part::Text("a"));
        put(&cache, &key, 100);
        let mut state = cache.lock();
        let gone = state.find((&key).into()).and_then(|id| state.remove(id));
        drop(state);
        assert!(gone.is_some());
        let above = cache.resize(0);
        assert_eq!(above, cache.stats().bytes);
        cache.dispose(gone.into(), 0);
        assert_eq!(cache.stats().bytes, 0);
        cache.resize(1 << 20);
        put(&cache, &key, 100);
        assert!(cache.contains(&key));
    }
}
