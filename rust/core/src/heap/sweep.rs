//! glibc's arenas: giving back the free memory at their tops.
//!
//! `malloc_trim` gives back what is free inside every arena and at the top of the main one. The top
//! of a thread's arena shrinks only when a block of 64 KiB or more is freed in it while the top is
//! above the trim threshold, and in a thread that is idle, or gone, nothing frees. So threads are
//! started that allocate such a block each and hold it until all have theirs: a thread that is new
//! gets an arena that nobody uses, then a new one while there may be more, and then those in use
//! one after the other, each once around. Then all free.
//!
//! This takes a low trim threshold, which cannot be read and stays: another value is set
//! afterwards, and named. To set it also ends glibc's own moving of the size from which on blocks
//! are maps of their own. Where that is still small, larger ones would be faulted in anew at each
//! use from then on. So glibc is first led to move it as far as it ever does, by a large block that
//! is freed untouched; where others chose that size, this changes nothing. That is done where there
//! is nothing to sweep, too: the trim threshold moves with it, and who computes in a heap that was
//! just trimmed would otherwise have its end taken away, and faulted in anew, every time.
//!
//! An arena counts as swept when little is left at its top, whoever made it so.

use super::arenas::{self, Arena};
use super::detect::Calls;
use super::glibc::{Glibc, param};
use super::thread::{self, Thread, Work};
use super::tune;
use crate::proc::fork::lock;
use crate::sync::{Condvar, Mutex};
use std::ffi::c_void;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// No more threads than this are started at once.
pub const MOST: usize = 64;
/// The threshold while the arenas are swept.
const LOW: usize = 128 << 10;
/// Freeing so many bytes makes glibc look at the top: more than 64 KiB, less than it would map.
const BLOCK: usize = 70_000;
/// Freeing so many bytes moves glibc's thresholds to the end of their way, if they move.
const LARGEST: usize = if usize::BITS < 64 { 512 << 10 } else { 32 << 20 } - (128 << 10);
/// What a swept arena may have at its top: the threshold, the pad, and the block.
const LITTLE: u64 = 384 << 10;
/// The tops of arenas in use are met one after the other, but for those that are locked.
const ROUNDS: usize = 3;

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Threads that held an arena at the same time, in the round with the most; 0 when there was
    /// nothing to sweep.
    pub sweepers: usize,
    /// Arenas there are, the main one included.
    pub arenas_seen: Option<usize>,
    /// Of these, arenas with little at their tops now.
    pub arenas_swept: Option<usize>,
    /// Bytes at the tops before.
    pub tops_before: Option<u64>,
    /// And after.
    pub tops_after: Option<u64>,
    /// The trim threshold that was set afterwards; `None` when it was not touched.
    pub trim_threshold: Option<usize>,
    /// What was left undone, and why.
    pub why: Option<String>,
    /// Whether the sweep could not be made at all.
    pub failed: bool,
}

/// How threads are started. Tests bring their own.
pub type Start<'a> = &'a dyn Fn(Work) -> io::Result<Thread>;

/// Starts a thread with a small stack: of that, a page or two is ever touched.
pub fn start(work: Work) -> io::Result<Thread> {
    thread::start(256 << 10, work)
}

/// Whether the low threshold is set: a forked child must know.
static LOWERED: AtomicBool = AtomicBool::new(false);

/// Sets the threshold back in a child that was forked in the middle of a sweep. Others look for no
/// allocator here.
pub fn settle_in_child() {
    if LOWERED.swap(false, Ordering::Relaxed)
        && let Calls::Glibc(glibc) = &super::live().calls
    {
        glibc.set(param::TRIM_THRESHOLD, tune::threshold_after_sweep());
    }
}

/// Sweeps every arena that can be reached.
pub fn sweep(glibc: &Glibc, start: Start<'_>) -> Sweep {
    let mut sweep = Sweep::default();
    let found = glibc.arenas();
    let mut left = note(&mut sweep, found.as_deref());
    sweep.tops_before = sweep.tops_after;
    let heap = glibc.malloc.zip(glibc.free).map(|(malloc, free)| Heap { malloc, free });
    if let Some(heap) = heap {
        heap.hold(LARGEST, |_| ());
    }
    if left == Some(0) {
        return sweep;
    }
    let Some(heap) = heap else {
        return Sweep {
            why: Some("the symbols malloc and free are missing".into()),
            failed: true,
            ..sweep
        };
    };
    let Some(lowered) = Lowered::new(glibc) else {
        let why = "mallopt is missing or refuses a trim threshold".into();
        return Sweep { why: Some(why), failed: true, ..sweep };
    };
    let (most, mut failed) = (sweepers(sweep.arenas_seen), None);
    for _ in 0..ROUNDS {
        let before = sweep.tops_after;
        let round = round(heap, most, start);
        sweep.sweepers = sweep.sweepers.max(round.held);
        failed = round.failed;
        let found = glibc.arenas();
        left = note(&mut sweep, found.as_deref());
        // Nothing to go by, or nothing to gain from another.
        if left.is_none_or(|left| left == 0) || sweep.tops_after >= before || failed.is_some() {
            break;
        }
    }
    sweep.trim_threshold = Some(lowered.back());
    if sweep.sweepers == 0 {
        let why = failed.map_or("no block could be allocated".to_owned(), |e| {
            format!("no thread could be started: {e}")
        });
        return Sweep { why: Some(why), failed: true, ..sweep };
    }
    sweep.why = match (failed, left) {
        (Some(error), _) => {
            Some(format!("only {} of {most} threads could be started: {error}", sweep.sweepers))
        }
        (None, Some(left)) if left > 0 => Some(format!(
            "{left} arenas keep more at their tops: threads are at work in them, or glibc makes \
             new arenas for new threads before it shares these (tune's arena_max bounds that)"
        )),
        _ => None,
    };
    sweep
}

