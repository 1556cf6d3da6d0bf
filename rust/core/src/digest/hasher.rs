//! The two hash functions behind one face.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::LEN;
use crate::error::Error;
use crate::pack::Strided;

/// Bytes gathered at a time: whole BLAKE3 subtrees that stay in the core's own cache, and not too
/// much for any thread's stack.
const BLOCK: usize = 128 << 10;

/// A hash function of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// BLAKE3, the default.
    #[default]
    Blake3,
    /// SHA-256, for those who may only use that.
    Sha256,
}

impl Algorithm {
    /// Hash of bytes that are all there.
    pub fn hash(self, bytes: &[u8]) -> [u8; LEN] {
        match self {
            Self::Blake3 => blake3::hash(bytes).into(),
            Self::Sha256 => Sha256::digest(bytes).into(),
        }
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "blake3" => Ok(Self::Blake3),
            "sha256" => Ok(Self::Sha256),
            _ => Err(Error::Malformed {
                what: "algorithm",
                why: format!("{name:?} is neither \"blake3\" nor \"sha256\""),
            }),
        }
    }
}

/// A hash of bytes that come one after another.
pub struct Hasher {
    state: State,
    len: u64,
}

enum State {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
}

impl Hasher {
    /// A hash of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Blake3 => State::Blake3(Box::default()),
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
        };
        Self { state, len: 0 }
    }

    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        match &mut self.state {
            State::Blake3(hasher) => _ = hasher.update(bytes),
            State::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// Appends an array's bytes in C order, each read once.
    pub fn update_strided(&mut self, source: &Strided) {
        source.blocks::<BLOCK>(|block| self.update(block));
    }

    /// Bytes appended so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash of all of them.
    pub fn finish(self) -> [u8; LEN] {
        match self.state {
            State::Blake3(hasher) => hasher.finalize().into(),
            State::Sha256(hasher) => hasher.finalize().into(),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.state {
            State::Blake3(_) => "blake3",
            State::Sha256(_) => "sha256",
        };
        write!(f, "Hasher({name}, {} bytes)", self.len)
    }
}
