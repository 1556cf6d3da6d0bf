//! `memweir._core`: conversions between Python and the core, nothing else.

mod borrow;
mod cache;
mod claims;
mod descriptor;
mod digest;
mod heap;
mod pixels;
mod proc;
mod view;

use pyo3::prelude::*;

/// The compiled part of memweir.
#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::cache::{_after_fork_in_child, PyCache, PyReservation};
    #[pymodule_export]
    use super::claims::{PyClaims, PySlot, PyUsage};
    #[pymodule_export]
    use super::descriptor::PyDescriptor;
    #[pymodule_export]
    use super::digest::{
        PyDigest, hash_array, hash_bytes, hash_file, hash_image, hash_many, hash_value,
    };
    #[pymodule_export]
    use super::heap::{
        PyHeapJob, PyHeapStep, heap_allocator, heap_job, heap_late, heap_stats, heap_tune,
    };
    #[pymodule_export]
    use super::pixels::PyPixels;
    #[pymodule_export]
    use super::proc::{PyLimit, PyMemory, PyPressure, drop_file_pages, limits, memory};
    #[pymodule_export]
    use super::view::PyView;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        // Made here, where no other thread can be in the middle of it when one forks.
        memweir_core::proc::reader::Reader::shared();
        super::heap::prepare();
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
