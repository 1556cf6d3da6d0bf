//! An entry in use.

use super::Cache;
use crate::arena::{Block, Loan, page};
use crate::error::{Error, Result};
use crate::lru::Id;
use crate::pixels::Spec;
use std::sync::Arc;

/// Keeps an entry's bytes where they are; clones count one by one.
pub struct Pin(Home);

enum Home {
    Slot { cache: Arc<Cache>, id: Id, loan: Option<Loan> },
    Loose(Arc<Loose>),
}

/// Arrays that did not fit, outside the budget and shown as lent.
struct Loose {
    cache: Arc<Cache>,
    spec: Arc<Spec>,
    block: Option<Block>,
    loan: Option<Loan>,
}

impl Cache {
    /// Arrays with a block of their own that the cache never keeps: for what did not fit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn loose(self: &Arc<Self>, spec: Spec, fill: impl FnOnce(&Spec, &mut [u8])) -> Result<Pin> {
        let span = spec.span();
        let len = span.max(1).checked_next_multiple_of(page());
        let mut block = Block::map(len.ok_or(Error::OutOfMemory { bytes: span, errno: 0 })?)?;
        if let Some(mut loan) = block.lend_mut() {
            fill(&spec, loan.bytes());
            block.settle_mut(loan);
        }
        self.lend(block.len());
        let loan = block.lend();
        let cache = self.clone();
        let loose = Loose { cache, spec: Arc::new(spec), block: Some(block), loan };
        Ok(Pin(Home::Loose(Arc::new(loose))))
    }
}

impl Pin {
    pub(super) fn new(cache: Arc<Cache>, id: Id, loan: Loan) -> Self {
        Self(Home::Slot { cache, id, loan: Some(loan) })
    }

    /// The arrays.
    pub fn spec(&self) -> Arc<Spec> {
        match &self.0 {
            // Asked for here and not kept: most look-ups only want to know that there is an entry.
            Home::Slot { cache, id, .. } => cache.lock().spec(*id),
            Home::Loose(loose) => loose.spec.clone(),
        }
    }

    /// The block's bytes, the arrays at their fields' ranges.
    pub fn bytes(&self) -> &[u8] {
        let loan = match &self.0 {
            Home::Slot { loan, .. } => loan,
            Home::Loose(loose) => &loose.loan,
        };
        loan.as_ref().map_or(&[], Loan::bytes)
    }

    /// Whether the cache keeps these bytes inside its budget.
    pub fn is_kept(&self) -> bool {
        matches!(self.0, Home::Slot { .. })
    }

    /// Another pin of the same bytes; `None` after 2^32 of them.
    pub fn again(&self) -> Option<Self> {
        match &self.0 {
            Home::Slot { cache, id, .. } => {
                let loan = cache.lock().pin(*id)?;
                Some(Self::new(cache.clone(), *id, loan))
            }
            Home::Loose(loose) => Some(Self(Home::Loose(loose.clone()))),
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Self::Slot { cache, id, loan } = self else { return };
        let Some(loan) = loan.take() else { return };
        let mut state = cache.lock();
        let gone = state.unpin(*id, loan);
        let over = state.is_over();
        drop(state);
        if gone.is_some() {
            cache.dispose(gone.into_iter().collect(), 0);
        }
        if over {
            cache.settle_over();
        }
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
