//! Processor outputs in an eighth of their bytes, and every bit of them back.
//!
//! What an image processor returns is an affine function of bytes: every channel holds at most
//! 256 different floats. This module finds the channels by sampling, gives every element the code
//! of its value, and drops a plane that is repeated exactly. Nobody tells it what the array is,
//! and nothing rests on its guesses: each element is compared, by its bits, with what its code
//! will be decoded to. What has no code is an escape; what has too many is left alone.
//!
//! A [`Plan`] says how many bytes the codes take before any are written, so that they go
//! straight to where they are kept.

mod book;
mod decode;
mod encode;
mod escapes;
mod few;
mod fit;
mod float32;
mod formula;
mod geometry;
mod half;
mod interleaved;
mod sample;
mod source;
#[cfg(test)]
mod tests;

use crate::digest::{Algorithm, Hasher, LEN};
use crate::error::{Error, Result};
use crate::layout::{DType, Layout};
use crate::pack::StridedMut;
use crate::simd::Level;
use book::Kind;
pub use book::{Book, Books};
use decode::{Out, Unpack};
use encode::{Pass, Stop};
pub use escapes::Escape;
pub use few::Run;
pub use geometry::Geometry;
use interleaved::Interleaved;
use sample::Sample;
pub use source::Source;
use std::ops::Range;
use std::sync::Arc;

/// Arrays of fewer bytes are not worth a form.
pub const LEAST: usize = 16 << 10;

/// Bytes that are decoded to be hashed at a time: they are still in the core's own cache then, and
/// enough for a hash that works on many chunks at once.
const HASHED: usize = 128 << 10;

/// What is to be written, if a pass over all elements confirms it.
#[derive(Debug)]
pub struct Plan {
    layout: Layout,
    intent: Intent,
}

#[derive(Debug)]
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

/// How one array's bytes follow from its codes.
#[derive(Debug, Clone)]
pub struct Form {
    size: usize,
    elements: usize,
    encoding: Encoding,
}

/// The kinds of forms.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Encoding {
    /// One byte for each element that is not repeated, to be looked up in its channel's table.
    Codes {
        /// The tables.
        book: Arc<Book>,
        /// Channels and repetition.
        geometry: Geometry,
        /// Elements without a code, in order.
        escapes: Box<[Escape]>,
    },
    /// One byte for each element, an index of these.
    Few(Box<[u64]>),
    /// No codes at all.
    Runs(Box<[Run]>),
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
        let form = |encoding| Ok(Form { size, elements: source.nbytes() / size, encoding });
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
                    book.settle();
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
    match float32::Floats::load(book) {
        Some(coder) => pass_with(level, coder, geometry, source, chunks),
        None => pass_with(level, half::Halves::load(book), geometry, source, chunks),
    }
}

fn pass_with<C: encode::Coder>(
    level: Level,
    mut coder: C,
    geometry: Geometry,
    source: Source,
    chunks: &mut [&mut [u8]],
) -> std::result::Result<Box<[Escape]>, Stop> {
    if geometry.is_interleaved() {
        let mut coder = Interleaved { of: coder, geometry };
        return level.run(Pass { coder: &mut coder, geometry, source, chunks });
    }
    level.run(Pass { coder: &mut coder, geometry, source, chunks })
}

fn unpack_with<D: decode::Decoder>(
    level: Level,
    decoder: D,
    geometry: Geometry,
    escapes: &[Escape],
    chunks: &[&[u8]],
    start: usize,
    out: Out,
) {
    if geometry.is_interleaved() {
        let decoder = Interleaved { of: decoder, geometry };
        return level.run(Unpack { decoder, geometry, escapes, chunks, start, out });
    }
    level.run(Unpack { decoder, geometry, escapes, chunks, start, out });
}

impl Form {
    /// Bytes of the array.
    pub fn nbytes(&self) -> usize {
        self.elements * self.size
    }

    /// Bytes of an element.
    pub fn itemsize(&self) -> usize {
        self.size
    }

    /// Bytes of codes.
    pub fn codes_len(&self) -> usize {
        match &self.encoding {
            Encoding::Codes { geometry, .. } => geometry.kept(),
            Encoding::Few(_) => self.elements,
            Encoding::Runs(_) => 0,
        }
    }

