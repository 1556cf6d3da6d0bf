//! One pass over an array: guess, compare, and look closer only where they differ.

use super::escapes::{Escape, Escapes};
use super::geometry::{Cursor, Geometry};
use super::sample::widen;
use super::source::{Source, View, WINDOW, Window};
use crate::simd::Kernel;

/// Elements that are looked at one by one when any of them has no code.
const BLOCK: usize = 256;

/// How elements of one type become codes.
pub(super) trait Coder {
    /// Bytes of an element.
    const SIZE: usize;
    /// The channel of an element so far behind one of `channel`, in the same piece.
    fn channel(&self, channel: usize, _behind: usize) -> usize {
        channel
    }
    /// Writes a code for each element; `false` when any of them does not stand for its element.
    fn code<const FUSED: bool>(&self, channel: usize, source: &[u8], codes: &mut [u8]) -> bool;
    /// The code of the first element of `source`, by a new slot if need be.
    fn place(&mut self, channel: usize, source: &[u8]) -> Option<u8>;
    /// Called after `place` has filled slots.
    fn refresh<const FUSED: bool>(&mut self) {}
    /// Whether slots were used that the book's tables lacked at first.
    fn has_news(&self) -> bool;
}

/// Why a pass ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// A plane is not repeated after all.
    Different,
    /// Too many elements have no code.
    Foreign,
}

/// What a pass reads and writes.
pub(super) struct Pass<'a, 'b, C> {
    pub coder: &'a mut C,
    pub geometry: Geometry,
    pub source: Source<'a>,
    pub chunks: &'a mut [&'b mut [u8]],
}

impl<C: Coder> Kernel for Pass<'_, '_, C> {
    type Out = Result<Box<[Escape]>, Stop>;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Self::Out {
        let Self { coder, geometry, source, chunks } = self;
        let Geometry { elements, half, .. } = geometry;
        let (mut one, mut other) = (Window::new(), Window::new());
        let most = WINDOW / C::SIZE;
        // Short planes are compared within the window, long ones come with a second window.
        let pairs = if half > 0 { most / (2 * half) } else { 0 };
        let mut cursor = Cursor::new(geometry, 0);
        let mut escapes = Escapes::new(geometry.kept());
        let mut room = Room { chunks: chunks.iter_mut(), now: &mut [] };
        while cursor.element < elements {
            let start = cursor.element;
            let len = match pairs {
                0 => most.min(cursor.plane()),
                _ => pairs * 2 * half,
            };
            let len = len.min(elements - start) * C::SIZE;
            let mut view = source.view(start * C::SIZE, len, &mut one);
            let mut at = 0;
            while at < len {
                let most = cursor.piece().min((len - at) / C::SIZE);
                let codes = room.take(most).ok_or(Stop::Foreign)?;
                let len = codes.len();
                piece::<C, FUSED>(coder, &cursor, &mut view, at, codes, &mut escapes)?;
                cursor.advance(len);
                at += len * C::SIZE;
                if cursor.second && pairs > 0 {
                    let plane = half * C::SIZE;
                    if !view.repeats(at, plane) {
                        return Err(Stop::Different);
                    }
                    at += plane;
                    cursor.skip_plane();
                }
            }
            if half > 0 && pairs == 0 {
                let again = (start + half) * C::SIZE;
                if !source.equals(again, view.get(0..len), &mut other) {
                    return Err(Stop::Different);
                }
                if cursor.second {
                    cursor.skip_plane();
                }
            }
        }
        Ok(escapes.finish())
    }
}

/// Chunks that are written one after the other.
struct Room<'a, 'b> {
    chunks: std::slice::IterMut<'a, &'b mut [u8]>,
    now: &'a mut [u8],
}

impl<'a> Room<'a, '_> {
    /// The next bytes of one chunk: up to `most`, and `None` when there are no more.
    #[inline(always)]
    fn take(&mut self, most: usize) -> Option<&'a mut [u8]> {
        while self.now.is_empty() {
            self.now = self.chunks.next()?;
        }
        let now = std::mem::take(&mut self.now);
        let (taken, rest) = now.split_at_mut(most.min(now.len()));
        self.now = rest;
        Some(taken)
    }
}

/// Codes the elements of one piece, which begins at byte `start` of the view.
#[inline(always)]
fn piece<C: Coder, const FUSED: bool>(
    coder: &mut C,
    cursor: &Cursor,
    view: &mut View,
    start: usize,
    codes: &mut [u8],
    escapes: &mut Escapes,
) -> Result<(), Stop> {
    let Cursor { channel: first, kept, .. } = *cursor;
    let end = start + codes.len() * C::SIZE;
    let mut at = 0;
    while at < codes.len() {
        let len = BLOCK.min(codes.len() - at);
        let channel = coder.channel(first, at);
        let from = start + at * C::SIZE;
        let block = view.get(from..from + len * C::SIZE);
        if coder.code::<FUSED>(channel, block, &mut codes[at..at + len]) {
            at += len;
        } else {
            let (source, codes) = (view.get(from..end), &mut codes[at..]);
            at += walk(coder, channel, source, codes, len, kept + at, escapes)?;
            coder.refresh::<FUSED>();
        }
    }
    Ok(())
}

/// Codes at least `len` elements one by one, and more if a stretch reaches further.
#[inline(never)]
fn walk<C: Coder>(
    coder: &mut C,
    channel: usize,
    source: &[u8],
    codes: &mut [u8],
    len: usize,
    kept: usize,
    escapes: &mut Escapes,
) -> Result<usize, Stop> {
    let mut at = 0;
    while at < len {
        let rest = &source[at * C::SIZE..];
        if let Some(code) = coder.place(coder.channel(channel, at), rest) {
            codes[at] = code;
            at += 1;
            continue;
        }
        let run = equal(rest, C::SIZE, usize::MAX);
        codes[at..at + run].fill(0);
        let bits = widen(&rest[..C::SIZE]) as u32;
        if !escapes.push(kept + at, run, bits) {
            return Err(Stop::Foreign);
        }
        at += run;
    }
    Ok(at)
}

/// How many of the first elements are the same, counted up to about `most`.
pub(super) fn equal(source: &[u8], size: usize, most: usize) -> usize {
    // Shifted by one element, a stretch equals itself.
    let shifted = &source[size..];
    let mut at = 0;
    while at < shifted.len().min(most.saturating_mul(size)) {
        let end = shifted.len().min(at + 64 * size);
        if source[at..end] != shifted[at..end] {
            break;
        }
        at = end;
    }
    let (first, rest) = (&source[..size], shifted[at..].chunks_exact(size));
    1 + at / size + rest.take(64).take_while(|&element| element == first).count()
}
