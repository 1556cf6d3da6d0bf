//! What codes mean: tables of bit patterns that only ever grow.
//!
//! A slot is filled once, by compare-and-swap, and never changed: entries stay readable while
//! others extend the book, and two encoders that fill one slot find out who was first. A book
//! into which one odd image has put wrong levels does not match the next sample and gets a
//! successor; it lives on as long as entries refer to it.

use super::fit::Lattice;
use super::formula::Formula;
use super::sample::{Count, OUTLIERS};
use super::tables::{Table, Tables, Values};
use crate::layout::DType;
use crate::proc::fork::{self, Forked, lock};
use crate::sync::{Mutex, MutexGuard};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Books that are offered to new images.
const KEPT: usize = 32;
const FILLED: u64 = 1 << 32;

/// A formula, if there is one, and the slots of the lowest and the highest level when it was
/// looked for: more levels between them change nothing.
#[derive(Debug, Default)]
struct Found {
    ends: Option<(u8, u8)>,
    formula: Option<Formula>,
}

/// A slot and its value.
type Level = (u8, f32);
/// The lowest and the highest level.
type Ends = (Level, Level);

/// One channel's table.
#[derive(Debug)]
pub(super) struct Channel {
    /// Where values belong; a channel without one takes any 256 values.
    pub lattice: Option<Lattice>,
    slots: [AtomicU64; 256],
    filled: AtomicU32,
    found: Mutex<Found>,
}

/// The tables of one channel layout and element type.
#[derive(Debug)]
pub struct Book {
    dtype: DType,
    pub(super) channels: Box<[Channel]>,
    /// Grows with the tables, so that who sees a number sees what was filled before it.
    generation: AtomicU32,
    /// Copies of the tables, and the generation that they have at least.
    tables: Mutex<Option<(u32, Tables)>>,
    alive: Arc<AtomicUsize>,
}

/// The books of a cache. Not to be used while a lock that survives forks is held: there is one here.
#[derive(Debug)]
pub struct Books {
    pub(super) known: Arc<Known>,
    alive: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// The most recently used first.
    pub(super) list: Mutex<Vec<Arc<Book>>>,
}

impl Forked for Known {
    fn hold(self: Arc<Self>) -> Box<dyn Any> {
        fork::hold(self, |known| &known.list)
    }

    fn forked(&self) {}

    fn in_child(&self) {}
}

impl Default for Books {
    fn default() -> Self {
        let known = Arc::default();
        fork::register(&known);
        Self { known, alive: Arc::default() }
    }
}

impl Channel {
    pub fn new(lattice: Option<Lattice>) -> Self {
        Self {
            lattice,
            slots: [const { AtomicU64::new(0) }; 256],
            filled: AtomicU32::new(0),
            found: Mutex::default(),
        }
    }

    /// The bit pattern of a slot, if it has one.
    #[inline(always)]
    pub fn get(&self, slot: u8) -> Option<u32> {
        let slot = self.slots[usize::from(slot)].load(Ordering::Acquire);
        (slot & FILLED != 0).then_some(slot as u32)
    }

    /// Fills a slot unless it is filled, and returns what it holds then.
    pub fn fill(&self, slot: u8, bits: u32) -> u32 {
        let new = FILLED | u64::from(bits);
        let slot = &self.slots[usize::from(slot)];
        match slot.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.filled.fetch_add(1, Ordering::Relaxed);
                bits
            }
            Err(other) => other as u32,
        }
    }

    /// The formula that was found for this table; to be proven before use.
    pub fn formula(&self) -> Option<Formula> {
        self.found.try_lock().ok()?.formula
    }

    /// Whether most of what was counted is in the table, and most of the rest may be.
    fn suits(&self, counts: &[Count]) -> bool {
        let mut known: Vec<u32> = (0..=255).filter_map(|slot| self.get(slot)).collect();
        known.sort_unstable();
        let (mut old, mut new, mut odd, mut clashes) = (0, 0, 0, 0);
        for &Count { bits, times, flat } in counts {
            let bits = bits as u32;
            let slot = self.lattice.map(|lattice| lattice.slot(f32::from_bits(bits)));
            match slot {
                _ if known.binary_search(&bits).is_ok() => old += times,
                Some(Some(slot)) if self.get(slot).is_some() => clashes += times,
                Some(None) => odd += 1,
                None if flat => (),
                _ => new += times,
            }
        }
        odd <= OUTLIERS && old > new && 64 * clashes <= old
    }

    /// Looks for a formula if the levels span another range than the last time.
    pub fn look(&self) {
        let levels = || {
            let level = |slot| Some((slot, f32::from_bits(self.get(slot)?)));
            (0..=255u8).filter_map(level)
        };
        let wider = |ends: Option<Ends>, one: Level| match ends {
            None => Some((one, one)),
            Some((low, high)) if one.1 < low.1 => Some((one, high)),
            Some((low, high)) if one.1 > high.1 => Some((low, one)),
            ends => ends,
        };
        let Some((low, high)) = levels().fold(None, wider) else { return };
        let ends = Some((low.0, high.0));
        let seen = |found: MutexGuard<Found>| found.ends == ends;
        if self.lattice.is_some() && !self.found.try_lock().is_ok_and(seen) {
            let levels: Vec<_> = levels().collect();
            let formula = Formula::find(low, high, &levels);
            if let Ok(mut found) = self.found.try_lock() {
                *found = Found { ends, formula };
            }
        }
    }
}

