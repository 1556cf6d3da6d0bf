//! The cache against a naive model, and under threads that race.

#![allow(clippy::expect_used)]
use memweir_core::cache::{Cache, Existing, Key, Part, Pin};
use memweir_core::layout::{DType, Layout};
use memweir_core::pixels::Spec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn spec(nbytes: usize) -> Spec {
    let layout = Layout::new(DType::new("|u1", 1), &[nbytes]).expect("small");
    Spec::new([("x".into(), layout)]).expect("small")
}

fn key(n: usize) -> Key {
    Key::single(Part::Bytes(&n.to_le_bytes()))
}

fn put(cache: &Arc<Cache>, n: usize, nbytes: usize, byte: u8) -> bool {
    let Some(mut writer) = cache.begin(spec(nbytes), None).expect("memory") else {
        cache.remove(&key(n));
        return false;
    };
    writer.fill(|_, out| out[..nbytes].fill(byte));
    writer.publish(key(n), Existing::Replace, None)
}

fn holds(pin: &Pin, byte: u8) -> bool {
    pin.spec().fields().iter().all(|field| pin.bytes(field).iter().all(|&b| b == byte))
}

#[derive(Debug, Clone)]
enum Op {
    Put(usize, usize),
    Get(usize),
    Hold(usize),
    Release(usize),
    Reserve(usize),
    Evict(usize),
    Resize(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![0usize..5000, 4000usize..300_000, 1_000_000usize..3_000_000];
    prop_oneof![
        8 => (0usize..24, size.clone()).prop_map(|(k, n)| Op::Put(k, n)),
        4 => (0usize..24).prop_map(Op::Get),
        2 => (0usize..24).prop_map(Op::Hold),
        2 => (0usize..8).prop_map(Op::Release),
        1 => size.clone().prop_map(Op::Reserve),
        1 => (0usize..4_000_000).prop_map(Op::Evict),
        1 => (0usize..6_000_000).prop_map(Op::Resize),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happens: owned bytes stay within the budget, what is found is what was put last,
    /// what is held never changes, and nothing but eviction loses an entry.
    #[test]
    fn like_a_dict_that_forgets(ops in prop::collection::vec(op(), 1..120)) {
        let mut limit = 4_000_000;
        let cache = Cache::new(limit, true);
        let mut values: HashMap<usize, u8> = HashMap::new();
        let mut held: Vec<(Pin, u8)> = Vec::new();
        for (i, op) in ops.into_iter().enumerate() {
            let byte = i as u8;
            let before = cache.stats();
            match op {
                Op::Put(k, n) => {
                    values.remove(&k);
                    if put(&cache, k, n, byte) {
                        values.insert(k, byte);
                        prop_assert!(cache.contains(&key(k)));
                    } else {
                        prop_assert_eq!(cache.stats().refused, before.refused + 1);
                        values.remove(&k);
                    }
                }
                Op::Get(k) => if let Some(pin) = cache.get(&key(k)) {
                    prop_assert!(values.get(&k).is_some_and(|&v| holds(&pin, v)));
                },
                Op::Hold(k) => if let Some(pin) = cache.get(&key(k)) {
                    let again = pin.again().expect("few");
                    held.push((pin, values[&k]));
                    held.push((again, values[&k]));
                },
                Op::Release(k) => if !held.is_empty() {
                    held.swap_remove(k % held.len());
                },
                Op::Reserve(n) => if let Some(reservation) = cache.reserve(n) {
                    prop_assert!(cache.stats().bytes <= limit.max(before.bytes));
                    let mut writer = cache.begin(spec(n), Some(reservation)).expect("memory").expect("reserved");
                    writer.fill(|_, out| out[..n].fill(byte));
                    // Dropped without being published: everything comes back.
                },
                Op::Evict(to) => { cache.evict(to); }
                Op::Resize(to) => {
                    limit = to;
                    let excess = cache.resize(to);
                    prop_assert_eq!(excess, cache.stats().bytes.saturating_sub(to));
                    // Only what cannot go may stay above the limit.
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
            prop_assert!(stats.pinned <= stats.bytes);
            prop_assert_eq!(stats.pinned == 0, held.is_empty());
            for (pin, byte) in &held {
                prop_assert!(holds(pin, *byte));
            }
        }
        held.clear();
        cache.clear();
        let stats = cache.stats();
        prop_assert_eq!((stats.bytes, stats.logical, stats.pinned), (0, 0, 0));
    }
}

#[test]
fn least_recently_used_goes_first() {
    let cache = Cache::new(1 << 20, true);
    for n in 0..10 {
        assert!(put(&cache, n, 98_000, 1));
    }
    assert!(cache.get(&key(0)).is_some());
    assert!(put(&cache, 10, 98_000, 1));
    assert!(cache.contains(&key(0)) && !cache.contains(&key(1)));
}

#[test]
fn a_full_cache_of_pins_refuses() {
    let cache = Cache::new(1 << 20, true);
    let pins: Vec<Pin> = (0..10)
        .map(|n| {
            assert!(put(&cache, n, 90_000, n as u8));
            cache.get(&key(n)).expect("just put")
        })
        .collect();
    assert!(!put(&cache, 10, 300_000, 1));
    assert_eq!((cache.len(), cache.stats().evictions), (10, 0));
    assert!(cache.resize(0) > 900_000);
    assert_eq!(cache.len(), 10);
    drop(pins);
    assert_eq!(cache.len(), 0);
    assert!(cache.stats().bytes < 32 << 10);
}

#[test]
fn nothing_is_kept_from_before_a_clear() {
    let cache = Cache::new(1 << 20, true);
    let generation = cache.generation();
    let writer = cache.begin(spec(1000), None).expect("memory").expect("room");
    cache.clear();
    assert!(!writer.publish(key(1), Existing::Replace, Some(generation)));
    assert!(cache.is_empty());
    let writer = cache.begin(spec(1000), None).expect("memory").expect("room");
    assert!(writer.publish(key(1), Existing::Replace, Some(cache.generation())));
}

#[test]
fn the_first_content_stays_where_keys_name_contents() {
    let cache = Cache::new(1 << 20, true);
    let mut pins = Vec::new();
    for _ in 0..3 {
        let mut writer = cache.begin(spec(5000), None).expect("memory").expect("room");
        writer.fill(|_, out| out.fill(3));
        pins.push(writer.publish_pinned(key(1), Existing::Keep, None).expect("current"));
    }
    assert_eq!(cache.len(), 1);
    let place = |pin: &Pin| pin.bytes(&pin.spec().fields()[0]).as_ptr();
    assert!(pins.iter().all(|pin| place(pin) == place(&pins[0])));
}

#[test]
fn eight_threads_stay_within_the_budget() {
    const LIMIT: usize = 8 << 20;
    let cache = Cache::new(LIMIT, true);
    let stop = AtomicBool::new(false);
    let seen = AtomicUsize::new(0);
    std::thread::scope(|s| {
        let watcher = s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(cache.stats().bytes, Ordering::Relaxed);
            }
        });
        let workers: Vec<_> = (0..8usize)
            .map(|t| {
                let cache = &cache;
                s.spawn(move || {
                    let mut x = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(t as u64 + 1);
                    let mut held: Vec<(Pin, u8)> = Vec::new();
                    for _ in 0..3000 {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        let n = (x >> 8) as usize % 64;
                        let nbytes = match x % 16 {
                            0 => 1_500_000 + (x >> 32) as usize % 500_000,
                            _ => (x >> 32) as usize % 200_000,
                        };
                        match x >> 60 {
                            0..8 => {
                                // The value follows from the key: any reader can check it.
                                put(cache, n, nbytes, n as u8);
                            }
                            8..13 => {
                                if let Some(pin) = cache.get(&key(n)) {
                                    assert!(holds(&pin, n as u8));
                                    if held.len() < 4 {
                                        held.push((pin, n as u8));
                                    }
                                }
                            }
                            13 => held.clear(),
                            14 => drop(cache.evict(LIMIT / 2)),
                            _ if x.is_multiple_of(8) => drop(cache.clear()),
                            _ => drop(cache.reserve(nbytes)),
                        }
                        assert!(held.iter().all(|(pin, byte)| holds(pin, *byte)));
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().expect("no panic"));
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("no panic");
    });
    let stats = cache.stats();
    assert!(stats.peak <= LIMIT, "peak {}", stats.peak);
    assert!(seen.load(Ordering::Relaxed) <= LIMIT);
    assert!(stats.hits > 0 && stats.evictions > 0);
    cache.clear();
    assert_eq!(cache.stats().bytes, 0);
}
