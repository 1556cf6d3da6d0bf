//! Handles on entries.

use memweir_core::cache::Pin;
use memweir_core::compact::Form;
use memweir_core::digest::{self, Algorithm};
use memweir_core::pixels::Field;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::borrow::{Borrowed, BorrowedMut};
use crate::cache::raised;
use crate::digest::PyDigest;
use crate::view::{PyView, ndarray};

/// Arrays up to this size are copied out: a small array must not keep a large entry in memory.
const SMALL: usize = 4096;
/// Above this many bytes, half a microsecond's copy, the GIL is released for the work.
pub const BULK: usize = 8 << 10;

/// An entry of a cache, in use while this handle lives.
#[pyclass(frozen, mapping, module = "memweir._core", name = "Pixels")]
pub struct PyPixels {
    pin: Pin,
}

impl PyPixels {
    pub fn new(pin: Pin) -> Self {
        Self { pin }
    }

    fn field(&self, name: &str) -> PyResult<&Field> {
        self.pin.spec().field(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    fn view_of(&self, py: Python<'_>, field: &Field) -> PyResult<PyView> {
        let layout = field.layout();
        if field.form().is_some() {
            let output = py.detach(|| self.pin.decode(field)).map_err(raised)?;
            return Ok(PyView::decoded(output, layout));
        }
        if layout.nbytes() <= SMALL {
            return Ok(PyView::copied(self.pin.bytes(field), layout));
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
        ndarray(py, self.view_of(py, field)?, field.layout())
    }

    fn view(&self, py: Python<'_>, name: &str) -> PyResult<PyView> {
        self.view_of(py, self.field(name)?)
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
        let fields = self.pin.spec().fields();
        let decode = |field: &Field| field.form().map(|_| self.pin.decode(field)).transpose();
        let outputs = || fields.iter().map(decode).collect::<Result<Vec<_>, _>>();
        let compact = fields.iter().any(|field| field.form().is_some());
        let outputs = if compact { py.detach(outputs) } else { outputs() }.map_err(raised)?;
        let arrays = PyDict::new(py);
        for (field, output) in fields.iter().zip(outputs) {
            let view = match output {
                Some(output) => PyView::decoded(output, field.layout()),
                None => self.view_of(py, field)?,
            };
            arrays.set_item(field.name(), ndarray(py, view, field.layout())?)?;
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
        let write = || self.pin.write_to(field, out.destination());
        let bulk = have.nbytes() > BULK;
        if bulk { py.detach(write) } else { write() }.map_err(raised)
    }

    fn equals(&self, py: Python<'_>, name: &str, array: &Bound<'_, PyAny>) -> PyResult<bool> {
        let field = self.field(name)?;
        let array = Borrowed::array(array)?;
        if field.layout() != array.layout() {
            return Ok(false);
        }
        let compare = || self.pin.equals(field, array.source());
        let bulk = field.layout().nbytes() > BULK;
        if bulk { py.detach(compare) } else { compare() }.map_err(raised)
    }

    fn digest(&self, py: Python<'_>, name: &str) -> PyResult<PyDigest> {
        let field = self.field(name)?;
        let hash = || self.pin.content(field);
        let bulk = field.layout().nbytes() > BULK;
        let content = if bulk { py.detach(hash) } else { hash() }.map_err(raised)?;
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

    fn export<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let record = py.detach(|| self.pin.export()).map_err(raised)?;
        PyBytes::new_with(py, record.len(), |out| {
            out.copy_from_slice(&record);
            Ok(())
        })
    }

    #[getter]
    fn encoding<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let encodings = PyDict::new(py);
        for field in self.pin.spec().fields() {
            let name = field.form().map_or_else(|| "raw".to_owned(), Form::name);
            encodings.set_item(field.name(), name)?;
        }
        Ok(encodings)
    }

    #[getter]
    fn _serial(&self) -> u64 {
        self.pin.spec().serial()
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
