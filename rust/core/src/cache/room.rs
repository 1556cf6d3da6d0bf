//! Making room: who goes, and how its bytes become the newcomer's without ever counting twice.

use super::state::Label;
use super::{Cache, Entry, State};
use crate::arena::{Hole, Piece, page};
use crate::error::Result;
use crate::sync::MutexGuard;

/// Pieces of victims that are shorter go back to the system instead of serving as codes: entries
/// would fall to bits.
const LEAST: usize = 32 << 10;
/// New pieces for codes are at most so long; they are cut sooner or later.
const MOST: usize = 1 << 20;

/// Descriptions of at most so many bytes are freed under the lock.
const SMALL: usize = 4 << 10;

/// Pages to be found, in whole pages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    /// So many in one piece, the first.
    pub first: usize,
    /// So many more in any pieces.
    pub rest: usize,
    /// Whether the first is a map of its own.
    pub map: bool,
}

impl Room {
    /// For `raw` bytes in one piece out of `span` in all; `None` when that is no length of memory.
    pub fn of(state: &State, raw: usize, span: usize) -> Option<Self> {
        // Less than a page is in one piece wherever it begins.
        let first = if raw > page() { state.arena.piece_len(raw)? } else { 0 };
        let rest = span.checked_next_multiple_of(page())?.saturating_sub(first);
        let map = first > state.arena.run_max();
        first.checked_add(rest).map(|_| Self { first, rest, map })
    }

    pub fn bytes(self) -> usize {
        self.first + self.rest
    }

    /// The most pieces that this can become.
    pub fn pieces(self) -> usize {
        usize::from(self.first > 0) + self.rest.div_ceil(LEAST) + 1
    }
}

/// What left its place and still exists: given back to the system once the lock is released.
#[derive(Default)]
pub(super) struct Gone {
    pub entries: Vec<Entry>,
    pub pieces: Vec<Piece>,
    /// Descriptions of entries whose pieces serve others.
    pub labels: Vec<Label>,
    /// Bytes of those.
    pub meta: usize,
}

impl Gone {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.pieces.is_empty() && self.labels.is_empty()
    }

    fn bytes(&self) -> usize {
        let pages: usize = self.pieces.iter().map(Piece::len).sum();
        pages + self.meta + self.entries.iter().map(Entry::bytes).sum::<usize>()
    }
}

impl From<Option<Entry>> for Gone {
    fn from(entry: Option<Entry>) -> Self {
        Self { entries: entry.into_iter().collect(), ..Self::default() }
    }
}

/// Pieces for a newcomer: of victims first, then new ones.
#[derive(Default)]
pub(super) struct Found {
    first: Option<Piece>,
    rest: Vec<Piece>,
}

impl Found {
    fn bytes(&self) -> usize {
        let all = self.first.iter().chain(&self.rest);
        all.map(Piece::len).sum()
    }

    fn missing(&self, room: Room) -> Room {
        let first = if self.first.is_some() { 0 } else { room.first };
        let rest = self.rest.iter().map(Piece::len).sum();
        Room { first, rest: room.rest.saturating_sub(rest), ..room }
    }

    /// Takes of a victim's piece what is wanted; the others are gone.
    fn offer(&mut self, room: Room, mut piece: Piece, gone: &mut Vec<Piece>) {
        let Room { first, rest, map } = self.missing(room);
        if first > 0 && piece.is_run() != map && piece.can_become(first) {
            let left = piece.cut(first);
            self.first = Some(piece);
            return left.into_iter().for_each(|left| self.offer(room, left, gone));
        }
        if rest > 0 && piece.is_run() && piece.len() >= rest.min(LEAST) {
            gone.extend(piece.cut(rest));
            self.rest.push(piece);
        } else {
            gone.push(piece);
        }
    }

    fn into_pieces(self) -> Box<[Piece]> {
        if self.rest.is_empty() {
            return self.first.map_or_else(|| Box::new([]) as Box<[_]>, |piece| Box::new([piece]));
        }
        self.first.into_iter().chain(self.rest).collect()
    }
}

pub(super) type Guard<'a> = MutexGuard<'a, State>;

impl Cache {
    /// Pieces for `room`, on the account together with `meta` more bytes; `credit` bytes that were
    /// claimed for them are given up. `None`, counted, when they do not fit; nothing is evicted
    /// unless they then do.
    pub(super) fn admit(
        &self,
        room: Room,
        meta: usize,
        credit: usize,
    ) -> Result<Option<Box<[Piece]>>> {
        let need = room.bytes().saturating_add(meta);
        let mut state = self.lock();
        state.budget.unclaim(credit);
        // What is claimed only when the entry is published has to fit then, too.
        let later = state.growth() + self.books.bytes().saturating_sub(state.books);
        let short = state.budget.shortfall(need.saturating_add(later));
        let (mut state, found) = match state.can_free(short) {
            true => self.secure(state, need, room),
            false => (state, None),
        };
        let Some(mut found) = found else {
            state.refused += 1;
            return Ok(None);
        };
        let (kept, missing) = (found.bytes(), need - found.bytes());
        let (mut state, completed) = self.complete(state, room, &mut found);
        if let Err(error) = completed {
            let new = found.bytes() - kept;
            state.budget.settle(new);
            state.budget.unclaim(missing - new);
            state.leaving += kept + new;
            drop(state);
            self.dispose(Gone { pieces: found.into_pieces().into(), ..Gone::default() }, 0);
            return Err(error);
        }
        state.budget.settle(missing);
        Ok(Some(found.into_pieces()))
    }

