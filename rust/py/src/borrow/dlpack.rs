//! Torch tensors on the CPU, by DLPack.

use std::ffi::c_void;

use memweir_core::layout::{DType, Layout, MAX_RANK};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyType};

use super::{Export, Owner, class_if_loaded, invalid, type_name, unsupported, unsupported_because};

/// `DLTensor` of DLPack's C header.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const CPU: i32 = 1;
const PINNED: i32 = 3;

/// Whether this is a `torch.Tensor`.
pub(super) fn is_tensor(obj: &Bound<'_, PyAny>) -> PyResult<bool> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match class_if_loaded(obj.py(), &TYPE, "torch", "Tensor")? {
        Some(tensor) => obj.is_instance(tensor),
        None => Ok(false),
    }
}

/// A dense tensor on the CPU. Lazy conjugation and negation are carried out first.
pub(super) fn of_tensor(tensor: &Bound<'_, PyAny>) -> PyResult<Export> {
    static EXPORT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = tensor.py();
    let resolved = tensor.call_method0("resolve_conj")?.call_method0("resolve_neg")?;
    let capsule = EXPORT.import(py, "torch.utils.dlpack", "to_dlpack")?.call1((&resolved,));
    let refused = |error| {
        let (kind, device) = (type_name(tensor), tensor.getattr("device"));
        let device = device.map_or_else(|_| String::new(), |d| format!(" on {d}"));
        unsupported_because(py, format!("{kind}{device} is not plain dense memory"), error)
    };
    let capsule = capsule.map_err(refused)?.cast_into::<PyCapsule>()?;
    let managed = capsule.pointer_checked(Some(c"dltensor"))?.cast::<DlTensor>();
    // SAFETY: a capsule of this name points to a `DLManagedTensor`, which begins with its
    // `DLTensor`, and keeps it until the capsule dies.
    let dl = unsafe { managed.as_ref() };
    if dl.device_type != CPU && dl.device_type != PINNED {
        let device = tensor.getattr("device")?;
        return Err(unsupported(py, format!("a tensor on {device}: move it to the CPU first")));
    }
    let (token, itemsize) = token(dl).ok_or_else(|| {
        let (code, bits, lanes) = (dl.code, dl.bits, dl.lanes);
        unsupported(py, format!("a tensor of DLPack type {code}, {bits} bits, {lanes} lanes"))
    })?;
    let ndim = usize::try_from(dl.ndim).ok().filter(|&n| n <= MAX_RANK);
    let ndim = ndim.ok_or_else(|| PyValueError::new_err(format!("{} axes", dl.ndim)))?;
    // SAFETY: DLPack promises `ndim` entries behind `shape`, and behind `strides` unless null.
    let (shape, strides) = unsafe {
        let strides = (!dl.strides.is_null()).then(|| entries(dl.strides, ndim));
        (entries(dl.shape, ndim), strides)
    };
    let shape: Vec<usize> = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>()?;
    let strides = match strides {
        Some(strides) => {
            strides.iter().map(|&s| (s as isize).checked_mul(itemsize as isize)).collect()
        }
        None => compact(&shape, itemsize),
    };
    let strides: Box<[isize]> =
        strides.ok_or_else(|| PyValueError::new_err("strides larger than the address space"))?;
    let layout = Layout::new(DType::new(&token, itemsize), &shape).map_err(invalid)?;
    let offset = usize::try_from(dl.byte_offset)?;
    // Torch has no read-only tensors; one made by resolving is nobody's destination.
    let readonly = !resolved.is(tensor);
    let ptr = dl.data.cast::<u8>().wrapping_add(offset);
    Ok(Export {
        layout,
        ptr,
        readonly,
        owner: Owner::Capsule { _capsule: capsule.unbind(), strides },
    })
}

/// # Safety
/// `n` entries behind `ptr`, unless `n` is 0; they live as long as the capsule that `'a` borrows.
unsafe fn entries<'a>(ptr: *const i64, n: usize) -> &'a [i64] {
    if n == 0 {
        return &[];
    }
    // SAFETY: passed on.
    unsafe { std::slice::from_raw_parts(ptr, n) }
}

/// Strides in C order; `None` when they overflow.
fn compact(shape: &[usize], itemsize: usize) -> Option<Box<[isize]>> {
    let mut strides = vec![0isize; shape.len()];
    let mut step = isize::try_from(itemsize).ok()?;
    for (stride, &len) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.checked_mul(isize::try_from(len.max(1)).ok()?)?;
    }
    Some(strides.into())
}

/// Token and size of an element.
fn token(dl: &DlTensor) -> Option<(String, usize)> {
    let (bits, lanes) = (usize::from(dl.bits), usize::from(dl.lanes));
    let itemsize = (bits * lanes).is_multiple_of(8).then_some(bits * lanes / 8)?;
    let order = if itemsize == 1 { '|' } else { char::from(super::NATIVE) };
    let kind = match (dl.code, bits, lanes) {
        (0, _, 1) => 'i',
        (1, _, 1) => 'u',
        (2, _, 1) => 'f',
        (5, 64 | 128, 1) => 'c',
        (6, 8, 1) => 'b',
        _ => return Some((extra(dl.code, bits, lanes)?.into(), itemsize)),
    };
    Some((format!("{order}{kind}{itemsize}"), itemsize))
}

/// Types that numpy knows only through ml_dtypes, or not at all: they go by their names.
fn extra(code: u8, bits: usize, lanes: usize) -> Option<&'static str> {
    Some(match (code, bits, lanes) {
        (4, 16, 1) => "bfloat16",
        (5, 32, 1) => "complex32",
        (7, 8, 1) => "float8_e3m4",
        (8, 8, 1) => "float8_e4m3",
        (9, 8, 1) => "float8_e4m3b11fnuz",
        (10, 8, 1) => "float8_e4m3fn",
        (11, 8, 1) => "float8_e4m3fnuz",
        (12, 8, 1) => "float8_e5m2",
        (13, 8, 1) => "float8_e5m2fnuz",
        (14, 8, 1) => "float8_e8m0fnu",
        (17, 4, 2) => "float4_e2m1fn_x2",
        _ => return None,
    })
}
