//! Sweeps when threads fail to start, and jobs that many ask for.

mod fake;

use fake::{Fake, alone, calls, script};
use memweir_core::heap::detect::detect;
use memweir_core::heap::job::{Desk, Hands, Part, work};
use memweir_core::heap::step::Step;
use memweir_core::heap::sweep::{self, MOST};
use memweir_core::heap::thread::{Thread, Work};
use memweir_core::heap::tune;
use memweir_core::proc::fork::Forked;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Duration;

const BIG: u64 = 40 << 20;
const DEFAULT: usize = 64 << 20;

fn step(start: sweep::Start<'_>) -> Step {
    work(&detect(&Fake::glibc(1)), Part::Sweep, start).remove(0)
}

/// Starts so many threads, and fails from then on.
fn starting(most: usize) -> impl Fn(Work) -> io::Result<Thread> {
    let left = AtomicUsize::new(most);
    move |work| match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
    {
        Ok(_) => sweep::start(work),
        Err(_) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn count(call: &str) -> usize {
    calls().iter().filter(|made| *made == call).count()
}

#[test]
fn every_thread_holds_a_block_until_all_do_and_the_threshold_is_set_back() {
    let _alone = alone();
    script(&[&[0, BIG, BIG], &[0, 1, 1]]);
    let step = step(&sweep::start);
    let sweep = step.sweep.clone().unwrap_or_default();
    assert!(step.ok && step.why.is_none());
    assert!((8..=MOST).contains(&sweep.sweepers), "{sweep:?}");
    assert_eq!((sweep.arenas_seen, sweep.arenas_swept), (Some(3), Some(3)));
    assert_eq!((sweep.tops_before, sweep.tops_after), (Some(2 * BIG + 64), Some(66)));
    assert_eq!(sweep.trim_threshold, Some(DEFAULT));
    let calls = calls();
    // A large block first, untouched, whose free moves the thresholds that are about to stop.
    assert_eq!(calls[..3], ["malloc(33423360)", "free()", "mallopt(-1, 131072)"]);
    assert_eq!(calls.last().map(String::as_str), Some("mallopt(-1, 67108864)"));
    // The one that starts them holds one, too; nobody frees before the last has its block.
    let blocks = sweep.sweepers + 1;
    let calls = &calls[2..];
    assert!(calls[1..=blocks].iter().all(|call| call == "malloc(70000)"));
    assert!(calls[blocks + 1..=2 * blocks].iter().all(|call| call == "free()"));
}

#[test]
fn more_arenas_than_there_should_be_have_a_thread_each() {
    let _alone = alone();
    script(&[&[BIG; 50], &[0]]);
    // The processors were more when they were made, or the library was told to count later.
    let sweep = step(&sweep::start).sweep.unwrap_or_default();
    assert!((50..=MOST).contains(&sweep.sweepers), "{sweep:?}");
}

#[test]
fn little_at_the_tops_takes_no_thread_and_fixes_no_threshold() {
    let _alone = alone();
    script(&[&[BIG, 300 << 10, 0]]);
    let step = step(&|_| unreachable!("no thread is needed"));
    let sweep = step.sweep.unwrap_or_default();
    assert!(step.ok);
    assert_eq!((sweep.sweepers, sweep.arenas_seen, sweep.arenas_swept), (0, Some(3), Some(3)));
    assert_eq!(sweep.trim_threshold, None);
    // glibc itself moves them as far as it ever does.
    assert_eq!(calls(), ["malloc(33423360)", "free()"]);
}

#[test]
fn a_thread_that_cannot_be_started_strands_nobody() {
    let _alone = alone();
    script(&[&[0, BIG], &[0, 1]]);
    let step = step(&starting(5));
    let sweep = step.sweep.unwrap_or_default();
    assert_eq!(sweep.sweepers, 5);
    assert!(step.ok);
    assert!(step.why.is_some_and(|why| why.starts_with("only 5 of ")));
    assert_eq!((count("malloc(70000)"), count("free()")), (6, 7));
    assert_eq!(calls().last().map(String::as_str), Some("mallopt(-1, 67108864)"));
}

#[test]
fn no_thread_at_all_is_said() {
    let _alone = alone();
    script(&[&[0, BIG]]);
    let step = step(&starting(0));
    assert!(!step.ok);
    assert!(step.why.is_some_and(|why| why.starts_with("no thread could be started")));
    assert_eq!(step.sweep.and_then(|sweep| sweep.trim_threshold), Some(DEFAULT));
    assert_eq!(calls().last().map(String::as_str), Some("mallopt(-1, 67108864)"));
}

#[test]
fn what_stays_is_tried_again_while_that_helps_and_then_told() {
    let _alone = alone();
    script(&[&[0, BIG, BIG, BIG], &[0, BIG, BIG, 0], &[0, BIG, BIG, 0]]);
    let step = step(&sweep::start);
    let sweep = step.sweep.unwrap_or_default();
    assert_eq!((sweep.arenas_seen, sweep.arenas_swept), (Some(4), Some(2)));
    assert!(step.ok);
    assert!(step.why.is_some_and(|why| why.starts_with("2 arenas keep more")));
    assert_eq!(count("malloc(70000)"), 2 * (sweep.sweepers + 1));
}

#[test]
fn a_sweep_sets_back_what_was_tuned() {
    let _alone = alone();
    let glibc = detect(&Fake::glibc(1));
    assert_eq!(tune::set(&glibc, "trim_threshold", 123_456), Ok(None));
    // A sweep that ends just then sets back this one, too.
    assert_eq!(fake::known(), 123_456);
    script(&[&[0, BIG], &[0, 1]]);
    let step = step(&sweep::start);
    assert_eq!(step.sweep.and_then(|sweep| sweep.trim_threshold), Some(123_456));
    assert_eq!(calls().last().map(String::as_str), Some("mallopt(-1, 123456)"));
    // For the other tests of this process.
    assert_eq!(tune::set(&glibc, "trim_threshold", DEFAULT as i64), Ok(None));
}

/// Hands that wait for a word before each part, and tell what they did.
struct Slow {
    go: Mutex<Receiver<()>>,
    did: Mutex<Vec<Part>>,
    starts: Option<AtomicUsize>,
    panics: bool,
}

impl Slow {
    fn new(starts: Option<usize>, panics: bool) -> (Arc<Self>, Sender<()>) {
        let (word, go) = channel();
        let (go, did) = (Mutex::new(go), Mutex::default());
        (Arc::new(Self { go, did, starts: starts.map(AtomicUsize::new), panics }), word)
    }

    fn did(&self) -> Vec<Part> {
        self.did.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Shared(Arc<Slow>);

impl Hands for Shared {
    fn work(&self, part: Part) -> Vec<Step> {
        let _ = self.0.go.lock().unwrap_or_else(PoisonError::into_inner).recv();
        self.0.did.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        assert!(!self.0.panics, "as it was told");
        vec![Step::missing(if part == Part::Sweep { "sweep" } else { "release" }, "a test")]
    }

    fn start(&self, work: Work) -> io::Result<()> {
        match &self.0.starts {
            Some(left) if left.load(Ordering::Relaxed) == 0 => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            _ => std::thread::Builder::new().spawn(work).map(drop),
        }
    }

    fn settle_in_child(&self) {}
}

const BOTH: [Part; 2] = [Part::Release, Part::Sweep];

#[test]
fn eight_threads_that_ask_at_once_get_one_job() {
    let (slow, go) = Slow::new(None, false);
    let desk = Desk::new(Box::new(Shared(slow.clone())));
    let (meet, joined) = (Arc::new(Barrier::new(8)), AtomicUsize::new(0));
    let jobs: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    meet.wait();
                    let (job, also) = desk.ask(&BOTH);
                    joined.fetch_add(usize::from(also), Ordering::Relaxed);
                    job
                })
            })
            .collect();
        asking.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    assert_eq!(jobs.len(), 8);
    assert!(jobs.iter().all(|job| Arc::ptr_eq(job, &jobs[0])));
    assert_eq!(joined.into_inner(), 7);
    assert!(!desk.wait(&jobs[0], Some(Duration::ZERO)));
    drop(go);
    assert!(jobs.iter().all(|job| desk.wait(job, None)));
    assert_eq!(slow.did(), BOTH);
    // The next is a new one.
    let (job, also) = desk.ask(&BOTH);
    assert!(!also && !Arc::ptr_eq(&job, &jobs[0]));
    assert!(desk.wait(&job, None));
    assert_eq!(desk.steps(&jobs[0]).len(), 2);
}

