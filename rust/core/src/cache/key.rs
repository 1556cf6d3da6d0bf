//! What an entry is found by.

/// A digest, or the hash of a framed key of another kind. The two never compare equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    framed: bool,
    bytes: [u8; 32],
}

/// One piece of a framed key. The same bytes as another kind of piece are another key.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Text, as UTF-8.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A digest.
    Digest(&'a [u8; 32]),
}

impl Key {
    /// A digest as a key.
    pub fn digest(bytes: [u8; 32]) -> Self {
        Self { framed: false, bytes }
    }

    /// Text or bytes as a key.
    pub fn single(part: Part<'_>) -> Self {
        let mut frame = Frame::new(b'1', 1);
        frame.push(part);
        frame.finish()
    }

    /// Several parts in order as a key; a tuple of one part is not that part.
    pub fn tuple<'a>(parts: impl ExactSizeIterator<Item = Part<'a>>) -> Self {
        let mut frame = Frame::new(b't', parts.len());
        parts.for_each(|part| frame.push(part));
        frame.finish()
    }

    /// The key as bytes: equal for equal keys alone.
    pub fn to_bytes(&self) -> [u8; 33] {
        let mut bytes = [u8::from(self.framed); 33];
        bytes[1..].copy_from_slice(&self.bytes);
        bytes
    }

    pub(super) fn hash(&self) -> u64 {
        // A digest's bytes are uniform: eight of them hash as well as any function of all.
        let mut first = [0; 8];
        first.copy_from_slice(&self.bytes[..8]);
        u64::from_le_bytes(first)
    }
}

/// Every part with its kind and length before its bytes, so that no two keys share a frame.
struct Frame {
    // Short keys are hashed in one call from the stack: several times faster than a hasher.
    short: [u8; 192],
    len: usize,
    long: Option<Box<blake3::Hasher>>,
}

impl Frame {
    fn new(kind: u8, parts: usize) -> Self {
        let mut frame = Self { short: [0; 192], len: 0, long: None };
        frame.write(b"memweir key\x01");
        frame.write(&[kind]);
        frame.write(&(parts as u64).to_le_bytes());
        frame
    }

    fn push(&mut self, part: Part<'_>) {
        let (kind, bytes) = match part {
            Part::Text(s) => (b's', s.as_bytes()),
            Part::Bytes(b) => (b'b', b),
            Part::Digest(d) => (b'd', &d[..]),
        };
        self.write(&[kind]);
        self.write(&(bytes.len() as u64).to_le_bytes());
        self.write(bytes);
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(long) = &mut self.long {
            long.update(bytes);
        } else if let Some(room) = self.short.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        } else {
            let mut long = Box::new(blake3::Hasher::new());
            long.update(&self.short[..self.len]).update(bytes);
            self.long = Some(long);
        }
    }

    fn finish(self) -> Key {
        let hash = match self.long {
            Some(long) => long.finalize(),
            None => blake3::hash(&self.short[..self.len]),
        };
        Key { framed: true, bytes: hash.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_share_a_frame() {
        let d = [7; 32];
        let (long, longer) = ("x".repeat(500), "x".repeat(501));
        let keys = [
            Key::digest(d),
            Key::single(Part::Digest(&d)),
            Key::single(Part::Bytes(&d)),
            Key::single(Part::Text("a")),
            Key::single(Part::Bytes(b"a")),
            Key::tuple([Part::Text("a")].into_iter()),
            Key::tuple([Part::Text("a"), Part::Text("")].into_iter()),
            Key::tuple([Part::Text(""), Part::Text("a")].into_iter()),
            Key::tuple([Part::Text("ab"), Part::Text("c")].into_iter()),
            Key::tuple([Part::Text("a"), Part::Text("bc")].into_iter()),
            Key::tuple([].into_iter()),
            Key::single(Part::Text(&long)),
            Key::single(Part::Text(&longer)),
            Key::single(Part::Bytes(long.as_bytes())),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b), "key {i}");
        }
        // The way through the long hasher and the short one agree.
        let split = "x".repeat(150);
        let mut frame = Frame::new(b'1', 1);
        frame.long = Some(Box::new(blake3::Hasher::new()));
        if let Some(l) = &mut frame.long {
            l.update(&frame.short[..frame.len]);
        }
        frame.push(Part::Text(&split));
        assert_eq!(frame.finish(), Key::single(Part::Text(&split)));
    }
}