    /// Bytes beside the codes, without the book, which is shared: see [`Books::bytes`].
    pub fn aside(&self) -> usize {
        match &self.encoding {
            Encoding::Codes { escapes, .. } => size_of_val(&**escapes),
            Encoding::Few(values) => size_of_val(&**values),
            Encoding::Runs(runs) => size_of_val(&**runs),
        }
    }

    /// The parts.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// The form in words: `u8 affine ×3, repeated plane dropped, 2400 escapes`.
    pub fn name(&self) -> String {
        match &self.encoding {
            Encoding::Runs(runs) => format!("{} runs", runs.len()),
            Encoding::Few(values) => format!("u8 palette of {}", values.len()),
            Encoding::Codes { book, geometry, escapes } => {
                let affine = book.channels.iter().all(|channel| channel.lattice.is_some());
                let kind = if affine { "affine" } else { "palette" };
                let plane = if geometry.half > 0 { ", repeated plane dropped" } else { "" };
                let odd = match escapes.len() {
                    0 => String::new(),
                    1 => ", 1 escape".into(),
                    n => format!(", {n} escapes"),
                };
                format!("u8 {kind} ×{}{plane}{odd}", geometry.channels)
            }
        }
    }

    /// Writes the whole array. `chunks` are those that were written, in the same order; each may
    /// be cut behind the last code.
    ///
    /// # Errors
    /// [`Error::Layout`] when the chunks hold fewer codes than the form has, or `out` is not as
    /// long as the array.
    pub fn decode(&self, chunks: &[&[u8]], out: &mut [u8]) -> Result<()> {
        self.decode_at(Level::get(), chunks, 0..self.elements, Out::Private(out))
    }

    /// Writes the elements of a range, as [`decode`](Self::decode).
    ///
    /// # Errors
    /// As there, and when the range is not one of the array's.
    pub fn decode_range(
        &self,
        chunks: &[&[u8]],
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        self.decode_at(Level::get(), chunks, range, Out::Private(out))
    }

    /// The content hash of the array, which is decoded for it piece by piece.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn hash(&self, chunks: &[&[u8]]) -> Result<[u8; LEN]> {
        let mut hasher = Hasher::new(Algorithm::Blake3);
        let mut block = vec![0; HASHED];
        for start in (0..self.elements).step_by(HASHED / self.size) {
            let end = self.elements.min(start + HASHED / self.size);
            let block = &mut block[..(end - start) * self.size];
            self.decode_range(chunks, start..end, block)?;
            hasher.update(block);
        }
        Ok(hasher.finish())
    }

    /// Writes the whole array, as [`decode`](Self::decode), into foreign memory of any strides.
    ///
    /// # Errors
    /// As there.
    pub fn decode_into(&self, chunks: &[&[u8]], out: &StridedMut) -> Result<()> {
        self.decode_at(Level::get(), chunks, 0..self.elements, Out::Foreign(out))
    }

    fn decode_at(
        &self,
        level: Level,
        chunks: &[&[u8]],
        range: Range<usize>,
        out: Out,
    ) -> Result<()> {
        let room: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        let inside = range.start <= range.end && range.end <= self.elements;
        if !inside || out.nbytes() != range.len() * self.size || room < self.codes_len() {
            let (out, all) = (out.nbytes(), self.elements);
            return Err(Error::Layout(format!(
                "{out} bytes and {room} codes for elements {range:?} of {all}"
            )));
        }
        let start = range.start;
        match &self.encoding {
            Encoding::Runs(runs) => few::unpack_runs(runs, self.size, start, out),
            Encoding::Few(values) => few::unpack(values, self.size, chunks, start, out),
            Encoding::Codes { book, geometry, escapes } => {
                let geometry = *geometry;
                match float32::Floats::load(book) {
                    Some(decoder) => {
                        unpack_with(level, decoder, geometry, escapes, chunks, start, out);
                    }
                    None => {
                        let decoder = half::Values::load(book);
                        unpack_with(level, decoder, geometry, escapes, chunks, start, out);
                    }
                }
            }
        }
        Ok(())
    }
}
