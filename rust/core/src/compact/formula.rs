//! The arithmetic that a processor made its levels with, recovered from the levels alone.
//!
//! A formula only replaces a table that it reproduces bit by bit, which is checked whenever a
//! table is loaded: there are 256 inputs. Where it does, whole registers are coded at once.

use super::fit::{Lattice, ROUND};

/// Level `k` is `(k / divisor - mean) / deviation`, every operation rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Formula {
    divisor: f32,
    mean: f32,
    deviation: f32,
    /// The slot of level 0.
    first: u8,
}

/// Neighbouring floats that are tried on either side of an estimate.
const NEIGHBOURS: i32 = 8;

impl Formula {
    /// The formula of a table, given as `(slot, value)` of each level.
    pub fn find(low: (u8, f32), high: (u8, f32), levels: &[(u8, f32)]) -> Option<Self> {
        let ((lowest, low), (highest, high)) = (low, high);
        let span = highest.wrapping_sub(lowest);
        if levels.len() < 16 {
            return None;
        }
        // One of them is the end of what eight bits hold, or we wait for more.
        let shifts = [0, 255 - span];
        for shift in &shifts[..if span == 255 { 1 } else { 2 }] {
            let first = lowest.wrapping_sub(*shift);
            for divisor in [255.0f32, 1.0] {
                let step = (f64::from(high) - f64::from(low)) / f64::from(span);
                let deviation = 1.0 / (f64::from(divisor) * step);
                let mean = f64::from(*shift) / f64::from(divisor) - f64::from(low) * deviation;
                for deviation in neighbours(deviation as f32) {
                    for mean in neighbours(mean as f32).chain([0.0]) {
                        let formula = Self { divisor, mean, deviation, first };
                        if formula.gives(levels) {
                            return Some(formula);
                        }
                    }
                }
            }
        }
        None
    }

    fn gives(&self, levels: &[(u8, f32)]) -> bool {
        levels.iter().all(|&(slot, value)| {
            let level = f32::from(slot.wrapping_sub(self.first));
            ((level / self.divisor - self.mean) / self.deviation).to_bits() == value.to_bits()
        })
    }

    /// The same with hardly a division, if it reproduces every filled slot. To be compiled for the
    /// level that it is to hold for.
    #[inline(always)]
    pub fn prove<const FUSED: bool>(
        &self,
        bits: &[u32; 256],
        filled: &[bool; 256],
    ) -> Option<Proven> {
        let proven = Proven {
            over_divisor: reciprocal(self.divisor, SHORT),
            mean: self.mean,
            deviation: self.deviation,
            over_deviation: reciprocal(self.deviation, u32::MAX),
            first: self.first,
        };
        let mut wrong = 0;
        for slot in 0..256 {
            let differ = proven.value::<FUSED>(slot as u8).to_bits() ^ bits[slot];
            wrong |= if filled[slot] { differ } else { 0 };
        }
        (wrong == 0).then_some(proven)
    }
}

/// The 17 floats around one.
fn neighbours(x: f32) -> impl Iterator<Item = f32> {
    let zigzag = (0..=2 * NEIGHBOURS).map(|i| if i % 2 == 0 { i / 2 } else { -(i + 1) / 2 });
    zigzag.map(move |i| f32::from_bits(x.to_bits().wrapping_add_signed(i)))
}

/// A formula that is equal to the table it stands for. Reciprocals are sums of two floats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proven {
    over_divisor: (f32, f32),
    mean: f32,
    deviation: f32,
    over_deviation: (f32, f32),
    first: u8,
}

/// Bits of a float without the last eight: its product with a level is exact.
const SHORT: u32 = !0xFF;

/// One over `x`, the first part with these bits only.
fn reciprocal(x: f32, bits: u32) -> (f32, f32) {
    let all = 1.0 / f64::from(x);
    let first = f32::from_bits((all as f32).to_bits() & bits);
    (first, (all - f64::from(first)) as f32)
}

impl Proven {
    /// The longest stretch of levels whose slots are all filled.
    pub fn stretch(&self, lattice: Lattice, filled: &[bool; 256]) -> Stretch {
        let (mut best, mut start) = ((0, 0), 0);
        for level in 0..256usize {
            if !filled[usize::from(self.first.wrapping_add(level as u8))] {
                start = level + 1;
            } else if level - start >= best.1 - best.0 {
                best = (start, level);
            }
        }
        let zero = (0.0 - self.mean) / self.deviation * lattice.scale;
        Stretch {
            proven: *self,
            scale: lattice.scale,
            offset: -zero,
            low: best.0 as f32,
            high: best.1 as f32,
        }
    }

    /// The value of a slot.
    #[inline(always)]
    pub fn value<const FUSED: bool>(&self, slot: u8) -> f32 {
        self.at::<FUSED>(f32::from(slot.wrapping_sub(self.first)))
    }

