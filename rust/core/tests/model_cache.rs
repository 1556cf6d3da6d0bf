//! The cache itself, with a scheduler that chooses who goes on after each step of a thread.
//!
//! Everything is real but the locks and the words that threads meet at. Where the models of
//! `model_pins` try every order of a few steps, here many orders are tried of all there are.
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, unsafe_code)]

use memweir_core::cache::{Array, Cache, Existing, Key, Output, Part, Pin};
use memweir_core::layout::{DType, Layout};
use memweir_core::pack::Strided;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};
use std::sync::Arc;

const PAGE: usize = 4096;
const KEYS: u8 = 2;

/// What a model does, and how much of it.
#[derive(Clone, Copy)]
struct Model {
    threads: u8,
    steps: usize,
    pages: usize,
    compact: bool,
    resizes: bool,
}

/// Tries `MODEL_ORDERS` orders of a model, half of them with few interruptions.
fn try_orders(model: Model) {
    let orders = std::env::var("MODEL_ORDERS").map_or(2000, |n| n.parse().unwrap());
    let half = if model.compact { orders / 4 } else { orders } / 2;
    run(RandomScheduler::new(half), model);
    run(PctScheduler::new(3, half), model);
}

fn run(scheduler: impl Scheduler + 'static, model: Model) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(move || {
        let cache = Cache::new(model.pages * PAGE, model.compact);
        let work = |thread: u8| {
            let cache = cache.clone();
            thread::spawn(move || user(&cache, model, thread))
        };
        let threads: Vec<_> = (0..model.threads).map(work).collect();
        let kept: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        // Whoever was told has come: what is pinned is what somebody has.
        let pinned = cache.stats().pinned;
        assert_eq!(pinned > 0, kept.iter().any(|user| user.pins.iter().any(|(_, p)| p.is_kept())));
        assert!(model.resizes || cache.stats().peak <= model.pages * PAGE);
        kept.iter().for_each(User::look);
        drop(kept);
        let idle = cache.stats();
        assert_eq!((idle.pinned, idle.lent), (0, 0));
        assert!(idle.bytes <= idle.budget, "{idle:?}");
        cache.clear();
        let rest = cache.stats();
        assert_eq!((rest.entries, rest.bytes, rest.logical), (0, 0, 0), "{rest:?}");
    });
}

/// What one thread has got hold of.
#[derive(Default)]
struct User {
    pins: Vec<(u8, Pin)>,
    outputs: Vec<(u8, Output)>,
}

fn user(cache: &Arc<Cache>, model: Model, thread: u8) -> User {
    let mut user = User::default();
    for step in 0..model.steps {
        let (key, value) = (thread_rng().gen_range(0..KEYS), thread * 32 + step as u8 * 4);
        match thread_rng().gen_range(0..16) {
            0..3 => _ = put(cache, model, key, value),
            3..5 => user.pins.extend(cache.get(&name(key)).map(|pin| (key, pin))),
            5..8 => drop(cache.get(&name(key))),
            8..11 => _ = user.pins.pop(),
            11 => _ = cache.remove(&name(key)),
            12 => _ = cache.evict(PAGE * thread_rng().gen_range(0..2)),
            13 => _ = cache.clear(),
            14 if model.resizes => {
                cache.resize(model.pages * PAGE * thread_rng().gen_range(0..4) / 3);
            }
            14 => drop(cache.reserve(PAGE)),
            _ => user.decode(),
        }
        user.look();
        if step % 2 == 1 {
            let stats = cache.stats();
            assert!(model.resizes || stats.bytes <= model.pages * PAGE, "{stats:?}");
        }
    }
    user
}

impl User {
    /// What is held or decoded stays what it was.
    fn look(&self) {
        for (key, pin) in &self.pins {
            let field = &pin.spec().fields()[0];
            match field.form() {
                None => assert!(right(*key, pin.bytes(field))),
                Some(_) => assert!(pin.codes(field).concat().iter().max() != Some(&0)),
            }
        }
        assert!(self.outputs.iter().all(|(key, output)| right(*key, output.bytes())));
    }

    fn decode(&mut self) {
        if let Some((key, pin)) = self.pins.last() {
            self.outputs.push((*key, pin.decode(&pin.spec().fields()[0]).unwrap()));
        }
        let len = self.outputs.len();
        self.outputs.drain(..len.saturating_sub(1));
    }
}

fn name(key: u8) -> Key {
    Key::single(Part::Bytes(&[key]))
}

/// Whether all of it was put under this key at once: page by page the value, and the key.
fn right(key: u8, bytes: &[u8]) -> bool {
    let floats = bytes.as_chunks::<4>().0;
    let value = |i: usize| f32::from_le_bytes(floats[i]) as u32;
    let first = value(0);
    first % 4 == u32::from(key)
        && (0..floats.len()).step_by(97).all(|i| value(i) == first + i as u32 % 97)
        && (1..floats.len()).step_by(97).all(|i| value(i) == first + i as u32 % 97)
}

fn put(cache: &Arc<Cache>, model: Model, key: u8, value: u8) -> bool {
    let elements = if model.compact { 5000 } else { 900 };
    let first = u32::from(value + key);
    let floats: Vec<f32> = (0..elements).map(|i| (first + i % 97) as f32).collect();
    let shape = [floats.len()];
    let layout = Layout::new(DType::new("<f4", 4), &shape).unwrap();
    // SAFETY: the floats outlive the call.
    let source = unsafe { Strided::new(floats.as_ptr().cast(), 4, &shape, &[4]) }.unwrap();
    let array = Array { name: "x".into(), layout: &layout, source: &source };
    let existing = if value % 8 == 0 { Existing::Keep } else { Existing::Replace };
    let generation = cache.generation();
    let writer = cache.write(&[array], None).unwrap();
    writer.is_some_and(|writer| writer.publish(name(key), existing, Some(generation)))
}

const RAW: Model = Model { threads: 3, steps: 5, pages: 5, compact: false, resizes: false };

#[test]
fn a_budget_that_holds() {
    try_orders(RAW);
}

#[test]
fn a_budget_that_changes() {
    try_orders(Model { resizes: true, ..RAW });
}

#[test]
fn more_threads_than_room() {
    try_orders(Model { threads: 5, steps: 3, pages: 4, ..RAW });
}

#[test]
fn entries_of_codes() {
    try_orders(Model { pages: 16, compact: true, ..RAW });
}
