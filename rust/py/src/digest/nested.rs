//! Walks nested plain data, and writes its frames.

use memweir_core::digest::{Algorithm, Source};
use memweir_core::value::{Frames, MAX_DEPTH, Sink};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::functions::{BULK, array_digest};
use super::image::Image;
use super::packed::Packed;
use super::{PyDigest, pillow};
use crate::borrow::{is_array, type_name, unsupported};

/// A walk through one value.
pub struct Walk<'py, S> {
    frames: Frames<S>,
    algorithm: Algorithm,
    /// The containers that we are in, outermost first.
    path: Vec<Bound<'py, PyAny>>,
}

impl<'py, S: Sink + Send> Walk<'py, S> {
    /// A walk whose frames go to `sink`.
    pub fn new(algorithm: Algorithm, sink: S) -> Self {
        Self { frames: Frames::new(sink), algorithm, path: Vec::new() }
    }

    /// Where the frames went.
    pub fn finish(self) -> S {
        self.frames.into_inner()
    }

    /// Writes the frames of a value. Types count exactly: a subclass may mean anything.
    pub fn value(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if value.is_none() {
            self.frames.none();
        } else if let Ok(value) = value.cast_exact::<PyBool>() {
            self.frames.bool(value.is_true());
        } else if let Ok(value) = value.cast_exact::<PyInt>() {
            self.int(value)?;
        } else if let Ok(value) = value.cast_exact::<PyFloat>() {
            self.frames.float(value.value());
        } else if let Ok(value) = value.cast_exact::<PyString>() {
            self.text(value)?;
        } else if let Ok(value) = value.cast_exact::<PyBytes>() {
            self.bytes(value);
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            // A copy: while a large item is hashed off the GIL, the list may change.
            let items = list.to_tuple();
            self.inside(value, |walk| {
                walk.frames.list(items.len());
                items.iter().try_for_each(|item| walk.value(&item))
            })?;
        } else if let Ok(items) = value.cast_exact::<PyTuple>() {
            self.inside(value, |walk| {
                walk.frames.tuple(items.len());
                items.iter().try_for_each(|item| walk.value(&item))
            })?;
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.inside(value, |walk| walk.mapping(dict))?;
        } else if let Ok(digest) = value.cast_exact::<PyDigest>() {
            self.frames.digest(&digest.get().digest());
        } else if pillow::is_image(value)? {
            let image = Image::of(value, self.algorithm)?;
            self.frames.image(&image.digest(value.py(), self.algorithm));
        } else if is_array(value)? {
            self.frames.array(&array_digest(value, self.algorithm)?);
        } else {
            let kind = type_name(value);
            return Err(unsupported(value.py(), format!("{kind} has no canonical bytes")));
        }
        Ok(())
    }

    fn int(&mut self, value: &Bound<'py, PyInt>) -> PyResult<()> {
        if let Ok(small) = value.extract::<i64>() {
            self.frames.int(&small.to_le_bytes());
            return Ok(());
        }
        let bits: usize = value.call_method0("bit_length")?.extract()?;
        let signed = [("signed", true)].into_py_dict(value.py())?;
        let bytes = value.call_method("to_bytes", (bits / 8 + 1, "little"), Some(&signed))?;
        self.frames.int(bytes.cast::<PyBytes>()?.as_bytes());
        Ok(())
    }

    fn text(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        let packed = Packed::text(text)?;
        if let Source::Packed(bytes) = packed.source()? {
            self.bulk(text.py(), bytes, |frames, bytes| frames.text(bytes));
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &Bound<'py, PyBytes>) {
        self.bulk(bytes.py(), bytes.as_bytes(), |frames, bytes| frames.bytes(bytes));
    }

    fn bulk(&mut self, py: Python<'_>, bytes: &[u8], write: fn(&mut Frames<S>, &[u8])) {
        let frames = &mut self.frames;
        if bytes.len() < BULK { write(frames, bytes) } else { py.detach(|| write(frames, bytes)) }
    }

    fn mapping(&mut self, dict: &Bound<'py, PyDict>) -> PyResult<()> {
        let mut items = Vec::with_capacity(dict.len());
        for item in dict.items() {
            let (key, value): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
            items.push((self.key(&key)?, value));
        }
        items.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.frames.mapping(items.len());
        for (key, value) in items {
            self.frames.key(&key);
            self.value(&value)?;
        }
        Ok(())
    }

    /// The frames of a key, as deep in the value as we are.
    fn key(&mut self, key: &Bound<'py, PyAny>) -> PyResult<Vec<u8>> {
        let mut walk = Walk::new(self.algorithm, Vec::new());
        std::mem::swap(&mut walk.path, &mut self.path);
        let walked = walk.value(key);
        std::mem::swap(&mut walk.path, &mut self.path);
        walked.map(|()| walk.finish())
    }

    /// Does `walk` inside a container, unless we are in there already, or too deep.
    fn inside(
        &mut self,
        container: &Bound<'py, PyAny>,
        walk: impl FnOnce(&mut Self) -> PyResult<()>,
    ) -> PyResult<()> {
        if self.path.iter().any(|outer| outer.is(container)) {
            let kind = type_name(container);
            return Err(PyValueError::new_err(format!("a {kind} that contains itself")));
        }
        if self.path.len() == MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} containers");
            return Err(PyValueError::new_err(message));
        }
        self.path.push(container.clone());
        let walked = walk(self);
        self.path.pop();
        walked
    }
}
