//! An entry in use.

use super::{Cache, Gone, Phase};
use crate::arena::{Block, Loan, page, whole_pages};
use crate::error::{Error, Result};
use crate::lru::Id;
use crate::pixels::Spec;
use std::sync::Arc;

/// Keeps an entry's bytes where they are; clones count one by one.
pub struct Pin {
    spec: Arc<Spec>,
    home: Home,
}

enum Home {
    Slot { cache: Arc<Cache>, id: Id, loan: Option<Loan> },
    Loose(Arc<Loose>),
}

/// Arrays that did not fit, outside the budget and shown as lent.
struct Loose {
    cache: Arc<Cache>,
    block: Option<Block>,
    loan: Option<Loan>,
}

impl Cache {
    /// Arrays with a block of their own that the cache never keeps: for what did not fit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn loose(self: &Arc<Self>, spec: Spec, fill: impl FnOnce(&mut [u8])) -> Result<Pin> {
        let span = spec.span();
        let len = whole_pages(span.max(1)).ok_or(Error::OutOfMemory { bytes: span, errno: 0 })?;
        let mut block = Block::map(len.max(page()))?;
        if let Some(mut loan) = block.lend_mut() {
            fill(loan.bytes());
            block.settle_mut(loan);
        }
        self.lend(block.len());
        let loan = block.lend();
        let loose = Loose { cache: self.clone(), block: Some(block), loan };
        Ok(Pin { spec: Arc::new(spec), home: Home::Loose(Arc::new(loose)) })
    }
}

impl Pin {
    pub(super) fn new(cache: Arc<Cache>, id: Id, loan: Loan, spec: Arc<Spec>) -> Self {
        Self { spec, home: Home::Slot { cache, id, loan: Some(loan) } }
    }

    /// The arrays.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The block's bytes, the arrays at their fields' ranges.
    pub fn bytes(&self) -> &[u8] {
        let loan = match &self.home {
            Home::Slot { loan, .. } => loan,
            Home::Loose(loose) => &loose.loan,
        };
        loan.as_ref().map_or(&[], Loan::bytes)
    }

    /// Whether the cache keeps these bytes inside its budget.
    pub fn is_kept(&self) -> bool {
        matches!(self.home, Home::Slot { .. })
    }

    /// Another pin of the same bytes; `None` after 2^32 of them.
    pub fn again(&self) -> Option<Self> {
        match &self.home {
            Home::Slot { cache, id, .. } => {
                let (loan, spec) = cache.lock().pin(*id)?;
                Some(Self::new(cache.clone(), *id, loan, spec))
            }
            Home::Loose(loose) => {
                Some(Self { spec: self.spec.clone(), home: Home::Loose(loose.clone()) })
            }
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Self::Slot { cache, id, loan } = self else { return };
        let Some(loan) = loan.take() else { return };
        let mut gone = Gone::default();
        let mut state = cache.lock();
        let Some(entry) = state.slots.get_mut(*id) else { return };
        entry.block.settle(loan);
        if !entry.block.is_lent() {
            let (bytes, phase) = (entry.bytes(), entry.phase);
            state.pinned -= bytes;
            if phase == Phase::Leaving {
                state.take(*id, &mut gone);
            } else {
                state.shelve(*id);
                if state.budget.shortfall(0) > 0 {
                    // The budget was lowered below what was in use.
                    let limit = state.budget.limit();
                    gone = state.evict_to(limit);
                }
            }
        }
        drop(state);
        cache.dispose(gone, 0);
    }
}

impl Drop for Loose {
    fn drop(&mut self) {
        let (Some(mut block), Some(loan)) = (self.block.take(), self.loan.take()) else { return };
        let bytes = block.len();
        block.settle(loan);
        if block.discard().is_ok() {
            self.cache.unlend(bytes);
        }
    }
}
