//! A few thousand elements from all over an array, and how often each value is among them.

use super::geometry::{Geometry, spread};
use super::source::Source;

const WINDOWS: usize = 64;
const WIDTH: usize = 64;
/// Distinct values that a channel may show: 256 levels and a few off the lattice.
pub(super) const MOST: usize = 256 + OUTLIERS;
/// Values off the lattice that a sample may show.
pub(super) const OUTLIERS: usize = 4;

/// Whether bytes from `at` on change more often than runs would.
pub(super) fn is_busy(source: Source, at: usize) -> bool {
    let mut room = [0; 2 * WIDTH];
    let window = source.read(at, room.len().min(source.nbytes() - at), &mut room);
    let changes = window.windows(2).filter(|pair| pair[0] != pair[1]).count();
    4 * changes > window.len()
}

/// Windows of neighbouring elements.
pub(super) struct Sample {
    starts: Vec<usize>,
    bits: Vec<u64>,
    width: usize,
}

impl Sample {
    /// Takes windows of an array of `elements > 0` elements.
    pub fn take(source: Source, size: usize, elements: usize) -> Self {
        let mut room = [0; WIDTH * 8];
        let width = WIDTH.min(elements);
        let starts: Vec<_> = (0..WINDOWS).map(|i| spread(i, elements - width + 1)).collect();
        let mut bits = Vec::with_capacity(starts.len() * width);
        for &at in &starts {
            let window = source.read(at * size, width * size, &mut room);
            match size {
                2 => bits.extend(window.as_chunks::<2>().0.iter().map(|e| widen(e))),
                4 => bits.extend(window.as_chunks::<4>().0.iter().map(|e| widen(e))),
                _ => bits.extend(window.chunks_exact(size).map(widen)),
            }
        }
        Self { starts, bits, width }
    }

    /// Whether no window holds two values.
    pub fn is_flat(&self) -> bool {
        self.windows().all(is_constant)
    }

    /// The share of neighbours that differ is below 1 / `n`.
    pub fn changes_less_than(&self, n: usize) -> bool {
        let changes = |w: &[u64]| w.windows(2).filter(|p| p[0] != p[1]).count();
        self.windows().map(changes).sum::<usize>() * n < self.bits.len()
    }

    /// Calls `f` with channel, bits, and whether the whole window is one value; stops when it
    /// returns false and says so.
    pub fn all(&self, geometry: &Geometry, mut f: impl FnMut(usize, u64, bool) -> bool) -> bool {
        let Geometry { channels, inner, .. } = *geometry;
        self.starts.iter().zip(self.windows()).all(|(&start, window)| {
            let constant = is_constant(window);
            let (mut channel, mut left) = (start / inner % channels, inner - start % inner);
            window.iter().all(|&bits| {
                let go_on = f(channel, bits, constant);
                left -= 1;
                if left == 0 {
                    (left, channel) = (inner, (channel + 1) % channels);
                }
                go_on
            })
        })
    }

    /// Counts the values of every channel; `None` when one shows more than [`MOST`].
    pub fn tally(&self, geometry: &Geometry) -> Option<Vec<Vec<Count>>> {
        let mut tallies: Vec<_> = (0..geometry.channels).map(|_| Tally::default()).collect();
        let fits = self.all(geometry, |channel, bits, flat| tallies[channel].add(bits, flat));
        fits.then(|| tallies.into_iter().map(|tally| tally.counts).collect())
    }

    fn windows(&self) -> impl Iterator<Item = &[u64]> {
        self.bits.chunks_exact(self.width)
    }
}

fn is_constant(window: &[u64]) -> bool {
    window.iter().all(|&bits| bits == window[0])
}

/// An element of up to eight bytes, as an integer.
#[inline(always)]
pub(super) fn widen(element: &[u8]) -> u64 {
    let mut bits = [0; 8];
    bits[..element.len()].copy_from_slice(element);
    u64::from_le_bytes(bits)
}

/// A value and how often it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub bits: u64,
    pub times: u32,
    /// It was only seen where nothing else was.
    pub flat: bool,
}

struct Tally {
    /// One more than an index into `counts`.
    slots: [u16; 1024],
    counts: Vec<Count>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { slots: [0; 1024], counts: Vec::with_capacity(MOST) }
    }
}

impl Tally {
    fn add(&mut self, bits: u64, flat: bool) -> bool {
        let mut at = (bits.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as usize;
        loop {
            match self.slots[at] {
                0 if self.counts.len() == MOST => return false,
                0 => {
                    self.counts.push(Count { bits, times: 1, flat });
                    self.slots[at] = self.counts.len() as u16;
                    return true;
                }
                index => {
                    let count = &mut self.counts[usize::from(index) - 1];
                    if count.bits == bits {
                        count.times += 1;
                        count.flat &= flat;
                        return true;
                    }
                }
            }
            at = (at + 1) % self.slots.len();
        }
    }
}
