//! Entries outside of the process: one record holds all arrays of an entry, with whatever it takes
//! to decode them.
//!
//! All numbers are little-endian and of fixed width:
//!
//! ```text
//! "mwrecord"  version u32  arrays u32  length of the record u64
//! for each array:
//!     name    u32 bytes…
//!     token   u32 bytes…  itemsize u64  rank u32  axes u64…
//!     kind    u8
//!     kind 0, raw:    –
//!     kind 1, codes:  channels u8  inner u64  half u64
//!                     escapes u32  (at u32  len u32  bits u32)…
//!                     for each channel: lattice u8 (scale f32  offset f32)
//!                                       filled slots 256 bits  their values u32…
//!     kind 2, few:    values u32  u64…
//!     kind 3, runs:   runs u32  (bits u64  end u32)…
//!     payload: the array's bytes, or its codes
//! the first 16 bytes of the BLAKE3 hash of all that
//! ```
//!
//! The hash finds damage; it does not say who wrote the record. Whoever can write records can
//! make up pixels, but nothing else: a reader checks every length before it allocates, and every
//! invariant that a decoder or a later encoder relies on. Codes are not looked at: decoding is safe
//! for any of them.

mod read;

use super::form::{Encoding, Form};
use super::tables::Tables;
use crate::error::{Error, Result};
use crate::layout::Layout;
pub use read::{Parsed, Stored, fuzz, read};
use std::iter;

const MAGIC: [u8; 8] = *b"mwrecord";
/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 1;
/// Arrays that one record may hold.
pub const MOST: usize = 256;
/// Bytes of magic, version, count and length.
const HEADER: usize = 24;
/// Bytes of the hash that are kept.
const CHECK: usize = 16;
/// Bytes that are hashed while they are still in the core's own cache.
const BLOCK: usize = 128 << 10;

const RAW: u8 = 0;
const CODES: u8 = 1;
const FEW: u8 = 2;
const RUNS: u8 = 3;

/// An array that is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Its name.
    pub name: &'a str,
    /// Element type and shape.
    pub layout: &'a Layout,
    /// Its bytes.
    pub content: Content<'a>,
}

/// An array's bytes as they are kept, in pieces; the last ones may reach further than needed.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// In C order.
    Raw(&'a [&'a [u8]]),
    /// A form and its codes.
    Compact(&'a Form, &'a [&'a [u8]]),
}

/// A record that is ready to be written: what may grow meanwhile was copied.
#[derive(Debug)]
pub struct Draft<'a> {
    items: Vec<(Item<'a>, Option<Tables>)>,
    nbytes: usize,
}

impl<'a> Draft<'a> {
    /// Measures a record of these arrays.
    ///
    /// # Errors
    /// [`Error::Layout`] when there are more than [`MOST`] arrays or two of one name, or when
    /// pieces or a form do not suit their layout; [`Error::Malformed`] on a big-endian machine.
    pub fn new(items: &[Item<'a>]) -> Result<Self> {
        little_endian()?;
        if items.len() > MOST {
            let n = items.len();
            return Err(Error::Layout(format!("a record of {n} arrays, at most {MOST}")));
        }
        let mut nbytes = HEADER + CHECK;
        let mut ready = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let Item { name, layout, content } = item;
            let bad = |why: &str| Error::Layout(format!("array {name:?} of a record: {why}"));
            if items[..i].iter().any(|other| other.name == *name) {
                return Err(bad("its name comes twice"));
            }
            if name.len().max(layout.dtype().token().len()) > u32::MAX as usize {
                return Err(bad("its name or type is too long"));
            }
            let room: usize = content.pieces().iter().map(|piece| piece.len()).sum();
            if room < content.payload(layout) {
                return Err(bad("bytes are missing"));
            }
            let mut tables = None;
            if let Content::Compact(form, _) = content {
                if form.nbytes() != layout.nbytes() || form.itemsize() != layout.dtype().itemsize()
                {
                    return Err(bad("its form is another array's"));
                }
                if let Encoding::Codes { book, .. } = form.encoding() {
                    tables = Some(book.tables());
                }
            }
            nbytes += measure(item, tables.as_ref());
            ready.push((*item, tables));
        }
        Ok(Self { items: ready, nbytes })
    }

    /// Bytes of the record.
    pub fn nbytes(&self) -> usize {
        self.nbytes
    }

    /// Appends the record to `out`, in one allocation at most.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve_exact(self.nbytes);
        let start = out.len();
        let mut sink = Hashed { out, hasher: blake3::Hasher::new() };
        sink.put(&MAGIC);
        sink.put(&VERSION.to_le_bytes());
        sink.count(self.items.len());
        sink.put(&(self.nbytes as u64).to_le_bytes());
        for (item, tables) in &self.items {
            head(item, tables.as_ref(), &mut sink);
            let mut left = item.content.payload(item.layout);
            for piece in item.content.pieces() {
                let piece = &piece[..left.min(piece.len())];
                sink.put(piece);
                left -= piece.len();
            }
        }
        let hash = sink.hasher.finalize();
        out.extend_from_slice(&hash.as_bytes()[..CHECK]);
        debug_assert_eq!(out.len() - start, self.nbytes);
    }
}

