//! What a cache has on the heap is on its account, while entries go, too.

#![allow(clippy::expect_used, unsafe_code)]
use memweir_core::cache::{Cache, Existing, Key, Part};
use memweir_core::layout::{DType, Layout};
use memweir_core::pixels::Spec;
use std::alloc::{GlobalAlloc, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const BUDGET: usize = 16 << 20;
const PAGE: usize = 4096;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's heap, counted. There is one test in this file, so that nobody else is.
struct Counted;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: std::alloc::Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static HEAP: Counted = Counted;

type Way = fn(&Cache);

/// Fills a cache with entries of a page until one has to go; returns how many stay.
fn fill(cache: &Arc<Cache>) -> usize {
    let evictions = cache.stats().evictions;
    let layout = Layout::new(DType::new("|u1", 1), &[100]).expect("small");
    for n in 0usize.. {
        if cache.stats().evictions > evictions {
            break;
        }
        let spec = Spec::new([("x".into(), layout.clone())]).expect("small");
        let writer = cache.begin(spec, None).expect("memory").expect("room");
        assert!(writer.publish(
            Key::single(Part::Bytes(&n.to_le_bytes())),
            Existing::Replace,
            None
        ));
    }
    cache.len()
}

#[test]
fn the_heap_is_on_the_account_while_entries_go() {
    let ways: [(&str, Way); 3] = [
        ("clear", |cache| _ = cache.clear()),
        ("evict", |cache| _ = cache.evict(0)),
        ("resize", |cache| _ = cache.resize(0)),
    ];
    for (name, way) in ways {
        let cache = Cache::new(BUDGET, false);
        let start = NOW.load(Relaxed);
        PEAK.store(start, Relaxed);
        let pages = fill(&cache) * PAGE;
        assert!(pages > BUDGET / 10 * 8, "full");
        way(&cache);
        let heap = PEAK.load(Relaxed) - start;
        assert!(heap + pages <= BUDGET, "{name}: {heap} and {pages} bytes of {BUDGET}");
        assert_eq!(cache.stats().bytes, 0);
    }
}
