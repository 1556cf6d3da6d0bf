//! The protocol, in as few words as it can be said.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Mutex, MutexGuard};
use memweir_core::budget::Budget;
use memweir_core::lru::{Id, Lru};
use std::sync::Arc;

const ASKED: u32 = 1 << 31;

/// What a wrong implementation would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Asking is a look and a write, not one step.
    AskInTwoSteps,
    /// The cache sees the count, and not what was done before it fell.
    LookRelaxed,
    /// Ending a loan is not ordered after the reads through it.
    EndRelaxed,
    /// Who reports is believed to be the one who is waited for.
    BelieveReporter,
    /// Who reports is believed to be the last one.
    NeverLentAgain,
    /// A new loan is taken for an answer.
    LendForgetsAsking,
    /// A forked child waits for threads that it does not have.
    WaitInChild,
}

/// Pages, of one byte.
struct Block {
    pins: AtomicU32,
    byte: UnsafeCell<u32>,
}

impl Block {
    fn new(byte: u32, pins: u32) -> Arc<Self> {
        Arc::new(Self { pins: AtomicU32::new(pins), byte: UnsafeCell::new(byte) })
    }

    fn read(&self) -> u32 {
        // SAFETY: loom fails the test at a write that is not ordered with this read.
        self.byte.with(|byte| unsafe { *byte })
    }

    /// Writes or discards: the pages belong to nobody else.
    fn write(&self, byte: u32) {
        assert_eq!(self.count(), 0, "written while lent");
        // SAFETY: as above.
        self.byte.with_mut(|to| unsafe { *to = byte });
    }

    fn count(&self) -> u32 {
        self.pins.load(Ordering::Relaxed) & !ASKED
    }

    /// Whether anybody has a loan; if so, the last of them will report. Under the lock.
    fn ask(&self, flaw: Flaw) -> bool {
        let order = if flaw == Flaw::LookRelaxed { Ordering::Relaxed } else { Ordering::Acquire };
        let before = if flaw == Flaw::AskInTwoSteps {
            let before = self.pins.load(order);
            self.pins.store(before | ASKED, Ordering::Relaxed);
            before
        } else {
            self.pins.fetch_or(ASKED, order)
        };
        if before & !ASKED == 0 {
            self.pins.store(0, Ordering::Relaxed);
        }
        before & !ASKED != 0
    }

    /// Whether the cache has asked and the last loan has ended; then it is no longer asked for,
    /// and who comes next is told no. Under the lock.
    fn has_come_back(&self, flaw: Flaw) -> bool {
        if flaw == Flaw::NeverLentAgain {
            return self.pins.swap(0, Ordering::Acquire) & ASKED != 0;
        }
        let order = if flaw == Flaw::LookRelaxed { Ordering::Relaxed } else { Ordering::Acquire };
        self.pins.compare_exchange(ASKED, 0, order, Ordering::Relaxed).is_ok()
    }
}

struct Entry {
    key: u32,
    block: Arc<Block>,
    leaving: bool,
}

struct State {
    budget: Budget,
    slots: Lru<Entry>,
    /// Bytes on the account that are in no slot: about to go, or about to be another's.
    going: usize,
    /// Bytes that the last user of a parked entry is to bring back.
    parked: usize,
    lowered: bool,
}

pub struct Cache {
    state: Mutex<State>,
    flaw: Flaw,
}

pub struct Pin {
    cache: Arc<Cache>,
    id: Id,
    key: u32,
    block: Arc<Block>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        assert_eq!(self.block.read(), self.key);
        let relaxed = self.cache.flaw == Flaw::EndRelaxed;
        let order = if relaxed { Ordering::Relaxed } else { Ordering::Release };
        if self.block.pins.fetch_sub(1, order) == ASKED | 1 {
            self.cache.report(self.id);
        }
    }
}