    /// Adds new pieces for what victims did not have. The lock is released while one is mapped.
    fn complete<'a>(
        &'a self,
        mut state: Guard<'a>,
        room: Room,
        found: &mut Found,
    ) -> (Guard<'a>, Result<()>) {
        let Room { first, mut rest, map } = found.missing(room);
        if first > 0 {
            let piece = if !map {
                state.arena.run(first)
            } else {
                drop(state);
                let piece = Piece::map(first);
                state = self.lock();
                piece
            };
            match piece {
                Ok(piece) => found.first = Some(piece),
                Err(error) => return (state, Err(error)),
            }
        }
        while rest > 0 {
            match state.arena.run(rest.min(MOST)) {
                Ok(piece) => {
                    rest -= piece.len();
                    found.rest.push(piece);
                }
                Err(error) => return (state, Err(error)),
            }
        }
        (state, Ok(()))
    }

    /// Claims `need` bytes, evicting what has to go for them. Pages of victims that can serve as
    /// `room` are returned and their bytes not claimed. `None`: does not fit, and nothing was evicted
    /// unless the budget was lowered, or the system kept pages, while the lock was released.
    pub(super) fn secure<'a>(
        &'a self,
        mut state: Guard<'a>,
        need: usize,
        room: Room,
    ) -> (Guard<'a>, Option<Found>) {
        if state.budget.claim(need) {
            return (state, Some(Found::default()));
        }
        let short = state.budget.shortfall(need);
        if !state.can_free(short) {
            return (state, None);
        }
        let (mut gone, mut found) = (Gone::default(), Found::default());
        // Bytes of victims: still held, and all of them this call's to spend.
        let mut credit = 0;
        while state.budget.shortfall(need) > credit {
            if let Some(piece) = state.spare.pop() {
                credit += piece.len();
                state.leaving += piece.len();
                found.offer(room, piece, &mut gone.pieces);
                continue;
            }
            let Some(id) = state.oldest() else { break };
            let Some(victim) = state.remove(id) else { break };
            state.evictions += 1;
            credit += victim.bytes();
            let wanted = found.missing(room).bytes() > 0;
            match if wanted { victim.block.into_parts() } else { Err(victim.block) } {
                Ok((pieces, label, count)) => {
                    state.counts.give(count);
                    // Only its description is left: plain memory, gone before its bytes are. A few
                    // allocations are freed here, which saves a full cache another turn at the lock.
                    if victim.meta <= SMALL {
                        drop(label);
                        state.leaving -= victim.meta;
                        state.budget.release(victim.meta);
                        credit -= victim.meta;
                    } else {
                        gone.labels.push(label);
                        gone.meta += victim.meta;
                    }
                    for piece in pieces {
                        found.offer(room, piece, &mut gone.pieces);
                    }
                }
                Err(block) => gone.entries.push(Entry { block, ..victim }),
            }
        }
        let kept = found.bytes();
        state.leaving -= kept;
        let (missing, leaving) = (need - kept, credit - kept);
        // What the leaving pages do not cover is room that exists now: claim it before others do.
        let now = missing.saturating_sub(leaving);
        let claimed = now == 0 || state.budget.claim(now);
        if claimed && gone.is_empty() {
            return (state, Some(found));
        }
        drop(state);
        let (_, later) = self.dispose(gone, missing - now);
        let mut state = self.lock();
        if claimed && later == missing - now {
            return (state, Some(found));
        }
        // The system kept pages that were to go, which stay on the account; or less is allowed now.
        state.budget.unclaim(later + if claimed { now } else { 0 });
        state.leaving += kept;
        drop(state);
        self.dispose(Gone { pieces: found.into_pieces().into(), ..Gone::default() }, 0);
        (self.lock(), None)
    }

    /// Gives pages back to the system, then takes their bytes off the account, of which up to
    /// `keep` become claimed in the same step. Returns the bytes gone and the bytes claimed.
    pub(super) fn dispose(&self, gone: Gone, keep: usize) -> (usize, usize) {
        if gone.is_empty() {
            return (0, 0);
        }
        let (leaving, mut freed) = (gone.bytes(), gone.meta);
        drop(gone.labels);
        let (mut pieces, mut counts) = (gone.pieces, Vec::with_capacity(gone.entries.len()));
        for Entry { block, meta, .. } in gone.entries {
            // A block that is lent, or a piece the system does not take back, is leaked, and stays
            // on the account.
            if let Ok((parts, _, count)) = block.into_parts() {
                counts.push(count);
                freed += meta;
                pieces.extend(parts);
            }
        }
        let mut holes: Vec<Hole> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let len = piece.len();
            if let Ok(hole) = piece.discard() {
                freed += len;
                holes.extend(hole);
            }
        }
        let mut state = self.lock();
        state.leaving -= leaving;
        state.budget.release(freed);
        counts.into_iter().for_each(|count| state.counts.give(count));
        self.settle_books(&mut state);
        let kept = keep.min(freed);
        let kept = if state.budget.claim(kept) { kept } else { 0 };
        let slabs: Vec<_> = holes.into_iter().filter_map(|h| state.arena.refill(h)).collect();
        // Whoever lowered the budget meanwhile did not find the counts at home.
        let empty = if state.is_over() { state.trim() } else { None };
        drop(state);
        drop(slabs);
        self.free(empty);
        (freed, kept)
    }

    /// Claims what one more slot and `more` bytes take. Returns the claim, or `None`: does not fit.
    pub(super) fn promise<'a>(
        &'a self,
        mut state: Guard<'a>,
        more: usize,
    ) -> (Guard<'a>, Option<usize>) {
        let mut promised = 0;
        loop {
            let need = state.growth() + more;
            if need <= promised {
                return (state, Some(promised));
            }
            let (again, found) = self.secure(state, need - promised, Room::default());
            state = again;
            if found.is_none() {
                state.budget.unclaim(promised);
                return (state, None);
            }
            promised = need;
        }
    }
}
