//! Books that were made elsewhere.

use super::book::{Book, Books, Channel};
use super::fit::Lattice;
use super::tables::Tables;
use crate::layout::DType;
use std::iter;
use std::sync::Arc;

/// What a channel's table was where it came from.
#[derive(Debug)]
pub(super) struct Slots {
    pub lattice: Option<Lattice>,
    pub bits: [Option<u32>; 256],
}

/// Why tables cannot be a book's.
type Why = &'static str;

impl Slots {
    /// What [`Channel`] relies on: without it, an odd table could make later images wrong.
    fn check(&self, size: usize) -> Result<(), Why> {
        let filled = || (0..=255u8).zip(&self.bits).filter_map(|(at, bits)| Some((at, (*bits)?)));
        if filled().next().is_none() {
            return Err("an empty table");
        }
        match self.lattice {
            None if size != 2 => Err("a table without a lattice"),
            None if filled().any(|(_, bits)| bits > u16::MAX.into()) => Err("a value too long"),
            None => Ok(()),
            Some(_) if size != 4 => Err("a lattice of elements that are no floats"),
            Some(lattice) if !lattice.is_usable() => Err("a lattice without a step"),
            Some(lattice) => {
                let right = |(at, bits)| lattice.slot(f32::from_bits(bits)) == Some(at);
                if filled().all(right) { Ok(()) } else { Err("a value in another's slot") }
            }
        }
    }

    /// Whether a table has all these values, and of which it could have them all.
    fn agrees(&self, channel: &Channel) -> bool {
        let same = channel.lattice == self.lattice;
        let mut shared = 0;
        let slots = (0..=255u8).zip(&self.bits).filter_map(|(at, bits)| Some((at, (*bits)?)));
        same && slots.filter_map(|(at, bits)| Some((bits, channel.get(at)?))).all(
            |(bits, known)| {
                shared += 1;
                bits == known
            },
        ) && shared > 0
    }

    /// Fills a table; `false` when it holds something else by now.
    fn fill(&self, channel: &Channel) -> bool {
        let fits =
            |(at, bits): (u8, &Option<u32>)| bits.is_none_or(|bits| channel.fill(at, bits) == bits);
        (0..=255u8).zip(&self.bits).all(fits)
    }

    /// Whether all its slots are filled in a copy of the table.
    fn is_within(&self, filled: &[bool; 256]) -> bool {
        iter::zip(&self.bits, filled).all(|(bits, &filled)| bits.is_none() || filled)
    }
}

impl Books {
    /// A book of these tables: a known one, if it agrees in every slot that both have, else a new
    /// one, which is known from now on.
    pub(super) fn import(&self, dtype: &DType, tables: &[Slots]) -> Result<Arc<Book>, Why> {
        tables.iter().try_for_each(|table| table.check(dtype.itemsize()))?;
        let agree = |book: &&Arc<Book>| {
            iter::zip(tables, &book.channels).all(|(table, channel)| table.agrees(channel))
        };
        let known = self.alike(dtype, tables.len());
        for book in known.iter().filter(agree) {
            let within =
                match book.tables() {
                    Tables::Floats(copies) => iter::zip(tables, &*copies)
                        .all(|(table, copy)| table.is_within(&copy.filled)),
                    Tables::Halves(copies) => iter::zip(tables, &*copies)
                        .all(|(table, copy)| table.is_within(&copy.filled)),
                };
            if !within {
                let mut pairs = iter::zip(tables, &book.channels);
                if !pairs.all(|(table, channel)| table.fill(channel)) {
                    continue; // Somebody else has filled it with other values.
                }
                book.settle();
            }
            self.keep(book);
            return Ok(book.clone());
        }
        let channels = tables.iter().map(|table| {
            let channel = Channel::new(table.lattice);
            table.fill(&channel);
            channel
        });
        let book = Arc::new(Book::new(self, dtype, channels.collect()));
        book.settle();
        self.keep(&book);
        Ok(book)
    }
}