impl<'a> Content<'a> {
    fn pieces(&self) -> &'a [&'a [u8]] {
        match self {
            Self::Raw(pieces) | Self::Compact(_, pieces) => pieces,
        }
    }

    fn payload(&self, layout: &Layout) -> usize {
        match self {
            Self::Raw(_) => layout.nbytes(),
            Self::Compact(form, _) => form.codes_len(),
        }
    }
}

/// Where the parts of a record go.
trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn count(&mut self, count: usize) {
        self.put(&(count as u32).to_le_bytes());
    }

    fn long(&mut self, number: usize) {
        self.put(&(number as u64).to_le_bytes());
    }
}

/// Counts.
struct Length(usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Writes, and hashes what was written.
struct Hashed<'a> {
    out: &'a mut Vec<u8>,
    hasher: blake3::Hasher,
}

impl Sink for Hashed<'_> {
    fn put(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            self.out.extend_from_slice(block);
            self.hasher.update(block);
        }
    }
}

fn measure(item: &Item, tables: Option<&Tables>) -> usize {
    let mut length = Length(item.content.payload(item.layout));
    head(item, tables, &mut length);
    length.0
}

/// All of an array but its payload.
fn head(item: &Item, tables: Option<&Tables>, sink: &mut impl Sink) {
    let Item { name, layout, content } = item;
    sink.count(name.len());
    sink.put(name.as_bytes());
    sink.count(layout.dtype().token().len());
    sink.put(layout.dtype().token().as_bytes());
    sink.long(layout.dtype().itemsize());
    sink.count(layout.shape().len());
    layout.shape().iter().for_each(|&axis| sink.long(axis));
    let Content::Compact(form, _) = content else {
        return sink.put(&[RAW]);
    };
    match form.encoding() {
        Encoding::Codes { geometry, escapes, .. } => {
            sink.put(&[CODES, geometry.channels as u8]);
            sink.long(geometry.inner);
            sink.long(geometry.half);
            sink.count(escapes.len());
            for escape in escapes {
                for number in [escape.at, escape.len, escape.bits] {
                    sink.put(&number.to_le_bytes());
                }
            }
            if let Some(tables) = tables {
                put_tables(tables, sink);
            }
        }
        Encoding::Few(values) => {
            sink.put(&[FEW]);
            sink.count(values.len());
            values.iter().for_each(|value| sink.put(&value.to_le_bytes()));
        }
        Encoding::Runs(runs) => {
            sink.put(&[RUNS]);
            sink.count(runs.len());
            for run in runs {
                sink.put(&run.bits.to_le_bytes());
                sink.put(&run.end.to_le_bytes());
            }
        }
    }
}

fn put_tables(tables: &Tables, sink: &mut impl Sink) {
    match tables {
        Tables::Floats(tables) => tables.iter().for_each(|table| {
            sink.put(&[1]);
            sink.put(&table.lattice.scale.to_le_bytes());
            sink.put(&table.lattice.offset.to_le_bytes());
            put_slots(&table.filled, table.bits.iter().copied(), sink);
        }),
        Tables::Halves(tables) => tables.iter().for_each(|table| {
            sink.put(&[0]);
            put_slots(&table.filled, table.bits.iter().map(|&bits| bits.into()), sink);
        }),
    }
}

fn put_slots(filled: &[bool; 256], bits: impl Iterator<Item = u32>, sink: &mut impl Sink) {
    for eight in filled.chunks(8) {
        let byte = |byte, (i, &bit): (usize, &bool)| byte | u8::from(bit) << i;
        sink.put(&[eight.iter().enumerate().fold(0, byte)]);
    }
    for (bits, _) in iter::zip(bits, filled).filter(|&(_, &filled)| filled) {
        sink.put(&bits.to_le_bytes());
    }
}

/// Tables, tokens and escapes name bits in the order that a little-endian machine has them.
fn little_endian() -> Result<()> {
    if cfg!(target_endian = "big") {
        return Err(malformed("records are neither read nor written on big-endian machines"));
    }
    Ok(())
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "record", why: why.into() }
}