impl Cache {
    pub fn new(limit: usize, flaw: Flaw) -> Arc<Self> {
        let (budget, slots) = (Budget::new(limit), Lru::default());
        let state = State { budget, slots, going: 0, parked: 0, lowered: false };
        Arc::new(Self { state: Mutex::new(state), flaw })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock().unwrap();
        state.check();
        state
    }

    pub fn get(self: &Arc<Self>, key: u32) -> Option<Pin> {
        let mut state = self.lock();
        let id = state.find(key)?;
        let block = state.slots.get(id)?.block.clone();
        if self.flaw == Flaw::LendForgetsAsking {
            block.pins.fetch_and(!ASKED, Ordering::Relaxed);
        }
        block.pins.fetch_add(1, Ordering::Relaxed);
        // What is off the list stays there until its last user reports.
        if state.slots.is_linked(id) {
            state.slots.link(id);
        }
        Some(Pin { cache: self.clone(), id, key, block })
    }

    /// An entry of one byte; `false` when it does not fit. A victim's page becomes its own.
    pub fn put(&self, key: u32) -> bool {
        let mut state = self.lock();
        let block = if state.budget.claim(1) {
            drop(state);
            let block = Block::new(key, 0);
            state = self.lock();
            state.budget.settle(1);
            block
        } else {
            let Some(victim) = state.oldest(self.flaw) else { return false };
            let Entry { block, .. } = state.take(victim);
            drop(state);
            block.write(key);
            state = self.lock();
            state.going -= 1;
            block
        };
        let old = state.find(key).and_then(|old| state.remove(old, self.flaw));
        let id = state.slots.insert(Entry { key, block, leaving: false });
        state.slots.link(id);
        drop(state);
        self.dispose(old);
        true
    }

    /// Between the last loan's end and the report, the entry may have been lent again, brought
    /// back by somebody else, or replaced in its slot; and the slots may be gone.
    fn report(&self, id: Id) {
        let mut state = self.lock();
        let gone = state.come_back(id, self.flaw);
        let over = state.budget.shortfall(0) > 0;
        drop(state);
        self.dispose(gone);
        if over {
            self.resize(None);
        }
    }

    pub fn remove(&self, key: u32) -> bool {
        let mut state = self.lock();
        let found = state.find(key);
        let gone = found.and_then(|id| state.remove(id, self.flaw));
        drop(state);
        self.dispose(gone);
        found.is_some()
    }

    /// Removes all entries, and gives the slots up when none is used any more.
    pub fn clear(&self) {
        let mut state = self.lock();
        let gone: Vec<_> =
            state.live().into_iter().filter_map(|id| state.remove(id, self.flaw)).collect();
        if state.slots.is_empty() {
            state.slots = Lru::default();
        }
        drop(state);
        self.dispose(gone);
    }

    pub fn resize(&self, limit: Option<usize>) {
        let mut state = self.lock();
        if let Some(limit) = limit {
            state.budget.set_limit(limit);
            state.lowered = true;
        }
        let mut gone = Vec::new();
        while state.budget.shortfall(0) > state.going {
            let Some(id) = state.oldest(self.flaw) else { break };
            gone.push(state.take(id));
        }
        drop(state);
        self.dispose(gone);
    }

    /// Pages go with the lock released, and leave the account after that.
    fn dispose(&self, gone: impl IntoIterator<Item = Entry>) {
        for Entry { block, .. } in gone {
            block.write(u32::MAX);
            let mut state = self.lock();
            state.going -= 1;
            state.budget.release(1);
        }
    }

    pub fn held(&self) -> usize {
        self.lock().budget.held()
    }

    /// Entries in use, and nothing but what is true: nobody is on the way with a report.
    pub fn at_rest(&self) -> usize {
        let state = self.lock();
        for id in state.slots.ids() {
            let (entry, linked) = (state.slots.get(id).unwrap(), state.slots.is_linked(id));
            let (count, asked) = (entry.block.count(), entry.block.pins.load(Ordering::Relaxed));
            assert!(count > 0 || asked == 0, "nobody will report");
            assert!(linked || asked & ASKED != 0, "off the list, and not asked for");
            assert!(!entry.leaving || count > 0, "a removed entry stays for ever");
        }
        assert_eq!(state.going, 0);
        state.pinned()
    }

