//! Huge pages that were asked for memory that is free now.
//!
//! numpy asks for huge pages for each of its large arrays, and many of these lie in glibc's heaps.
//! The advice stays with the addresses when the array is gone. Where something small survives
//! there, the kernel's `khugepaged` sees a few pages in a range that wants a huge one, and puts one
//! there: what a trim gave back comes again within a minute. So the advice is taken back where
//! less than half of the pages are there. What is denser is probably in use, and gains from huge
//! pages more than they could add to it.
//!
//! Only where huge pages are for those who ask is this the state before the advice: such a range
//! is then as good as one that nobody advised, and numpy advises anew with each array. Where the
//! kernel gives them to everybody, nothing is done.
//!
//! Advice shows in `smaps` alone, where the kernel walks all pages of the process, a gibibyte in
//! some ten milliseconds. But a heap begins with what the allocator itself keeps there, and nobody
//! advises that: only behind a border between two mappings of one heap can anything be advised.
//! These are found in `maps`, and what is there of them by `mincore`, which walks only them. What
//! nobody advised between them looks the same, and loses nothing by being treated alike. Where
//! glibc itself asks for huge pages (`glibc.malloc.hugetlb`), it does from the start of each heap,
//! so that there is no border, and what it was told stays.
//!
//! A heap that still grows shows by what is reserved behind it. A full one is told from other
//! memory by what it begins with, read as a file would be: what lies there may be gone by now.

use super::step::Outcome;
use crate::proc::limits::whole;
use crate::proc::maps::{self, Kind, Map};
use std::fs::File;
use std::path::Path;

/// Where glibc puts the heaps of threads: at a multiple of it, the rest reserved.
const HEAP: usize = if usize::BITS < 64 { 1 << 20 } else { 64 << 20 };
/// A page that is huge on most machines.
const HUGE: usize = 2 << 20;

/// What takes no huge pages now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Advice {
    /// Mappings with little in them, those of earlier times that are as empty still among them.
    pub ranges: usize,
    /// Bytes of these, most of which are not there.
    pub bytes: u64,
}

/// Has glibc's heaps take no huge pages where little is in use. What the kernel says is read below
/// `root`.
pub fn take_back(root: &Path) -> Outcome {
    if let Err(why) = is_for_who_asks(root) {
        return Outcome::failed(why);
    }
    let Some(text) = whole(&root.join("proc/self/maps")) else {
        return Outcome::failed("the kernel does not tell what is mapped");
    };
    let (mut advice, mut why) = (Advice::default(), None);
    let memory = File::open(root.join("proc/self/mem")).ok();
    let is_full = |base| memory.as_ref().is_some_and(|memory| pages::is_full(memory, base));
    for range in behind_borders(&maps::parse(&text), is_full) {
        match pages::is_sparse(range).and_then(|sparse| sparse.then(|| pages::small(range))) {
            Some(Ok(())) => {
                advice.ranges += 1;
                advice.bytes += (range.end - range.start) as u64;
            }
            // It was unmapped meanwhile, in whole or in part: then no advice is left there.
            Some(Err(error)) if error.raw_os_error() == Some(NO_MEMORY) => {}
            Some(Err(error)) => why = Some(format!("the kernel refused some: {error}")),
            None => {}
        }
    }
    Outcome { why, advice: Some(advice), ..Outcome::default() }
}

/// Whether huge pages are given where they were asked for, and nowhere else; why not.
fn is_for_who_asks(root: &Path) -> Result<(), &'static str> {
    let folder = root.join("sys/kernel/mm/transparent_hugepage");
    let chosen = |folder: &Path, mode: &str| {
        whole(&folder.join("enabled"))
            .is_some_and(|text| text.split(u8::is_ascii_whitespace).any(|w| w == mode.as_bytes()))
    };
    if chosen(&folder, "[never]") {
        return Err("the kernel gives no huge pages");
    }
    // Newer kernels have pages of several sizes, each with a mode of its own.
    // They are asked for by name: the end of a listing panics where somebody else has closed its
    // descriptor.
    let sizes = (3..=20).map(|power| format!("hugepages-{}kB", 1 << power));
    let mut folders = sizes.map(|size| folder.join(size));
    if chosen(&folder, "[always]") || folders.any(|folder| chosen(&folder, "[always]")) {
        return Err("the kernel gives huge pages to all, and what was advised makes no difference");
    }
    match chosen(&folder, "[madvise]") {
        true => Ok(()),
        false => Err("the kernel does not tell whom it gives huge pages"),
    }
}

