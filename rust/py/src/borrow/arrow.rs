//! Pillow's memory, by its Arrow export.

use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;

use memweir_core::pack::Strided;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use super::{Memory, Owner, invalid};

/// `struct ArrowSchema` of the Arrow C data interface, as far as it is read.
#[repr(C)]
struct Schema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *const *const Schema,
}

/// `struct ArrowArray` of the Arrow C data interface, as far as it is read.
#[repr(C)]
struct Array {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *const *const c_void,
    children: *const *const Array,
}

/// Bytes of every pixel in memory, and those of them that are the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pixel {
    /// All of so many.
    Whole(usize),
    /// The first three of four.
    FirstThree,
    /// The first and the last of four.
    Ends,
}

impl Memory<'_> {
    /// Borrows `n` pixels, at least one, from what `__arrow_c_array__` returned. `None` when that
    /// is not the memory we know. The export is released when the last reference to it goes.
    pub fn pixels(export: &Bound<'_, PyTuple>, n: usize, pixel: Pixel) -> PyResult<Option<Self>> {
        let (schema, array): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) = export.extract()?;
        let schema = schema.pointer_checked(Some(c"arrow_schema"))?.cast::<Schema>();
        let array = array.pointer_checked(Some(c"arrow_array"))?.cast::<Array>();
        // SAFETY: capsules of these names point to structures of the Arrow C data interface,
        // which live until the capsules die.
        let ptr = unsafe { values(schema.as_ref(), array.as_ref(), n, pixel.stored()) };
        let Some(ptr) = ptr else { return Ok(None) };
        let (shape, strides) = match pixel {
            Pixel::Whole(size) => ([n, size], [size as isize, 1]),
            Pixel::FirstThree => ([n, 3], [4, 1]),
            Pixel::Ends => ([n, 2], [4, 3]),
        };
        // SAFETY: `values` found an array of `n` pixels of `stored` bytes at `ptr`, and the
        // capsule keeps it.
        let source = unsafe { Strided::new(ptr, 1, &shape, &strides) }.map_err(invalid)?;
        let capsule = export.get_item(1)?.cast_into()?.unbind();
        let owner = Owner::Capsule { _capsule: capsule, strides: Box::default() };
        Ok(Some(Self { source, _owner: owner, _py: PhantomData }))
    }
}

impl Pixel {
    fn stored(self) -> usize {
        match self {
            Self::Whole(size) => size,
            Self::FirstThree | Self::Ends => 4,
        }
    }
}

/// The values of an array of `n` elements of `size` bytes, flat or as lists of fixed size.
///
/// # Safety
/// Both are structures of the Arrow C data interface that were not released.
unsafe fn values(schema: &Schema, array: &Array, n: usize, size: usize) -> Option<*const u8> {
    let format = |schema: &Schema| {
        // SAFETY: a schema has a format, a string that ends.
        unsafe { CStr::from_ptr(schema.format) }.to_bytes()
    };
    let (array, n) = match (format(schema), size) {
        (b"C", 1) | (b"s" | b"S", 2) | (b"i" | b"I" | b"f", 4) => (array, n),
        (b"+w:4", 4) if schema.n_children == 1 && array.n_children == 1 => {
            // SAFETY: each has one child, as it just said.
            let (schema, child) = unsafe { (&**schema.children, &**array.children) };
            if format(schema) != b"C" || array.offset != 0 {
                return None;
            }
            (child, n.checked_mul(4)?)
        }
        _ => return None,
    };
    if array.offset != 0 || array.n_buffers != 2 || usize::try_from(array.length) != Ok(n) {
        return None;
    }
    // SAFETY: the second of two buffers holds the values.
    let ptr = unsafe { *array.buffers.add(1) }.cast::<u8>();
    (!ptr.is_null()).then_some(ptr)
}
