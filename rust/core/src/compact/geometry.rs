//! Which elements share a lattice, and which repeat others.

use super::form::Why;
use super::source::Source;
use crate::layout::Layout;
use std::ops::Range;

/// Element `i` belongs to channel `(i / inner) % channels`. Of every `2 * half` elements the second
/// half equals the first and has no codes; `half` is 0 where nothing repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Elements of the array.
    pub elements: usize,
    /// Channels, 1 to 4.
    pub channels: usize,
    /// Neighbouring elements of one channel.
    pub inner: usize,
    /// Elements of a repeated plane, or 0.
    pub half: usize,
}

/// Channels of at least so many neighbours are coded one by one.
pub(super) const INTERLEAVED: usize = 32;
/// Most channels an array is tried with.
pub const CHANNELS: usize = 4;

impl Geometry {
    /// The codes that are kept.
    pub fn kept(&self) -> usize {
        if self.half == 0 { self.elements } else { self.elements / 2 }
    }

    /// Whether it is one of an array of so many elements.
    pub(super) fn check(&self, elements: usize) -> Result<(), Why> {
        let Self { channels, inner, half, .. } = *self;
        let divides = |n: Option<usize>| n.is_some_and(|n| n > 0 && elements.is_multiple_of(n));
        if self.elements != elements || !(1..=CHANNELS).contains(&channels) {
            return Err("channels of another array");
        }
        if !divides(channels.checked_mul(inner)) {
            return Err("channels that do not divide the array");
        }
        if half > 0 && !divides(half.checked_mul(2)) {
            return Err("planes that do not divide the array");
        }
        Ok(())
    }

    /// Whether channels change so often that pieces of one channel are not worth a call: then
    /// pieces hold all channels.
    pub(super) fn is_interleaved(&self) -> bool {
        self.channels > 1 && self.inner < INTERLEAVED
    }

    /// The element of the first plane that a code belongs to.
    pub fn element(&self, kept: usize) -> usize {
        kept + kept.checked_div(self.half).unwrap_or(0) * self.half
    }

    /// The codes that elements of a range have; with planes on either side, where it touches both.
    pub(super) fn codes(&self, elements: Range<usize>) -> Range<usize> {
        let Range { start, end } = elements;
        let half = self.half;
        if half == 0 || start >= end {
            return elements;
        }
        let (first, last) = (start / half, (end - 1) / half);
        if first == last {
            let skipped = first.div_ceil(2) * half;
            return start - skipped..end - skipped;
        }
        first / 2 * half..(last / 2 + 1) * half
    }
}

/// Channel layouts worth trying, the likeliest first: one lattice for all, an axis of two to four
/// channels, three blocks in each row, interleaved.
pub(super) fn candidates(layout: &Layout, elements: usize) -> Vec<Geometry> {
    let of = |channels, inner| Geometry { elements, channels, inner, half: 0 };
    let mut found = vec![of(1, elements)];
    let mut add = |channels: usize, inner: usize| {
        let one = of(channels, inner);
        if inner > 0 && elements.is_multiple_of(channels * inner) && !found.contains(&one) {
            found.push(one);
        }
    };
    let mut inner = elements;
    for &axis in layout.shape() {
        inner /= axis.max(1);
        if (2..=CHANNELS).contains(&axis) {
            add(axis, inner);
        }
    }
    if let Some(&last) = layout.shape().last().filter(|&&n| n.is_multiple_of(3)) {
        add(3, last / 3);
        add(3, 1);
    }
    found
}

/// The length of a plane that seems to be followed by its repetition, or 0.
pub(super) fn repeated(layout: &Layout, found: &Geometry, source: Source, size: usize) -> usize {
    let mut halves = Vec::new();
    let mut inner = found.elements;
    for &axis in layout.shape() {
        inner /= axis.max(1);
        if axis == 2 {
            halves.push(inner);
        }
    }
    let last = layout.shape().last().copied().unwrap_or(0);
    halves.extend([last / 6, found.inner / 2, last / 2]);
    let repeats = |half: &usize| {
        *half > 0 && found.elements.is_multiple_of(2 * half) && repeats(source, half * size, size)
    };
    halves.into_iter().find(repeats).unwrap_or(0)
}

