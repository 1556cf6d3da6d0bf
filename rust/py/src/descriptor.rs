//! The wire record of a reference, as an immutable object.

use memweir_core::descriptor::{DIGEST, Descriptor, Origin};
use memweir_core::error::Error;
use memweir_core::layout::{DType, Layout};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

/// What a reference says of one array.
#[pyclass(frozen, name = "Descriptor", module = "memweir._core")]
pub struct PyDescriptor(Descriptor);

#[pymethods]
impl PyDescriptor {
    #[new]
    #[pyo3(signature = (name, dtype, itemsize, shape, digest, *, torch=false, key=None,
        fingerprint=None, image=None, source=None, origin=None, arguments=None))]
    #[expect(clippy::too_many_arguments, reason = "one keyword for each field of the record")]
    fn new(
        name: &str,
        dtype: &str,
        itemsize: usize,
        shape: Vec<usize>,
        digest: &[u8],
        torch: bool,
        key: Option<&[u8]>,
        fingerprint: Option<&[u8]>,
        image: Option<&[u8]>,
        source: Option<&[u8]>,
        origin: Option<&Bound<'_, PyAny>>,
        arguments: Option<&str>,
    ) -> PyResult<Self> {
        Ok(Self(Descriptor {
            name: name.into(),
            layout: Layout::new(DType::new(dtype, itemsize), &shape).map_err(refuse)?,
            torch,
            digest: bytes32(digest)?,
            key: key.map(bytes32).transpose()?,
            fingerprint: fingerprint.map(bytes32).transpose()?,
            image: image.map(bytes32).transpose()?,
            source: source.map(bytes32).transpose()?,
            origin: origin.map(take_origin).transpose()?,
            arguments: arguments.map(Into::into),
        }))
    }

    #[staticmethod]
    fn decode(record: &[u8]) -> PyResult<Self> {
        Descriptor::decode(record).map(Self).map_err(refuse)
    }

    fn encode<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.encode())
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn dtype(&self) -> &str {
        self.0.layout.dtype().token()
    }

    #[getter]
    fn itemsize(&self) -> usize {
        self.0.layout.dtype().itemsize()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.layout.nbytes()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.layout.shape())
    }

    #[getter]
    fn torch(&self) -> bool {
        self.0.torch
    }

    #[getter]
    fn digest(&self) -> &[u8] {
        &self.0.digest
    }

    #[getter]
    fn key(&self) -> Option<&[u8]> {
        self.0.key.as_ref().map(<[u8; DIGEST]>::as_slice)
    }

    #[getter]
    fn fingerprint(&self) -> Option<&[u8]> {
        self.0.fingerprint.as_ref().map(<[u8; DIGEST]>::as_slice)
    }

    #[getter]
    fn image(&self) -> Option<&[u8]> {
        self.0.image.as_ref().map(<[u8; DIGEST]>::as_slice)
    }

    #[getter]
    fn source(&self) -> Option<&[u8]> {
        self.0.source.as_ref().map(<[u8; DIGEST]>::as_slice)
    }

    #[getter]
    fn origin<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        Some(match self.0.origin.as_ref()? {
            Origin::Text(text) => PyString::new(py, text).into_any(),
            Origin::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        })
    }

    #[getter]
    fn arguments(&self) -> Option<&str> {
        self.0.arguments.as_deref()
    }
}

fn take_origin(obj: &Bound<'_, PyAny>) -> PyResult<Origin> {
    match obj.cast::<PyString>() {
        Ok(text) => Ok(Origin::Text(text.to_cow()?.into())),
        Err(_) => Ok(Origin::Bytes(obj.cast::<PyBytes>()?.as_bytes().into())),
    }
}

fn bytes32(bytes: &[u8]) -> PyResult<[u8; DIGEST]> {
    bytes.try_into().map_err(|_| {
        PyValueError::new_err(format!("a digest has {DIGEST} bytes, these are {}", bytes.len()))
    })
}

fn refuse(error: Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}
