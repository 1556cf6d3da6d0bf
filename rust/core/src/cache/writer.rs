//! The way in: bytes are reserved, written off the lock, and published under a key.

use super::room::Admitted;
use super::{Cache, Entry, Gone, Key, Phase, Pin, State};
use crate::arena::LoanMut;
use crate::error::Result;
use crate::lru::Id;
use crate::pixels::Spec;
use std::sync::Arc;

/// What a reservation charges for the description of an entry that is not known yet.
const META_GUESS: usize = 1024;

/// Which entry stays when a key has one already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The new one: the key names a place.
    Replace,
    /// The old one: the key names the content.
    Keep,
}

/// Bytes put aside for an entry that is still being made. Dropping it gives them back.
pub struct Reservation {
    cache: Arc<Cache>,
    id: Option<Id>,
    fresh: bool,
    forks: u64,
    bytes: usize,
}

/// An entry being written. Dropping it gives its bytes back.
pub struct Writer {
    reservation: Reservation,
    loan: Option<LoanMut>,
    spec: Arc<Spec>,
}

impl Cache {
    /// Puts `bytes` aside, evicting for them; never waits. `None`, counted: they do not fit.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`] when the system refuses.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Option<Reservation>> {
        let admitted = self.admit(bytes, META_GUESS, false)?;
        Ok(admitted.map(|a| self.reservation(&a, bytes)))
    }

    /// Begins an entry; `None`, counted: it does not fit.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`] when the system refuses.
    pub fn begin(self: &Arc<Self>, spec: Spec) -> Result<Option<Writer>> {
        let Some(mut admitted) = self.admit(spec.span(), spec.footprint(), true)? else {
            return Ok(None);
        };
        let loan = admitted.loan.take();
        let reservation = self.reservation(&admitted, spec.span());
        Ok(loan.map(|loan| Writer::new(reservation, loan, spec)))
    }

    fn reservation(self: &Arc<Self>, admitted: &Admitted, bytes: usize) -> Reservation {
        let &Admitted { id, forks, fresh, .. } = admitted;
        Reservation { cache: self.clone(), id: Some(id), fresh, forks, bytes }
    }
}

impl Reservation {
    /// Begins the entry these bytes are for. Other bytes are found when the guess was wrong.
    ///
    /// # Errors
    /// [`crate::error::Error::OutOfMemory`] when the system refuses.
    pub fn begin(self, spec: Spec) -> Result<Option<Writer>> {
        if spec.footprint() <= META_GUESS && self.is_for(spec.span()) {
            return Ok(self.open(spec));
        }
        let cache = self.cache.clone();
        drop(self);
        cache.begin(spec)
    }

    /// Whether the block is the one that `bytes` want, and this process's: a fork's child has none.
    fn is_for(&self, bytes: usize) -> bool {
        let state = self.cache.lock();
        let same = state.arena.block_len(bytes) == state.arena.block_len(self.bytes);
        same && state.forks == self.forks
    }

    fn open(self, spec: Spec) -> Option<Writer> {
        let id = self.id?;
        let loan = self.cache.lock().slots.get_mut(id).and_then(|e| e.block.lend_mut());
        loan.map(|loan| Writer::new(self, loan, spec))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let mut state = self.cache.lock();
        let gone = if state.forks == self.forks { state.take(id) } else { None };
        drop(state);
        self.cache.dispose(gone.into_iter().collect(), 0);
    }
}

impl Writer {
    fn new(reservation: Reservation, mut loan: LoanMut, spec: Spec) -> Self {
        if reservation.fresh {
            loan.populate();
        }
        Self { reservation, loan: Some(loan), spec: Arc::new(spec) }
    }

    /// Lets `fill` write the block's bytes, the arrays at their fields' ranges. Pages that served
    /// another entry still hold its bytes.
    pub fn fill<T>(&mut self, fill: impl FnOnce(&Spec, &mut [u8]) -> T) -> T {
        match &mut self.loan {
            Some(loan) => fill(&self.spec, loan.bytes()),
            None => fill(&self.spec, &mut []),
        }
    }

    /// Makes the entry findable. `false` when [`Cache::clear`] came after `generation`.
    pub fn publish(self, key: Key, existing: Existing, generation: Option<u64>) -> bool {
        self.finish(key, existing, generation, false).is_ok()
    }

    /// Makes the entry findable and pins it; `None` when [`Cache::clear`] came after `generation`.
    pub fn publish_pinned(
        self,
        key: Key,
        existing: Existing,
        generation: Option<u64>,
    ) -> Option<Pin> {
        self.finish(key, existing, generation, true).ok().flatten()
    }

    fn finish(
        mut self,
        key: Key,
        existing: Existing,
        generation: Option<u64>,
        pin: bool,
    ) -> std::result::Result<Option<Pin>, ()> {
        let cache = self.reservation.cache.clone();
        let mut gone = Gone::default();
        let mut state = cache.lock();
        self.settle(&mut state);
        if generation.is_some_and(|g| g != state.generation)
            || state.forks != self.reservation.forks
        {
            return Err(()); // the reservation's drop gives the bytes back
        }
        let Some(id) = self.reservation.id else { return Err(()) };
        let old = state.find(&key);
        let id = match (old, existing) {
            (Some(old), Existing::Keep) => old,
            (old, _) => {
                self.reservation.id = None;
                gone.extend(old.and_then(|old| state.remove(old)));
                state.enter(id, key, self.spec.clone());
                id
            }
        };
        let pinned = if pin { state.pin(id) } else { None };
        let over = state.is_over();
        drop(state);
        cache.dispose(gone, 0);
        if over {
            cache.settle_over();
        }
        Ok(pinned.map(|loan| Pin::new(cache.clone(), id, loan)))
    }

    fn settle(&mut self, state: &mut State) {
        if let (Some(loan), Some(id)) = (self.loan.take(), self.reservation.id)
            && let Some(entry) = state.slots.get_mut(id)
        {
            entry.block.settle_mut(loan);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.loan.is_some() {
            let cache = self.reservation.cache.clone();
            self.settle(&mut cache.lock());
        }
    }
}

impl State {
    fn enter(&mut self, id: Id, key: Key, spec: Arc<Spec>) {
        let Some(entry) = self.slots.get_mut(id) else { return };
        entry.key = key;
        entry.phase = Phase::Live;
        self.logical += spec.logical();
        entry.spec = Some(spec);
        let slots = &self.slots;
        let hash = |&id: &Id| slots.get(id).map_or(0, |e| e.key.hash());
        self.index.insert_unique(key.hash(), id, hash);
        self.slots.link(id);
        self.idle += self.slots.get(id).map_or(0, Entry::bytes);
    }
}