#[test]
fn who_joins_gets_the_parts_he_asked_for() {
    let (slow, go) = Slow::new(None, false);
    let desk = Desk::new(Box::new(Shared(slow.clone())));
    let (job, _) = desk.ask(&[Part::Sweep]);
    assert!(desk.ask(&[Part::Release, Part::Sweep]).1);
    drop(go);
    assert!(desk.wait(&job, None));
    assert_eq!(slow.did(), [Part::Sweep, Part::Release]);
}

#[test]
fn without_a_thread_the_one_that_waits_does_the_work_and_it_is_said() {
    let (slow, go) = Slow::new(Some(0), false);
    drop(go);
    let desk = Desk::new(Box::new(Shared(slow.clone())));
    let (job, _) = desk.ask(&BOTH);
    assert!(!desk.is_done(&job));
    assert!(desk.ask(&BOTH).1);
    assert_eq!(slow.did(), []);
    assert!(desk.wait(&job, Some(Duration::ZERO)));
    assert_eq!(slow.did(), BOTH);
    let last = desk.steps(&job).pop();
    assert!(last.is_some_and(|step| step.name == "thread" && !step.ok && step.why.is_some()));
}

/// It is told of, and those beside it are, too. What it held is lost.
#[test]
fn where_a_step_panics_no_other_is_lost() {
    let _alone = alone();
    script(&[&[0, BIG, BIG]]);
    let start = |_| std::panic::resume_unwind(Box::new("as it was told"));
    let steps = work(&detect(&Fake::glibc(1)), Part::Sweep, &start);
    let names: Vec<_> = steps.iter().map(|step| (step.name, step.anon_before.is_some())).collect();
    assert_eq!(names, [("sweep", true), ("advice", true)]);
    assert!(!steps[0].ok);
    assert!(steps[0].why.as_deref().is_some_and(|why| why.contains("report this")));
}

