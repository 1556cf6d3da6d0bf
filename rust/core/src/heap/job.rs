//! Giving back in a thread of its own, one at a time.
//!
//! Whoever asks while a job runs gets that job. Its thread runs no Python, so it goes on whatever
//! the interpreter does, and ends with the process. A forked child has no such thread: a job that
//! was running is lost there, and says so.

use super::detect::{Allocator, Calls};
use super::release::release;
use super::step::{BROKEN, Outcome, Step};
use super::thread::{self, Work};
use super::{advice, live, sweep};
use crate::proc::fork::{self, Forked, lock};
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The parts of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The allocator's own way of giving back.
    Release,
    /// The tops of glibc's arenas, and the advice that was given for their pages.
    Sweep,
}

/// What a desk works with. Tests bring their own.
pub trait Hands: Send + Sync {
    /// Does one part.
    fn work(&self, part: Part) -> Vec<Step>;
    /// Starts a thread.
    fn start(&self, work: Work) -> io::Result<()>;
    /// Undoes in a forked child what the middle of a job left.
    fn settle_in_child(&self);
}

/// A job, done or not.
#[derive(Debug)]
pub struct Job {
    steps: OnceLock<Vec<Step>>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
}

struct Running {
    job: Arc<Job>,
    wanted: Vec<Part>,
    taken: usize,
    steps: Vec<Step>,
    /// No thread could be started: whoever waits does the work.
    stranded: Option<String>,
    working: bool,
}

/// Where jobs are asked for.
pub struct Desk {
    hands: Box<dyn Hands>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The desk of this process.
pub fn desk() -> &'static Arc<Desk> {
    static DESK: OnceLock<Arc<Desk>> = OnceLock::new();
    DESK.get_or_init(|| Desk::new(Box::new(System)))
}

impl Desk {
    /// A desk that survives forks.
    pub fn new(hands: Box<dyn Hands>) -> Arc<Self> {
        let desk = Self { hands, state: Mutex::default(), changed: Condvar::new() };
        let desk = Arc::new(desk);
        fork::register(&desk);
        desk
    }

    /// The job that runs, which then does these parts, too, or a new one. Whether it was joined.
    pub fn ask(self: &Arc<Self>, parts: &[Part]) -> (Arc<Job>, bool) {
        let mut state = lock(&self.state);
        if let Some(running) = &mut state.running {
            let more = parts.iter().filter(|part| !running.wanted.contains(part));
            let more: Vec<Part> = more.copied().collect();
            running.wanted.extend(more);
            return (running.job.clone(), true);
        }
        let job = Arc::new(Job { steps: OnceLock::new() });
        state.running = Some(Running {
            job: job.clone(),
            wanted: parts.to_vec(),
            taken: 0,
            steps: Vec::new(),
            stranded: None,
            working: true,
        });
        drop(state);
        let (desk, mine) = (self.clone(), job.clone());
        if let Err(error) = self.hands.start(Box::new(move || desk.work(&mine))) {
            let mut state = lock(&self.state);
            if let Some(running) = state.of(&job) {
                running.stranded = Some(error.to_string());
                running.working = false;
            }
            self.changed.notify_all();
        }
        (job, false)
    }

    /// Waits until the job is done, at most so long; whether it is. Does the work itself where no
    /// thread could be started for it, however long that takes.
    pub fn wait(&self, job: &Arc<Job>, timeout: Option<Duration>) -> bool {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.state);
        loop {
            let Some(running) = state.of(job) else { return true };
            if !running.working {
                running.working = true;
                drop(state);
                self.work(job);
                return true;
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            state = match left {
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The steps that were taken so far.
    pub fn steps(&self, job: &Arc<Job>) -> Vec<Step> {
        let mut state = lock(&self.state);
        match state.of(job) {
            Some(running) => running.steps.clone(),
            None => job.steps.get().cloned().unwrap_or_default(),
        }
    }

    /// Whether it is done.
    pub fn is_done(&self, job: &Arc<Job>) -> bool {
        lock(&self.state).of(job).is_none()
    }

    fn work(&self, job: &Arc<Job>) {
        loop {
            let mut state = lock(&self.state);
            let Some(running) = state.of(job) else { return };
            let Some(part) = running.wanted.get(running.taken).copied() else {
                return self.finish(state);
            };
            running.taken += 1;
            drop(state);
            let steps = catch_unwind(AssertUnwindSafe(|| self.hands.work(part)));
            let steps = steps.unwrap_or_else(|_| vec![Step::missing(part.name(), BROKEN)]);
            if let Some(running) = lock(&self.state).of(job) {
                running.steps.extend(steps);
            }
        }
    }

    fn finish(&self, mut state: MutexGuard<'_, State>) {
        if let Some(mut running) = state.running.take() {
            if let Some(error) = running.stranded {
                let why =
                    format!("no thread could be started, so the one that waited did it: {error}");
                running.steps.push(Step::missing("thread", why));
            }
            let _ = running.job.steps.set(running.steps);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn of(&mut self, job: &Arc<Job>) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| Arc::ptr_eq(&running.job, job))
    }
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Sweep => "sweep",
        }
    }
}

impl Forked for Desk {
    fn hold(self: Arc<Self>) -> Box<dyn Any> {
        fork::hold(self, |desk| &desk.state)
    }

    fn forked(&self) {
        let mut state = lock(&self.state);
        // One that nobody works at can be done here as well.
        if let Some(running) = &mut state.running
            && running.working
        {
            running.stranded = None;
            let why = "the process was forked meanwhile, and the job's thread stayed in the parent";
            running.steps.push(Step::missing("fork", why));
            self.finish(state);
        }
    }

    fn in_child(&self) {
        self.hands.settle_in_child();
    }
}

/// What the process itself offers.
struct System;

impl Hands for System {
    fn work(&self, part: Part) -> Vec<Step> {
        work(live(), part, &sweep::start)
    }

    fn start(&self, work: Work) -> io::Result<()> {
        thread::start(1 << 20, work).map(drop)
    }

    fn settle_in_child(&self) {
        sweep::settle_in_child();
    }
}

/// Does one part with an allocator.
pub fn work(allocator: &Allocator, part: Part, start: sweep::Start<'_>) -> Vec<Step> {
    match (part, &allocator.calls) {
        (Part::Release, _) => release(allocator),
        (Part::Sweep, Calls::Glibc(glibc)) => vec![
            Step::take("sweep", || {
                let sweep = sweep::sweep(glibc, start);
                Outcome {
                    why: sweep.why.clone(),
                    failed: sweep.failed,
                    sweep: Some(sweep),
                    ..Outcome::default()
                }
            }),
            Step::take("advice", || advice::take_back(Path::new("/"))),
        ],
        (Part::Sweep, _) => {
            let why = format!("{} has no arenas that a release leaves out", allocator.kind());
            vec![
                Step::missing("sweep", why),
                Step::missing("advice", "it is known where heaps of glibc lie, and of no other"),
            ]
        }
    }
}
