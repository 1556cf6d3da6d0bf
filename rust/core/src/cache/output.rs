//! Pages for decoded arrays: the caller's while it has them, and kept warm for the next one of the
//! same size while there is room for them.

use super::room::Gone;
use super::{Cache, State};
use crate::arena::Piece;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Bytes of buffers that are kept at most.
const KEPT: usize = 64 << 20;

/// Buffers that are kept at most.
const MOST: usize = 64;

/// An array of its own, outside the budget and shown as lent.
pub struct Output {
    cache: Arc<Cache>,
    piece: Option<Piece>,
    nbytes: usize,
}

impl Output {
    /// Room for `nbytes`; what it holds is anything.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the system refuses.
    pub(super) fn new(cache: &Arc<Cache>, nbytes: usize) -> Result<Self> {
        let mut state = cache.lock();
        let len = state.arena.piece_len(nbytes.max(1));
        let len = len.ok_or(Error::OutOfMemory { bytes: nbytes, errno: 0 })?;
        let kept = state.take_output(len);
        drop(state);
        let mut piece = match kept {
            Some(piece) => piece,
            None => Piece::map(len)?,
        };
        cache.lend(len);
        piece.populate();
        Ok(Self { cache: cache.clone(), piece: Some(piece), nbytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        let all = self.piece.as_ref().map_or(&[][..], Piece::bytes);
        all.get(..self.nbytes).unwrap_or_default()
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let all = self.piece.as_mut().map_or(&mut [][..], Piece::bytes_mut);
        all.get_mut(..self.nbytes).unwrap_or_default()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(piece) = self.piece.take() else { return };
        let len = piece.len();
        let mut state = self.cache.lock();
        let left = state.keep_output(piece);
        drop(state);
        // Pages that the system does not take back exist all the same.
        if left.is_none_or(|piece| piece.discard().is_ok()) {
            self.cache.unlend(len);
        }
    }
}

impl Cache {
    /// Gives back the buffers that are kept for the next array. Returns the bytes that went.
    pub fn drop_outputs(&self) -> usize {
        let mut gone = Gone::default();
        self.lock().drop_outputs(&mut gone);
        self.dispose(gone, 0).0
    }
}

impl State {
    /// A buffer of exactly this length, off the account.
    fn take_output(&mut self, len: usize) -> Option<Piece> {
        let at = self.spare.iter().rposition(|piece| piece.len() == len)?;
        self.budget.release(len);
        Some(self.spare.remove(at))
    }

    /// Keeps a buffer if there is room that nothing has to make for it; else it comes back.
    fn keep_output(&mut self, piece: Piece) -> Option<Piece> {
        let (len, kept) = (piece.len(), self.spare.iter().map(Piece::len).sum::<usize>());
        let fits = kept + len <= KEPT.min(self.budget.limit() / 4) && self.spare.len() < MOST;
        if !fits || !self.budget.claim(len) {
            return Some(piece);
        }
        self.budget.settle(len);
        self.spare.push(piece);
        None
    }
}
