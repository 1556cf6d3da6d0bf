//! Records that nobody vouches for.

use super::{CHECK, CODES, FEW, HEADER, MAGIC, MOST, RAW, RUNS, VERSION, little_endian, malformed};
use crate::compact::book::Books;
use crate::compact::escapes::Escape;
use crate::compact::few::Run;
use crate::compact::fit::Lattice;
use crate::compact::form::{Encoding, Form};
use crate::compact::geometry::Geometry;
use crate::compact::import::Slots;
use crate::compact::sample::widen;
use crate::error::Result;
use crate::layout::{DType, Layout, MAX_RANK};

/// An array of a record.
#[derive(Debug, Clone)]
pub struct Parsed<'a> {
    /// Its name.
    pub name: &'a str,
    /// Element type and shape. A compact array may be very much larger than the record: look at
    /// [`Layout::nbytes`] before making room for it.
    pub layout: Layout,
    /// Its bytes.
    pub stored: Stored<'a>,
}

/// An array's bytes in a record.
#[derive(Debug, Clone)]
pub enum Stored<'a> {
    /// In C order.
    Raw(&'a [u8]),
    /// A form, and its codes.
    Compact(Form, &'a [u8]),
}

/// Reads a record that fills `bytes` exactly. Tables that are equal to, or agree with, those of a
/// known book share it; others become known.
///
/// # Errors
/// [`Error::Malformed`](crate::error::Error::Malformed) with the first thing that is wrong: no
/// record, a version that this library does not read, bytes missing, left over or changed, or parts
/// that contradict each other. Also on big-endian machines.
pub fn read<'a>(bytes: &'a [u8], books: &Books) -> Result<Vec<Parsed<'a>>> {
    little_endian()?;
    let mut input = Input { rest: bytes, len: bytes.len() };
    if input.array()? != MAGIC {
        return Err(malformed("it does not begin as a record does"));
    }
    match u32::from_le_bytes(input.array()?) {
        VERSION => (),
        newer @ VERSION.. => {
            let why = format!("version {newer} is newer than {VERSION}, which this library reads");
            return Err(malformed(why));
        }
        older => return Err(malformed(format!("there is no version {older}"))),
    }
    let count = input.count()?;
    let length = input.long()?;
    if length != bytes.len() {
        return Err(malformed(format!("{} bytes of a record of {length}", bytes.len())));
    }
    let Some(body) = bytes.len().checked_sub(CHECK).filter(|&body| body >= HEADER) else {
        return Err(malformed("it ends in its header"));
    };
    let hash = blake3::hash(&bytes[..body]);
    if hash.as_bytes()[..CHECK] != bytes[body..] {
        return Err(malformed("its checksum differs: it was damaged"));
    }
    if count > MOST {
        return Err(malformed(format!("{count} arrays, at most {MOST}")));
    }
    input.rest = &bytes[HEADER..body];
    let mut arrays: Vec<Parsed> = Vec::with_capacity(count);
    for _ in 0..count {
        let array = input.parsed(books)?;
        if arrays.iter().any(|other| other.name == array.name) {
            return Err(malformed(format!("two arrays are named {:?}", array.name)));
        }
        arrays.push(array);
    }
    match input.rest.len() {
        0 => Ok(arrays),
        n => Err(malformed(format!("{n} bytes behind its arrays"))),
    }
}

/// Entry point for a fuzzer: a record of these contents is read or refused, and what was read
/// decodes.
pub fn fuzz(contents: &[u8]) {
    let length = (contents.len() + 8 + 4 + 8 + CHECK) as u64;
    let (count, arrays) = contents.split_at(contents.len().min(4));
    let mut record = [&MAGIC[..], &VERSION.to_le_bytes(), count].concat();
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(arrays);
    let hash = blake3::hash(&record);
    record.extend_from_slice(&hash.as_bytes()[..CHECK]);
    for array in read(&record, &Books::default()).unwrap_or_default() {
        if let Stored::Compact(form, codes) = array.stored
            && form.nbytes() < 1 << 24
        {
            let mut out = vec![0; form.nbytes()];
            let decoded = form.decode(&[codes], &mut out);
            assert!(decoded.is_ok(), "{decoded:?}");
        }
    }
}

