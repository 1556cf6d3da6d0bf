//! Stretches of one value that has no code: padding, and the odd element.

use super::few;
use super::form::Why;
use super::geometry::Geometry;
use crate::pack::FlatMut;

/// `len` codes from `at` on stand for nothing: their elements are `bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escape {
    /// Index of the first code.
    pub at: u32,
    /// Number of codes.
    pub len: u32,
    /// The element.
    pub bits: u32,
}

/// Escapes in the order of their codes, at most so many that they cost a twentieth of these.
#[derive(Debug)]
pub(super) struct Escapes {
    list: Vec<Escape>,
    most: usize,
}

impl Escapes {
    /// For an array of `kept` codes.
    pub fn new(kept: usize) -> Self {
        Self { list: Vec::new(), most: kept / 256 + 8 }
    }

    /// Adds a stretch behind all others; `false` when there are too many.
    pub fn push(&mut self, at: usize, len: usize, bits: u32) -> bool {
        if let Some(last) = self.list.last_mut()
            && last.bits == bits
            && (last.at + last.len) as usize == at
        {
            last.len += len as u32;
            return true;
        }
        self.list.push(Escape { at: at as u32, len: len as u32, bits });
        self.list.len() <= self.most
    }

    /// What was found.
    pub fn finish(self) -> Box<[Escape]> {
        self.list.into()
    }
}

/// Whether these are the escapes of an array of `kept` codes.
pub(super) fn check(escapes: &[Escape], kept: usize, size: usize) -> Result<(), Why> {
    let mut last = 0;
    for &Escape { at, len, bits } in escapes {
        let end = u64::from(at) + u64::from(len);
        if u64::from(at) < last || len == 0 || end > kept as u64 {
            return Err("escapes out of order");
        }
        if size == 2 && bits > u16::MAX.into() {
            return Err("an escape that is too long");
        }
        last = end;
    }
    Ok(())
}

/// Writes the escapes of elements `start..` into their decoded bytes, `size` each.
pub(super) fn restore(
    escapes: &[Escape],
    geometry: &Geometry,
    size: usize,
    start: usize,
    out: &mut FlatMut,
) {
    let end = start + out.nbytes() / size;
    let kept = geometry.codes(start..end);
    let first = escapes.partition_point(|e| (e.at + e.len) as usize <= kept.start);
    let escapes = escapes[first..].iter().take_while(|e| (e.at as usize) < kept.end);
    let mut fill = |from: usize, len: usize, bits: u32| {
        let (from, to) = (from.max(start), (from + len).min(end));
        if from < to {
            few::fill(out, (from - start) * size, to - from, bits.into(), size);
        }
    };
    for escape in escapes {
        let mut at = kept.start.max(escape.at as usize);
        let last = kept.end.min((escape.at + escape.len) as usize);
        while at < last {
            let element = geometry.element(at);
            let len = match geometry.half {
                0 => last - at,
                half => (last - at).min(half - at % half),
            };
            fill(element, len, escape.bits);
            if geometry.half > 0 {
                fill(element + geometry.half, len, escape.bits);
            }
            at += len;
        }
    }
}

/// The first `SIZE` bytes of a little-endian integer.
#[inline(always)]
pub(super) fn low<const SIZE: usize>(bits: u64) -> [u8; SIZE] {
    let bytes = bits.to_le_bytes();
    std::array::from_fn(|i| bytes[i])
}
