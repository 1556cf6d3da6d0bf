//! What is kept of an array, and the way back.

use super::book::Book;
use super::decode::{self, Out, Unpack};
use super::escapes::{self, Escape};
use super::few::{self, Run};
use super::geometry::Geometry;
use super::interleaved::{Lanes, MixedTables, MixedValues};
use super::tables::Tables;
use crate::digest::{Algorithm, Hasher, LEN};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::pack::StridedMut;
use crate::simd::Level;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that are decoded to be hashed at a time: they are still in the core's own cache then, and
/// enough for a hash that works on many chunks at once.
const HASHED: usize = 128 << 10;

/// What is wrong with a form.
pub(super) type Why = &'static str;

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

impl Form {
    pub(super) fn new(size: usize, elements: usize, encoding: Encoding) -> Self {
        Self { size, elements, encoding }
    }

    /// A form of unknown origin, if it can be decoded.
    pub(super) fn checked(layout: &Layout, encoding: Encoding) -> std::result::Result<Self, Why> {
        let size = layout.dtype().itemsize();
        if !super::is_known(layout.dtype()) {
            return Err("a form of a type that has none");
        }
        let elements = layout.nbytes() / size;
        if elements == 0 || u32::try_from(elements).is_err() {
            return Err("a form of so many elements");
        }
        match &encoding {
            Encoding::Codes { geometry, escapes, .. } => {
                geometry.check(elements)?;
                escapes::check(escapes, geometry.kept(), size)?;
            }
            Encoding::Few(values) => few::check_values(values, size)?,
            Encoding::Runs(runs) => few::check_runs(runs, elements, size)?,
        }
        Ok(Self { size, elements, encoding })
    }

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

    /// Bytes beside the codes, without the book, which is shared: see [`Books::bytes`](super::Books::bytes).
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
                let kind = if book.has_lattices() { "affine" } else { "palette" };
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

    pub(super) fn decode_at(
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
                let to = To { level, geometry: *geometry, escapes, chunks, start, out };
                let lanes = || Lanes::new(geometry);
                match (book.tables(), geometry.is_interleaved()) {
                    (Tables::Floats(tables), false) => to.unpack(&*tables),
                    (Tables::Floats(tables), true) => to.unpack(MixedTables::new(&tables, lanes())),
                    (Tables::Halves(tables), false) => to.unpack(&*tables),
                    (Tables::Halves(tables), true) => {
                        to.unpack(MixedValues { tables: &tables, lanes: lanes() });
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is to be decoded.
struct To<'a> {
    level: Level,
    geometry: Geometry,
    escapes: &'a [Escape],
    chunks: &'a [&'a [u8]],
    start: usize,
    out: Out<'a>,
}

impl To<'_> {
    fn unpack<D: decode::Decoder>(self, decoder: D) {
        let Self { level, geometry, escapes, chunks, start, out } = self;
        level.run(Unpack { decoder, geometry, escapes, chunks, start, out });
    }
}
