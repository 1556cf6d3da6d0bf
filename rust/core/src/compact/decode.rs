//! Codes back to elements, straight into the caller's memory.

use super::escapes::{self, Escape};
use super::geometry::{Cursor, Geometry};
use super::source::{WINDOW, Window};
use crate::pack::{FlatMut, StridedMut};
use crate::simd::Kernel;

/// A repeated plane of up to so many bytes is copied while it is still in the nearest cache.
const NEAR: usize = 32 << 10;

/// How codes become elements of one type.
pub(super) trait Decoder {
    /// Bytes of an element.
    const SIZE: usize;
    /// Writes the element of each code, from `at` on.
    fn decode<const FUSED: bool>(&self, channel: usize, codes: &[u8], at: usize, out: &mut FlatMut);
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

    /// Has all bytes written by `f`, which gets where they begin: in one piece, or, where they
    /// have strides, in blocks of `most`.
    #[inline(always)]
    pub fn fill(self, most: usize, mut f: impl FnMut(usize, FlatMut)) {
        let all = self.nbytes();
        let (mut flat, strided) = match self {
            Self::Private(out) => (Some(out.into()), None),
            Self::Foreign(out) => (out.flat(), Some(out).filter(|out| out.flat().is_none())),
        };
        let mut room = strided.map(|out| (out, Window::new()));
        let mut at = 0;
        while at < all {
            let len = if room.is_some() { most.min(all - at) } else { all };
            let block = room.as_mut().map(|(_, room)| (&mut room.0[..len]).into());
            let Some(block) = block.or_else(|| flat.take()) else { break };
            f(at, block);
            if let Some((out, room)) = &room {
                out.scatter(at, &room.0[..len]);
            }
            at += len;
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
        let Self { decoder, geometry, escapes, chunks, start, out } = self;
        let mut cursor = Cursor::new(geometry, start);
        let mut codes = Codes::new(chunks);
        let plane = geometry.half * D::SIZE;
        let near = plane > 0 && plane <= NEAR;
        // Blocks of whole pairs of planes, where those are short.
        let most = match WINDOW.checked_div(2 * plane) {
            None | Some(0) => WINDOW,
            Some(pairs) => pairs * 2 * plane,
        };
        out.fill(most, |at, mut block| {
            let mut done = 0;
            while done < block.nbytes() {
                let mut len = cursor.piece().min((block.nbytes() - done) / D::SIZE);
                if cursor.second && near && done >= plane {
                    block.repeat(done - plane, done, len * D::SIZE);
                } else {
                    let codes = codes.from(cursor.kept, len);
                    len = codes.len();
                    decoder.decode::<FUSED>(cursor.channel, codes, done, &mut block);
                }
                cursor.advance(len);
                done += len * D::SIZE;
            }
            escapes::restore(escapes, &geometry, D::SIZE, start + at / D::SIZE, &mut block);
        });
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
