//! Making room: who goes, and how its bytes become the newcomer's without ever counting twice.

use super::{Cache, Entry, Gone, Key, Phase, State};
use crate::arena::{Block, Hole, LoanMut};
use crate::error::Result;
use crate::lru::Id;
use std::sync::MutexGuard;

/// A slot whose block is on the account.
pub(super) struct Admitted {
    pub id: Id,
    /// The process's count of forks: a child does not own its parent's.
    pub forks: u64,
    /// The block for writing, where asked for.
    pub loan: Option<LoanMut>,
    /// Whether the block's pages are new.
    pub fresh: bool,
}

type Guard<'a> = MutexGuard<'a, State>;

impl Cache {
    /// A slot with a block of at least `bytes`; `None`, counted, when it does not fit. Evicts
    /// nothing unless it then fits.
    pub(super) fn admit(&self, bytes: usize, meta: usize, write: bool) -> Result<Option<Admitted>> {
        let (mut state, slot) = self.slot(self.lock());
        let Some(id) = slot else {
            state.refused += 1;
            return Ok(None);
        };
        let Some((len, need)) =
            state.arena.block_len(bytes).map(|len| (len, len.saturating_add(meta)))
        else {
            self.give_up(state, id);
            return Ok(None);
        };
        let run = len <= state.arena.run_max();
        let (mut state, found) = self.secure(state, need, len);
        let Some(reused) = found else {
            self.give_up(state, id);
            return Ok(None);
        };
        let fresh = reused.is_none();
        let missing = if fresh { need } else { need - len };
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
        let block = match block {
            Ok(block) => block,
            Err(error) => {
                state.budget.unclaim(missing);
                self.give_up(state, id);
                return Err(error);
            }
        };
        state.budget.settle(missing);
        let forks = state.forks;
        let loan = state.slots.get_mut(id).and_then(|entry| {
            entry.block = block;
            entry.meta = meta;
            if write { entry.block.lend_mut() } else { None }
        });
        Ok(Some(Admitted { id, forks, loan, fresh }))
    }

    /// A slot, with the bookkeeping's growth on the account.
    fn slot<'a>(&'a self, mut state: Guard<'a>) -> (Guard<'a>, Option<Id>) {
        let mut promised = 0;
        loop {
            let growth = state.growth();
            if growth <= promised {
                let id = state.open(promised);
                return (state, Some(id));
            }
            let (again, found) = self.secure(state, growth - promised, 0);
            state = again;
            if found.is_none() {
                state.budget.unclaim(promised);
                return (state, None);
            }
            promised = growth;
        }
    }

    /// Empties a slot whose block did not fit.
    fn give_up(&self, mut state: Guard<'_>, id: Id) {
        state.refused += 1;
        let gone = state.take(id);
        drop(state);
        self.dispose(gone.into_iter().collect(), 0);
    }

    /// Claims `need` bytes, evicting what has to go for them. When a victim's pages can serve as
    /// a block of `len` bytes, they are returned and their bytes not claimed. `None`: does not
    /// fit, nothing changed. The lock is released while pages go.
    fn secure<'a>(
        &'a self,
        mut state: Guard<'a>,
        need: usize,
        len: usize,
    ) -> (Guard<'a>, Option<Option<Block>>) {
        if state.budget.claim(need) {
            return (state, Some(None));
        }
        if state.budget.shortfall(need) > state.idle {
            return (state, None);
        }
        let mut gone = Gone::new();
        let mut reused = None;
        // Bytes of victims: still held, and all of them this call's to spend.
        let mut credit = 0;
        while state.budget.shortfall(need) > credit {
            let Some(id) = state.oldest() else { break };
            let Some(mut victim) = state.remove(id) else { break };
            state.evictions += 1;
            credit += victim.bytes();
            if reused.is_none() && victim.block.can_become(len) {
                let rest = victim.block.cut(len).unwrap_or_else(Block::empty);
                reused = Some(std::mem::replace(&mut victim.block, rest));
                state.leaving -= len;
            }
            if victim.block.is_empty() {
                // Only its description is left: plain memory, gone before its bytes are.
                let meta = victim.meta;
                drop(victim);
                state.leaving -= meta;
                state.budget.release(meta);
                credit -= meta;
            } else {
                gone.push(victim);
            }
        }
        let kept = if reused.is_some() { len } else { 0 };
        let (missing, leaving) = (need - kept, credit - kept);
        // What the leaving pages do not cover is room that exists now: claim it before others do.
        let now = missing.saturating_sub(leaving);
        let claimed = now == 0 || state.budget.claim(now);
        if claimed && gone.is_empty() {
            return (state, Some(reused));
        }
        drop(state);
        let (_, later) = self.dispose(gone, missing - now);
        let mut state = self.lock();
        if claimed && later == missing - now {
            return (state, Some(reused));
        }
        // The system kept pages that were to go: they stay on the account, and this does not fit.
        state.budget.unclaim(later + if claimed { now } else { 0 });
        state.leaving += kept;
        drop(state);
        self.dispose(reused.map(Entry::nameless).into_iter().collect(), 0);
        (self.lock(), None)
    }

    /// Gives pages back to the system, then takes their bytes off the account, of which up to
    /// `keep` become claimed in the same step. Returns the bytes gone and the bytes claimed.
    pub(super) fn dispose(&self, gone: Gone, keep: usize) -> (usize, usize) {
        if gone.is_empty() {
            return (0, 0);
        }
        let leaving: usize = gone.iter().map(Entry::bytes).sum();
        let mut freed = 0;
        let mut holes: Vec<Hole> = Vec::with_capacity(gone.len());
        for Entry { block, meta, .. } in gone {
            let len = block.len();
            freed += meta;
            // A block the system does not take back is leaked, and stays on the account.
            if let Ok(hole) = block.discard() {
                freed += len;
                holes.extend(hole);
            }
        }
        let mut state = self.lock();
        state.leaving -= leaving;
        state.budget.release(freed);
        let kept = keep.min(freed);
        let kept = if state.budget.claim(kept) { kept } else { 0 };
        let slabs: Vec<_> = holes.into_iter().filter_map(|h| state.arena.refill(h)).collect();
        drop(state);
        drop(slabs);
        (freed, kept)
    }
}

impl State {
    /// An upper bound of what the bookkeeping grows by for one more entry.
    fn growth(&self) -> usize {
        let table = if self.index.capacity() <= self.slots.len() {
            // 5 bytes a bucket, at most 32/7 buckets an entry where removed ones left marks.
            24 * (self.slots.len() + 1) + 1024
        } else {
            0
        };
        self.slots.growth() + table
    }

    /// A slot for an entry to come, with room for it in the index; `promised` covers the growth.
    fn open(&mut self, promised: usize) -> Id {
        let before = if promised > 0 { self.bookkeeping() } else { 0 };
        let waiting = self.slots.len() + 1 - self.index.len();
        let slots = &self.slots;
        let hash = |&id: &Id| slots.get(id).map_or(0, |e| e.key.hash());
        self.index.reserve(waiting, hash);
        let id = self.slots.insert(Entry::nameless(Block::empty()));
        if promised > 0 {
            let grown = self.bookkeeping() - before;
            self.budget.settle(grown);
            self.budget.unclaim(promised.saturating_sub(grown));
        }
        id
    }
}

impl Entry {
    fn nameless(block: Block) -> Self {
        Self { key: Key::digest(&[0; 32]), spec: None, block, meta: 0, phase: Phase::Coming }
    }
}
