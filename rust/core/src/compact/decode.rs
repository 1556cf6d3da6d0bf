//! Codes back to elements, straight into the caller's memory.

use super::geometry::{Cursor, Geometry};
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

/// Decodes the elements from `start` on that `out` has room for. Chunks hold all codes.
pub(super) struct Unpack<'a, D> {
    pub decoder: D,
    pub geometry: Geometry,
    pub chunks: &'a [&'a [u8]],
    pub start: usize,
    pub out: &'a mut [u8],
}

impl<D: Decoder> Kernel for Unpack<'_, D> {
    type Out = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { mut decoder, geometry, chunks, start, out } = self;
        let near = geometry.half > 0 && geometry.half * D::SIZE <= NEAR;
        let mut cursor = Cursor::new(geometry, start);
        let mut codes = Codes { chunks, index: 0, start: 0 };
        let plane = geometry.half * D::SIZE;
        let mut done = 0;
        decoder.prepare::<FUSED>();
        while done < out.len() {
            let mut len = cursor.piece().min((out.len() - done) / D::SIZE);
            if cursor.second && near && done >= plane {
                let (before, after) = out.split_at_mut(done);
                after[..len * D::SIZE].copy_from_slice(&before[done - plane..][..len * D::SIZE]);
            } else {
                let codes = codes.from(cursor.kept, len);
                len = codes.len();
                let out = &mut out[done..][..len * D::SIZE];
                decoder.decode::<FUSED>(cursor.channel, codes, out);
            }
            cursor.advance(len);
            done += len * D::SIZE;
        }
    }
}

/// Codes by their index, in whichever chunk they are.
struct Codes<'a> {
    chunks: &'a [&'a [u8]],
    index: usize,
    start: usize,
}

impl<'a> Codes<'a> {
    /// Up to `len` neighbouring codes, at least one.
    #[inline(always)]
    fn from(&mut self, kept: usize, len: usize) -> &'a [u8] {
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
