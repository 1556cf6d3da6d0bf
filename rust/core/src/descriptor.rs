//! The wire record of a reference: what names one array when its bytes stay behind.
//!
//! Little-endian, self-delimiting and canonical: one value has one encoding, and the decoder
//! accepts nothing else. `docs/refs.md` gives the format byte by byte.

use std::fmt;

use crate::error::{Error, Result};
use crate::layout::{DType, Layout, MAX_RANK};

/// First byte of every record.
pub const VERSION: u8 = 1;

/// Bytes of a digest, a cache key or a fingerprint in a record.
pub const DIGEST: usize = 32;

const CHECK: usize = 4;

const TORCH: u16 = 1;
const KEY: u16 = 1 << 1;
const FINGERPRINT: u16 = 1 << 2;
const IMAGE: u16 = 1 << 3;
const SOURCE: u16 = 1 << 4;
const ORIGIN_TEXT: u16 = 1 << 5;
const ORIGIN_BYTES: u16 = 1 << 6;
const ARGUMENTS: u16 = 1 << 7;
const FLAGS: u16 = (1 << 8) - 1;

/// Where a source comes from: a path or URI, or the encoded bytes themselves.
#[derive(Clone, PartialEq, Eq)]
pub enum Origin {
    /// A path or URI.
    Text(Box<str>),
    /// An encoded image.
    Bytes(Box<[u8]>),
}

impl fmt::Debug for Origin {
    /// A URI may hold credentials: only its kind and length are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
        }
    }
}

/// One array, named by its content, and what is known of how to make it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The array's name in its cache entry or in the structure it was taken from.
    pub name: Box<str>,
    /// Element type and shape.
    pub layout: Layout,
    /// The array was a torch tensor and comes back as one.
    pub torch: bool,
    /// Identity of the array: element type, shape and content.
    pub digest: [u8; DIGEST],
    /// Key of the cache entry that holds it.
    pub key: Option<[u8; DIGEST]>,
    /// Fingerprint of the processor that made it, call arguments included.
    pub fingerprint: Option<[u8; DIGEST]>,
    /// Identity of the image's pixels.
    pub image: Option<[u8; DIGEST]>,
    /// Identity of the encoded image.
    pub source: Option<[u8; DIGEST]>,
    /// The encoded image, or where to find it.
    pub origin: Option<Origin>,
    /// The processor's call arguments, as JSON text that only Python reads.
    pub arguments: Option<Box<str>>,
}

impl Descriptor {
    /// The record.
    pub fn encode(&self) -> Vec<u8> {
        let digests = [self.key, self.fingerprint, self.image, self.source];
        let mut out = Vec::with_capacity(256);
        out.push(VERSION);
        out.extend_from_slice(&self.flags().to_le_bytes());
        out.extend_from_slice(&self.digest);
        digests.iter().flatten().for_each(|d| out.extend_from_slice(d));
        put_bytes(&mut out, self.name.as_bytes());
        put_bytes(&mut out, self.layout.dtype().token().as_bytes());
        put_length(&mut out, self.layout.dtype().itemsize());
        put_length(&mut out, self.layout.shape().len());
        self.layout.shape().iter().for_each(|&n| put_length(&mut out, n));
        match &self.origin {
            Some(Origin::Text(text)) => put_bytes(&mut out, text.as_bytes()),
            Some(Origin::Bytes(bytes)) => put_bytes(&mut out, bytes),
            None => {}
        }
        if let Some(arguments) = &self.arguments {
            put_bytes(&mut out, arguments.as_bytes());
        }
        let check = check(&out);
        out.extend_from_slice(&check);
        out
    }

