//! `memweir._core`: conversions between Python and the core, nothing else.

mod borrow;
mod descriptor;

use pyo3::prelude::*;

/// The compiled part of memweir.
#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::descriptor::PyDescriptor;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