    /// Products of such sums are exact enough to be rounded as quotients are, nearly always; where
    /// they are not, the proof fails. Without FMA only those of levels are.
    #[inline(always)]
    fn at<const FUSED: bool>(&self, level: f32) -> f32 {
        let ((over, little), (by, more)) = (self.over_divisor, self.over_deviation);
        let x = fused::<FUSED>(level, over, level * little) - self.mean;
        if FUSED { x.mul_add(by, x * more) } else { x / self.deviation }
    }
}

/// Elements that are coded at a time.
pub(super) const STRIP: usize = 32;

/// Neighbouring levels, for all of which a formula holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    proven: Proven,
    scale: f32,
    offset: f32,
    low: f32,
    high: f32,
}

/// Numbers that make a stretch, beside its first slot.
pub(super) const CONSTANTS: usize = 10;

impl Stretch {
    /// Codes elements, each by its own; `false` when one of them is none of its levels.
    #[inline(always)]
    pub fn code<const FUSED: bool>(
        of: impl Fn(usize) -> Self,
        codes: &mut [u8; STRIP],
        elements: &[[u8; 4]; STRIP],
    ) -> bool {
        let mut wrong = [0; STRIP];
        for i in 0..STRIP {
            let (stretch, x) = (of(i), f32::from_le_bytes(elements[i]));
            // Rounds to an integer whose low byte is the slot.
            let round = ROUND + f32::from(stretch.proven.first);
            let rounded = fused::<FUSED>(x, stretch.scale, stretch.offset) + round;
            // What lies outside, NaN included, is compared with the level at the end. `clamp` would
            // keep a NaN, at the price of more instructions.
            let level = rounded - round;
            let level = if level > stretch.low { level } else { stretch.low };
            let level = if level < stretch.high { level } else { stretch.high };
            codes[i] = (level + round).to_bits() as u8;
            wrong[i] = stretch.proven.at::<FUSED>(level).to_bits() ^ x.to_bits();
        }
        wrong.iter().fold(0, |all, bits| all | bits) == 0
    }

    /// The value of a slot.
    #[inline(always)]
    pub fn value<const FUSED: bool>(&self, slot: u8) -> f32 {
        self.proven.value::<FUSED>(slot)
    }

    pub fn into_parts(self) -> ([f32; CONSTANTS], u8) {
        let Self { proven, scale, offset, low, high } = self;
        let Proven { over_divisor: (over, little), mean, deviation, first, .. } = proven;
        let (by, more) = proven.over_deviation;
        ([scale, offset, low, high, over, little, mean, deviation, by, more], first)
    }

    #[inline(always)]
    pub fn from_parts(numbers: [f32; CONSTANTS], first: u8) -> Self {
        let [scale, offset, low, high, over, little, mean, deviation, by, more] = numbers;
        let (over_divisor, over_deviation) = ((over, little), (by, more));
        let proven = Proven { over_divisor, mean, deviation, over_deviation, first };
        Self { proven, scale, offset, low, high }
    }
}

/// `a * b + c`, rounded once or twice.
#[inline(always)]
fn fused<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSTANTS: [(f32, f32); 8] = [
        (0.481_454_66, 0.268_629_54),
        (0.457_827_5, 0.261_302_6),
        (0.408_210_73, 0.275_777_1),
        (0.485, 0.229),
        (0.456, 0.224),
        (0.406, 0.225),
        (0.5, 0.5),
        (0.0, 1.0),
    ];

    #[test]
    fn constants_are_recovered_from_levels() {
        let lattice = Lattice { scale: 1.0, offset: 0.0 };
        for (mean, deviation) in CONSTANTS {
            for fused in [false, true] {
                let value = |k: u8| match fused {
                    false => (f32::from(k) / 255.0 - mean) / deviation,
                    true => (f32::from(k) - mean * 255.0) / (deviation * 255.0),
                };
                for (low, high) in [(0, 255), (0, 200), (90, 255)] {
                    let slot = |k: u8| k.wrapping_add(77);
                    let levels: Vec<_> = (low..=high).map(|k| (slot(k), value(k))).collect();
                    let formula =
                        Formula::find(levels[0], levels[levels.len() - 1], &levels).unwrap();
                    let (mut bits, mut filled) = ([0; 256], [false; 256]);
                    for (slot, value) in levels {
                        bits[usize::from(slot)] = value.to_bits();
                        filled[usize::from(slot)] = true;
                    }
                    let proven = formula.prove::<true>(&bits, &filled).unwrap();
                    assert!(formula.prove::<false>(&bits, &filled).is_some());
                    let span = |filled: &[bool; 256]| {
                        let stretch = proven.stretch(lattice, filled);
                        stretch.high - stretch.low
                    };
                    assert_eq!(span(&filled), f32::from(high - low));
                    filled[usize::from(slot(low + 3))] = false;
                    assert_eq!(span(&filled), f32::from(high - low - 4));
                    bits[usize::from(slot(low))] ^= 1;
                    assert!(formula.prove::<true>(&bits, &filled).is_none());
                    assert!(formula.prove::<false>(&bits, &filled).is_none());
                }
            }
        }
    }
}
