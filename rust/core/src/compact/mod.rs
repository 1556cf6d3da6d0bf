//! Processor outputs in an eighth of their bytes, and every bit of them back.
//!
//! What an image processor returns is an affine function of bytes: every channel holds at most
//! 256 different floats. This module finds the channels by sampling, gives every element the code
//! of its value, and drops a plane that is repeated exactly. Nobody tells it what the array is,
//! and nothing rests on its guesses: each element is compared, by its bits, with what its code
//! will be decoded to. What has no code is an escape; what has too many is left alone.
//!
//! The array is a [`Source`]: memory of our own, or foreign memory that others may be writing to,
//! of which every element is judged by the one private copy that was taken of it.
//!
//! A [`Plan`] says how many bytes the codes take before any are written, so that they go
//! straight to where they are kept. A [`Form`] is the way back; [`record`] is an entry outside of
//! the process.

mod book;
mod decode;
mod encode;
mod escapes;
mod few;
mod fit;
mod float32;
mod form;
mod formula;
mod geometry;
mod half;
mod import;
mod interleaved;
pub mod record;
mod sample;
mod source;
mod tables;
#[cfg(test)]
mod tests;

use crate::layout::{DType, Layout};
use crate::simd::Level;
use book::Kind;
pub use book::{Book, Books};
use encode::{Pass, Stop};
pub use escapes::Escape;
pub use few::Run;
use float32::Floats;
pub use form::{Encoding, Form};
pub use geometry::Geometry;
use half::Halves;
use interleaved::{Lanes, MixedFloats, MixedHalves};
use sample::Sample;
pub use source::Source;
use std::sync::Arc;
use tables::Tables;

/// Arrays of fewer bytes are not worth a form.
pub const LEAST: usize = 16 << 10;

/// What is to be written, if a pass over all elements confirms it.
#[derive(Debug, Clone)]
pub struct Plan {
    layout: Layout,
    intent: Intent,
}

#[derive(Debug, Clone)]
enum Intent {
    Runs(Box<[Run]>),
    Few,
    /// A candidate's number, and whether its book was known before.
    Codes {
        geometry: Geometry,
        book: Arc<Book>,
        candidate: usize,
        known: bool,
    },
}

/// Why a plan did not work out.
#[derive(Debug)]
pub enum Refused {
    /// The array has no compact form.
    Raw,
    /// The array needs a plan of its full length: a plane that seemed to be repeated is not.
    Again(Box<Plan>),
}

/// Looks for a compact form of an array, from a sample of it. `None`: it has none, is too small,
/// or is of a type that is not known here.
pub fn plan<'a>(books: &Books, layout: &Layout, source: impl Into<Source<'a>>) -> Option<Plan> {
    let (source, size) = (source.into(), layout.dtype().itemsize());
    let nbytes = source.nbytes();
    if layout.nbytes() != nbytes || nbytes < LEAST || !is_known(layout.dtype()) {
        return None;
    }
    let elements = nbytes / size;
    u32::try_from(elements).ok()?;
    // Single bytes can only be runs, and photographs in bytes are stored often.
    if size == 1 && (1..4).any(|part| sample::is_busy(source, nbytes / 4 * part)) {
        return None;
    }
    let sample = Sample::take(source, size, elements);
    let float = layout.dtype().token() == "<f4";
    let pixels = float || size == 2;
    // Photographs have flat parts; only where nothing else is seen are runs worth a pass.
    let sparse = if pixels { sample.is_flat() } else { sample.changes_less_than(SPARSE) };
    let runs = if sparse { few::runs(source, size) } else { None };
    let intent = match runs {
        Some(runs) => Intent::Runs(runs),
        None if pixels => codes(books, layout, source, &sample, 0, false)?,
        None if size > 2 && few::seems_few(&sample, elements) => Intent::Few,
        None => return None,
    };
    Some(Plan { layout: layout.clone(), intent })
}

/// Runs are looked for when fewer than one of so many neighbours differ.
const SPARSE: usize = 32;

/// The first candidate, from number `from` on, that the sample fits; with a `fresh` book for the
/// very first.
fn codes(
    books: &Books,
    layout: &Layout,
    source: Source,
    sample: &Sample,
    from: usize,
    fresh: bool,
) -> Option<Intent> {
    let (dtype, size) = (layout.dtype(), layout.dtype().itemsize());
    let candidates = geometry::candidates(layout, source.nbytes() / size);
    candidates.into_iter().enumerate().skip(from).find_map(|(candidate, geometry)| {
        let counts = sample.tally(&geometry)?;
        let fresh = fresh && candidate == from;
        let known = if fresh { None } else { books.find(dtype, &counts) };
        let is_known = known.is_some();
        let book = known.or_else(|| books.learn(dtype, &counts, kind(dtype)))?;
        let half = geometry::repeated(layout, &geometry, source, size);
        let geometry = Geometry { half, ..geometry };
        Some(Intent::Codes { geometry, book, candidate, known: is_known })
    })
}

