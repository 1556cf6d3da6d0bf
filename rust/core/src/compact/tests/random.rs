//! Arrays of all sorts, in books that all of them grow.

use super::*;
use proptest::prelude::*;

/// An array that may have a form, and what was done to it.
#[derive(Debug, Clone)]
struct Case {
    token: &'static str,
    shape: Vec<usize>,
    inner: usize,
    half: usize,
    /// Levels, step and origin.
    levels: u32,
    lattice: Option<(f32, f32)>,
    /// Stretches of odd bits.
    odd: Vec<(usize, usize, u32)>,
    chunk: usize,
    seed: u32,
}

fn cases() -> impl Strategy<Value = Case> {
    let shapes = prop_oneof![
        (8..20usize).prop_map(|rows| (vec![rows, 1176], 392, 196)),
        (70..90usize, 70..90usize).prop_map(|(h, w)| (vec![1, 3, h, w], h * w, 0)),
        (70..90usize, 70..90usize).prop_map(|(h, w)| (vec![h, w, 3], 1, 0)),
        (50..60usize, 50..60usize).prop_map(|(h, w)| (vec![2, 3, h, w], h * w, 3 * h * w)),
        (1..5usize, 5000..6000usize).prop_map(|(c, n)| (vec![c, n], n, 0)),
        (4000..40_000usize).prop_map(|n| (vec![n], n, 0)),
    ];
    let bits = prop_oneof![
        any::<u32>(),
        Just(0),
        Just(0x8000_0000),
        Just(0x7FC0_1234),
        Just(0x7F80_0000),
        Just(1),
        Just(1.0f32.to_bits()),
    ];
    let lattice = prop_oneof![
        3 => Just(None),
        2 => (1e-6f32..1e6, -10f32..10.0).prop_map(|(step, origin)| Some((step, step * origin))),
        1 => Just(Some((f32::MIN_POSITIVE / 8.0, 0.0))),
    ];
    (
        prop_oneof![3 => Just("<f4"), 2 => Just("bfloat16"), 1 => Just("<i4")],
        shapes,
        prop_oneof![Just(256u32), Just(1), 2..300u32, Just(100_000)],
        lattice,
        prop::collection::vec((any::<usize>(), 1..5000usize, bits), 0..6),
        1..3000usize,
        any::<u32>(),
    )
        .prop_map(|(token, (shape, inner, half), levels, lattice, odd, chunk, seed)| Case {
            token,
            shape,
            inner,
            half,
            levels,
            lattice,
            odd,
            chunk,
            seed,
        })
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let n: usize = self.shape.iter().product();
        let mut bits: Vec<u32> = (0..n)
            .map(|i| {
                let first = repeats(i, self.half);
                let level = noise(first, self.seed) % self.levels;
                match self.lattice {
                    None => value(level as u8, i / self.inner % 3).to_bits(),
                    Some((step, origin)) => (level as f32 * step + origin).to_bits(),
                }
            })
            .collect();
        for &(at, len, odd) in &self.odd {
            let at = at % n;
            bits[at..n.min(at + len)].fill(odd);
        }
        match self.token {
            "bfloat16" => bits.iter().flat_map(|b| ((b >> 16) as u16).to_le_bytes()).collect(),
            _ => bits.iter().flat_map(|b| b.to_le_bytes()).collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(4), ..Default::default() })]

    #[test]
    fn any_array_is_exact_or_raw(cases in prop::collection::vec(cases(), 1..4)) {
        // The levels have their own books, which all cases of a run grow.
        let books: Vec<_> = Level::all().map(|level| (level, Books::default())).collect();
        for case in &cases {
            let (layout, bytes) = (layout(case.token, &case.shape), case.bytes());
            let mut codes = None;
            for (level, books) in &books {
                let found = round_trip_with(books, *level, &layout, &bytes, case.chunk);
                foreign::check(books, *level, &layout, &bytes, case.chunk);
                let found = found.map(|(form, codes)| (form.name(), codes));
                let before = codes.get_or_insert_with(|| found.clone());
                prop_assert!(*before == found, "levels differ");
            }
        }
    }
}
