//! Private copies of a book's tables, made when it has grown and shared until it grows again.

use super::book::{Book, Channel};
use super::fit::Lattice;
use super::formula::{Proven, Stretch};
use crate::simd::{Kernel, Level};
use std::sync::Arc;

/// A copy of one channel's table of `f32`. An empty slot holds the bits of a filled one, whose own
/// guess is that other slot: nothing is coded as an empty slot by accident.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub lattice: Lattice,
    pub bits: [u32; 256],
    pub filled: [bool; 256],
    pub proven: Option<Proven>,
    /// Levels for which the formula stands.
    pub stretch: Option<Stretch>,
}

/// A copy of one channel's table of two-byte elements.
#[derive(Debug, Clone)]
pub(super) struct Values {
    pub bits: [u16; 256],
    pub filled: [bool; 256],
}

/// Copies of all tables of a book.
#[derive(Debug, Clone)]
pub(super) enum Tables {
    Floats(Arc<[Table]>),
    Halves(Arc<[Values]>),
}

impl Tables {
    /// As the book is now.
    pub fn load(book: &Book) -> Self {
        let floats = |channel: &Channel| Some(Table::load(channel, channel.lattice?));
        match book.channels.iter().map(floats).collect::<Option<Vec<_>>>() {
            Some(mut tables) => {
                for (table, channel) in tables.iter_mut().zip(&book.channels) {
                    let prove = |level: Level| level.run(Proof { table, channel });
                    // Copies are used at any level.
                    table.take(Level::all().map(prove).reduce(Option::and).flatten());
                }
                Self::Floats(tables.into())
            }
            None => Self::Halves(book.channels.iter().map(Values::load).collect()),
        }
    }
}

impl Values {
    fn load(channel: &Channel) -> Self {
        let (mut bits, mut filled) = ([0; 256], [false; 256]);
        for slot in 0..=255u8 {
            if let Some(found) = channel.get(slot) {
                (bits[usize::from(slot)], filled[usize::from(slot)]) = (found as u16, true);
            }
        }
        Self { bits, filled }
    }
}

impl Table {
    fn load(channel: &Channel, lattice: Lattice) -> Self {
        let (mut bits, mut filled, mut any) = ([0; 256], [false; 256], 0);
        for slot in 0..=255u8 {
            if let Some(found) = channel.get(slot) {
                (bits[usize::from(slot)], filled[usize::from(slot)]) = (found, true);
                any = found;
            }
        }
        for (bits, filled) in bits.iter_mut().zip(&filled) {
            *bits = if *filled { *bits } else { any };
        }
        Self { lattice, bits, filled, proven: None, stretch: None }
    }

    /// The channel's formula, as far as it holds at this level.
    #[inline(always)]
    pub fn prove<const FUSED: bool>(&self, channel: &Channel) -> Option<Proven> {
        channel.formula()?.prove::<FUSED>(&self.bits, &self.filled)
    }

    pub fn take(&mut self, proven: Option<Proven>) {
        self.proven = proven;
        self.stretch = proven.map(|proven| proven.stretch(self.lattice, &self.filled));
    }
}

struct Proof<'a> {
    table: &'a Table,
    channel: &'a Channel,
}

impl Kernel for Proof<'_> {
    type Out = Option<Proven>;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Self::Out {
        self.table.prove::<FUSED>(self.channel)
    }
}
