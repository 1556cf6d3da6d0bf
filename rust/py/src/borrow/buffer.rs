//! Numpy arrays and everything else with the buffer protocol.

use memweir_core::layout::{DType, Layout, MAX_RANK};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyMemoryView, PyType};

use super::{Export, Owner, class_if_loaded, invalid, type_name, unsupported, unsupported_because};

/// `numpy.ndarray`.
pub(super) fn ndarray<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TYPE.import(py, "numpy", "ndarray")
}

/// `numpy.generic`.
fn scalar_type<'py>(py: Python<'py>) -> PyResult<&'py Bound<'py, PyType>> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TYPE.import(py, "numpy", "generic")
}

/// Whether this is an array or a scalar of numpy.
pub(super) fn is_numpy(obj: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = obj.py();
    Ok(obj.is_instance(ndarray(py)?)? || obj.is_instance(scalar_type(py)?)?)
}

/// An array whose type is exactly `ndarray`.
pub(super) fn of_ndarray(array: &Bound<'_, PyAny>) -> PyResult<Export> {
    match PyUntypedBuffer::get(array).map(of_buffer) {
        Ok(Ok(Some(export))) => Ok(export),
        Ok(Err(error)) => Err(error),
        // Scalars, types that the protocol has no letter for, and types that its letters do not
        // tell apart.
        Ok(Ok(None)) | Err(_) => by_dtype(array),
    }
}

/// Anything but an exact `ndarray` or a tensor.
pub(super) fn of_any(obj: &Bound<'_, PyAny>) -> PyResult<Export> {
    let py = obj.py();
    let array = ndarray(py)?;
    if obj.is_instance(array)? {
        if is_masked(obj)? {
            let kind = type_name(obj);
            return Err(unsupported(py, format!("{kind}: a mask is not part of an array's bytes")));
        }
        return of_ndarray(&array.call_method1("view", (obj, array))?);
    }
    if obj.is_instance(scalar_type(py)?)? {
        // Its own buffer does not tell a datetime from eight bytes. The array is a copy, so what
        // is written there would be lost.
        let copy = of_ndarray(&py.import("numpy")?.call_method1("asarray", (obj,))?)?;
        return Ok(Export { readonly: true, ..copy });
    }
    if let Ok(buffer) = PyUntypedBuffer::get(obj)
        && let Some(export) = of_buffer(buffer)?
    {
        return Ok(export);
    }
    let view = PyMemoryView::from(obj).map_err(|error| {
        if error.is_instance_of::<PyTypeError>(py) {
            unsupported(py, format!("{} is not an array or a buffer", type_name(obj)))
        } else {
            error
        }
    })?;
    let array = py.import("numpy")?.call_method1("asarray", (view,)).map_err(|error| {
        unsupported_because(py, format!("{} with unknown elements", type_name(obj)), error)
    })?;
    of_ndarray(&array)
}

fn is_masked(obj: &Bound<'_, PyAny>) -> PyResult<bool> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match class_if_loaded(obj.py(), &TYPE, "numpy.ma", "MaskedArray")? {
        Some(masked) => obj.is_instance(masked),
        None => Ok(false),
    }
}

/// `None` when the format does not name a plain type.
fn of_buffer(buffer: PyUntypedBuffer) -> PyResult<Option<Export>> {
    let itemsize = buffer.item_size();
    // An exporter's rank and lengths are claims; `Layout` checks the lengths.
    if buffer.dimensions() > MAX_RANK || buffer.suboffsets().is_some() {
        return Ok(None);
    }
    let Some(token) = Token::of_format(buffer.format().to_bytes(), itemsize) else {
        return Ok(None);
    };
    let layout = Layout::new(DType::new(token.as_str(), itemsize), buffer.shape());
    Ok(Some(from_buffer(buffer, layout.map_err(invalid)?)))
}

fn from_buffer(buffer: PyUntypedBuffer, layout: Layout) -> Export {
    let (ptr, readonly) = (buffer.buf_ptr().cast(), buffer.readonly());
    Export { layout, ptr, readonly, owner: Owner::Buffer(buffer) }
}

