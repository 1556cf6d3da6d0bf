//! An entry in use.

use super::{Cache, Gone, Phase};
use crate::arena::Loan;
use crate::lru::Id;
use crate::pixels::Spec;
use std::sync::Arc;

/// Keeps an entry's bytes where they are; clones count one by one.
pub struct Pin {
    cache: Arc<Cache>,
    id: Id,
    loan: Option<Loan>,
    spec: Arc<Spec>,
}

impl Pin {
    pub(super) fn new(cache: Arc<Cache>, id: Id, loan: Loan, spec: Arc<Spec>) -> Self {
        Self { cache, id, loan: Some(loan), spec }
    }

    /// The arrays.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The block's bytes, the arrays at their fields' ranges.
    pub fn bytes(&self) -> &[u8] {
        self.loan.as_ref().map_or(&[], Loan::bytes)
    }

    /// The cache this entry came from.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Another pin of the same entry; `None` after 2^32 of them.
    pub fn again(&self) -> Option<Self> {
        let (loan, spec) = self.cache.lock().pin(self.id)?;
        Some(Self::new(self.cache.clone(), self.id, loan, spec))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let Some(loan) = self.loan.take() else { return };
        let mut gone = Gone::default();
        let mut state = self.cache.lock();
        let Some(entry) = state.slots.get_mut(self.id) else { return };
        entry.block.settle(loan);
        if !entry.block.is_lent() {
            let (bytes, phase) = (entry.bytes(), entry.phase);
            state.pinned -= bytes;
            if phase == Phase::Leaving {
                state.take(self.id, &mut gone);
            } else {
                state.shelve(self.id);
                if state.budget.shortfall(0) > 0 {
                    let limit = state.budget.limit();
                    gone = state.evict_to(limit);
                }
            }
        }
        drop(state);
        self.cache.dispose(gone, 0);
    }
}
