//! Codes back to elements, straight into the caller's memory.

use super::escapes::{self, Escape};
use super::geometry::{Cursor, Geometry};
use super::source::{WINDOW, Window};
use crate::pack::StridedMut;
use crate::simd::Kernel;

/// A repeated plane of up to so many bytes is copied while it is still in the nearest cache.
const NEAR: usize = 32 << 10;

/// How codes become elements of one type.
pub(super) trait Decoder {
    /// Bytes of an element.
    const SIZE: usize;
    /// Loads what only pays when fused; called once, before anything else.
    fn prepare<const FUSED: bool>(&mut self) {}
    /// Writes the element of each code.
    fn decode<const FUSED: bool>(&self, channel: usize, codes: &[u8], out: &mut [u8]);
}

/// Where elements go.
pub(super) enum Out<'a> {
    /// Memory of our own.
    Private(&'a mut [u8]),
    /// Memory that is only written to by copies from our own.
    Foreign(&'a StridedMut),
}

impl Out<'_> {
    pub fn nbytes(&self) -> usize {
        match self {
            Self::Private(out) => out.len(),
            Self::Foreign(out) => out.nbytes(),
        }
    }

    /// The bytes to be written next, from `at` on: all of them, or a block of at most so many.
    #[inline(always)]
    pub fn block<'b>(&'b mut self, at: usize, most: usize, room: &'b mut Window) -> &'b mut [u8] {
        match self {
            Self::Private(out) => &mut out[at..],
            Self::Foreign(out) => &mut room.0[..most.min(out.nbytes() - at)],
        }
    }

    /// Hands on what was written to a block.
    #[inline(always)]
    pub fn done(&self, at: usize, len: usize, room: &Window) {
        if let Self::Foreign(out) = self {
            out.scatter(at, &room.0[..len]);
        }
    }
}

/// Decodes the elements from `start` on that `out` has room for. Chunks hold all codes.
pub(super) struct Unpack<'a, D> {
    pub decoder: D,
    pub geometry: Geometry,
    pub escapes: &'a [Escape],
    pub chunks: &'a [&'a [u8]],
    pub start: usize,
    pub out: Out<'a>,
}

impl<D: Decoder> Kernel for Unpack<'_, D> {
    type Out = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { mut decoder, geometry, escapes, chunks, start, mut out } = self;
        let mut cursor = Cursor::new(geometry, start);
        let mut codes = Codes::new(chunks);
        let mut room = Window::new();
        let (plane, all) = (geometry.half * D::SIZE, out.nbytes());
        let near = plane > 0 && plane <= NEAR;
        // Blocks of whole pairs of planes, where those are short.
        let most = match WINDOW.checked_div(2 * plane) {
            None | Some(0) => WINDOW,
            Some(pairs) => pairs * 2 * plane,
        };
        decoder.prepare::<FUSED>();
        let mut at = 0;
        while at < all {
            let block = out.block(at, most, &mut room);
            let mut done = 0;
            while done < block.len() {
                let mut len = cursor.piece().min((block.len() - done) / D::SIZE);
                if cursor.second && near && done >= plane {
                    let (before, after) = block.split_at_mut(done);
                    after[..len * D::SIZE]
                        .copy_from_slice(&before[done - plane..][..len * D::SIZE]);
                } else {
                    let codes = codes.from(cursor.kept, len);
                    len = codes.len();
                    let out = &mut block[done..][..len * D::SIZE];
                    decoder.decode::<FUSED>(cursor.channel, codes, out);
                }
                cursor.advance(len);
                done += len * D::SIZE;
            }
            escapes::restore(escapes, &geometry, D::SIZE, start + at / D::SIZE, block);
            out.done(at, done, &room);
            at += done;
        }
    }
}

/// Codes by their index, in whichever chunk they are.
pub(super) struct Codes<'a> {
    chunks: &'a [&'a [u8]],
    index: usize,
    start: usize,
}

impl<'a> Codes<'a> {
    pub fn new(chunks: &'a [&'a [u8]]) -> Self {
        Self { chunks, index: 0, start: 0 }
    }

    /// Up to `len` neighbouring codes, at least one.
    #[inline(always)]
    pub fn from(&mut self, kept: usize, len: usize) -> &'a [u8] {
        while kept < self.start {
            self.index -= 1;
            self.start -= self.chunks[self.index].len();
        }
        while kept >= self.start + self.chunks[self.index].len() {
            self.start += self.chunks[self.index].len();
            self.index += 1;
        }
        let rest = &self.chunks[self.index][kept - self.start..];
        &rest[..len.min(rest.len())]
    }
}
