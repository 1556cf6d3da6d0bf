//! Hashing what was stored, in the pass that stores it.

use super::{Algorithm, Hasher, LEN};
use crate::pack::Strided;

/// Bytes copied before they are hashed: they are still in the core's own cache then.
const BLOCK: usize = 128 << 10;

/// Copies foreign memory and hashes the copy, in one pass over it. Whatever another thread writes
/// to the source meanwhile, the hash is that of the bytes that arrived.
#[derive(Debug)]
pub struct CopyHasher {
    hasher: Hasher,
}

impl CopyHasher {
    /// Nothing copied yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { hasher: Hasher::new(algorithm) }
    }

    /// Copies all of `source` to `out`.
    ///
    /// # Panics
    /// When `out` is not exactly as long as `source` has bytes.
    pub fn copy(&mut self, source: &Strided, out: &mut [u8]) {
        assert_eq!(out.len(), source.nbytes(), "destination of another size");
        self.copy_part(source, 0, out);
    }

    /// Copies the bytes of `source` from `at` on, as many as `out` holds: a destination that lies
    /// in pieces is filled from front to back.
    ///
    /// # Panics
    /// When `source` has no such bytes.
    pub fn copy_part(&mut self, source: &Strided, at: usize, out: &mut [u8]) {
        for (i, block) in out.chunks_mut(BLOCK).enumerate() {
            source.gather(at + i * BLOCK, block);
            self.hasher.update(block);
        }
    }

    /// The content hash of what was copied.
    pub fn finish(self) -> [u8; LEN] {
        self.hasher.finish()
    }
}