/// Mappings of glibc's heaps behind the first of each heap, where they have room for a huge page.
/// `is_full` says whether a heap with nothing reserved behind it begins at an address.
pub fn behind_borders(maps: &[Map], is_full: impl Fn(usize) -> bool) -> Vec<Map> {
    let mut found = Vec::new();
    let mut runs = maps.chunk_by(|a, b| a.kind == b.kind && a.end == b.start).peekable();
    while let Some(run) = runs.next() {
        match run[0].kind {
            Kind::Break => found.extend(run.iter().skip(1).filter(|map| has_room(map))),
            Kind::Memory => {
                let growing = runs.peek().and_then(|next| base_of_thread(run, next.first()?));
                found.extend(run.iter().filter(|map| {
                    let base = map.start & !(HEAP - 1);
                    let full = || has_room_of_heap(run, base) && is_full(base);
                    map.start > base && has_room(map) && (growing == Some(base) || full())
                }));
            }
            _ => {}
        }
    }
    found
}

/// Where a thread's heap begins in a run of mappings, by what is reserved behind it.
fn base_of_thread(run: &[Map], next: &Map) -> Option<usize> {
    let (start, end) = (run.first()?.start, run.last()?.end);
    let base = (end - 1) & !(HEAP - 1);
    let limit = base.checked_add(HEAP)?;
    let reserved = next.kind == Kind::Reserved && next.start == end && next.end >= limit;
    // Of these two borders one may be gone, where the neighbour is like it. Other memory that has
    // something reserved behind it has neither.
    let bordered = next.end == limit || run.iter().any(|map| map.start == base);
    (reserved && end < limit && start <= base && bordered).then_some(base)
}

/// Whether a full heap may begin at `base`.
fn has_room_of_heap(run: &[Map], base: usize) -> bool {
    run[0].start <= base
        && base.checked_add(HEAP).is_some_and(|limit| limit <= run[run.len() - 1].end)
}

fn has_room(map: &Map) -> bool {
    map.start
        .checked_next_multiple_of(HUGE)
        .is_some_and(|first| map.end.saturating_sub(HUGE) >= first)
}

#[cfg(target_os = "linux")]
const NO_MEMORY: i32 = libc::ENOMEM;
#[cfg(not(target_os = "linux"))]
const NO_MEMORY: i32 = 0;

#[cfg(target_os = "linux")]
mod pages {
    use super::{HEAP, Map};
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::ptr;

    /// Pages that are looked at by one call, in which nothing can be mapped.
    const AT_ONCE: usize = 4096;

    /// Whether memory begins as a full heap does: with its arena, the heap before it, how much of it
    /// is in use, and how much may be touched, which is all.
    pub fn is_full(memory: &File, base: usize) -> bool {
        let mut words = [0; 4].map(usize::to_ne_bytes);
        let read = memory.read_exact_at(words.as_flattened_mut(), base as u64);
        let [arena, _, used, open] = words.map(usize::from_ne_bytes);
        read.is_ok() && arena != 0 && (1..=HEAP).contains(&used) && open == HEAP
    }

    /// Whether less than half of the pages are there; `None` where that is not to be known.
    pub fn is_sparse(range: Map) -> Option<bool> {
        let page = crate::arena::page();
        let pages = (range.end - range.start) / page;
        let (mut resident, mut at) = (0, range.start);
        let mut there = [0u8; AT_ONCE];
        while at < range.end && resident * 2 < pages {
            let bytes = (AT_ONCE * page).min(range.end - at);
            let start = ptr::with_exposed_provenance_mut(at);
            // SAFETY: the kernel writes a byte for each page of the range, for which there is
            // room, and says so where nothing is mapped. It touches nothing of the range itself.
            if unsafe { libc::mincore(start, bytes, there.as_mut_ptr()) } != 0 {
                return None;
            }
            resident += there[..bytes.div_ceil(page)].iter().filter(|is| **is & 1 == 1).count();
            at += bytes;
        }
        Some(resident * 2 < pages)
    }

    /// Advises small pages.
    pub fn small(range: Map) -> io::Result<()> {
        let start = ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the advice is about how large pages are that are yet to come. It changes neither
        // what is in memory nor who may use it how, so it is nothing that others could rely on,
        // whoever they are. The kernel itself looks what is mapped: if that is something else by
        // now, then that takes small pages, and nothing worse.
        match unsafe { libc::madvise(start, range.end - range.start, libc::MADV_NOHUGEPAGE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use super::Map;
    use std::fs::File;
    use std::io;

    /// There are no such heaps.
    pub fn is_full(_memory: &File, _base: usize) -> bool {
        false
    }

    /// Nobody tells.
    pub fn is_sparse(_range: Map) -> Option<bool> {
        None
    }

    /// Nothing is advised.
    pub fn small(_range: Map) -> io::Result<()> {
        Ok(())
    }
}
