//! Python's memory in: arrays, tensors and buffers, described and kept alive, never copied.
#![allow(unsafe_code)]

mod arrow;
mod buffer;
mod dlpack;

use std::marker::PhantomData;

use memweir_core::layout::Layout;
use memweir_core::pack::{Strided, StridedMut};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyDict, PyModule, PyType};

pub use self::arrow::Pixel;

/// Byte order of this machine, as numpy writes it.
const NATIVE: u8 = if cfg!(target_endian = "little") { b'<' } else { b'>' };

/// Memory that can be read. It stays alive and in place until this drops.
pub struct Memory<'py> {
    source: Strided,
    _owner: Owner,
    // Dropping gives a reference back, which wants the thread attached.
    _py: PhantomData<&'py ()>,
}

/// An array that can be read.
pub struct Borrowed<'py> {
    layout: Layout,
    memory: Memory<'py>,
}

/// An array that can be written to.
pub struct BorrowedMut<'py> {
    layout: Layout,
    destination: StridedMut,
    _owner: Owner,
    _py: PhantomData<&'py ()>,
}

/// Memory as its exporter describes it.
struct Export {
    layout: Layout,
    ptr: *mut u8,
    readonly: bool,
    owner: Owner,
}

/// What keeps the memory alive and in place.
enum Owner {
    Buffer(PyUntypedBuffer),
    Capsule {
        _capsule: Py<PyCapsule>,
        strides: Box<[isize]>,
    },
    /// There are no bytes: only the rank is of interest.
    Nothing {
        strides: Box<[isize]>,
    },
}

impl<'py> Borrowed<'py> {
    /// Borrows a numpy array, a torch tensor on the CPU, or anything with the buffer protocol.
    ///
    /// # Errors
    /// `UnsupportedType` for anything else, for Python objects as elements, and for element types
    /// that have no name of their own.
    pub fn array(obj: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Export { layout, ptr, owner, .. } = export(obj)?;
        let (itemsize, strides) = (layout.dtype().itemsize(), owner.strides(&layout));
        // SAFETY: the exporter promises the memory that it describes for as long as the buffer or
        // the capsule is held, and `owner` holds it as long as `source` lives.
        let source = unsafe { Strided::new(ptr, itemsize, layout.shape(), strides) };
        let memory = Memory { source: source.map_err(invalid)?, _owner: owner, _py: PhantomData };
        Ok(Self { layout, memory })
    }

    /// Element type and shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory.
    pub fn source(&self) -> &Strided {
        self.memory.source()
    }

    /// The memory without its layout.
    pub fn into_memory(self) -> Memory<'py> {
        self.memory
    }
}

impl Memory<'_> {
    /// Where to read.
    pub fn source(&self) -> &Strided {
        &self.source
    }
}

impl<'py> BorrowedMut<'py> {
    /// Borrows a writable numpy array, torch tensor on the CPU, or buffer.
    ///
    /// # Errors
    /// `ValueError` when it is read-only, otherwise as [`Borrowed::array`].
    pub fn array(obj: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Export { layout, ptr, readonly, owner } = export(obj)?;
        if readonly {
            let kind = type_name(obj);
            return Err(PyValueError::new_err(format!("the destination ({kind}) is read-only")));
        }
        let (itemsize, strides) = (layout.dtype().itemsize(), owner.strides(&layout));
        // SAFETY: as in `Borrowed::array`, and the exporter says that the memory is writable.
        let destination = unsafe { StridedMut::new(ptr, itemsize, layout.shape(), strides) };
        let destination = destination.map_err(invalid)?;
        Ok(Self { layout, destination, _owner: owner, _py: PhantomData })
    }

    /// Element type and shape.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory.
    pub fn destination(&self) -> &StridedMut {
        &self.destination
    }
}

impl Owner {
    fn strides(&self, layout: &Layout) -> &[isize] {
        match self {
            // A scalar is exported with one axis, see `buffer::scalar`.
            Self::Buffer(_) if layout.shape().is_empty() => &[],
            Self::Buffer(buffer) => buffer.strides(),
            Self::Capsule { strides, .. } | Self::Nothing { strides } => strides,
        }
    }
}

/// Whether this is a numpy array or scalar, or a torch tensor.
pub fn is_array(obj: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(buffer::is_numpy(obj)? || dlpack::is_tensor(obj)?)
}

/// `module.name`, once somebody has imported the module; we never do.
pub fn class_if_loaded<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyType>>,
    module: &str,
    name: &str,
) -> PyResult<Option<&'py Bound<'py, PyType>>> {
    if let Some(class) = cell.get(py) {
        return Ok(Some(class.bind(py)));
    }
    static SYS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let sys = SYS.get_or_try_init(py, || py.import("sys").map(Bound::unbind))?.bind(py);
    let modules = sys.getattr(intern!(py, "modules"))?.cast_into::<PyDict>()?;
    let Some(module) = modules.get_item(module)? else { return Ok(None) };
    // A thread may be in the middle of importing it.
    let Some(class) = module.getattr_opt(name)? else { return Ok(None) };
    let class = class.cast_into::<PyType>()?.unbind();
    Ok(Some(cell.get_or_init(py, || class).bind(py)))
}

fn export(obj: &Bound<'_, PyAny>) -> PyResult<Export> {
    if obj.get_type().is(buffer::ndarray(obj.py())?) {
        return buffer::of_ndarray(obj);
    }
    if dlpack::is_tensor(obj)? { dlpack::of_tensor(obj) } else { buffer::of_any(obj) }
}

/// A layout that the core refuses.
fn invalid(error: memweir_core::error::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Whether an object exports memory, which no mapping does.
pub fn has_buffer(obj: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a live object, of whose type a slot is looked at.
    unsafe { ffi::PyObject_CheckBuffer(obj.as_ptr()) != 0 }
}

/// `package.Type` of an object, for messages.
pub fn type_name(obj: &Bound<'_, PyAny>) -> String {
    let name = obj.get_type().fully_qualified_name();
    name.map_or_else(|_| "an object".into(), |name| name.to_string())
}

/// An `UnsupportedType` with this message.
pub fn unsupported(py: Python<'_>, message: String) -> PyErr {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match TYPE.import(py, "memweir.errors", "UnsupportedType") {
        Ok(kind) => PyErr::from_type(kind.clone(), message),
        Err(error) => error,
    }
}

/// The same, with the exception that made us give up as its cause.
pub fn unsupported_because(py: Python<'_>, message: String, cause: PyErr) -> PyErr {
    let error = unsupported(py, message);
    error.set_cause(py, Some(cause));
    error
}
