//! What an image is, whoever holds it.

use std::borrow::Cow;

use memweir_core::digest::{self, Algorithm, Digest, ImageMeta, LEN, Source};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::functions::content;
use super::pillow;
use crate::borrow::{Borrowed, Memory, is_array, type_name, unsupported};

/// EXIF's number for an image that is the right way up.
pub const UPRIGHT: u8 = 1;

/// An image: everything that its digest covers.
pub struct Image<'py> {
    pub mode: Cow<'static, str>,
    pub width: usize,
    pub height: usize,
    /// Mode and bytes.
    pub palette: Option<(String, Vec<u8>)>,
    /// As frames; empty for none.
    pub transparency: Vec<u8>,
    pub orientation: u8,
    pub pixels: Pixels<'py>,
}

/// The bytes of an image.
pub enum Pixels<'py> {
    /// Where they lie.
    Memory(Memory<'py>),
    /// They were made on the way and are gone: their number, and their hash.
    Hashed(u64, [u8; LEN]),
}

impl<'py> Image<'py> {
    /// A Pillow image, or an array of `uint8` in rows.
    pub fn of(obj: &Bound<'py, PyAny>, algorithm: Algorithm) -> PyResult<Self> {
        if pillow::is_image(obj)? {
            pillow::image(obj, algorithm)
        } else if is_array(obj)? {
            Self::of_array(obj)
        } else if Borrowed::array(obj).is_ok() {
            Err(PyValueError::new_err(
                "raw bytes are an image only with shape=(height, width, ...)",
            ))
        } else {
            Err(unsupported(obj.py(), format!("{} is not an image", type_name(obj))))
        }
    }

    /// Raw bytes of this shape.
    pub fn of_bytes(obj: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<Self> {
        let bytes = Borrowed::array(obj)?;
        let expected = shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        if expected != Some(bytes.layout().nbytes()) {
            let given = bytes.layout().nbytes();
            return Err(PyValueError::new_err(format!(
                "{given} bytes cannot have shape {shape:?}"
            )));
        }
        Self::packed(bytes, shape)
    }

    fn of_array(obj: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = Borrowed::array(obj)?;
        let token = array.layout().dtype().token();
        if token != "|u1" {
            let message = format!("an image array is of uint8, not {token}; see hash_array");
            return Err(unsupported(obj.py(), message));
        }
        let shape = array.layout().shape().to_vec();
        Self::packed(array, &shape)
    }

    fn packed(array: Borrowed<'py>, shape: &[usize]) -> PyResult<Self> {
        let (height, width, mode) = match *shape {
            [height, width] | [height, width, 1] => (height, width, "L"),
            [height, width, 2] => (height, width, "LA"),
            [height, width, 3] => (height, width, "RGB"),
            [height, width, 4] => (height, width, "RGBA"),
            _ => {
                let message = format!("shape {shape:?} is not (height, width[, 1 to 4 channels])");
                return Err(PyValueError::new_err(message));
            }
        };
        Ok(Self {
            mode: mode.into(),
            width,
            height,
            palette: None,
            transparency: Vec::new(),
            orientation: UPRIGHT,
            pixels: Pixels::Memory(array.into_memory()),
        })
    }

    /// What is left to hash: nothing, when that was done on the way.
    pub fn source(&self) -> Source<'_> {
        match &self.pixels {
            Pixels::Memory(memory) => Source::Strided(memory.source()),
            Pixels::Hashed(..) => Source::Packed(&[]),
        }
    }

    /// The digest, given the hash of [`source`](Self::source).
    pub fn named(&self, algorithm: Algorithm, content: &[u8; LEN]) -> Digest {
        let meta = ImageMeta {
            mode: &self.mode,
            width: self.width as u64,
            height: self.height as u64,
            palette: self.palette.as_ref().map(|(mode, bytes)| (mode.as_str(), bytes.as_slice())),
            transparency: &self.transparency,
            orientation: self.orientation,
        };
        match &self.pixels {
            Pixels::Memory(_) => {
                digest::image(algorithm, &meta, self.source().nbytes() as u64, content)
            }
            Pixels::Hashed(len, content) => digest::image(algorithm, &meta, *len, content),
        }
    }

    /// The digest, off the GIL when the image is large.
    pub fn digest(&self, py: Python<'_>, algorithm: Algorithm) -> Digest {
        self.named(algorithm, &content(py, algorithm, &self.source()))
    }
}
