//! Nested plain data as bytes: every value is its type, its length, and itself.
//!
//! The form is prefix-free, so neither neighbours nor nesting can be confused, and two values have
//! the same frames only if they are equal in type and content. `docs/identity.md` lists it.

use crate::digest::{Digest, Hasher, LEN};

/// Values nested deeper than this are refused by those who walk them.
pub const MAX_DEPTH: usize = 200;

/// Where frames go.
pub trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Hasher {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Writes frames, one call for each value, containers before what they hold.
#[derive(Debug, Default)]
pub struct Frames<S> {
    sink: S,
}

impl<S: Sink> Frames<S> {
    /// Frames that go to `sink`.
    pub fn new(sink: S) -> Self {
        Self { sink }
    }

    /// What the frames went to.
    pub fn into_inner(self) -> S {
        self.sink
    }

    /// `None`.
    pub fn none(&mut self) {
        self.sink.put(b"N");
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.sink.put(&[b'B', value.into()]);
    }

    /// An integer as little-endian two's complement, however far its sign is extended; no bytes
    /// mean 0.
    pub fn int(&mut self, bytes: &[u8]) {
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let (fill, mut n) = (if negative { 0xFF } else { 0 }, bytes.len());
        // The last byte may go as long as the one before carries the same sign.
        while n > 1 && bytes[n - 1] == fill && (bytes[n - 2] >= 0x80) == negative {
            n -= 1;
        }
        self.framed(b'I', if n == 0 { &[0] } else { &bytes[..n] });
    }

    /// A float by its bits: `-0.0` is not `0.0`.
    pub fn float(&mut self, value: f64) {
        self.sink.put(b"F");
        self.sink.put(&value.to_bits().to_le_bytes());
    }

    /// A text, given as UTF-8.
    pub fn text(&mut self, utf8: &[u8]) {
        self.framed(b'S', utf8);
    }

    /// Bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.framed(b'Y', bytes);
    }

    /// A list; its `len` items follow.
    pub fn list(&mut self, len: usize) {
        self.counted(b'L', len);
    }

    /// A tuple; its `len` items follow.
    pub fn tuple(&mut self, len: usize) {
        self.counted(b'T', len);
    }

    /// A mapping; its `len` keys follow, each with its value, in the order of the keys' frames.
    pub fn mapping(&mut self, len: usize) {
        self.counted(b'M', len);
    }

    /// A digest.
    pub fn digest(&mut self, digest: &Digest) {
        self.named(b'D', digest.as_bytes());
    }

    /// An array, by its digest.
    pub fn array(&mut self, digest: &Digest) {
        self.named(b'A', digest.as_bytes());
    }

    /// An image, by its digest.
    pub fn image(&mut self, digest: &Digest) {
        self.named(b'P', digest.as_bytes());
    }

    /// A key of a mapping, whose frames were written elsewhere to be sorted.
    pub fn key(&mut self, frames: &[u8]) {
        self.sink.put(frames);
    }

    fn framed(&mut self, tag: u8, bytes: &[u8]) {
        self.counted(tag, bytes.len());
        self.sink.put(bytes);
    }

    fn counted(&mut self, tag: u8, n: usize) {
        let mut head = [tag; 9];
        head[1..].copy_from_slice(&(n as u64).to_le_bytes());
        self.sink.put(&head);
    }

    fn named(&mut self, tag: u8, digest: &[u8; LEN]) {
        self.sink.put(&[tag]);
        self.sink.put(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(bytes: &[u8]) -> Vec<u8> {
        let mut frames = Frames::new(Vec::new());
        frames.int(bytes);
        frames.into_inner()[9..].to_vec()
    }

    #[test]
    fn integers_are_as_short_as_their_sign_allows() {
        assert_eq!(int(&[]), [0]);
        assert_eq!(int(&[0, 0, 0]), [0]);
        assert_eq!(int(&127i64.to_le_bytes()), [127]);
        assert_eq!(int(&128i64.to_le_bytes()), [128, 0]);
        assert_eq!(int(&(-1i64).to_le_bytes()), [255]);
        assert_eq!(int(&(-128i64).to_le_bytes()), [128]);
        assert_eq!(int(&(-129i64).to_le_bytes()), [127, 255]);
        assert_eq!(int(&256i128.to_le_bytes()), [0, 1]);
        assert_eq!(int(&i64::MIN.to_le_bytes()), i64::MIN.to_le_bytes());
    }
}
