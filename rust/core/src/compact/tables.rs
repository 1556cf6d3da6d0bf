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
                let level = Level::get();
                if level.is_fused() {
                    level.run(Proof { tables: &mut tables, channels: &book.channels });
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

    /// Takes up the channel's formula, as far as it holds. To be compiled with FMA.
    #[inline(always)]
    pub fn prove(&mut self, channel: &Channel) {
        self.proven = channel.formula().and_then(|f| f.prove(&self.bits, &self.filled));
        self.stretch = self.proven.map(|proven| proven.stretch(self.lattice, &self.filled));
    }
}

struct Proof<'a> {
    tables: &'a mut [Table],
    channels: &'a [Channel],
}

impl Kernel for Proof<'_> {
    type Out = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        if FUSED {
            for (table, channel) in self.tables.iter_mut().zip(self.channels) {
                table.prove(channel);
            }
        }
    }
}