fn kind(dtype: &DType) -> Kind {
    if dtype.itemsize() == 4 { Kind::Lattice } else { Kind::Any }
}

/// Whether elements of this type have forms at all.
fn is_known(dtype: &DType) -> bool {
    let size = match dtype.token() {
        "|b1" | "|i1" | "|u1" => 1,
        "<f2" | "bfloat16" | "<i2" | "<u2" => 2,
        "<f4" | "<i4" | "<u4" => 4,
        "<f8" | "<i8" | "<u8" => 8,
        _ => return false,
    };
    dtype.itemsize() == size
}

impl Plan {
    /// Bytes that [`encode`](Self::encode) will write.
    pub fn codes_len(&self) -> usize {
        match &self.intent {
            Intent::Runs(_) => 0,
            Intent::Few => self.layout.nbytes() / self.layout.dtype().itemsize(),
            Intent::Codes { geometry, .. } => geometry.kept(),
        }
    }

    /// Writes the codes of `source`, the array that was planned for, into `chunks`, which together
    /// have room for [`codes_len`](Self::codes_len). Where the sample has misled, the chunks hold
    /// anything afterwards.
    ///
    /// # Errors
    /// [`Refused`], after at most a few passes.
    pub fn encode<'a>(
        self,
        books: &Books,
        source: impl Into<Source<'a>>,
        chunks: &mut [&mut [u8]],
    ) -> std::result::Result<Form, Refused> {
        self.encode_at(Level::get(), books, source.into(), chunks)
    }

    pub(crate) fn encode_at(
        self,
        level: Level,
        books: &Books,
        source: Source,
        chunks: &mut [&mut [u8]],
    ) -> std::result::Result<Form, Refused> {
        let room: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        if source.nbytes() != self.layout.nbytes() || room < self.codes_len() {
            return Err(Refused::Raw);
        }
        let size = self.layout.dtype().itemsize();
        let form = |encoding| Ok(Form::new(size, source.nbytes() / size, encoding));
        let mut intent = match self.intent {
            Intent::Runs(runs) => return form(Encoding::Runs(runs)),
            Intent::Few => {
                let values = few::pack(source, size, chunks).ok_or(Refused::Raw)?;
                return form(Encoding::Few(values));
            }
            codes => codes,
        };
        // A pass that fails does so early, unless the array is odd only towards its end.
        for _ in 0..PASSES {
            let Intent::Codes { geometry, book, candidate, known } = intent else { break };
            match pass(level, &book, geometry, source, chunks) {
                Ok(escapes) => {
                    books.keep(&book);
                    return form(Encoding::Codes { book, geometry, escapes });
                }
                Err(Stop::Different) => {
                    let geometry = Geometry { half: 0, ..geometry };
                    let intent = Intent::Codes { geometry, book, candidate, known };
                    return Err(Refused::Again(Box::new(Plan { intent, ..self })));
                }
                Err(Stop::Foreign) => (),
            }
            // A book that has grown wrong gets a successor.
            let sample = Sample::take(source, size, source.nbytes() / size);
            let from = if known { candidate } else { candidate + 1 };
            intent = match codes(books, &self.layout, source, &sample, from, known) {
                Some(Intent::Codes { geometry: next, book, candidate, known }) => {
                    // The room for codes is settled.
                    let geometry = Geometry { half: geometry.half, ..next };
                    Intent::Codes { geometry, book, candidate, known }
                }
                _ => break,
            };
        }
        Err(Refused::Raw)
    }
}

/// Books and candidates that are tried on all elements.
const PASSES: usize = 4;

fn pass(
    level: Level,
    book: &Arc<Book>,
    geometry: Geometry,
    source: Source,
    chunks: &mut [&mut [u8]],
) -> std::result::Result<Box<[Escape]>, Stop> {
    let mixed = geometry.is_interleaved();
    let lanes = || Lanes::new(&geometry);
    match book.tables() {
        Tables::Floats(tables) => {
            let of = Floats::new(book, &tables);
            match mixed {
                true => run(level, book, MixedFloats::new(of, lanes()), geometry, source, chunks),
                false => run(level, book, of, geometry, source, chunks),
            }
        }
        Tables::Halves(values) => {
            let of = Halves::new(book, &values);
            match mixed {
                true => {
                    run(level, book, MixedHalves { of, lanes: lanes() }, geometry, source, chunks)
                }
                false => run(level, book, of, geometry, source, chunks),
            }
        }
    }
}

fn run<C: encode::Coder>(
    level: Level,
    book: &Book,
    mut coder: C,
    geometry: Geometry,
    source: Source,
    chunks: &mut [&mut [u8]],
) -> std::result::Result<Box<[Escape]>, Stop> {
    let escapes = level.run(Pass { coder: &mut coder, geometry, source, chunks })?;
    if coder.has_news() {
        book.settle();
    }
    Ok(escapes)
}