    /// What a child has that was forked at this moment, when its own code begins.
    pub fn fork(&self) -> Arc<Self> {
        let state = self.lock();
        let child = Self::new(state.budget.limit(), self.flaw);
        let mut copy = child.state.lock().unwrap();
        // The order of a list of at most two is the order of its slots here.
        for id in state.slots.ids() {
            let Entry { key, block, leaving } = state.slots.get(id).unwrap();
            let block = Block::new(block.read(), block.pins.load(Ordering::Relaxed));
            let new = copy.slots.insert(Entry { key: *key, block, leaving: *leaving });
            if state.slots.is_linked(id) {
                copy.slots.link(new);
            } else {
                copy.parked += 1;
            }
            assert!(copy.budget.claim(1));
            copy.budget.settle(1);
        }
        drop((state, copy));
        if self.flaw != Flaw::WaitInChild {
            let mut state = child.lock();
            let ids: Vec<Id> = state.slots.ids().collect();
            let gone: Vec<_> =
                ids.into_iter().filter_map(|id| state.come_back(id, self.flaw)).collect();
            drop(state);
            child.dispose(gone);
        }
        child
    }
}

impl State {
    /// Holds whenever nobody holds the lock.
    fn check(&self) {
        assert_eq!(self.budget.held(), self.slots.len() + self.going);
        assert!(self.lowered || self.budget.shortfall(0) == 0, "over the limit");
        let parked = self.slots.ids().filter(|&id| !self.slots.is_linked(id)).count();
        assert_eq!(parked, self.parked, "settled by two");
    }

    /// Bytes in use, as statistics tell them: looked at, not asked.
    fn pinned(&self) -> usize {
        let lent = |id: &Id| self.slots.get(*id).is_some_and(|e| e.block.count() > 0);
        self.slots.ids().filter(lent).count()
    }

    fn live(&self) -> Vec<Id> {
        let live = |id: &Id| self.slots.get(*id).is_some_and(|e| !e.leaving);
        self.slots.ids().filter(live).collect()
    }

    fn find(&self, key: u32) -> Option<Id> {
        self.live().into_iter().find(|&id| self.slots.get(id).is_some_and(|e| e.key == key))
    }

    /// The entry to evict next; those in use that are met on the way are parked.
    fn oldest(&mut self, flaw: Flaw) -> Option<Id> {
        loop {
            let id = self.slots.oldest()?;
            if !self.slots.get(id)?.block.ask(flaw) {
                return Some(id);
            }
            self.park(id);
        }
    }

    fn park(&mut self, id: Id) {
        if self.slots.is_linked(id) {
            self.slots.unlink(id);
            self.parked += 1;
        }
    }

    fn take(&mut self, id: Id) -> Entry {
        self.parked -= usize::from(!self.slots.is_linked(id));
        self.going += 1;
        self.slots.remove(id).unwrap()
    }

    fn remove(&mut self, id: Id, flaw: Flaw) -> Option<Entry> {
        let entry = self.slots.get_mut(id)?;
        if !entry.block.ask(flaw) {
            return Some(self.take(id));
        }
        entry.leaving = true;
        self.park(id);
        None
    }

    /// Answers a report about whatever is in the slot now.
    fn come_back(&mut self, id: Id, flaw: Flaw) -> Option<Entry> {
        let there = self.slots.ids().any(|other| other == id);
        let entry =
            if there || flaw == Flaw::BelieveReporter { self.slots.get(id)? } else { return None };
        if flaw != Flaw::BelieveReporter && !entry.block.has_come_back(flaw) {
            return None;
        }
        if entry.leaving {
            return Some(self.take(id));
        }
        self.parked -= 1;
        self.slots.link(id);
        None
    }
}
