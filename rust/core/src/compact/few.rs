//! Arrays of few values or long runs, of any element type: masks, indices, constant images.

use super::decode::{Codes, Out};
use super::escapes::low;
use super::form::Why;
use super::sample::{Sample, widen};
use super::source::{Source, WINDOW, Window};
use crate::pack::FlatMut;

/// The most values that a code tells apart.
const VALUES: usize = 256;
/// Runs are kept while they take less than this share of the array.
const SHARE: usize = 16;

/// A value and the element at which its run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The element's bytes, little-endian.
    pub bits: u64,
    /// The first element behind the run.
    pub end: u32,
}

/// The array as runs, if there are few.
pub(super) fn runs(source: Source, size: usize) -> Option<Box<[Run]>> {
    let all = source.nbytes();
    let most = all / (SHARE * size_of::<Run>());
    let mut list: Vec<Run> = Vec::new();
    let mut room = Window::new();
    for start in (0..all).step_by(WINDOW) {
        let window = source.read(start, WINDOW.min(all - start), &mut room.0);
        let mut at = 0;
        while at < window.len() {
            let rest = &window[at..];
            let bits = widen(&rest[..size]);
            at += super::encode::equal(rest, size, usize::MAX) * size;
            let end = ((start + at) / size) as u32;
            if let Some(last) = list.last_mut()
                && last.bits == bits
            {
                last.end = end;
            } else if list.len() < most {
                list.push(Run { bits, end });
            } else {
                return None;
            }
        }
    }
    Some(list.into())
}

/// Whether these are the runs of an array.
pub(super) fn check_runs(runs: &[Run], elements: usize, size: usize) -> Result<(), Why> {
    let mut last = 0;
    for run in runs {
        if run.end <= last || !fits(run.bits, size) {
            return Err("runs out of order, or of values that are too long");
        }
        last = run.end;
    }
    if last as usize == elements { Ok(()) } else { Err("runs of another array") }
}

/// Whether these can be the values of a palette.
pub(super) fn check_values(values: &[u64], size: usize) -> Result<(), Why> {
    if !(1..=VALUES).contains(&values.len()) || size < 4 {
        return Err("a palette of so many values");
    }
    let fit = values.iter().all(|&bits| fits(bits, size));
    if fit { Ok(()) } else { Err("a value that is too long") }
}

fn fits(bits: u64, size: usize) -> bool {
    size == 8 || bits >> (8 * size) == 0
}

/// Writes the elements from `start` on.
pub(super) fn unpack_runs(runs: &[Run], size: usize, start: usize, out: Out) {
    let mut index = runs.partition_point(|run| run.end as usize <= start);
    out.fill(WINDOW, |at, mut block| {
        let mut done = 0;
        while done < block.nbytes() {
            let run = runs[index];
            let left = run.end as usize - start - (at + done) / size;
            let len = left.min((block.nbytes() - done) / size);
            fill(&mut block, done, len, run.bits, size);
            index += usize::from(len == left);
            done += len * size;
        }
    });
}

/// Writes `n` times the same element, from `at` on.
pub(super) fn fill(out: &mut FlatMut, at: usize, n: usize, bits: u64, size: usize) {
    match size {
        1 => out.fill(at, n, low::<1>(bits)),
        2 => out.fill(at, n, low::<2>(bits)),
        4 => out.fill(at, n, low::<4>(bits)),
        _ => out.fill(at, n, low::<8>(bits)),
    }
}

/// Whether the sample shows at most 256 values.
pub(super) fn seems_few(sample: &Sample, elements: usize) -> bool {
    let one = super::Geometry { elements, channels: 1, inner: elements, half: 0 };
    sample.tally(&one).is_some_and(|counts| counts[0].len() <= VALUES)
}

/// Values in the order of their first appearance, found by hashing.
struct Palette {
    values: Vec<u64>,
    /// One more than an index into `values`.
    slots: [u16; 4 * VALUES],
}

impl Palette {
    #[inline(always)]
    fn code(&mut self, bits: u64) -> Option<u8> {
        let mut at = (bits.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as usize;
        loop {
            let slot = self.slots[at % (4 * VALUES)];
            if slot == 0 {
                break;
            }
            let index = usize::from(slot - 1);
            if self.values[index] == bits {
                return Some(index as u8);
            }
            at += 1;
        }
        if self.values.len() == VALUES {
            return None;
        }
        self.values.push(bits);
        self.slots[at % (4 * VALUES)] = self.values.len() as u16;
        Some((self.values.len() - 1) as u8)
    }
}

/// Writes a code for each element, `None` when there are too many values.
pub(super) fn pack(source: Source, size: usize, chunks: &mut [&mut [u8]]) -> Option<Box<[u64]>> {
    match size {
        4 => pack_as::<4>(source, chunks),
        _ => pack_as::<8>(source, chunks),
    }
}

fn pack_as<const SIZE: usize>(source: Source, chunks: &mut [&mut [u8]]) -> Option<Box<[u64]>> {
    let mut palette = Palette { values: Vec::new(), slots: [0; 4 * VALUES] };
    let (all, mut at) = (source.nbytes(), 0);
    let mut room = Window::new();
    for chunk in chunks {
        for codes in chunk.chunks_mut(WINDOW / SIZE) {
            let window = source.read(at, (codes.len() * SIZE).min(all - at), &mut room.0);
            for (code, element) in codes.iter_mut().zip(window.as_chunks::<SIZE>().0) {
                *code = palette.code(widen(element))?;
            }
            at += window.len();
        }
    }
    Some(palette.values.into())
}

/// Writes the elements from `start` on.
pub(super) fn unpack(values: &[u64], size: usize, chunks: &[&[u8]], start: usize, out: Out) {
    let mut table = [0; VALUES];
    table[..values.len()].copy_from_slice(values);
    match size {
        4 => look_up::<4>(&table, chunks, start, out),
        _ => look_up::<8>(&table, chunks, start, out),
    }
}

fn look_up<const SIZE: usize>(table: &[u64; VALUES], chunks: &[&[u8]], start: usize, out: Out) {
    let mut codes = Codes::new(chunks);
    out.fill(WINDOW, |at, mut block| {
        let mut done = 0;
        while done < block.nbytes() {
            let codes = codes.from(start + (at + done) / SIZE, (block.nbytes() - done) / SIZE);
            block.each::<4, SIZE, _>(done, codes, |&code| low::<SIZE>(table[usize::from(code)]));
            done += codes.len() * SIZE;
        }
    });
}
