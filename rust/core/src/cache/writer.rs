//! The way in: bytes are claimed, written off the lock, and published under a key.

use super::room::{Gone, Guard, Room};
use super::state::Label;
use super::{Cache, Key, Pin, State};
use crate::arena::Piece;
use crate::compact::Form;
use crate::digest::{Algorithm, Hasher, LEN};
use crate::error::{Error, Result};
use crate::lru::Id;
use crate::pixels::{Spec, slices, slices_mut};
use std::sync::Arc;

/// What a reservation puts aside for the description of an entry, beside its slot.
const META: usize = 1024;
/// Compact forms are at most so many times smaller, but for arrays of one value.
const MOST: usize = 8;

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
    bytes: usize,
    /// The process's count of forks: a child does not own its parent's promises.
    forks: u64,
}

/// An entry being written. Dropping it gives its bytes back.
pub struct Writer {
    cache: Arc<Cache>,
    pieces: Box<[Piece]>,
    spec: Spec,
    /// Bytes on the account beside the pieces'.
    meta: usize,
}

impl Cache {
    /// Puts room for arrays of `bytes` aside, evicting for them; never waits. Where arrays are
    /// stored compactly that is what the entries so far took of their size, an eighth at least.
    /// `None`, counted if it is certain: it does not fit.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let state = self.lock();
        let (stored, logical) = (state.idle + state.pinned, state.logical);
        let bytes = match self.compact {
            true if stored < logical => {
                let share = bytes as u128 * stored as u128 / logical as u128;
                usize::try_from(share).unwrap_or(bytes).max(bytes / MOST)
            }
            _ => bytes,
        };
        let room = Room::of(&state, bytes, bytes);
        let slot = state.growth();
        let meta = |room: Room| Label::footprint(room.pieces()) + META + slot;
        let need = room.map_or(usize::MAX, |room| room.bytes().saturating_add(meta(room)));
        let (mut state, found) = self.secure(state, need, Room::default());
        if found.is_none() {
            // Where arrays are stored compactly nobody knows yet what they take.
            state.refused += u64::from(!self.compact);
            return None;
        }
        Some(Reservation { cache: self.clone(), bytes: need, forks: state.forks })
    }

    /// Begins an entry, for which a reservation may have been made; `None`, counted: it does not
    /// fit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub fn begin(
        self: &Arc<Self>,
        spec: Spec,
        reservation: Option<Reservation>,
    ) -> Result<Option<Writer>> {
        let room = Room::of(&self.lock(), spec.raw(), spec.span());
        let room = room.ok_or(Error::OutOfMemory { bytes: spec.span(), errno: 0 })?;
        let meta = spec.footprint() + Label::footprint(room.pieces());
        let credit =
            reservation.filter(|r| Arc::ptr_eq(&r.cache, self)).map_or(0, Reservation::end);
        let pieces = self.admit(room, meta, credit)?;
        if pieces.is_none() && self.is_empty() {
            self.books.clear();
        }
        Ok(pieces.map(|pieces| {
            let mut writer = Writer { cache: self.clone(), pieces, spec, meta };
            writer.pieces.iter_mut().for_each(Piece::populate);
            writer
        }))
    }
}

impl Reservation {
    /// The bytes that are still claimed; whoever asks has them from now on.
    fn end(mut self) -> usize {
        let bytes = std::mem::take(&mut self.bytes);
        if self.cache.lock().forks == self.forks { bytes } else { 0 }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.cache.lock();
            if state.forks == self.forks {
                state.budget.unclaim(self.bytes);
            }
        }
    }
}

impl Writer {
    /// The arrays.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Lets `fill` write the bytes of the arrays that are stored as they are, each at its field's
    /// range. Pages that served another entry still hold its bytes.
    pub fn fill<T>(&mut self, fill: impl FnOnce(&Spec, &mut [u8]) -> T) -> T {
        let first = self.pieces.first_mut().map_or(&mut [][..], Piece::bytes_mut);
        fill(&self.spec, first)
    }

    /// Lets `encode` write the codes of one array, which may lie in several pieces, and notes what
    /// they mean.
    pub(super) fn encode<E>(
        &mut self,
        index: usize,
        encode: impl FnOnce(&mut [&mut [u8]]) -> std::result::Result<Form, E>,
    ) -> std::result::Result<(), E> {
        let range = self.spec.fields().get(index).map_or(0..0, |f| f.range());
        let mut chunks = slices_mut(self.pieces.iter_mut().map(Piece::bytes_mut), &range);
        let form = encode(&mut chunks)?;
        self.spec.set_form(index, form);
        Ok(())
    }

