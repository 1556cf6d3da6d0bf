//! Stretches of one value that has no code: padding, and the odd element.

use super::geometry::Geometry;

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

/// Writes the escapes of elements `start..` into their decoded bytes, `SIZE` each.
pub(super) fn restore<const SIZE: usize>(
    escapes: &[Escape],
    geometry: &Geometry,
    start: usize,
    out: &mut [u8],
) {
    let end = start + out.len() / SIZE;
    let mut fill = |from: usize, len: usize, bits: u32| {
        let (from, to) = (from.max(start), (from + len).min(end));
        if from < to {
            let (elements, _) = out[(from - start) * SIZE..(to - start) * SIZE].as_chunks_mut();
            elements.fill(low::<SIZE>(bits));
        }
    };
    for escape in escapes {
        let (mut at, mut left) = (escape.at as usize, escape.len as usize);
        while left > 0 {
            let element = geometry.element(at);
            let len = match geometry.half {
                0 => left,
                half => left.min(half - at % half),
            };
            fill(element, len, escape.bits);
            if geometry.half > 0 {
                fill(element + geometry.half, len, escape.bits);
            }
            (at, left) = (at + len, left - len);
        }
    }
}

/// The first `SIZE` bytes of a little-endian integer.
#[inline(always)]
pub(super) fn low<const SIZE: usize>(bits: u32) -> [u8; SIZE] {
    let bytes = bits.to_le_bytes();
    std::array::from_fn(|i| bytes[i])
}
