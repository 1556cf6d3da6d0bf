//! Compact and raw entries in one cache, against a naive model and under threads that race.

#![allow(clippy::expect_used, unsafe_code)]
use memweir_core::cache::{Array, Cache, Existing, Key, Output, Part, Pin};
use memweir_core::layout::{DType, Layout};
use memweir_core::pack::{Strided, StridedMut};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Array number `seed` of `elements` floats: of 256 values or of any.
fn floats(seed: usize, elements: usize, compact: bool) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed as u64 + 1);
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as u32
    };
    let value = |n: u32| match compact {
        true => ((n & 0xFF) as f32 * (1.0 / 255.0) - 0.48) / 0.27,
        false => n as f32,
    };
    (0..elements).flat_map(|_| value(next()).to_le_bytes()).collect()
}

fn key(n: usize) -> Key {
    Key::single(Part::Bytes(&n.to_le_bytes()))
}

fn layout(nbytes: usize) -> Layout {
    Layout::new(DType::new("<f4", 4), &[nbytes / 4]).expect("small")
}

/// Two arrays under one key, one of them small enough to stay as it is.
fn put(cache: &Arc<Cache>, n: usize, bytes: &[u8]) -> bool {
    let small = &bytes[..bytes.len().min(400)];
    let layouts = [layout(bytes.len()), layout(small.len())];
    // SAFETY: the slices outlive the call.
    let sources = unsafe {
        [(bytes, &layouts[0]), (small, &layouts[1])]
            .map(|(b, l)| Strided::new(b.as_ptr(), 4, l.shape(), &[4]).expect("described"))
    };
    let names = ["pixels", "small"];
    let arrays: Vec<Array<'_>> = (0..2)
        .map(|i| Array { name: names[i].into(), layout: &layouts[i], source: &sources[i] })
        .collect();
    let writer = cache.write(&arrays, None).expect("memory");
    let put = writer.is_some_and(|w| w.publish(key(n), Existing::Replace, None));
    if !put {
        cache.remove(&key(n));
    }
    put
}

fn same(pin: &Pin, bytes: &[u8]) -> bool {
    let [pixels, small] = pin.spec().fields() else { return false };
    let mut copy = vec![0u8; bytes.len()];
    // SAFETY: the vector outlives the call and is not looked at meanwhile.
    let out = unsafe { StridedMut::new(copy.as_mut_ptr(), 4, pixels.layout().shape(), &[4]) };
    pin.write_to(pixels, &out.expect("described")).expect("as long");
    copy == bytes && pin.bytes(small) == &bytes[..bytes.len().min(400)]
}