/// What is left to be read: every step is checked, and nothing is allocated that is larger than
/// what the record still holds.
struct Input<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            let why = format!("it ends within its {} bytes, {count} more expected", self.len);
            return Err(malformed(why));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn count(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn long(&mut self) -> Result<usize> {
        let long = u64::from_le_bytes(self.array()?);
        usize::try_from(long).map_err(|_| malformed(format!("a length of {long}")))
    }

    /// So many parts of `N` bytes each.
    fn parts<const N: usize>(&mut self, count: usize) -> Result<&'a [[u8; N]]> {
        Ok(self.take(count.saturating_mul(N))?.as_chunks().0)
    }

    fn text(&mut self) -> Result<&'a str> {
        let count = self.count()?;
        str::from_utf8(self.take(count)?).map_err(|_| malformed("a name that is not UTF-8"))
    }

    fn layout(&mut self) -> Result<Layout> {
        let dtype = DType::new(self.text()?, self.long()?);
        let rank = self.count()?;
        if rank > MAX_RANK {
            return Err(malformed(format!("{rank} axes, at most {MAX_RANK}")));
        }
        let shape = (0..rank).map(|_| self.long()).collect::<Result<Vec<_>>>()?;
        Layout::new(dtype, &shape).map_err(|error| malformed(error.to_string()))
    }

    fn parsed(&mut self, books: &Books) -> Result<Parsed<'a>> {
        let name = self.text()?;
        let layout = self.layout()?;
        let stored = match self.array()? {
            [RAW] => Stored::Raw(self.take(layout.nbytes())?),
            [kind @ (CODES | FEW | RUNS)] => {
                let encoding = match kind {
                    CODES => self.codes(&layout, books)?,
                    FEW => Encoding::Few(self.values()?),
                    _ => Encoding::Runs(self.runs()?),
                };
                let form = Form::checked(&layout, encoding)
                    .map_err(|why| malformed(format!("array {name:?}: {why}")))?;
                let codes = self.take(form.codes_len())?;
                Stored::Compact(form, codes)
            }
            [kind] => return Err(malformed(format!("an array of unknown kind {kind}"))),
        };
        Ok(Parsed { name, layout, stored })
    }

    fn codes(&mut self, layout: &Layout, books: &Books) -> Result<Encoding> {
        let [channels] = self.array()?;
        let elements = layout.nbytes() / layout.dtype().itemsize().max(1);
        let (inner, half) = (self.long()?, self.long()?);
        let geometry = Geometry { elements, channels: channels.into(), inner, half };
        geometry.check(elements).map_err(malformed)?;
        let count = self.count()?;
        let escape = |part: &[u8; 12]| {
            let number = |at| widen(&part[at..at + 4]) as u32;
            Escape { at: number(0), len: number(4), bits: number(8) }
        };
        let escapes = self.parts(count)?.iter().map(escape).collect();
        let slots = (0..channels).map(|_| self.slots()).collect::<Result<Vec<_>>>()?;
        let book = books.import(layout.dtype(), &slots).map_err(malformed)?;
        Ok(Encoding::Codes { book, geometry, escapes })
    }

    fn slots(&mut self) -> Result<Slots> {
        let lattice = match self.array()? {
            [0] => None,
            [1] => {
                let mut float = || Ok(f32::from_le_bytes(self.array()?));
                Some(Lattice { scale: float()?, offset: float()? })
            }
            [other] => return Err(malformed(format!("a lattice of unknown kind {other}"))),
        };
        let filled: [u8; 32] = self.array()?;
        let mut bits = [None; 256];
        for slot in (0..256).filter(|slot| filled[slot / 8] >> (slot % 8) & 1 == 1) {
            bits[slot] = Some(u32::from_le_bytes(self.array()?));
        }
        Ok(Slots { lattice, bits })
    }

    fn values(&mut self) -> Result<Box<[u64]>> {
        let count = self.count()?;
        Ok(self.parts(count)?.iter().map(|&part| u64::from_le_bytes(part)).collect())
    }

    fn runs(&mut self) -> Result<Box<[Run]>> {
        let count = self.count()?;
        let run = |part: &[u8; 12]| {
            let (bits, end) = part.split_at(8);
            Run { bits: widen(bits), end: widen(end) as u32 }
        };
        Ok(self.parts(count)?.iter().map(run).collect())
    }
}