/// Whether two dozen probes of the first plane are found again in the second, and differ among
/// themselves: a constant image repeats in every way.
fn repeats(source: Source, plane: usize, size: usize) -> bool {
    const PROBES: usize = 24;
    let pairs = source.nbytes() / (2 * plane);
    let width = plane.min(PROBE * size);
    let at = |i: usize| {
        let pair = spread(i, pairs) * 2 * plane;
        pair + spread(i * 7 + 3, (plane - width) / size + 1) * size
    };
    let mut rooms = [[0; PROBE * 8]; 3];
    let [first, one, other] = &mut rooms;
    let first = source.read(at(0), width, first);
    let mut varied = false;
    (0..PROBES).all(|i| {
        let one = source.read(at(i), width, one);
        varied |= one != first;
        one == source.read(at(i) + plane, width, other)
    }) && varied
}

/// Elements that are compared at a time.
const PROBE: usize = 8;

/// The `i`-th of points that fill `0..n` evenly and fall into step with no period.
pub(super) fn spread(i: usize, n: usize) -> usize {
    let turn = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((u128::from(turn) * n as u128) >> 64) as usize
}

/// Walks elements in pieces of one channel and one plane, without dividing.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    geometry: Geometry,
    /// Channel of the next element; if they are interleaved, its place among them.
    pub channel: usize,
    /// Whether the next element repeats an earlier one.
    pub second: bool,
    /// The next element.
    pub element: usize,
    /// Index of its code.
    pub kept: usize,
    /// Elements left in this channel.
    in_channel: usize,
    /// Elements left in this plane.
    in_plane: usize,
    /// Elements after which the channels come again.
    period: usize,
}

impl Cursor {
    #[inline(always)]
    pub fn new(geometry: Geometry, element: usize) -> Self {
        let Geometry { channels, inner, half, .. } = geometry;
        let (second, in_plane, kept) = match half {
            0 => (false, usize::MAX, element),
            _ => {
                let kept = element / (2 * half) * half + element % half;
                (element / half % 2 == 1, half - element % half, kept)
            }
        };
        let (channel, in_channel) = match geometry.is_interleaved() {
            true => (element % (channels * inner), usize::MAX),
            false => (element / inner % channels, inner - element % inner),
        };
        let period = channels * inner;
        Self { geometry, channel, second, element, kept, in_channel, in_plane, period }
    }

    /// How many elements follow in this plane.
    #[inline(always)]
    pub fn plane(&self) -> usize {
        self.in_plane
    }

    /// How many elements follow in this channel and plane.
    #[inline(always)]
    pub fn piece(&self) -> usize {
        self.in_channel.min(self.in_plane)
    }

    /// Moves on by up to [`piece`](Self::piece) elements.
    #[inline(always)]
    pub fn advance(&mut self, elements: usize) {
        self.element += elements;
        self.kept += elements;
        if self.in_channel == usize::MAX {
            self.channel = (self.channel + elements) % self.period;
        } else if self.in_channel > elements {
            self.in_channel -= elements;
        } else {
            self.in_channel = self.geometry.inner;
            self.channel += 1;
            if self.channel == self.geometry.channels {
                self.channel = 0;
            }
        }
        if self.geometry.half > 0 {
            self.in_plane -= elements;
            if self.in_plane == 0 {
                self.in_plane = self.geometry.half;
                self.second = !self.second;
                if self.second {
                    self.kept -= self.geometry.half;
                }
            }
        }
    }

    /// Moves past the whole plane that follows.
    #[inline(always)]
    pub fn skip_plane(&mut self) {
        if self.in_plane <= self.in_channel {
            self.advance(self.in_plane);
        } else {
            *self = Self::new(self.geometry, self.element + self.in_plane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_agrees_with_the_definition() {
        for (channels, inner, half) in [
            (1, 96, 0),
            (2, 32, 0),
            (2, 32, 16),
            (3, 4, 0),
            (3, 8, 4),
            (2, 4, 24),
            (3, 1, 2),
            (2, 3, 2),
        ] {
            let geometry = Geometry { elements: 192, channels, inner, half };
            for start in 0..192 {
                let mut cursor = Cursor::new(geometry, start);
                while cursor.element < 192 {
                    let i = cursor.element;
                    let place = i % (channels * inner);
                    let interleaved = geometry.is_interleaved();
                    assert_eq!(cursor.channel, if interleaved { place } else { place / inner });
                    let (plane, kept) = match half {
                        0 => (0, i),
                        _ => (i / half % 2, i / (2 * half) * half + i % half),
                    };
                    assert_eq!((cursor.second, cursor.kept), (plane == 1, kept));
                    assert_eq!(geometry.element(kept) + plane * half, i);
                    cursor.advance(cursor.piece().min(1 + start % 3));
                }
            }
        }
    }

    #[test]
    fn spread_fills_the_range() {
        let mut hit = [false; 64];
        (0..200).for_each(|i| hit[spread(i, 64)] = true);
        assert!(hit.iter().all(|&h| h));
    }
}
