//! Placeholder until the real bindings of digests land in this file.

use memweir_core::digest::Digest;
use pyo3::prelude::*;

#[pyclass(frozen, eq, ord, hash, module = "memweir._core", name = "Digest")]
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PyDigest(Digest);

impl PyDigest {
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl From<Digest> for PyDigest {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

#[pymethods]
impl PyDigest {
    #[new]
    fn new(bytes: [u8; 32]) -> Self {
        Self(Digest::new(bytes))
    }
    fn __bytes__(&self) -> [u8; 32] {
        *self.0.as_bytes()
    }
    fn hex(&self) -> String {
        self.0.to_string()
    }
}