impl Book {
    /// A book of one table for each channel, filled with what a sample showed, the frequent
    /// first; `None` when the values do not suit it.
    fn learn(books: &Books, dtype: &DType, counts: &[Vec<Count>], kind: Kind) -> Option<Self> {
        let mut channels = Vec::with_capacity(counts.len());
        for counts in counts {
            let lattice = match kind {
                Kind::Lattice => Some(Lattice::fit(counts)?),
                Kind::Any => None,
            };
            let channel = Channel::new(lattice);
            let mut counts = counts.clone();
            counts.sort_by_key(|count| std::cmp::Reverse(count.times));
            let (mut odd, mut free) = (0, 0..=255u8);
            for count in counts {
                let bits = count.bits as u32;
                let slot = match lattice {
                    Some(lattice) => lattice.slot(f32::from_bits(bits)),
                    // What is only seen alone is rather padding than a level.
                    None if count.flat => continue,
                    None => free.next(),
                };
                odd += usize::from(slot.is_none_or(|slot| channel.fill(slot, bits) != bits));
            }
            if odd > OUTLIERS || channel.filled.load(Ordering::Relaxed) < 2 {
                return None;
            }
            channels.push(channel);
        }
        let book = Self::new(books, dtype, channels.into());
        book.settle();
        Some(book)
    }

    pub(super) fn new(books: &Books, dtype: &DType, channels: Box<[Channel]>) -> Self {
        let book = Self {
            dtype: dtype.clone(),
            channels,
            generation: AtomicU32::new(0),
            tables: Mutex::default(),
            alive: books.alive.clone(),
        };
        book.alive.fetch_add(book.bytes(), Ordering::Relaxed);
        book
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let copy = if self.has_lattices() { size_of::<Table>() } else { size_of::<Values>() };
        size_of::<Self>() + size_of_val(&*self.channels) + self.channels.len() * copy
    }

    /// Whether every channel has a lattice.
    pub(super) fn has_lattices(&self) -> bool {
        self.channels.iter().all(|channel| channel.lattice.is_some())
    }

    /// Copies of the tables, with all that anybody had told of by [`settle`](Self::settle).
    pub(super) fn tables(&self) -> Tables {
        let generation = self.generation.load(Ordering::Acquire);
        // A lock that a forked child finds taken will never be free.
        if let Ok(kept) = self.tables.try_lock()
            && let Some((of, tables)) = &*kept
            && *of == generation
        {
            return tables.clone();
        }
        let tables = Tables::load(self);
        if let Ok(mut kept) = self.tables.try_lock() {
            *kept = Some((generation, tables.clone()));
        }
        tables
    }

    /// Filled slots: grows, and what it counted stays.
    pub fn version(&self) -> u32 {
        self.channels.iter().map(|c| c.filled.load(Ordering::Relaxed)).sum()
    }

    /// To be called by whoever has used new slots, before others hear of the codes: looks for
    /// formulas and has the tables copied anew.
    pub(super) fn settle(&self) {
        self.channels.iter().for_each(Channel::look);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether an array that these values were counted in can be expected to fit.
    fn suits(&self, counts: &[Vec<Count>]) -> bool {
        self.channels.iter().zip(counts).all(|(channel, counts)| channel.suits(counts))
    }
}

/// How a table is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By rounding to a lattice: `f32`.
    Lattice,
    /// By the bits themselves: two bytes.
    Any,
}

impl Drop for Book {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl Books {
    /// Bytes of all books that are alive, those included that only entries still refer to.
    pub fn bytes(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// Books that new images are matched against.
    pub fn len(&self) -> usize {
        lock(&self.known.list).len()
    }

    /// Whether nothing was learnt yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets them all; entries keep theirs.
    pub fn clear(&self) {
        let list = std::mem::take(&mut *lock(&self.known.list));
        drop(list);
    }

    /// A known book for an array in whose channels these values were counted.
    pub(super) fn find(&self, dtype: &DType, counts: &[Vec<Count>]) -> Option<Arc<Book>> {
        self.alike(dtype, counts.len()).into_iter().find(|book| book.suits(counts))
    }

    /// The known books for arrays of a type and so many channels.
    pub(super) fn alike(&self, dtype: &DType, channels: usize) -> Vec<Arc<Book>> {
        let alike = |b: &&Arc<Book>| b.channels.len() == channels && b.dtype == *dtype;
        lock(&self.known.list).iter().filter(alike).cloned().collect()
    }

    /// A new book, not yet offered to others.
    pub(super) fn learn(
        &self,
        dtype: &DType,
        counts: &[Vec<Count>],
        kind: Kind,
    ) -> Option<Arc<Book>> {
        Book::learn(self, dtype, counts, kind).map(Arc::new)
    }

    /// Puts a book that has proven itself first; the one not used for longest may go.
    pub(super) fn keep(&self, book: &Arc<Book>) {
        let mut list = lock(&self.known.list);
        match list.iter().position(|b| Arc::ptr_eq(b, book)) {
            Some(at) => list[..=at].rotate_right(1),
            None => list.insert(0, book.clone()),
        }
        let oldest = if list.len() > KEPT { list.pop() } else { None };
        drop(list);
        drop(oldest);
    }
}
