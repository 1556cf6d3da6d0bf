//! Elements of two bytes: any 256 values of a channel, looked up by their bits.

use super::book::Book;
use super::decode::Decoder;
use super::encode::{Coder, equal};
use super::escapes::low;
use super::tables::Values;
use crate::pack::FlatMut;
use std::sync::Arc;

/// A value that is new, and repeated this often, is rather padding than a level.
const PADDING: usize = 64;
const KNOWN: u16 = 256;

/// From bits to codes.
struct Reverse {
    codes: Box<[u16; 1 << 16]>,
    full: bool,
}

impl Reverse {
    fn load(values: &Values) -> Self {
        let codes = vec![0u16; 1 << 16].into_boxed_slice();
        let codes = codes.try_into().unwrap_or_else(|_| Box::new([0; 1 << 16]));
        let mut reverse = Self { codes, full: false };
        for slot in (0..=255).filter(|&slot| values.filled[usize::from(slot)]) {
            reverse.learn(slot, values.bits[usize::from(slot)]);
        }
        reverse
    }

    fn learn(&mut self, slot: u8, bits: u16) {
        let code = &mut self.codes[usize::from(bits)];
        if *code == 0 {
            *code = KNOWN | u16::from(slot);
        }
    }
}

/// Codes elements by a book.
pub(super) struct Halves {
    book: Arc<Book>,
    channels: Box<[Reverse]>,
    news: bool,
}

impl Halves {
    /// Turns copies of the book's tables around.
    pub fn new(book: &Arc<Book>, values: &[Values]) -> Self {
        let channels = values.iter().map(Reverse::load).collect();
        Self { book: book.clone(), channels, news: false }
    }

    /// The code of an element.
    #[inline(always)]
    pub fn find(&self, channel: usize, element: [u8; 2]) -> Option<u8> {
        let found = self.channels[channel].codes[usize::from(u16::from_le_bytes(element))];
        (found != 0).then_some(found as u8)
    }
}

impl Coder for Halves {
    const SIZE: usize = 2;

    #[inline(always)]
    fn code<const FUSED: bool>(&self, channel: usize, source: &[u8], codes: &mut [u8]) -> bool {
        let reverse = &self.channels[channel].codes;
        let mut all = KNOWN;
        for (code, &element) in codes.iter_mut().zip(source.as_chunks::<2>().0) {
            let found = reverse[usize::from(u16::from_le_bytes(element))];
            *code = found as u8;
            all &= found;
        }
        all != 0
    }

    fn place(&mut self, channel: usize, source: &[u8]) -> Option<u8> {
        let bits = u16::from_le_bytes(*source.first_chunk()?);
        let (reverse, channel) = (&mut self.channels[channel], &self.book.channels[channel]);
        let known = |reverse: &Reverse| reverse.codes[usize::from(bits)];
        if known(reverse) == 0 {
            if reverse.full || equal(source, 2, PADDING) >= PADDING {
                return None;
            }
            // Others may be filling the same book: what they were first with is learnt, too.
            self.news = true;
            for slot in 0..=255 {
                reverse.learn(slot, channel.fill(slot, bits.into()) as u16);
                if known(reverse) != 0 {
                    break;
                }
            }
            reverse.full = known(reverse) == 0;
        }
        Some(known(reverse)).filter(|&code| code != 0).map(|code| code as u8)
    }

    fn has_news(&self) -> bool {
        self.news
    }
}

impl Decoder for &[Values] {
    const SIZE: usize = 2;

    /// Four elements to a store.
    #[inline(always)]
    fn decode<const FUSED: bool>(
        &self,
        channel: usize,
        codes: &[u8],
        at: usize,
        out: &mut FlatMut,
    ) {
        let values = &self[channel].bits;
        let value = |code: u8| u64::from(values[usize::from(code)]);
        let (fours, last) = codes.as_chunks::<4>();
        out.each::<4, 8, _>(at, fours, |&[a, b, c, d]| {
            (value(a) | value(b) << 16 | value(c) << 32 | value(d) << 48).to_le_bytes()
        });
        out.each::<1, 2, _>(at + 8 * fours.len(), last, |&code| low::<2>(value(code)));
    }
}
