//! `f32` against a lattice.

use super::book::Book;
use super::decode::Decoder;
use super::encode::Coder;
use super::escapes::low;
use super::formula::{STRIP, Stretch};
use super::geometry::CHANNELS;
use super::tables::Table;
use crate::pack::FlatMut;
use std::ops::Range;
use std::sync::Arc;

/// Codes elements by a book.
pub(super) struct Floats {
    book: Arc<Book>,
    pub tables: Vec<Table>,
    /// Channels that were given slots which their formulas may not hold for.
    grown: [bool; CHANNELS],
    news: bool,
}

impl Floats {
    /// With copies of the book's tables.
    pub fn new(book: &Arc<Book>, tables: &[Table]) -> Self {
        Self { book: book.clone(), tables: tables.into(), grown: [false; CHANNELS], news: false }
    }

    /// Whether there is anything to [`refresh`](Coder::refresh).
    pub fn has_grown(&self) -> bool {
        self.grown.contains(&true)
    }
}

impl Coder for Floats {
    const SIZE: usize = 4;

    #[inline(always)]
    fn code<const FUSED: bool>(&self, channel: usize, source: &[u8], codes: &mut [u8]) -> bool {
        let table = &self.tables[channel];
        // Without FMA it takes longer than looking up.
        let stretch = table.stretch.filter(|_| FUSED);
        stretch.is_some_and(|stretch| by_formula::<FUSED>(&stretch, source, codes))
            || by_table(table, source, codes)
    }

    fn place(&mut self, index: usize, source: &[u8]) -> Option<u8> {
        let bits = u32::from_le_bytes(*source.first_chunk()?);
        let (table, channel) = (&mut self.tables[index], &self.book.channels[index]);
        let guess = table.lattice.guess(f32::from_bits(bits)) as u8;
        if table.filled[usize::from(guess)] && table.bits[usize::from(guess)] == bits {
            return Some(guess);
        }
        let slot = table.lattice.slot(f32::from_bits(bits))?;
        let at = usize::from(slot);
        if !table.filled[at] {
            (table.bits[at], table.filled[at]) = (channel.fill(slot, bits), true);
            (self.grown[index], self.news) = (true, true);
        }
        (table.bits[at] == bits).then_some(slot)
    }

    #[inline(always)]
    fn refresh<const FUSED: bool>(&mut self) {
        let grown = std::mem::take(&mut self.grown);
        for index in (0..self.tables.len()).filter(|&index| grown[index]) {
            let (table, channel) = (&mut self.tables[index], &self.book.channels[index]);
            let mut proven = table.prove::<FUSED>(channel);
            if proven.is_none() {
                channel.look();
                proven = table.prove::<FUSED>(channel);
            }
            table.take(proven);
        }
    }

    fn has_news(&self) -> bool {
        self.news
    }
}

impl Decoder for &[Table] {
    const SIZE: usize = 4;

    #[inline(always)]
    fn decode<const FUSED: bool>(
        &self,
        channel: usize,
        codes: &[u8],
        at: usize,
        out: &mut FlatMut,
    ) {
        let table = &self[channel];
        match table.proven {
            Some(proven) => {
                for strip in strips(codes.len()) {
                    let (at, codes) = (at + 4 * strip.start, &codes[strip]);
                    let value = |&code: &u8| proven.value::<FUSED>(code).to_le_bytes();
                    out.each::<STRIP, 4, _>(at, codes, value);
                }
            }
            None => look_up(&table.bits, codes, at, out),
        }
    }
}

/// Whole strips that cover `0..len`. The last two may overlap: doing a few elements again is
/// faster than doing them one by one.
#[inline(always)]
fn strips(len: usize) -> [Range<usize>; 2] {
    match len.checked_sub(STRIP) {
        None => [0..len, len..len],
        Some(_) if len.is_multiple_of(STRIP) => [0..len, len..len],
        Some(last) => [0..len - len % STRIP, last..len],
    }
}

/// Two elements to a store.
#[inline(always)]
fn look_up(bits: &[u32; 256], codes: &[u8], at: usize, out: &mut FlatMut) {
    let (pairs, last) = codes.as_chunks::<2>();
    let value = |code: u8| u64::from(bits[usize::from(code)]);
    out.each::<4, 8, _>(at, pairs, |&[a, b]| (value(a) | value(b) << 32).to_le_bytes());
    out.each::<1, 4, _>(at + 8 * pairs.len(), last, |&code| low::<4>(value(code)));
}

#[inline(always)]
fn by_table(table: &Table, source: &[u8], codes: &mut [u8]) -> bool {
    let (elements, _) = source.as_chunks::<4>();
    for (code, &element) in codes.iter_mut().zip(elements) {
        *code = table.lattice.guess(f32::from_le_bytes(element)) as u8;
    }
    let mut wrong = 0;
    for (&code, &element) in codes.iter().zip(elements) {
        wrong |= table.bits[usize::from(code)] ^ u32::from_le_bytes(element);
    }
    wrong == 0
}

/// Compares with what the decoder would compute, which was proven to be what the table holds.
#[inline(always)]
fn by_formula<const FUSED: bool>(stretch: &Stretch, source: &[u8], codes: &mut [u8]) -> bool {
    let (elements, _) = source.as_chunks::<4>();
    let mut right = true;
    for strip in strips(codes.len()) {
        let (codes, rest) = codes[strip.clone()].as_chunks_mut::<STRIP>();
        for (codes, elements) in codes.iter_mut().zip(elements[strip].as_chunks().0) {
            right &= Stretch::code::<FUSED>(|_| *stretch, codes, elements);
        }
        right &= rest.is_empty();
    }
    right
}
