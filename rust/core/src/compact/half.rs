//! Elements of two bytes: any 256 values of a channel, looked up by their bits.

use super::book::{Book, Channel};
use super::decode::Decoder;
use super::encode::{Coder, equal};
use super::escapes::low;
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
    fn load(channel: &Channel) -> Self {
        let codes = vec![0u16; 1 << 16].into_boxed_slice();
        let codes = codes.try_into().unwrap_or_else(|_| Box::new([0; 1 << 16]));
        let mut reverse = Self { codes, full: false };
        for slot in 0..=255 {
            if let Some(bits) = channel.get(slot) {
                reverse.learn(slot, bits);
            }
        }
        reverse
    }

    fn learn(&mut self, slot: u8, bits: u32) {
        let code = &mut self.codes[usize::from(bits as u16)];
        if *code == 0 {
            *code = KNOWN | u16::from(slot);
        }
    }
}

/// Codes elements by a book.
pub(super) struct Halves {
    book: Arc<Book>,
    channels: Box<[Reverse]>,
}

impl Halves {
    /// Turns the tables around.
    pub fn load(book: &Arc<Book>) -> Self {
        let channels = book.channels.iter().map(Reverse::load).collect();
        Self { book: book.clone(), channels }
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
            for slot in 0..=255 {
                reverse.learn(slot, channel.fill(slot, bits.into()));
                if known(reverse) != 0 {
                    break;
                }
            }
            reverse.full = known(reverse) == 0;
        }
        Some(known(reverse)).filter(|&code| code != 0).map(|code| code as u8)
    }
}

/// A copy of the tables of a book.
pub(super) struct Values(Box<[[u16; 256]]>);

impl Values {
    /// Copies the tables.
    pub fn load(book: &Book) -> Self {
        let load = |channel: &Channel| {
            std::array::from_fn(|slot| channel.get(slot as u8).unwrap_or(0) as u16)
        };
        Self(book.channels.iter().map(load).collect())
    }
}

impl Decoder for Values {
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
        let values = &self.0[channel];
        let value = |code: u8| u64::from(values[usize::from(code)]);
        let (fours, last) = codes.as_chunks::<4>();
        out.each::<4, 8, _>(at, fours, |&[a, b, c, d]| {
            (value(a) | value(b) << 16 | value(c) << 32 | value(d) << 48).to_le_bytes()
        });
        out.each::<1, 2, _>(at + 8 * fours.len(), last, |&code| low::<2>(value(code)));
    }
}