    /// Reads a record that fills `bytes` exactly.
    ///
    /// # Errors
    /// [`Error::Malformed`] for anything that [`encode`](Self::encode) does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (descriptor, used) = Self::read(bytes)?;
        if used < bytes.len() {
            return Err(malformed(format!("{} bytes after its end", bytes.len() - used)));
        }
        Ok(descriptor)
    }

    /// Reads the record at the start of `bytes`; returns it with its length.
    ///
    /// # Errors
    /// [`Error::Malformed`] for anything that [`encode`](Self::encode) does not produce.
    pub fn read(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut input = Reader { bytes, at: 0 };
        let [version] = input.array()?;
        if version != VERSION {
            return Err(malformed(format!("version {version}, this build reads {VERSION}")));
        }
        let flags = u16::from_le_bytes(input.array()?);
        if flags & !FLAGS != 0 || flags & ORIGIN_TEXT != 0 && flags & ORIGIN_BYTES != 0 {
            return Err(malformed(format!("flags {flags:#06x}")));
        }
        let descriptor = Self {
            torch: flags & TORCH != 0,
            digest: input.array()?,
            key: input.when(flags & KEY, Reader::array)?,
            fingerprint: input.when(flags & FINGERPRINT, Reader::array)?,
            image: input.when(flags & IMAGE, Reader::array)?,
            source: input.when(flags & SOURCE, Reader::array)?,
            name: input.text()?,
            layout: input.layout()?,
            origin: match flags & (ORIGIN_TEXT | ORIGIN_BYTES) {
                0 => None,
                ORIGIN_TEXT => Some(Origin::Text(input.text()?)),
                _ => Some(Origin::Bytes(input.bytes()?.into())),
            },
            arguments: input.when(flags & ARGUMENTS, Reader::text)?,
        };
        let body = input.at;
        if input.array()? != check(&bytes[..body]) {
            return Err(malformed("its check bytes do not match".into()));
        }
        Ok((descriptor, input.at))
    }

    fn flags(&self) -> u16 {
        let origin = match self.origin {
            Some(Origin::Text(_)) => ORIGIN_TEXT,
            Some(Origin::Bytes(_)) => ORIGIN_BYTES,
            None => 0,
        };
        let optional = [
            (self.torch, TORCH),
            (self.key.is_some(), KEY),
            (self.fingerprint.is_some(), FINGERPRINT),
            (self.image.is_some(), IMAGE),
            (self.source.is_some(), SOURCE),
            (self.arguments.is_some(), ARGUMENTS),
        ];
        optional.iter().filter(|(set, _)| *set).fold(origin, |flags, (_, bit)| flags | bit)
    }
}

/// Entry point for a fuzzer: any bytes either fail to decode or are the one encoding of a value.
pub fn fuzz(bytes: &[u8]) {
    if let Ok((descriptor, used)) = Descriptor::read(bytes) {
        assert_eq!(descriptor.encode(), bytes[..used]);
    }
}

/// Finds accidental damage; the digest inside is what proves the pixels.
fn check(body: &[u8]) -> [u8; CHECK] {
    let mut out = [0; CHECK];
    out.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECK]);
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// LEB128: seven bits a byte, least significant first, the high bit set on all but the last.
fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A position in bytes that nobody vouches for: every step is checked, and nothing is allocated
/// that the input does not hold.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| {
            malformed(format!("it ends at byte {}, {count} more were expected", self.bytes.len()))
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn when<T>(
        &mut self,
        flag: u16,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        if flag == 0 { Ok(None) } else { read(self).map(Some) }
    }

    fn length(&mut self) -> Result<usize> {
        let mut value = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift != 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return usize::try_from(value).map_err(|_| malformed(format!("length {value}")));
            }
        }
        Err(malformed(format!("length not in its shortest form before byte {}", self.at)))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> Result<Box<str>> {
        let text = std::str::from_utf8(self.bytes()?);
        Ok(text
            .map_err(|_| malformed(format!("text before byte {} is not UTF-8", self.at)))?
            .into())
    }

    fn layout(&mut self) -> Result<Layout> {
        let token = self.text()?;
        let dtype = DType::new(&token, self.length()?);
        let rank = self.length()?;
        if rank > MAX_RANK {
            return Err(malformed(format!("{rank} axes, at most {MAX_RANK}")));
        }
        let shape = (0..rank).map(|_| self.length()).collect::<Result<Vec<_>>>()?;
        Layout::new(dtype, &shape).map_err(|error| malformed(error.to_string()))
    }
}

fn malformed(why: String) -> Error {
    Error::Malformed { what: "reference", why }
}