#[test]
fn work_that_panics_ends_the_job_and_not_the_next() {
    let (slow, go) = Slow::new(None, true);
    drop(go);
    let desk = Desk::new(Box::new(Shared(slow)));
    for _ in 0..2 {
        let (job, joined) = desk.ask(&[Part::Release]);
        assert!(!joined);
        assert!(desk.wait(&job, None));
        assert!(desk.steps(&job).iter().all(|step| !step.ok && step.why.is_some()));
    }
}

#[test]
fn in_a_forked_child_the_job_is_lost_and_the_desk_free() {
    let (slow, go) = Slow::new(None, false);
    let desk = Desk::new(Box::new(Shared(slow)));
    let (job, _) = desk.ask(&BOTH);
    // What the handlers do inside `fork`, in a child that has no other thread.
    drop(desk.clone().hold());
    desk.forked();
    assert!(desk.is_done(&job) && desk.wait(&job, None));
    let steps = desk.steps(&job);
    assert!(steps.last().is_some_and(|step| step.name == "fork" && !step.ok));
    drop(go);
    let (next, joined) = desk.ask(&BOTH);
    assert!(!joined);
    assert!(desk.wait(&next, None));
}

#[test]
fn a_job_that_nobody_works_at_is_not_lost_in_a_forked_child() {
    let (slow, go) = Slow::new(Some(0), false);
    drop(go);
    let desk = Desk::new(Box::new(Shared(slow.clone())));
    let (job, _) = desk.ask(&BOTH);
    desk.forked();
    assert!(!desk.is_done(&job));
    assert!(desk.wait(&job, None));
    assert_eq!(slow.did(), BOTH);
}
