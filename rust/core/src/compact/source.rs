//! Where an array's bytes come from.

use crate::pack::Strided;

/// Bytes that are read at a time: they stay in the core's nearest cache while they are coded.
pub(super) const WINDOW: usize = 16 << 10;

/// The bytes of an array, in C order.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Memory that nobody writes to meanwhile.
    Private(&'a [u8]),
    /// Memory of any strides that others may write to. What is coded is a private copy of each
    /// element, the one that it is compared with; a change meanwhile is in it or is not.
    Foreign(&'a Strided),
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Private(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Source<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Private(bytes)
    }
}

impl<'a> From<&'a Strided> for Source<'a> {
    fn from(memory: &'a Strided) -> Self {
        Self::Foreign(memory)
    }
}

impl Source<'_> {
    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Foreign(memory) => memory.nbytes(),
        }
    }

    /// `len` bytes from `at` on, copied to `room` unless they are private already.
    #[inline(always)]
    pub(super) fn read<'b>(&'b self, at: usize, len: usize, room: &'b mut [u8]) -> &'b [u8] {
        match self {
            Self::Private(bytes) => &bytes[at..at + len],
            Self::Foreign(memory) => {
                let room = &mut room[..len];
                memory.gather(at, room);
                room
            }
        }
    }
}

/// Room for one window.
#[repr(align(64))]
pub(super) struct Window(pub [u8; WINDOW]);

impl Window {
    pub fn new() -> Self {
        Self([0; WINDOW])
    }
}
