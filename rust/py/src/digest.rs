//! `Digest`, and the functions that make one.

mod functions;
mod image;
mod nested;
mod packed;
mod pillow;

use memweir_core::digest::{Algorithm, Digest, LEN};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub use self::functions::{hash_array, hash_bytes, hash_file, hash_image, hash_many, hash_value};

/// 32 bytes that name a content.
#[pyclass(frozen, eq, ord, module = "memweir", name = "Digest")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PyDigest(Digest);

#[pymethods]
impl PyDigest {
    #[new]
    #[pyo3(signature = (value, /))]
    fn new(value: &[u8]) -> PyResult<Self> {
        let bytes = <[u8; LEN]>::try_from(value).map_err(|_| {
            PyValueError::new_err(format!("a digest is {LEN} bytes, not {}", value.len()))
        })?;
        Ok(Self(Digest::new(bytes)))
    }

    #[staticmethod]
    #[pyo3(signature = (text, /))]
    fn from_hex(text: &str) -> PyResult<Self> {
        Digest::from_hex(text).map(Self).map_err(|e| PyValueError::new_err(e.to_string()))
    }

    fn hex(&self) -> String {
        self.0.to_string()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.as_bytes())
    }

    fn __repr__(&self) -> String {
        format!("Digest('{}')", self.0)
    }

    fn __hash__(&self) -> i64 {
        // Its bytes are uniform: eight of them hash as well as any function of all.
        let mut first = [0; 8];
        first.copy_from_slice(&self.as_bytes()[..8]);
        i64::from_le_bytes(first)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyAny>, (Bound<'py, PyBytes>,)) {
        let class = slf.get_type().into_any();
        (class, (slf.get().__bytes__(slf.py()),))
    }
}

impl PyDigest {
    /// The digest itself.
    pub fn digest(&self) -> Digest {
        self.0
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; LEN] {
        self.0.as_bytes()
    }
}

impl From<Digest> for PyDigest {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

/// The `algorithm=` of every function.
fn algorithm(name: &str) -> PyResult<Algorithm> {
    name.parse::<Algorithm>().map_err(|e| PyValueError::new_err(e.to_string()))
}
