//! Making room: who goes, and how its bytes become the newcomer's without ever counting twice.

use super::{Cache, Entry, Gone, Key, Phase, State};
use crate::arena::{Block, Hole, whole_pages};
use crate::error::Result;
use crate::lru::Id;
use std::sync::{Arc, MutexGuard};

impl Cache {
    /// A slot with a block of at least `bytes`, on the account, and whether its pages are new;
    /// `None`, counted, when it does not fit. Evicts nothing unless it then fits.
    pub(super) fn admit(&self, bytes: usize, meta: usize) -> Result<Option<(Id, bool)>> {
        let Some(id) = self.slot() else { return Ok(None) };
        let Some(len) = whole_pages(bytes) else {
            self.give_up(id);
            return Ok(None);
        };
        let need = len.saturating_add(meta);
        let (mut state, found) = self.secure(self.lock(), need, len);
        let Some(reused) = found else {
            drop(state);
            self.give_up(id);
            return Ok(None);
        };
        let run = len <= state.arena.run_max();
        let fresh = reused.is_none();
        let held = if fresh { 0 } else { len };
        let block = match reused {
            Some(block) => Ok(block),
            None if run => state.arena.run(len),
            None => {
                drop(state);
                let mapped = Block::map(len);
                state = self.lock();
                mapped
            }
        };
        match block {
            Ok(block) => {
                state.budget.settle(need - held);
                if let Some(entry) = state.slots.get_mut(id) {
                    entry.block = block;
                    entry.meta = meta;
                }
                Ok(Some((id, fresh)))
            }
            Err(error) => {
                state.budget.unclaim(need);
                drop(state);
                self.give_up(id);
                Err(error)
            }
        }
    }

    /// A slot, with the bookkeeping's growth on the account.
    fn slot(&self) -> Option<Id> {
        let mut state = self.lock();
        let mut promised = 0;
        loop {
            let growth = state.growth();
            if growth <= promised {
                let before = state.bookkeeping();
                let id = state.open();
                let grown = state.bookkeeping() - before;
                state.budget.settle(grown);
                state.budget.unclaim(promised.saturating_sub(grown));
                return Some(id);
            }
            let (again, found) = self.secure(state, growth - promised, 0);
            state = again;
            if found.is_none() {
                state.budget.unclaim(promised);
                state.refused += 1;
                return None;
            }
            promised = growth;
        }
    }

    /// Empties a slot whose block did not fit.
    fn give_up(&self, id: Id) {
        let mut gone = Gone::default();
        let mut state = self.lock();
        state.refused += 1;
        state.take(id, &mut gone);
        drop(state);
        self.dispose(gone, 0);
    }

    /// Claims `need` bytes, evicting what has to go for them. When a victim's pages can serve as
    /// a block of `len` bytes they are returned; those bytes are held already and not claimed.
    /// Outer `None`: does not fit, nothing changed. The lock is released while pages go.
    fn secure<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        need: usize,
        len: usize,
    ) -> (MutexGuard<'a, State>, Option<Option<Block>>) {
        if state.budget.claim(need) {
            return (state, Some(None));
        }
        if state.budget.shortfall(need) > state.idle {
            return (state, None);
        }
        let mut gone = Gone::default();
        let mut reused: Option<Block> = None;
        // Bytes of victims' pages: still held, and all of them this call's to spend.
        let mut credit = 0;
        while state.budget.shortfall(need) > credit {
            let Some(id) = state.slots.oldest() else { break };
            credit += state.slots.get(id).map_or(0, |e| e.block.len());
            state.evictions += 1;
            let at = gone.blocks.len();
            state.remove(id, &mut gone);
            if reused.is_none() && gone.blocks.get(at).is_some_and(|b| b.can_become(len)) {
                let mut block = gone.blocks.swap_remove(at);
                gone.blocks.extend(block.cut(len));
                reused = Some(block);
            }
        }
        let missing = need - if reused.is_some() { len } else { 0 };
        let leaving = credit - if reused.is_some() { len } else { 0 };
        // What the leaving pages do not cover is room that exists now: claim it before others do.
        let now = missing.saturating_sub(leaving);
        let claimed = state.budget.claim(now);
        drop(state);
        let (_, kept) = self.dispose(gone, missing - now);
        state = self.lock();
        if claimed && kept == missing - now {
            return (state, Some(reused));
        }
        // The system kept pages that were to go: they stay on the account, and this does not fit.
        state.budget.unclaim(kept + if claimed { now } else { 0 });
        drop(state);
        self.dispose(Gone { blocks: reused.into_iter().collect(), ..Gone::default() }, 0);
        (self.lock(), None)
    }

    /// Gives pages back to the system, then takes their bytes off the account, of which up to
    /// `keep` become claimed in the same step. Returns the bytes gone and the bytes claimed.
    pub(super) fn dispose(&self, gone: Gone, keep: usize) -> (usize, usize) {
        let Gone { blocks, specs } = gone;
        drop(specs);
        if blocks.is_empty() {
            return (0, 0);
        }
        let mut freed = 0;
        let mut holes: Vec<Hole> = Vec::with_capacity(blocks.len());
        let mut stuck = Vec::new();
        for block in blocks {
            let len = block.len();
            match block.discard() {
                Ok(hole) => {
                    freed += len;
                    holes.extend(hole);
                }
                Err(block) => stuck.push(block),
            }
        }
        let mut state = self.lock();
        state.budget.release(freed);
        let kept = keep.min(freed);
        let kept = if state.budget.claim(kept) { kept } else { 0 };
        let slabs: Vec<_> = holes.into_iter().filter_map(|h| state.arena.refill(h)).collect();
        drop(state);
        drop(slabs);
        // Leaked, and still counted: nothing else is known to be true of them.
        stuck.into_iter().for_each(std::mem::forget);
        (freed, kept)
    }
}

impl State {
    /// An upper bound of what the bookkeeping grows by for one more entry.
    fn growth(&self) -> usize {
        let table = if self.index.capacity() <= self.slots.len() {
            12 * (self.slots.len() + 1) + 1024 // 5 bytes a bucket, at most 16/7 buckets an entry
        } else {
            0
        };
        self.slots.growth() + table
    }

    /// A slot for an entry to come, with room for it in the index.
    fn open(&mut self) -> Id {
        let waiting = self.slots.len() + 1 - self.index.len();
        let slots = &self.slots;
        let hash = |&id: &Id| slots.get(id).map_or(0, |e| e.key.hash());
        self.index.reserve(waiting, hash);
        let key = Key::digest([0; 32]);
        let (spec, block, phase) = (Arc::default(), Block::empty(), Phase::Coming);
        self.slots.insert(Entry { key, spec, block, meta: 0, phase })
    }
}
