//! Many contents at once: one thread to a content, and never threads within one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::{Algorithm, LEN, content};
use crate::pack::Strided;

/// Bytes that are worth a thread: hashing them takes several times longer than starting it.
const WORTH: usize = 1 << 20;

/// More threads than this only wait for the same memory.
const MOST: usize = 8;

/// Bytes to hash.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Bytes that nobody writes to.
    Packed(&'a [u8]),
    /// An array in foreign memory.
    Strided(&'a Strided),
}

impl Source<'_> {
    /// Bytes of it.
    pub fn nbytes(&self) -> usize {
        match self {
            Self::Packed(bytes) => bytes.len(),
            Self::Strided(strided) => strided.nbytes(),
        }
    }

    /// Its content hash.
    pub fn content(&self, algorithm: Algorithm) -> [u8; LEN] {
        match self {
            Self::Packed(bytes) => algorithm.hash(bytes),
            Self::Strided(strided) => content(algorithm, strided),
        }
    }
}

/// Content hashes of all sources, in their order, by at most `threads` threads. `None`: as many as
/// the process has cores and the work is worth.
///
/// The threads are started for this call and joined before it returns: none is left to be lost in
/// a fork.
pub fn contents(
    algorithm: Algorithm,
    sources: &[Source<'_>],
    threads: Option<usize>,
) -> Vec<[u8; LEN]> {
    let team = Team { algorithm, sources, order: by_size(sources), next: AtomicUsize::new(0) };
    let mut hashes = vec![[0; LEN]; sources.len()];
    let helpers = threads.unwrap_or_else(|| worth(sources)).min(sources.len()).saturating_sub(1);
    thread::scope(|scope| {
        let (started, starting) = mpsc::channel();
        let start = |_| {
            let started = started.clone();
            let work = || {
                let _ = started.send(()); // whoever started us is waiting
                drop(started);
                team.work()
            };
            thread::Builder::new().spawn_scoped(scope, work)
        };
        // Where the system has no thread to give, those that there are do the work.
        let helpers: Vec<_> = (0..helpers).map_while(|n| start(n).ok()).collect();
        drop(started);
        // A kernel may leave a new thread on the core of its parent for as long as this whole call
        // takes. Waiting gives it that core, and being woken finds us an idle one.
        starting.iter().take(helpers.len()).for_each(drop);
        let mut done = team.work();
        for helper in helpers {
            match helper.join() {
                Ok(part) => done.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        for (i, hash) in done {
            hashes[i] = hash;
        }
    });
    hashes
}

struct Team<'a> {
    algorithm: Algorithm,
    sources: &'a [Source<'a>],
    order: Vec<usize>,
    next: AtomicUsize,
}

impl Team<'_> {
    /// Takes one source after the other, until none is left.
    fn work(&self) -> Vec<(usize, [u8; LEN])> {
        let take = || self.order.get(self.next.fetch_add(1, Ordering::Relaxed)).copied();
        std::iter::from_fn(take).map(|i| (i, self.sources[i].content(self.algorithm))).collect()
    }
}

/// Largest first, so that no thread begins a large one while the others have finished.
fn by_size(sources: &[Source<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sources[i].nbytes()));
    order
}

fn worth(sources: &[Source<'_>]) -> usize {
    let bytes = sources.iter().map(Source::nbytes).fold(0, usize::saturating_add);
    match (bytes / WORTH).min(MOST) {
        0 | 1 => 1,
        // Asked last: the answer is read from several files.
        most => thread::available_parallelism().map_or(1, |cores| most.min(cores.get())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn any_number_of_threads_gives_the_same_in_order() {
        let data: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; usize::from(i) * 997]).collect();
        let sources: Vec<_> = data.iter().map(|bytes| Source::Packed(bytes)).collect();
        let alone: Vec<_> = data.iter().map(|bytes| *blake3::hash(bytes).as_bytes()).collect();
        for threads in [None, Some(0), Some(1), Some(2), Some(7), Some(1000)] {
            assert_eq!(contents(Algorithm::Blake3, &sources, threads), alone);
        }
        assert!(contents(Algorithm::Blake3, &[], Some(3)).is_empty());
    }

    #[test]
    fn small_work_stays_on_one_thread() {
        let small = vec![0; WORTH / 4];
        assert_eq!(worth(&[Source::Packed(&small); 3]), 1);
        let many = worth(&[Source::Packed(&small); 400]);
        assert_eq!(many, thread::available_parallelism().unwrap().get().min(MOST));
    }
}
