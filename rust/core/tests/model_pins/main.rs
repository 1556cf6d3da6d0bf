//! How loans end without a lock, in every order that the steps can happen in.
//!
//! A block counts its loans in one word, whose highest bit says that the cache has asked for it:
//! whoever ends the last loan of such a block reports to the cache. The account and the list are
//! the real ones; the lock, the word and the bytes are loom's, so that a read that races with a
//! write is found, too. Every `Flaw` leaves one detail out, and the models have to find it.
//!
//! `loans` does the same to the blocks and counts themselves, whose words are handed on.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::arc_with_non_send_sync, unsafe_code)]

// The very source of blocks and counts, with loom's words in it.
#[path = "../../src/arena/block.rs"]
#[allow(dead_code)]
mod block;
#[path = "../../src/arena/count.rs"]
#[allow(dead_code)]
mod count;
mod loans;
mod protocol;

mod piece {
    /// The bytes that a block of a model lends are its label.
    #[derive(Debug)]
    pub struct Piece;

    impl Piece {
        pub fn len(&self) -> usize {
            0
        }

        pub fn bytes(&self) -> &[u8] {
            &[]
        }
    }
}

mod sync {
    pub use loom::sync::atomic;
}

use loom::thread;
use protocol::{Cache, Flaw, Pin};
use std::sync::Arc;

type Step = fn(&Arc<Cache>, Option<Pin>);

/// Runs `steps` at once; with `pinned`, each has a pin of key 0. Then the cache is at rest.
fn race<const N: usize>(flaw: Flaw, limit: usize, pinned: bool, steps: [Step; N]) {
    let mut builder = loom::model::Builder::new();
    // Three threads need a bound on how often they interrupt each other.
    builder.preemption_bound = if N > 2 { Some(5) } else { None };
    builder.check(move || {
        let cache = Cache::new(limit, flaw);
        for key in 0..limit as u32 {
            assert!(cache.put(key));
        }
        let pins: Vec<_> = steps.iter().map(|_| if pinned { cache.get(0) } else { None }).collect();
        let mut work = steps.into_iter().zip(pins);
        let (here, pin) = work.next().unwrap();
        let others: Vec<_> = work
            .map(|(step, pin)| {
                let cache = cache.clone();
                thread::spawn(move || step(&cache, pin))
            })
            .collect();
        here(&cache, pin);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(cache.at_rest(), 0);
        // Nothing was lost: what is there can go.
        cache.clear();
        assert_eq!(cache.held(), 0);
    });
}

fn drop_pin(_: &Arc<Cache>, pin: Option<Pin>) {
    drop(pin);
}

fn drop_then_get(cache: &Arc<Cache>, pin: Option<Pin>) {
    drop(pin);
    drop(cache.get(0));
}

fn get_both(cache: &Arc<Cache>, _: Option<Pin>) {
    drop(cache.get(0));
    drop(cache.get(1));
}

fn put_two(cache: &Arc<Cache>, pin: Option<Pin>) {
    cache.put(2);
    cache.put(3);
    drop(pin);
}

fn remove_and_put(cache: &Arc<Cache>, pin: Option<Pin>) {
    assert!(cache.remove(0));
    drop(pin);
    cache.put(2);
}

fn park_clear_put(cache: &Arc<Cache>, pin: Option<Pin>) {
    cache.put(2);
    drop(pin);
    cache.clear();
    cache.put(3);
}

fn shrink_to_nothing(cache: &Arc<Cache>, pin: Option<Pin>) {
    cache.resize(Some(0));
    drop(pin);
}

fn fork(cache: &Arc<Cache>, pin: Option<Pin>) {
    cache.put(2);
    drop(pin);
    cache.fork().at_rest();
}

fn eviction(flaw: Flaw) {
    race(flaw, 1, false, [put_two, get_both]);
    race(flaw, 2, true, [put_two, drop_then_get]);
}

fn removal(flaw: Flaw) {
    race(flaw, 1, true, [remove_and_put, drop_pin]);
    race(flaw, 2, true, [remove_and_put, drop_then_get]);
}

fn clearing(flaw: Flaw) {
    race(flaw, 1, true, [park_clear_put, drop_pin]);
    race(flaw, 1, true, [park_clear_put, drop_then_get]);
}

fn forking(flaw: Flaw) {
    race(flaw, 1, true, [fork, drop_then_get]);
}

#[test]
fn eviction_against_use() {
    eviction(Flaw::None);
}

#[test]
fn removal_against_use() {
    removal(Flaw::None);
}

#[test]
fn clearing_against_late_reports() {
    clearing(Flaw::None);
}

#[test]
fn a_child_waits_for_nobody() {
    forking(Flaw::None);
}

#[test]
fn a_lowered_limit_is_reached_when_the_last_pin_goes() {
    race(Flaw::None, 2, true, [shrink_to_nothing, drop_then_get]);
}

#[test]
fn three_threads() {
    race(Flaw::None, 1, true, [put_two, drop_pin, drop_then_get]);
    race(Flaw::None, 1, true, [remove_and_put, drop_pin, drop_then_get]);
}

macro_rules! found {
    ($($name:ident: $flaw:ident in $model:ident, $by:literal)*) => {$(
        #[test]
        #[should_panic(expected = $by)]
        fn $name() {
            $model(Flaw::$flaw);
        }
    )*};
}

found! {
    asking_is_one_step: AskInTwoSteps in eviction, "not asked for"
    asking_sees_the_reads: LookRelaxed in eviction, "Causality violation"
    ending_comes_after_reading: EndRelaxed in eviction, "Causality violation"
    reports_come_late: BelieveReporter in clearing, "overflow"
    reports_come_early: NeverLentAgain in eviction, "left: 1"
    a_new_loan_is_no_answer: LendForgetsAsking in eviction, "not asked for"
    a_child_has_no_reporters: WaitInChild in forking, "nobody will report"
}
