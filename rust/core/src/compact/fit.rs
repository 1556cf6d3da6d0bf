//! The lattice that the values of a channel lie on, if they lie on one.

use super::sample::{Count, OUTLIERS};

/// Adding this to a float of less than 2^22 rounds it to an integer, which then is the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;
/// How far from a lattice point, in steps, a value may lie that is to fill its slot.
const NEAR: f32 = 0.1;
/// The same while the step is still being estimated.
const CLOSE: f64 = 0.04;

/// Lattice point `k`, modulo 256, is where `x * scale + offset` rounds to `k`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    /// One over the step.
    pub scale: f32,
    /// Minus the value of point 0, in steps.
    pub offset: f32,
}

impl Lattice {
    /// The slot of a value: a guess, which nothing trusts. Not fused, so that all levels agree.
    #[inline(always)]
    pub(super) fn guess(self, x: f32) -> u32 {
        ((x * self.scale + self.offset) + ROUND).to_bits()
    }

    /// The slot of a value, if it lies close to a lattice point.
    pub(super) fn slot(self, x: f32) -> Option<u8> {
        let at = x * self.scale + self.offset;
        let nearest = (at + ROUND) - ROUND;
        ((at - nearest).abs() < NEAR && at.abs() < 1e6).then(|| self.guess(x) as u8)
    }

    /// Whether it has a step and an origin.
    pub(super) fn is_usable(self) -> bool {
        self.scale.is_normal() && self.offset.is_finite()
    }

    /// The lattice of all but a few of the values.
    pub(super) fn fit(values: &[Count]) -> Option<Self> {
        let mut values: Vec<f64> =
            values.iter().map(|c| f64::from(f32::from_bits(c.bits as u32))).collect();
        let all = values.len();
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        values.dedup();
        let spare = OUTLIERS.checked_sub(all - values.len())?;
        let mut gaps: Vec<f64> = values.windows(2).map(|w| w[1] - w[0]).collect();
        gaps.sort_by(f64::total_cmp);
        let last = gaps.len().checked_sub(1)?;
        // One odd value makes odd gaps: the smallest alone is not to be relied on.
        let steps = [0, last / 4, last / 2].map(|i| gaps[i]);
        let anchors = [2, 1, 3].map(|quarter| last * quarter / 4);
        let tries = steps.iter().flat_map(|&step| anchors.map(|anchor| (step, anchor)));
        tries.into_iter().find_map(|(step, anchor)| refine(&values, step, anchor, spare))
    }
}

/// Goes from the anchor outwards: the further a value, the better it tells the step.
fn refine(values: &[f64], mut step: f64, anchor: usize, spare: usize) -> Option<Lattice> {
    let origin = values[anchor];
    let (mut low, mut high) = (anchor, anchor + 1);
    let (mut first, mut last, mut outliers) = (0.0f64, 0.0f64, 0);
    while low > 0 || high < values.len() {
        let below = low.checked_sub(1).map(|i| origin - values[i]).unwrap_or(f64::INFINITY);
        let above = values.get(high).map(|v| v - origin).unwrap_or(f64::INFINITY);
        let distance = if below < above {
            low -= 1;
            -below
        } else {
            high += 1;
            above
        };
        let at = distance / step;
        let k = at.round();
        if k == 0.0 || k.abs() > 255.0 || (at - k).abs() > CLOSE {
            outliers += 1;
            if outliers > spare {
                return None;
            }
            continue;
        }
        step = distance / k;
        (first, last) = (first.min(k), last.max(k));
    }
    let lattice = Lattice { scale: (1.0 / step) as f32, offset: (-origin / step) as f32 };
    (lattice.is_usable() && last - first <= 255.0 && last > first).then_some(lattice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(values: impl IntoIterator<Item = f32>) -> Vec<Count> {
        let one = |v: f32| Count { bits: v.to_bits().into(), times: 1, flat: false };
        values.into_iter().map(one).collect()
    }

    #[test]
    fn lattices_are_found_despite_odd_values() {
        let level = |k: usize| (k as f32 / 255.0 - 0.485) / 0.229;
        let odd = [f32::NAN, f32::INFINITY, f32::from_bits(level(7).to_bits() + 1), f32::MAX];
        for skip in [1, 2, 3] {
            let levels = (0..256).step_by(skip).map(level);
            let lattice = Lattice::fit(&counts(levels.clone().chain(odd))).unwrap();
            let slots: std::collections::HashSet<_> =
                levels.clone().map(|v| lattice.slot(v).unwrap()).collect();
            assert_eq!(slots.len(), levels.count());
        }
    }

    #[test]
    fn what_is_no_lattice_is_refused() {
        assert!(Lattice::fit(&counts([1.0])).is_none());
        assert!(Lattice::fit(&counts([f32::NAN; 9])).is_none());
        assert!(Lattice::fit(&counts((0..200).map(|k| (k as f32 / 255.0).powf(2.2)))).is_none());
        assert!(Lattice::fit(&counts((0..256).map(f32::from_bits))).is_none());
    }
}
