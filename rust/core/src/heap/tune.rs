//! Setting what an allocator lets be set while the process runs.

use super::detect::{Allocator, Calls};
use super::environ::started;
use super::glibc::{Glibc, param};
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The trim threshold after a sweep where nobody chose one: what a process needs again and again
/// stays at its arenas' tops, instead of being faulted in each time.
pub const THRESHOLD: usize = 64 << 20;

/// Where glibc's own threshold stays when another variable keeps it from moving.
const FIXED: usize = 128 << 10;

/// From so many bytes on, a heap has seen big allocations.
const BIG: u64 = 64 << 20;
/// glibc looks at its limit of arenas when there are more.
const FREE_ARENAS: usize = 8;

/// No value was set.
const NONE: usize = usize::MAX;

static TRIM_THRESHOLD: AtomicUsize = AtomicUsize::new(NONE);
static TOP_PAD: AtomicUsize = AtomicUsize::new(NONE);
static ARENA_MAX: AtomicUsize = AtomicUsize::new(NONE);

/// What a sweep sets the trim threshold to: what was tuned, else what the process was started
/// with, else [`THRESHOLD`]; at most what `mallopt` takes, and a top is hardly ever larger.
pub fn threshold_after_sweep() -> usize {
    let untold = if started().fixed { FIXED } else { THRESHOLD };
    let value = get(&TRIM_THRESHOLD).or(started().trim_threshold).unwrap_or(untold);
    value.min(c_int::MAX as usize)
}

/// Bytes beside glibc's own that stay at a top that is trimmed.
pub fn top_pad() -> usize {
    get(&TOP_PAD).or(started().top_pad).unwrap_or(0)
}

/// How many arenas there may be, if anybody said.
pub fn arena_max() -> Option<usize> {
    get(&ARENA_MAX).or(started().arena_max)
}

/// What can be set in an allocator of this kind.
pub fn knobs(kind: &str) -> &'static [&'static str] {
    match kind {
        "glibc" => &["mmap_threshold", "trim_threshold", "top_pad", "arena_max"],
        "jemalloc" => &["background_thread", "dirty_decay_ms", "muzzy_decay_ms"],
        "mimalloc" => &["purge_delay_ms"],
        "tcmalloc" => &["aggressive_decommit", "release_rate"],
        _ => &[],
    }
}

/// Sets one knob. A word about what took effect may come with success; without, it says why not.
pub fn set(allocator: &Allocator, knob: &str, value: i64) -> Result<Option<String>, String> {
    let kind = allocator.kind();
    if !knobs(kind).contains(&knob) {
        let all = ["glibc", "jemalloc", "mimalloc", "tcmalloc"];
        return Err(match all.into_iter().find(|other| knobs(other).contains(&knob)) {
            Some(other) => format!("this is {other}'s, and here {kind} answers malloc"),
            None => format!("{kind} has no such knob"),
        });
    }
    match &allocator.calls {
        Calls::Glibc(glibc) => in_glibc(glibc, knob, value),
        Calls::Jemalloc(jemalloc) => match knob {
            "background_thread" => jemalloc.set_background(value != 0).map(|()| None),
            _ => {
                let pages = knob.strip_suffix("_decay_ms").unwrap_or(knob);
                let value = isize::try_from(value).map_err(|e| e.to_string())?;
                jemalloc.set_decay(pages, value).map(|(took, all)| {
                    (took < all)
                        .then(|| format!("in {took} of {all} arenas: the others are unused"))
                })
            }
        },
        Calls::Mimalloc(mimalloc) => {
            let value = c_long::try_from(value).map_err(|e| e.to_string())?;
            mimalloc.set_purge_delay(value).map(|()| None)
        }
        Calls::Tcmalloc(tcmalloc) => match knob {
            "aggressive_decommit" => tcmalloc.set_aggressive(value != 0).map(|()| None),
            _ => Err("C code cannot set it: set TCMALLOC_RELEASE_RATE before the process starts"
                .to_owned()),
        },
        _ => Err(format!("{kind} has nothing to set")),
    }
}

fn in_glibc(glibc: &Glibc, knob: &str, value: i64) -> Result<Option<String>, String> {
    let value = usize::try_from(value).map_err(|e| e.to_string())?;
    let (param, remembered, refusal): (c_int, _, _) = match knob {
        "mmap_threshold" => (param::MMAP_THRESHOLD, None, "it takes 32 MiB at most"),
        "trim_threshold" => {
            (param::TRIM_THRESHOLD, Some(&TRIM_THRESHOLD), "it takes less than 2 GiB")
        }
        "top_pad" => (param::TOP_PAD, Some(&TOP_PAD), "it takes less than 2 GiB"),
        _ => (param::ARENA_MAX, Some(&ARENA_MAX), "it takes a number from 1 on"),
    };
    let word = if param == param::ARENA_MAX { arenas_left(glibc, value)? } else { None };
    // Known first: a sweep that ends meanwhile sets back what it knows.
    let before = remembered.map(|place| (place, place.swap(value, Ordering::Relaxed)));
    let took = glibc.set(param, value);
    if let Some((place, before)) = before.filter(|_| took != Some(true)) {
        place.store(before, Ordering::Relaxed);
    }
    match took {
        Some(true) => Ok(word),
        Some(false) => Err(format!("glibc refuses it: {refusal}")),
        None => Err("the symbol mallopt is missing".to_owned()),
    }
}

/// Whether the number of arenas can still be bounded, and by how much too late it is.
fn arenas_left(glibc: &Glibc, most: usize) -> Result<Option<String>, String> {
    let there = glibc.arenas().map(|arenas| arenas.len());
    let decided = arena_max();
    let holds = decided == Some(most);
    match (there, decided) {
        (Some(there), _) if there > FREE_ARENAS && !holds => Err(format!(
            "too late: glibc decided on its limit when the ninth arena was made, and there are {there}"
        )),
        (Some(there), Some(decided)) if there > 1 && !holds => {
            Err(format!("too late: glibc decided on {decided} when the second arena was made"))
        }
        (Some(there), _) if there > most => {
            Ok(Some(format!("there are {there} already, which stay; no more are made")))
        }
        (Some(_), _) => Ok(None),
        (None, _) => Ok(Some("it counts for arenas that do not exist yet".to_owned())),
    }
}

/// Why what is set now comes too late for what was allocated before, where it does.
pub fn late(allocator: &Allocator) -> Option<String> {
    let Calls::Glibc(glibc) = &allocator.calls else {
        // The others use what they are told from then on, for what they hold already, too.
        return None;
    };
    let maps = glibc.maps().unwrap_or(0);
    let (arenas, most) = match glibc.arenas() {
        Some(arenas) => (arenas.len(), arenas.iter().map(|arena| arena.most).sum()),
        None => (0, glibc.stats().mapped.unwrap_or(0).saturating_sub(maps)),
    };
    let mib = |bytes: u64| bytes >> 20;
    let mut seen = Vec::new();
    if most >= BIG {
        seen.push(format!("its arenas have held up to {} MiB", mib(most)));
    }
    if maps >= BIG {
        seen.push(format!("{} MiB are in maps of their own", mib(maps)));
    }
    if arenas > FREE_ARENAS {
        seen.push(format!("there are {arenas} arenas"));
    }
    (!seen.is_empty()).then(|| {
        format!(
            "big allocations came first ({}): what lies in the heap stays there until a trim, and \
             glibc's own thresholds have probably moved",
            seen.join(", ")
        )
    })
}

fn get(place: &AtomicUsize) -> Option<usize> {
    match place.load(Ordering::Relaxed) {
        NONE => None,
        value => Some(value),
    }
}
