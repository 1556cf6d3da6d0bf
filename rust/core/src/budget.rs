//! A byte account: what may exist, what exists, and what has been promised.

/// The account of one owner of memory. Plain arithmetic; its owner's lock guards it.
///
/// The invariant that makes a budget strict is `held + claimed <= limit` after every step that
/// adds: memory is claimed before it is taken, and stays held until the system has it back.
/// Only lowering the limit can leave `held` above it, until pinned bytes go and what is on its
/// way in has arrived.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    limit: usize,
    held: usize,
    claimed: usize,
    peak: usize,
}

impl Budget {
    /// An empty account.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Bytes that may exist at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Changes the limit; the caller then shrinks to it.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes that exist.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes that exist or are promised.
    pub fn owned(&self) -> usize {
        self.held + self.claimed
    }

    /// The most bytes that were ever held or promised at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Bytes by which existing and promised memory plus `more` would exceed the limit.
    pub fn shortfall(&self, more: usize) -> usize {
        (self.held + self.claimed).saturating_add(more).saturating_sub(self.limit)
    }

    /// Promises bytes. `false`, and nothing changes, when they do not fit.
    #[must_use]
    pub fn claim(&mut self, bytes: usize) -> bool {
        let fits = self.shortfall(bytes) == 0;
        if fits {
            self.claimed += bytes;
            self.peak = self.peak.max(self.held + self.claimed);
        }
        fits
    }

    /// Takes a promise back.
    pub fn unclaim(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.claimed);
        self.claimed = self.claimed.saturating_sub(bytes);
    }

    /// Takes every promise back: those who were promised are gone.
    pub fn forget_claims(&mut self) {
        self.claimed = 0;
    }

    /// Turns promised bytes into existing ones.
    pub fn settle(&mut self, bytes: usize) {
        self.unclaim(bytes);
        self.held += bytes;
    }

    /// Existing bytes have gone back to the system.
    pub fn release(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.held);
        self.held = self.held.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_count() {
        let mut b = Budget::new(100);
        assert!(b.claim(60));
        assert!(!b.claim(41));
        b.settle(60);
        assert!(b.claim(40));
        assert_eq!(b.shortfall(1), 1);
        b.unclaim(40);
        b.release(60);
        assert_eq!((b.held(), b.peak(), b.shortfall(100)), (0, 100, 0));
        b.set_limit(0);
        assert_eq!(b.shortfall(0), 0);
        assert!(b.claim(0));
    }
}
