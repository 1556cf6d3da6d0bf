//! What can go wrong in the core, said so that a caller knows what to do.

/// Errors of the core. The bindings map each to one Python exception.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A shape, stride, length or size that cannot describe memory.
    #[error("invalid layout: {0}")]
    Layout(String),
    /// A record or text that does not decode.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// Which format was being read.
        what: &'static str,
        /// The first thing that was wrong with it.
        why: String,
    },
    /// The operating system refused memory.
    #[error("the system refused {bytes} bytes of memory (os error {errno})")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// `errno` after the refusal.
        errno: i32,
    },
}

/// Result of the core.
pub type Result<T> = std::result::Result<T, Error>;
