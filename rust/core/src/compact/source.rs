//! Where an array's bytes come from.

use crate::pack::{Flat, Strided};
use std::ops::Range;

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

    /// The same for a window; what lies one behind the other is only copied as it is needed.
    #[inline(always)]
    pub(super) fn view<'b>(&'b self, at: usize, len: usize, room: &'b mut Window) -> View<'b> {
        let flat = match self {
            Self::Private(_) => None,
            Self::Foreign(memory) => memory.flat(),
        };
        match flat {
            Some(flat) => View::Lazy { flat, at, filled: 0, room: &mut room.0[..len] },
            None => View::Ready(self.read(at, len, &mut room.0)),
        }
    }

    /// Whether the bytes from `at` on are these.
    #[inline(always)]
    pub(super) fn equals(&self, at: usize, bytes: &[u8], room: &mut Window) -> bool {
        let flat = match self {
            Self::Private(_) => None,
            Self::Foreign(memory) => memory.flat(),
        };
        match flat {
            Some(flat) => flat.equals(at, bytes),
            None => self.read(at, bytes.len(), &mut room.0) == bytes,
        }
    }
}

/// A part of an array, in private memory.
pub(super) enum View<'a> {
    /// All of it.
    Ready(&'a [u8]),
    /// As far as it is filled.
    Lazy { flat: Flat<'a>, at: usize, filled: usize, room: &'a mut [u8] },
}

impl View<'_> {
    /// Bytes of the part, whose ranges are asked for from front to back.
    #[inline(always)]
    pub fn get(&mut self, range: Range<usize>) -> &[u8] {
        match self {
            Self::Ready(bytes) => &bytes[range],
            Self::Lazy { flat, at, filled, room } => {
                if range.end > *filled {
                    flat.copy(*at + *filled, &mut room[*filled..range.end]);
                    *filled = range.end;
                }
                &room[range]
            }
        }
    }

    /// Whether the `plane` bytes from `start` on are those before them, all of which were asked
    /// for; they themselves never will be.
    #[inline(always)]
    pub fn repeats(&mut self, start: usize, plane: usize) -> bool {
        match self {
            Self::Ready(bytes) => bytes[start - plane..start] == bytes[start..start + plane],
            Self::Lazy { flat, at, filled, room } => {
                *filled = start + plane;
                flat.equals(*at + start, &room[start - plane..start])
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
