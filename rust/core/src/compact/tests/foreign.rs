//! Memory of any strides, and memory that changes.
#![allow(unsafe_code)]

use super::*;
use crate::pack::{Strided, StridedMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// An array as others may hold it.
pub(super) struct Foreign {
    first: *mut u8,
    size: usize,
    shape: [usize; 2],
    strides: [isize; 2],
    /// Only reached through `first`.
    _memory: Vec<u8>,
}

/// Kinds of strides that [`Foreign::new`] knows.
pub(super) const ORDERS: usize = 4;

impl Foreign {
    /// The array, its elements in one of several orders.
    pub fn new(bytes: &[u8], size: usize, order: usize) -> Self {
        let elements = bytes.len() / size;
        let rows = (1..=200).rev().find(|rows| elements.is_multiple_of(*rows)).unwrap();
        let columns = elements / rows;
        let (step, row, column) = (size as isize, rows as isize, columns as isize);
        let (strides, first, spread) = match order % ORDERS {
            0 => ([step * column, step], 0, 1),
            1 => ([step, step * row], 0, 1),
            2 => ([3 * step * column, 3 * step], 0, 3),
            _ => ([-step * column, -step], elements - 1, 1),
        };
        let mut memory = vec![0xCC; elements * size * spread];
        let first = memory[first * size..].as_mut_ptr();
        let foreign = Self { first, size, shape: [rows, columns], strides, _memory: memory };
        foreign.out().from_slice(bytes);
        foreign
    }

    pub fn source(&self) -> Strided {
        // SAFETY: the strides stay within `_memory`, which callers keep.
        unsafe { Strided::new(self.first, self.size, &self.shape, &self.strides) }.unwrap()
    }

    pub fn out(&self) -> StridedMut {
        // SAFETY: as above; nothing refers to what is written.
        unsafe { StridedMut::new(self.first, self.size, &self.shape, &self.strides) }.unwrap()
    }

    pub fn packed(&self) -> Vec<u8> {
        let source = self.source();
        let mut out = vec![0; source.nbytes()];
        source.copy_to(&mut out);
        out
    }
}

/// Encodes from, and decodes into, memory of all orders, with the same codes as from a slice.
pub(super) fn check(books: &Books, level: Level, layout: &Layout, bytes: &[u8], chunk: usize) {
    let private = encoded(books, level, layout, bytes.into(), chunk);
    let name = |found: &Option<(Form, Vec<u8>)>| {
        found.as_ref().map(|(form, codes)| (form.name(), codes.clone()))
    };
    for order in 0..ORDERS {
        let foreign = Foreign::new(bytes, layout.dtype().itemsize(), order);
        let source = foreign.source();
        let found = encoded(books, level, layout, (&source).into(), chunk);
        assert!(name(&private) == name(&found), "order {order}");
        let Some((form, codes)) = found else { continue };
        let chunks: Vec<_> = codes.chunks(chunk).collect();
        let out = Foreign::new(&vec![0x55; bytes.len()], form.itemsize(), order);
        form.decode_at(
            level,
            &chunks,
            0..form.nbytes() / form.itemsize(),
            Out::Foreign(&out.out()),
        )
        .unwrap();
        assert!(out.packed() == bytes, "order {order}: {}", form.name());
        let short = Foreign::new(&bytes[form.itemsize()..], form.itemsize(), order);
        assert!(form.decode_into(&chunks, &short.out()).is_err());
    }
}

#[test]
fn layouts_of_all_kinds_survive_strides() {
    let level = |i: usize| f32::from(photo(i, 1));
    let padded = |i: usize| if i % 150 < 50 { 0.25 } else { value(photo(i, 3), 0) };
    let of = |f: &dyn Fn(usize) -> f32, n| (0..n).map(f).collect::<Vec<_>>();
    for (shape, values) in [
        (&[60, 1176][..], image(&[60, 1176], 392, 196)),
        (&[60, 1176], image(&[60, 1176], 392, 0)),
        (&[1, 2, 3, 70, 70], image(&[1, 2, 3, 70, 70], 4900, 3 * 4900)),
        (&[3, 2, 70, 70], image(&[3, 2, 70, 70], 9800, 4900)),
        (&[100, 90, 3], image(&[100, 90, 3], 1, 0)),
        (&[2, 100, 90, 3], image(&[2, 100, 90, 3], 1, 27_000)),
        (&[30_000], of(&|_| 0.5, 30_000)),
        (&[30_000], of(&|i| (i / 4096) as f32, 30_000)),
        (&[30_000], of(&level, 30_000)),
        (&[30_000], of(&padded, 30_000)),
        (&[30_000], of(&|i| f32::from_bits(noise(i, 2)), 30_000)),
    ] {
        for simd in Level::all() {
            let books = Books::default();
            check(&books, simd, &layout("<f4", shape), &floats(&values), 4096);
            check(&books, simd, &layout("bfloat16", shape), &bf16(&values), 5000);
            check(&books, simd, &layout("<i4", shape), &floats(&values), 4096);
            let wide: Vec<u8> = values.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
            check(&books, simd, &layout("<f8", shape), &wide, 4097);
        }
    }
}

#[test]
fn what_changes_meanwhile_is_old_or_new() {
    for (shape, inner, half) in [
        (&[60, 1176][..], 392, 196),
        (&[3, 140, 140], 19_600, 0),
        (&[2, 3, 100, 100], 10_000, 30_000),
    ] {
        let layout = layout("<f4", shape);
        let n: usize = shape.iter().product();
        let make = |seed| -> Vec<u32> {
            let of = |i| value(photo(repeats(i, half), seed), i / inner % 3).to_bits();
            (0..n).map(of).collect()
        };
        let (old, new) = (make(7), make(8));
        let memory: Vec<AtomicU32> = old.iter().map(|&bits| bits.into()).collect();
        // SAFETY: `memory` outlives the description; as foreign memory, it is written to meanwhile.
        let source = unsafe { Strided::new(memory.as_ptr().cast(), 4, &[n], &[4]) }.unwrap();
        let done = AtomicBool::new(false);
        let stored = std::thread::scope(|scope| {
            scope.spawn(|| {
                for values in [&new, &old].into_iter().cycle() {
                    for (element, &bits) in memory.iter().zip(values) {
                        element.store(bits, Ordering::Relaxed);
                    }
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut stored = 0;
            for _ in 0..12 {
                let books = Books::default();
                let found = encoded(&books, Level::get(), &layout, (&source).into(), 4096);
                let Some((form, codes)) = found else { continue };
                let mut out = vec![0; 4 * n];
                form.decode(&[&codes], &mut out).unwrap();
                for (i, bytes) in out.chunks(4).enumerate() {
                    let (old, new) = (old[i].to_le_bytes(), new[i].to_le_bytes());
                    let known = |j: usize| bytes[j] == old[j] || bytes[j] == new[j];
                    assert!((0..4).all(known), "element {i}");
                }
                stored += 1;
            }
            done.store(true, Ordering::Relaxed);
            stored
        });
        assert!(stored > 0, "{shape:?}");
    }
}