/// Reads the dtype itself, and the memory as elements without a type.
#[cold]
fn by_dtype(array: &Bound<'_, PyAny>) -> PyResult<Export> {
    let py = array.py();
    let dtype = array.getattr("dtype")?;
    let itemsize: usize = dtype.getattr("itemsize")?.extract()?;
    let shape: Vec<usize> = array.getattr("shape")?.extract()?;
    let layout = Layout::new(DType::new(&token_of_dtype(&dtype)?, itemsize), &shape);
    let layout = layout.map_err(invalid)?;
    if layout.nbytes() == 0 {
        let readonly = !array.getattr("flags")?.getattr("writeable")?.is_truthy()?;
        let owner = Owner::Nothing { strides: vec![0; shape.len()].into() };
        return Ok(Export { layout, ptr: std::ptr::null_mut(), readonly, owner });
    }
    let untyped = array.call_method1("view", (format!("V{itemsize}"),))?;
    let untyped = if shape.is_empty() { scalar(&untyped)? } else { untyped };
    let buffer = PyUntypedBuffer::get(&untyped)
        .map_err(|error| unsupported_because(py, format!("an array of {dtype}"), error))?;
    // The array may have been given another shape meanwhile: the buffer's goes with its strides.
    let layout = match &shape[..] {
        [] => layout,
        _ => Layout::new(layout.dtype().clone(), buffer.shape()).map_err(invalid)?,
    };
    Ok(from_buffer(buffer, layout))
}

/// The one element as an array of one axis: without axes there is no shape to point at, which
/// `PyUntypedBuffer` refuses.
fn scalar<'py>(array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    array.call_method1("reshape", (1,))
}

/// The text that numpy can rebuild the very same dtype from.
fn token_of_dtype(dtype: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = dtype.py();
    if dtype.getattr("hasobject")?.is_truthy()? {
        return Err(unsupported(py, format!("an array of dtype {dtype} holds Python objects")));
    }
    if !dtype.getattr("names")?.is_none() {
        let format = py.import("numpy.lib.format")?;
        let descr = format.call_method1("dtype_to_descr", (dtype,))?;
        if format.call_method1("descr_to_dtype", (&descr,))?.eq(dtype)? {
            return Ok(descr.repr()?.to_string());
        }
    } else {
        // Extension types (ml_dtypes) call themselves void in `str`, and only `name` is theirs.
        for attribute in ["str", "name"] {
            let token = dtype.getattr(attribute)?;
            match py.import("numpy")?.call_method1("dtype", (&token,)) {
                Ok(rebuilt) if rebuilt.eq(dtype)? => return Ok(token.to_string()),
                Err(error) if !error.is_instance_of::<PyTypeError>(py) => return Err(error),
                _ => {}
            }
        }
    }
    Err(unsupported(py, format!("an array of dtype {dtype}, which has no name to be known by")))
}

/// A plain type's token, such as `<f4`; at most four ASCII characters.
struct Token {
    text: [u8; 4],
    len: usize,
}

impl Token {
    fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }

    /// The plain type that a format of the `struct` module (and its extension in PEP 3118) means.
    fn of_format(format: &[u8], itemsize: usize) -> Option<Self> {
        let (prefix, code) = match format {
            [prefix @ (b'@' | b'=' | b'^' | b'<' | b'>' | b'!'), code @ ..] => (*prefix, code),
            code => (b'@', code),
        };
        let kind = match code {
            b"?" => b'b',
            b"b" | b"h" | b"i" | b"l" | b"q" | b"n" => b'i',
            b"B" | b"H" | b"I" | b"L" | b"Q" | b"N" => b'u',
            b"e" | b"f" | b"d" | b"g" => b'f',
            b"Zf" | b"Zd" | b"Zg" => b'c',
            _ => return None,
        };
        let order = match prefix {
            _ if itemsize == 1 => b'|',
            b'<' => b'<',
            b'>' | b'!' => b'>',
            _ => super::NATIVE,
        };
        Self::new(order, kind, itemsize)
    }

    fn new(order: u8, kind: u8, itemsize: usize) -> Option<Self> {
        let digits = u8::try_from(itemsize).ok().filter(|&n| n > 0 && n < 100)?;
        let (tens, ones) = (b'0' + digits / 10, b'0' + digits % 10);
        Some(match digits {
            ..10 => Self { text: [order, kind, ones, 0], len: 3 },
            _ => Self { text: [order, kind, tens, ones], len: 4 },
        })
    }
}
