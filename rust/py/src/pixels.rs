//! Handles on entries.

use memweir_core::cache::Pin;
use memweir_core::digest::{self, Algorithm};
use memweir_core::pixels::Field;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::borrow::BorrowedMut;
use crate::digest::PyDigest;
use crate::view::{PyView, ndarray};

/// Arrays up to this size are copied out: a small array must not keep a large entry in memory.
const SMALL: usize = 4096;
/// Above this many bytes the GIL is released for the work.
pub const BULK: usize = 2048;

/// An entry of a cache, in use while this handle lives.
#[pyclass(frozen, mapping, module = "memweir._core", name = "Pixels")]
pub struct PyPixels {
    pin: Pin,
}

impl PyPixels {
    pub fn new(pin: Pin) -> Self {
        Self { pin }
    }

    fn field(&self, name: &str) -> PyResult<Field> {
        let spec = self.pin.spec();
        spec.field(name).cloned().ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    fn bytes(&self, field: &Field) -> &[u8] {
        self.pin.bytes().get(field.range()).unwrap_or_default()
    }

    fn view_of(&self, field: &Field) -> PyResult<PyView> {
        let layout = field.layout();
        if layout.nbytes() <= SMALL {
            return Ok(PyView::copied(self.bytes(field), layout));
        }
        let pin = self.pin.again();
        let pin = pin.ok_or_else(|| PyRuntimeError::new_err("too many views of one entry"))?;
        Ok(PyView::pinned(pin, layout, field.range()))
    }
}

#[pymethods]
impl PyPixels {
    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let field = self.field(name)?;
        ndarray(py, self.view_of(&field)?, field.layout())
    }

    fn view(&self, name: &str) -> PyResult<PyView> {
        self.view_of(&self.field(name)?)
    }

    fn __len__(&self) -> usize {
        self.pin.spec().fields().len()
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        name.extract::<&str>().is_ok_and(|name| self.pin.spec().field(name).is_some())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.keys(py)?.try_iter()?.into_any())
    }

    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.pin.spec().fields().iter().map(Field::name))
    }

    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        Ok(self.decode(py)?.items())
    }

    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        Ok(self.decode(py)?.values())
    }

    fn decode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arrays = PyDict::new(py);
        for field in self.pin.spec().fields() {
            arrays.set_item(field.name(), ndarray(py, self.view_of(field)?, field.layout())?)?;
        }
        Ok(arrays)
    }

    fn copy_into(&self, py: Python<'_>, name: &str, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let field = self.field(name)?;
        let out = BorrowedMut::array(out)?;
        let (have, want) = (field.layout(), out.layout());
        if have.dtype() != want.dtype() {
            let (have, want) = (have.dtype().token(), want.dtype().token());
            return Err(PyTypeError::new_err(format!(
                "{name:?} holds {have} and the destination {want}: give one of the same dtype"
            )));
        }
        if have.shape() != want.shape() {
            let (have, want) = (have.shape(), want.shape());
            return Err(PyValueError::new_err(format!(
                "{name:?} has shape {have:?} and the destination {want:?}"
            )));
        }
        let (bytes, destination) = (self.bytes(&field), out.destination());
        if bytes.len() > BULK {
            py.detach(|| destination.from_slice(bytes));
        } else {
            destination.from_slice(bytes);
        }
        Ok(())
    }

    fn digest(&self, py: Python<'_>, name: &str) -> PyResult<PyDigest> {
        let field = self.field(name)?;
        let bytes = self.bytes(&field);
        let hash = || Algorithm::Blake3.hash(bytes);
        let content = if bytes.len() > BULK { py.detach(hash) } else { hash() };
        Ok(PyDigest::from(digest::array(Algorithm::Blake3, field.layout(), &content)))
    }

    fn _layouts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let layouts = PyDict::new(py);
        for field in self.pin.spec().fields() {
            let layout = field.layout();
            let shape = pyo3::types::PyTuple::new(py, layout.shape())?;
            layouts.set_item(
                field.name(),
                (layout.dtype().token(), layout.dtype().itemsize(), shape, layout.nbytes()),
            )?;
        }
        Ok(layouts)
    }

    #[getter]
    fn spec<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let module = slf.py().import("memweir.pixels.cache")?;
        module.call_method1("_specs", (slf.get()._layouts(slf.py())?,))
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.pin.spec().logical()
    }

    #[getter]
    fn kept(&self) -> bool {
        self.pin.is_kept()
    }

    fn __repr__(&self) -> String {
        let array = |f: &Field| {
            let shape: Vec<String> = f.layout().shape().iter().map(usize::to_string).collect();
            format!("{}: {} ({})", f.name(), f.layout().dtype().token(), shape.join(", "))
        };
        let arrays: Vec<String> = self.pin.spec().fields().iter().map(array).collect();
        format!("<Pixels {}>", arrays.join("; "))
    }
}
