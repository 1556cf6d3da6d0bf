//! What a thing is called: 32 bytes over a framed, versioned, typed preimage.
//!
//! `docs/identity.md` writes the preimage down; `tests/vectors/identity.json` holds examples.

mod copy;
mod hasher;
mod many;

use std::fmt;

pub use copy::CopyHasher;
pub use hasher::{Algorithm, Hasher};
pub use many::{Source, contents};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::pack::Strided;

/// Length of every digest, in bytes.
pub const LEN: usize = 32;

/// First bytes of every preimage: what it is for, and the version of its form.
const TAG: &[u8; 17] = b"memweir identity\x01";

/// Contents up to this size are hashed in one call.
const SMALL: usize = 4 << 10;

/// The name of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; LEN]);

impl Digest {
    /// The digest with these bytes.
    pub const fn new(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Reads what `Display` writes; capital letters are accepted.
    ///
    /// # Errors
    /// [`Error::Malformed`] unless `text` is 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self> {
        let malformed = |why| Error::Malformed { what: "digest", why };
        if text.len() != 2 * LEN {
            return Err(malformed(format!("{} characters, not {}", text.len(), 2 * LEN)));
        }
        let mut bytes = [0; LEN];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
            *byte = match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(malformed("not hexadecimal".into())),
            };
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a digest is of. Kinds never collide with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Bytes = 1,
    Array = 2,
    Image = 3,
    Value = 4,
}

/// What is hashed of an image beside its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageMeta<'a> {
    /// Pillow's name for the kind of pixels: `"RGB"`, `"LA"`, `"I;16"`.
    pub mode: &'a str,
    /// Pixels in a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Mode and bytes of the palette, if any.
    pub palette: Option<(&'a str, &'a [u8])>,
    /// The transparent colour or the alpha of each palette entry, as [frames](crate::value); empty for none.
    pub transparency: &'a [u8],
    /// EXIF orientation, 1 (upright) to 8.
    pub orientation: u8,
}

/// Hash of an array's bytes in C order, the second level of its digest.
pub fn content(algorithm: Algorithm, source: &Strided) -> [u8; LEN] {
    // One call over a few bytes costs a fraction of a hasher that could take more.
    if let Some(block) = [0; SMALL].get_mut(..source.nbytes()) {
        source.copy_to(block);
        return algorithm.hash(block);
    }
    let mut hasher = Hasher::new(algorithm);
    hasher.update_strided(source);
    hasher.finish()
}

/// Digest of bytes.
pub fn bytes(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    bytes_of(algorithm, bytes.len() as u64, &algorithm.hash(bytes))
}

/// Digest of bytes of which the length and the hash are known: a file read in blocks.
pub fn bytes_of(algorithm: Algorithm, len: u64, content: &[u8; LEN]) -> Digest {
    finish(algorithm, preimage(Kind::Bytes), len, content)
}

/// Digest of an array whose bytes in C order hash to `content`.
pub fn array(algorithm: Algorithm, layout: &Layout, content: &[u8; LEN]) -> Digest {
    let mut preimage = preimage(Kind::Array);
    field(&mut preimage, layout.dtype().token().as_bytes());
    preimage.extend((8 * layout.shape().len() as u64).to_le_bytes());
    preimage.extend(layout.shape().iter().flat_map(|&n| (n as u64).to_le_bytes()));
    finish(algorithm, preimage, layout.nbytes() as u64, content)
}

/// Digest of an image whose `len` bytes of packed pixels hash to `content`.
pub fn image(algorithm: Algorithm, meta: &ImageMeta, len: u64, content: &[u8; LEN]) -> Digest {
    let mut palette = Vec::new();
    if let Some((mode, bytes)) = meta.palette {
        field(&mut palette, mode.as_bytes());
        field(&mut palette, bytes);
    }
    let mut preimage = preimage(Kind::Image);
    field(&mut preimage, meta.mode.as_bytes());
    field(&mut preimage, &[meta.width.to_le_bytes(), meta.height.to_le_bytes()].concat());
    field(&mut preimage, &palette);
    field(&mut preimage, meta.transparency);
    field(&mut preimage, &[meta.orientation]);
    finish(algorithm, preimage, len, content)
}

/// Digest of a nested value, whose [frames](crate::value) are `len` bytes that hash to `content`.
pub fn value(algorithm: Algorithm, len: u64, content: &[u8; LEN]) -> Digest {
    finish(algorithm, preimage(Kind::Value), len, content)
}

fn preimage(kind: Kind) -> Vec<u8> {
    let mut preimage = Vec::with_capacity(192);
    preimage.extend(TAG);
    preimage.push(kind as u8);
    preimage
}

fn field(preimage: &mut Vec<u8>, bytes: &[u8]) {
    preimage.extend((bytes.len() as u64).to_le_bytes());
    preimage.extend(bytes);
}

fn finish(algorithm: Algorithm, mut preimage: Vec<u8>, len: u64, content: &[u8; LEN]) -> Digest {
    preimage.extend(len.to_le_bytes());
    preimage.extend(content);
    Digest(algorithm.hash(&preimage))
}
