//! What an entry is found by.

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// The hexadecimal text of 256 bits fits.
const INLINE: usize = 64;

/// A digest, text, bytes, a tuple of those, or the content itself. Keys of different kinds never
/// compare equal.
///
/// Short keys are kept as they are; long ones and tuples by the BLAKE3 hash of a frame in which
/// every part stands with its kind and length, so that no two of them share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))] // copied in registers that hold what was just written, on every look-up
pub struct Key {
    bytes: [u8; INLINE],
    len: u8,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Text,
    Bytes,
    Digest,
    Content,
    LongText,
    LongBytes,
    Tuple,
}

/// One key, or one part of a tuple.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Text, as UTF-8.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A digest.
    Digest(&'a [u8; 32]),
}

/// A key where its owner has it: a look-up copies nothing.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    kind: Kind,
    bytes: &'a [u8],
}

impl<'a> Ask<'a> {
    /// A digest.
    #[inline]
    pub fn digest(bytes: &'a [u8; 32]) -> Self {
        Self { kind: Kind::Digest, bytes }
    }

    /// Anything but a tuple; `None` when a [`Key`] does not keep it as it is.
    #[inline]
    pub fn single(part: Part<'a>) -> Option<Self> {
        let (kind, bytes) = match part {
            Part::Text(s) => (Kind::Text, s.as_bytes()),
            Part::Bytes(b) => (Kind::Bytes, b),
            Part::Digest(d) => return Some(Self::digest(d)),
        };
        (bytes.len() <= INLINE).then_some(Self { kind, bytes })
    }

    #[inline]
    pub(super) fn hash(self) -> u64 {
        match self.kind {
            // Text and bytes may be anybody's choice.
            Kind::Text | Kind::Bytes => seed().hash_one(self.bytes),
            // Eight bytes of a hash are as good as all; but who has seen to it that many begin alike
            // must not know where they go.
            _ => seed().hash_one(self.bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))),
        }
    }

    /// Whether this is asked for. Most keys have 32 bytes, which are compared without a call.
    #[inline]
    pub(super) fn is(self, key: &Key) -> bool {
        let kept = key.ask();
        self.kind == kept.kind
            && match (<&[u8; 32]>::try_from(self.bytes), <&[u8; 32]>::try_from(kept.bytes)) {
                (Ok(ours), Ok(theirs)) => ours == theirs,
                _ => self.bytes == kept.bytes,
            }
    }
}

impl<'a> From<&'a Key> for Ask<'a> {
    #[inline]
    fn from(key: &'a Key) -> Self {
        key.ask()
    }
}

impl Key {
    /// A digest as a key.
    #[inline]
    pub fn digest(bytes: &[u8; 32]) -> Self {
        Self::inline(Kind::Digest, bytes)
    }

    /// The key of the array that has this digest: nobody's choice, so that its entry can only hold
    /// that array.
    pub fn content(digest: &[u8; 32]) -> Self {
        Self::inline(Kind::Content, digest)
    }

    /// Anything but a tuple as a key.
    pub fn single(part: Part<'_>) -> Self {
        let (kind, long, bytes) = match part {
            Part::Text(s) => (Kind::Text, Kind::LongText, s.as_bytes()),
            Part::Bytes(b) => (Kind::Bytes, Kind::LongBytes, b),
            Part::Digest(d) => return Self::digest(d),
        };
        if bytes.len() <= INLINE {
            Self::inline(kind, bytes)
        } else {
            Self::inline(long, blake3::hash(bytes).as_bytes())
        }
    }

    /// Several parts in order as a key; a tuple of one part is not that part.
    pub fn tuple<'a>(parts: impl Iterator<Item = Part<'a>>) -> Self {
        let mut frame = blake3::Hasher::new();
        for part in parts {
            let (kind, bytes) = match part {
                Part::Text(s) => (Kind::Text, s.as_bytes()),
                Part::Bytes(b) => (Kind::Bytes, b),
                Part::Digest(d) => (Kind::Digest, &d[..]),
            };
            frame.update(&[kind as u8]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        Self::inline(Kind::Tuple, frame.finalize().as_bytes())
    }

    /// The key as bytes: equal for equal keys alone.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8];
        bytes.extend_from_slice(&self.bytes[..usize::from(self.len)]);
        bytes
    }

    #[inline]
    fn inline(kind: Kind, from: &[u8]) -> Self {
        let mut bytes = [0; INLINE];
        bytes[..from.len()].copy_from_slice(from);
        Self { kind, len: from.len() as u8, bytes }
    }

    #[inline]
    fn ask(&self) -> Ask<'_> {
        Ask { kind: self.kind, bytes: &self.bytes[..usize::from(self.len)] }
    }

    pub(super) fn hash(&self) -> u64 {
        self.ask().hash()
    }
}

/// What keys are hashed with in this process. Asked for by every cache as it is made, so
/// that no fork finds it half done.
pub(super) fn seed() -> &'static SeedableRandomState {
    static SHARED: OnceLock<SharedSeed> = OnceLock::new();
    static SEED: OnceLock<SeedableRandomState> = OnceLock::new();
    // foldhash is fast, but asks nobody for randomness; the standard library asks the system.
    let random = || RandomState::new().hash_one(());
    SEED.get_or_init(|| {
        let shared = SHARED.get_or_init(|| SharedSeed::from_u64(random()));
        SeedableRandomState::with_seed(random(), shared)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// A second's search finds hundreds of contents whose hashes begin alike.
    #[test]
    fn digests_that_begin_alike_lie_apart() {
        let keys = (0..64u8).map(|i| {
            let mut digest = [0; 32];
            digest[4] = i;
            Key::digest(&digest)
        });
        let places: HashSet<u64> = keys.map(|key| key.hash() % (1 << 16)).collect();
        assert!(places.len() > 48, "{places:?}");
    }

    #[test]
    fn different_keys_differ() {
        let d = [7; 32];
        let texts =
            ["", "a", "a\0", &"x".repeat(INLINE), &"x".repeat(INLINE + 1), &"x".repeat(500)];
        let mut keys = vec![Key::digest(&d), Key::content(&d), Key::single(Part::Bytes(&d))];
        for text in texts {
            keys.push(Key::single(Part::Text(text)));
            keys.push(Key::single(Part::Bytes(text.as_bytes())));
            keys.push(Key::tuple([Part::Text(text)].into_iter()));
            keys.push(Key::tuple([Part::Bytes(text.as_bytes())].into_iter()));
        }
        for (a, b) in [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc")] {
            keys.push(Key::tuple([Part::Text(a), Part::Text(b)].into_iter()));
            keys.push(Key::tuple([Part::Text(a), Part::Bytes(b.as_bytes())].into_iter()));
        }
        keys.push(Key::tuple([].into_iter()));
        keys.push(Key::tuple([Part::Digest(&d)].into_iter()));
        let hash = blake3::hash("x".repeat(INLINE + 1).as_bytes());
        keys.push(Key::single(Part::Bytes(hash.as_bytes())));
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b && a.to_bytes() != b.to_bytes()), "{i}");
        }
    }
}