    /// The content hash of an array that was written, in whichever way.
    pub(super) fn content(&self, index: usize) -> Result<[u8; LEN]> {
        let Some(field) = self.spec.fields().get(index) else {
            return Err(Error::Layout("no array was written".into()));
        };
        let chunks = slices(self.pieces.iter().map(Piece::bytes), &field.range());
        if let Some(form) = field.form() {
            return form.hash(&chunks);
        }
        let mut hasher = Hasher::new(Algorithm::Blake3);
        chunks.iter().for_each(|chunk| hasher.update(chunk));
        Ok(hasher.finish())
    }

    /// Makes the entry findable. `false` when [`Cache::clear`] came after `generation`, or when what
    /// it takes beside its pages does not fit.
    pub fn publish(self, key: Key, existing: Existing, generation: Option<u64>) -> bool {
        self.finish(key, existing, generation, |_, _| ()).is_some()
    }

    /// Makes the entry findable and pins it; `None` as [`publish`](Self::publish) gives `false`.
    pub fn publish_pinned(
        self,
        key: Key,
        existing: Existing,
        generation: Option<u64>,
    ) -> Option<Pin> {
        let pinned = self.finish(key, existing, generation, |state, id| state.pin(id));
        pinned.flatten().map(Pin::new)
    }

    fn finish<T>(
        mut self,
        key: Key,
        existing: Existing,
        generation: Option<u64>,
        then: impl FnOnce(&mut State, Id) -> T,
    ) -> Option<T> {
        let cache = self.cache.clone();
        let state = cache.lock();
        // Forms and books are known by now.
        let footprint = Label::footprint(self.pieces.len()) + self.spec.footprint();
        let more = footprint.saturating_sub(self.meta);
        let (mut state, mut promised) = cache.promise_with_books(state, more);
        if promised.is_none() {
            // Books that only entries to come would share are the last thing to go.
            drop(state);
            cache.books.clear();
            state = cache.lock();
            cache.settle_books(&mut state);
            (state, promised) = cache.promise_with_books(state, more);
        }
        let Some(promised) = promised else {
            state.refused += 1;
            return None;
        };
        state.budget.settle(more);
        self.meta += more;
        if generation.is_some_and(|g| g != state.generation) {
            state.budget.unclaim(promised);
            return None; // the drop gives the bytes back
        }
        let mut gone = Gone::default();
        let old = state.find((&key).into());
        let id = match (old, existing) {
            (Some(old), Existing::Keep) => {
                state.budget.unclaim(promised);
                old
            }
            (old, _) => {
                gone.entries.extend(old.and_then(|old| state.remove(old)));
                let (pieces, mut spec) =
                    (std::mem::take(&mut self.pieces), std::mem::take(&mut self.spec));
                spec.number();
                let meta = std::mem::take(&mut self.meta);
                state.enter(key, (cache.clone(), spec), pieces, meta, promised)
            }
        };
        let result = then(&mut state, id);
        let over = state.is_over();
        drop(state);
        cache.dispose(gone, 0);
        if over {
            cache.settle_over();
        }
        Some(result)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let (pieces, meta) = (std::mem::take(&mut self.pieces), std::mem::take(&mut self.meta));
        if pieces.is_empty() && meta == 0 {
            return;
        }
        drop(std::mem::take(&mut self.spec));
        let mut state = self.cache.lock();
        state.budget.release(meta);
        state.leaving += pieces.iter().map(Piece::len).sum::<usize>();
        drop(state);
        self.cache.dispose(Gone { pieces: pieces.into(), ..Gone::default() }, 0);
    }
}

impl Cache {
    /// [`promise`](Self::promise) for `more` bytes that are to be settled and for a slot, of which
    /// the claim is returned; books that are new are put on the account.
    fn promise_with_books<'a>(
        &'a self,
        mut state: Guard<'a>,
        more: usize,
    ) -> (Guard<'a>, Option<usize>) {
        loop {
            let books = self.books.bytes().saturating_sub(state.books);
            let (again, promised) = self.promise(state, more + books);
            state = again;
            let Some(promised) = promised else { return (state, None) };
            // While the lock was released others may have put them on the account.
            let now = self.books.bytes().saturating_sub(state.books);
            if now <= books {
                state.books += now;
                state.budget.settle(now);
                return (state, Some(promised - more - now));
            }
            state.budget.unclaim(promised);
        }
    }
}
