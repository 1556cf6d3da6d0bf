//! Bytes, text and buffers as bytes.

use memweir_core::digest::Source;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::borrow::{Borrowed, Memory};

/// Characters from which on a text is asked whether it has to be encoded: CPython keeps the UTF-8
/// form of any text that is not ASCII for as long as the text lives.
const LONG: usize = 4 << 10;

/// Something whose bytes can be hashed where they are.
pub enum Packed<'py> {
    /// Bytes.
    Bytes(Bound<'py, PyBytes>),
    /// Text, as UTF-8.
    Text(Bound<'py, PyString>),
    /// A buffer, in C order.
    Memory(Memory<'py>),
}

impl<'py> Packed<'py> {
    /// `bytes`, `str` or a buffer.
    pub fn of(obj: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = obj.cast::<PyBytes>() {
            Ok(Self::Bytes(bytes.clone()))
        } else if let Ok(text) = obj.cast::<PyString>() {
            Self::text(text)
        } else {
            Ok(Self::Memory(Borrowed::array(obj)?.into_memory()))
        }
    }

    /// Text.
    pub fn text(text: &Bound<'py, PyString>) -> PyResult<Self> {
        if text.len()? >= LONG && !text.call_method0("isascii")?.is_truthy()? {
            Ok(Self::Bytes(text.encode_utf8()?))
        } else {
            Ok(Self::Text(text.clone()))
        }
    }

    /// Its bytes. Fails for text that has no UTF-8 form.
    pub fn source(&self) -> PyResult<Source<'_>> {
        Ok(match self {
            Self::Bytes(bytes) => Source::Packed(bytes.as_bytes()),
            Self::Text(text) => Source::Packed(text.to_str()?.as_bytes()),
            Self::Memory(memory) => Source::Strided(memory.source()),
        })
    }
}
