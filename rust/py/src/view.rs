//! Our memory out: read-only arrays that keep their bytes alive.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::ptr;

use memweir_core::cache::{Output, Pin};
use memweir_core::layout::Layout;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// One array of an entry, read-only, through the buffer protocol.
///
/// Element types that the protocol has no letter for are exported as flat bytes.
#[pyclass(frozen, module = "memweir._core", name = "View", weakref)]
pub struct PyView {
    bytes: Bytes,
    shape: Box<[isize]>,
    strides: Box<[isize]>,
    format: &'static CStr,
    itemsize: isize,
}

/// Where a view's bytes live: none of them moves while the view exists.
enum Bytes {
    Pinned { pin: Pin, start: usize, len: usize },
    Decoded(Output),
    Copied(Box<[u8]>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Pinned { pin, start, len } => {
                pin.first().get(*start..*start + *len).unwrap_or_default()
            }
            Self::Decoded(output) => output.bytes(),
            Self::Copied(bytes) => bytes,
        }
    }
}

impl PyView {
    /// A view that pins `pin`'s entry; `range` is the array's place in it.
    pub fn pinned(pin: Pin, layout: &Layout, range: std::ops::Range<usize>) -> Self {
        Self::new(Bytes::Pinned { pin, start: range.start, len: range.len() }, layout)
    }

    /// A view over pages of its own.
    pub fn decoded(output: Output, layout: &Layout) -> Self {
        Self::new(Bytes::Decoded(output), layout)
    }

    /// A view over bytes of its own, which pins nothing.
    pub fn copied(bytes: &[u8], layout: &Layout) -> Self {
        Self::new(Bytes::Copied(bytes.into()), layout)
    }

    fn new(bytes: Bytes, layout: &Layout) -> Self {
        let format = format(layout.dtype().token());
        let itemsize = if format.is_some() { layout.dtype().itemsize() } else { 1 };
        let flat = [layout.nbytes()];
        let axes = if format.is_some() { layout.shape() } else { &flat };
        // Sizes fit into isize: `Layout` checked them.
        let shape: Box<[isize]> = axes.iter().map(|&n| n as isize).collect();
        let mut strides = shape.clone();
        let mut step = itemsize as isize;
        for (stride, &n) in strides.iter_mut().zip(&shape).rev() {
            *stride = step;
            step = step.saturating_mul(n.max(1));
        }
        Self { bytes, shape, strides, format: format.unwrap_or(c"B"), itemsize: itemsize as isize }
    }
}

#[pymethods]
impl PyView {
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes.get().len()
    }

    /// # Safety
    /// Called by Python with a valid `view`.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no buffer to fill in"));
        }
        // SAFETY: not null, and Python passes a structure that we may write.
        let view = unsafe { &mut *view };
        view.obj = ptr::null_mut();
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("pixels of a cache are read-only: copy them first"));
        }
        let this = slf.get();
        // Rows of one axis lie in either order.
        let fortran = flags & ffi::PyBUF_F_CONTIGUOUS & !ffi::PyBUF_STRIDES != 0;
        if fortran && this.shape.len() > 1 {
            return Err(PyBufferError::new_err("pixels of a cache are in C order"));
        }
        let bytes = this.bytes.get();
        let wants = |flag: c_int| flags & flag == flag;
        view.buf = bytes.as_ptr().cast_mut().cast();
        view.len = bytes.len() as isize;
        view.readonly = 1;
        view.itemsize = this.itemsize;
        view.ndim = this.shape.len() as c_int;
        // Consumers only read through these pointers; a frozen class never moves and `view.obj`
        // owns it, so they stay valid until the buffer is released.
        let format = this.format.as_ptr().cast_mut();
        view.format = if wants(ffi::PyBUF_FORMAT) { format } else { ptr::null_mut() };
        let shape = this.shape.as_ptr().cast_mut();
        view.shape = if wants(ffi::PyBUF_ND) { shape } else { ptr::null_mut() };
        let strides = this.strides.as_ptr().cast_mut();
        view.strides = if wants(ffi::PyBUF_STRIDES) { strides } else { ptr::null_mut() };
        view.suboffsets = ptr::null_mut();
        view.internal = ptr::null_mut();
        view.obj = slf.into_ptr();
        Ok(())
    }
}

/// The array of a view: what `numpy.asarray` makes of it, or what our own rebuilding of an
/// element type outside the buffer protocol does.
pub fn ndarray<'py>(py: Python<'py>, view: PyView, layout: &Layout) -> PyResult<Bound<'py, PyAny>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static TYPED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let plain = format(layout.dtype().token()).is_some();
    let view = Bound::new(py, view)?;
    if plain && layout.nbytes() > 0 {
        return ASARRAY.import(py, "numpy", "asarray")?.call1((view,));
    }
    let typed = TYPED.import(py, "memweir.pixels._dtypes", "typed")?;
    typed.call1((view, layout.dtype().token(), layout.dtype().itemsize(), layout.shape()))
}

/// The buffer protocol's letter for a plain native type. Integers of 8 bytes are `l` where C's
/// `long` has them, because numpy tells that type from `long long`.
fn format(token: &str) -> Option<&'static CStr> {
    let long = size_of::<std::ffi::c_long>() == 8;
    let (order, kind) = token.split_at_checked(1)?;
    let native = if cfg!(target_endian = "little") { "<" } else { ">" };
    if order != native && order != "|" {
        return None;
    }
    Some(match kind {
        "b1" => c"?",
        "i1" => c"b",
        "u1" => c"B",
        "i2" => c"h",
        "u2" => c"H",
        "i4" => c"i",
        "u4" => c"I",
        "i8" if long => c"l",
        "u8" if long => c"L",
        "i8" => c"q",
        "u8" => c"Q",
        "f2" => c"e",
        "f4" => c"f",
        "f8" => c"d",
        "c8" => c"Zf",
        "c16" => c"Zd",
        _ => return None,
    })
}