#[derive(Debug, Clone)]
enum Op {
    Put(usize, usize, bool),
    Get(usize),
    Hold(usize),
    Decode(usize),
    Release(usize),
    Evict(usize),
    Resize(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let elements = prop_oneof![1usize..6000, 4000usize..60_000, 200_000usize..400_000];
    prop_oneof![
        8 => (0usize..24, elements, any::<bool>()).prop_map(|(k, n, c)| Op::Put(k, n, c)),
        4 => (0usize..24).prop_map(Op::Get),
        2 => (0usize..24).prop_map(Op::Hold),
        2 => (0usize..24).prop_map(Op::Decode),
        3 => (0usize..8).prop_map(Op::Release),
        1 => (0usize..2_000_000).prop_map(Op::Evict),
        1 => (0usize..3_000_000).prop_map(Op::Resize),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    /// Whatever happens: owned bytes stay within the budget, buffers that are kept for outputs
    /// included; what is found is what was put last; what is held or decoded never changes.
    #[test]
    fn like_a_dict_that_forgets(ops in prop::collection::vec(op(), 1..100)) {
        let mut limit = 2_000_000;
        let cache = Cache::new(limit, true);
        let mut values: HashMap<usize, Arc<Vec<u8>>> = HashMap::new();
        let mut held: Vec<(Pin, Arc<Vec<u8>>)> = Vec::new();
        let mut outputs: Vec<(Output, Arc<Vec<u8>>)> = Vec::new();
        for (i, op) in ops.into_iter().enumerate() {
            let before = cache.stats();
            match op {
                Op::Put(k, n, compact) => {
                    let bytes = Arc::new(floats(i, n, compact));
                    values.remove(&k);
                    if put(&cache, k, &bytes) {
                        values.insert(k, bytes);
                    } else {
                        prop_assert!(cache.stats().refused > before.refused);
                    }
                }
                Op::Get(k) => if let Some(pin) = cache.get(&key(k)) {
                    prop_assert!(values.get(&k).is_some_and(|bytes| same(&pin, bytes)));
                },
                Op::Hold(k) => if let Some(pin) = cache.get(&key(k)) {
                    held.push((pin.again().expect("few"), values[&k].clone()));
                },
                Op::Decode(k) => if let Some(pin) = cache.get(&key(k)) {
                    let field = &pin.spec().fields()[0];
                    prop_assert_eq!(field.form().is_some(), values[&k].len() >= 16 << 10 && {
                        let distinct: std::collections::HashSet<&[u8]> = values[&k].chunks(4).collect();
                        distinct.len() <= 256
                    });
                    outputs.push((pin.decode(field).expect("memory"), values[&k].clone()));
                },
                Op::Release(k) => {
                    if !held.is_empty() {
                        held.swap_remove(k % held.len());
                    }
                    if !outputs.is_empty() {
                        outputs.swap_remove(k % outputs.len());
                    }
                }
                Op::Evict(to) => { cache.evict(to); }
                Op::Resize(to) => {
                    limit = to;
                    let excess = cache.resize(to);
                    prop_assert_eq!(excess, cache.stats().bytes.saturating_sub(to));
                    prop_assert!(excess == 0 || !held.is_empty() || cache.is_empty());
                }
                Op::Clear => {
                    cache.clear();
                    values.clear();
                    prop_assert!(cache.is_empty());
                }
            }
            values.retain(|&k, _| cache.contains(&key(k)));
            let stats = cache.stats();
            prop_assert_eq!(stats.entries, values.len());
            prop_assert!(stats.bytes <= limit || stats.bytes <= before.bytes);
            prop_assert_eq!(stats.pinned == 0, held.is_empty());
            prop_assert_eq!(stats.lent == 0, outputs.is_empty());
            for (pin, bytes) in &held {
                prop_assert!(same(pin, bytes));
            }
            for (output, bytes) in &outputs {
                prop_assert!(output.bytes() == &bytes[..]);
            }
        }
        held.clear();
        outputs.clear();
        cache.clear();
        let stats = cache.stats();
        prop_assert_eq!((stats.bytes, stats.logical, stats.pinned, stats.lent), (0, 0, 0, 0));
    }
}

#[test]
fn entries_of_pieces_leave_hardly_any_slack() {
    let cache = Cache::new(16 << 20, true);
    let mut x = 1usize;
    for round in 0..3000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Codes of 20 KiB to 2.5 MiB, evenly over the magnitudes.
        let codes = (20 << 10) << ((x >> 33) % 7);
        let codes = codes + (x >> 40) % codes;
        if round < 40 || round % 50 == 0 {
            put(&cache, round % 200, &floats(round % 3, codes, true));
        } else {
            let elements = (5 << 10) + (x >> 40) % (100 << 10);
            put(&cache, round % 200, &floats(round % 3, elements, round % 2 == 0));
        }
        if round % 100 == 99 {
            let used: usize = (0..200)
                .filter_map(|n| cache.peek(&key(n)))
                .map(|pin| pin.spec().fields().iter().map(|f| f.range().len()).sum::<usize>())
                .sum();
            let owned = cache.stats().bytes;
            assert!(owned as f64 <= used as f64 * 1.03 + 3e5, "{owned} for {used}");
        }
    }
    assert!(cache.stats().evictions > 0);
}

#[test]
fn eight_threads_share_books_and_budget() {
    const LIMIT: usize = 4 << 20;
    let cache = Cache::new(LIMIT, true);
    let images: Vec<Vec<u8>> =
        (0..24).map(|n| floats(n, 5000 + 9000 * (n % 7), n % 4 != 0)).collect();
    std::thread::scope(|s| {
        for t in 0..8usize {
            let (cache, images) = (&cache, &images);
            s.spawn(move || {
                let mut held: Vec<(Pin, usize)> = Vec::new();
                let mut x = 0x9e37_79b9u32.wrapping_mul(t as u32 + 1);
                for _ in 0..400 {
                    x ^= x << 13;
                    x ^= x >> 17;
                    x ^= x << 5;
                    let n = (x >> 8) as usize % images.len();
                    match x % 8 {
                        0..3 => drop(put(cache, n, &images[n])),
                        3..6 => {
                            if let Some(pin) = cache.get(&key(n)) {
                                assert!(same(&pin, &images[n]));
                                let decoded = pin.decode(&pin.spec().fields()[0]);
                                assert!(decoded.expect("memory").bytes() == images[n]);
                                held.push((pin, n));
                            }
                        }
                        6 => held.clear(),
                        _ => drop(cache.evict(LIMIT / 2)),
                    }
                    if held.len() > 3 {
                        let (pin, n) = held.swap_remove(0);
                        assert!(same(&pin, &images[n]));
                    }
                    assert!(cache.stats().bytes <= LIMIT);
                }
            });
        }
    });
    let stats = cache.stats();
    assert!(stats.peak <= LIMIT && stats.evictions > 0 && stats.hits > 0);
    assert_eq!((stats.pinned, stats.lent), (0, 0));
    cache.clear();
    assert_eq!(cache.stats().bytes, 0);
}