/// Writes down what is there; how many threads' arenas have much at their tops, if that is known.
fn note(sweep: &mut Sweep, found: Option<&[Arena]>) -> Option<usize> {
    let found = found?;
    sweep.arenas_seen = Some(found.len());
    sweep.tops_after = arenas::tops(found);
    sweep.tops_after?;
    let little = LITTLE.saturating_add(tune::top_pad() as u64);
    let left = found.iter().skip(1).filter(|arena| arena.top() > little).count();
    sweep.arenas_swept = Some(found.len() - left);
    Some(left)
}

/// How many threads reach every arena, where that can be.
///
/// glibc stops making arenas at a number that depends on the processors. Threads up to that number
/// may get new ones, and as many again go around those that are in use. There may be more than
/// that: of processors that are gone, or with `MALLOC_ARENA_TEST`.
fn sweepers(seen: Option<usize>) -> usize {
    let reaching = limit().saturating_mul(2);
    match seen {
        Some(seen) if reaching > MOST => seen.clamp(8, MOST),
        seen => reaching.max(seen.unwrap_or(0)).min(MOST),
    }
}

/// How many arenas there may be.
pub fn limit() -> usize {
    // The limit is first looked at when there are more than eight.
    tune::arena_max().filter(|n| *n > 0).unwrap_or_else(|| (8 * processors()).max(9))
}

fn processors() -> usize {
    #[cfg(unix)]
    {
        // SAFETY: reads a number of the system.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        usize::try_from(online).unwrap_or(1).max(1)
    }
    #[cfg(not(unix))]
    1
}

/// The low threshold, for as long as this lives.
struct Lowered<'a>(&'a Glibc);

impl<'a> Lowered<'a> {
    fn new(glibc: &'a Glibc) -> Option<Self> {
        LOWERED.store(true, Ordering::Relaxed);
        let lowered = Self(glibc);
        (glibc.set(param::TRIM_THRESHOLD, LOW) == Some(true)).then_some(lowered)
    }

    fn back(self) -> usize {
        tune::threshold_after_sweep()
    }
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        loop {
            let value = tune::threshold_after_sweep();
            self.0.set(param::TRIM_THRESHOLD, value);
            // Who tuned it meanwhile may have been overwritten.
            if tune::threshold_after_sweep() == value {
                break;
            }
        }
        LOWERED.store(false, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
struct Heap {
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Heap {
    /// Holds a block while `wait` runs, which is told whether there is one.
    fn hold(self, size: usize, wait: impl FnOnce(bool)) {
        // SAFETY: any size may be asked for.
        let block = unsafe { (self.malloc)(size) };
        wait(!block.is_null());
        // SAFETY: the block, or null, as it came, and nobody else has it.
        unsafe { (self.free)(block) };
    }
}

struct Round {
    held: usize,
    failed: Option<io::Error>,
}

/// Where all threads of a round meet.
#[derive(Default)]
struct Gate {
    state: Mutex<Arrivals>,
    changed: Condvar,
}

#[derive(Default)]
struct Arrivals {
    arrived: usize,
    holding: usize,
    open: bool,
}

impl Gate {
    fn pass(&self, holding: bool) {
        let mut state = lock(&self.state);
        state.arrived += 1;
        state.holding += usize::from(holding);
        self.changed.notify_all();
        while !state.open {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Lets all pass once so many are there; how many of them hold a block.
    fn open(&self, expected: usize) -> usize {
        let mut state = lock(&self.state);
        while state.arrived < expected {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        state.open = true;
        self.changed.notify_all();
        state.holding
    }
}

/// One round of threads; this one holds a block in its own arena, too.
fn round(heap: Heap, threads: usize, start: Start<'_>) -> Round {
    let (gate, mut started, mut failed) = (Arc::new(Gate::default()), Vec::new(), None);
    let mut held = 0;
    heap.hold(BLOCK, |_| {
        for _ in 0..threads {
            let gate = gate.clone();
            match start(Box::new(move || heap.hold(BLOCK, |holding| gate.pass(holding)))) {
                Ok(thread) => started.push(thread),
                // Those that wait already are let go: nobody waits for one that never comes.
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        held = gate.open(started.len());
    });
    for thread in started {
        thread.join();
    }
    Round { held, failed }
}
