//! Foreign memory with strides: read into, or written from, packed bytes in C order.
//!
//! # Soundness
//! The memory belongs to somebody else, who may write to it from another thread while we look.
//! No `&[u8]` is ever made over it: bytes are copied through raw pointers into private memory and
//! interpreted only there, and no length, index or branch depends on them. A concurrent write can
//! therefore tear the *content* of one copy, and nothing else; what is hashed or stored afterwards
//! is that one private copy. That the memory stays mapped is the promise of whoever called
//! [`Strided::new`]: a Python buffer export or a DLPack capsule held for as long.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::layout::MAX_RANK;

/// Axes kept without an allocation.
const INLINE: usize = 8;

/// Read-only foreign memory.
#[derive(Debug)]
pub struct Strided {
    base: *const u8,
    walk: Walk,
}

// SAFETY: the promise given to `Strided::new` (the memory stays readable) is not bound to a
// thread, and the pointer is only ever read through, by copies.
unsafe impl Send for Strided {}
// SAFETY: as above; a shared `Strided` offers reads only.
unsafe impl Sync for Strided {}

/// Writable foreign memory.
#[derive(Debug)]
pub struct StridedMut {
    base: *mut u8,
    walk: Walk,
}

// SAFETY: the promise given to `StridedMut::new` (the memory stays writable) is not bound to a
// thread.
unsafe impl Send for StridedMut {}
// SAFETY: two threads that write through one `StridedMut` race only on foreign bytes that nothing
// in Rust refers to, as two foreign writers would; see the module's note.
unsafe impl Sync for StridedMut {}

impl Strided {
    /// Memory at `ptr`, the first element; `strides` are in bytes, of either sign, or 0.
    ///
    /// # Errors
    /// [`Error::Layout`] when the description does not fit into the address space, when the
    /// lengths of `shape` and `strides` differ, or when `ptr` is null and there are bytes.
    ///
    /// # Safety
    /// Every byte that the description reaches stays readable while the value lives.
    pub unsafe fn new(
        ptr: *const u8,
        itemsize: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self> {
        Ok(Self { base: ptr, walk: Walk::new(ptr.addr(), itemsize, shape, strides)? })
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        self.walk.nbytes
    }

    /// Copies all elements in C order.
    ///
    /// # Panics
    /// When `out` is not exactly [`nbytes`](Self::nbytes) long.
    pub fn copy_to(&self, out: &mut [u8]) {
        assert_eq!(out.len(), self.nbytes(), "destination of another size");
        self.gather(0, out);
    }

    /// Copies the bytes from `at` on, counted in C order, as many as `out` holds.
    ///
    /// # Panics
    /// When the range does not lie within [`nbytes`](Self::nbytes).
    pub fn gather(&self, at: usize, out: &mut [u8]) {
        let to = out.as_mut_ptr();
        self.walk.pieces(at, out.len(), |done, piece| {
            // SAFETY: `Walk` yields offsets of bytes that the description reaches, and exactly
            // `out.len()` bytes in all, `done` of them before this piece. `out` is private memory
            // and cannot overlap.
            unsafe { piece.gather(self.base.offset(piece.offset), to.add(done)) };
        });
    }

    /// Hands on all elements in C order, as many bytes at a time as `scratch` holds (at least 1).
    pub fn blocks(&self, scratch: &mut [u8], mut f: impl FnMut(&[u8])) {
        let size = scratch.len();
        for at in (0..self.nbytes()).step_by(size) {
            let block = &mut scratch[..(self.nbytes() - at).min(size)];
            self.gather(at, block);
            f(block);
        }
    }
}

impl StridedMut {
    /// Memory at `ptr`, the first element; `strides` are in bytes, of either sign.
    ///
    /// # Errors
    /// As [`Strided::new`].
    ///
    /// # Safety
    /// Every byte that the description reaches stays writable while the value lives.
    pub unsafe fn new(
        ptr: *mut u8,
        itemsize: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self> {
        Ok(Self { base: ptr, walk: Walk::new(ptr.addr(), itemsize, shape, strides)? })
    }

    /// Bytes of all elements.
    pub fn nbytes(&self) -> usize {
        self.walk.nbytes
    }

    /// Writes all elements, given in C order.
    ///
    /// # Panics
    /// When `src` is not exactly [`nbytes`](Self::nbytes) long.
    pub fn from_slice(&self, src: &[u8]) {
        assert_eq!(src.len(), self.nbytes(), "source of another size");
        self.scatter(0, src);
    }

    /// Writes the bytes from `at` on, counted in C order.
    ///
    /// # Panics
    /// When the range does not lie within [`nbytes`](Self::nbytes).
    pub fn scatter(&self, at: usize, src: &[u8]) {
        let from = src.as_ptr();
        self.walk.pieces(at, src.len(), |done, piece| {
            // SAFETY: as in `Strided::gather`. `src` may be a view of bytes that the destination
            // aliases only if a caller broke the contract of `new`.
            unsafe { piece.scatter(from.add(done), self.base.offset(piece.offset)) };
        });
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Axis {
    len: usize,
    stride: isize,
}

/// Axes of a walk, outermost first. Most arrays have few, and a put of 4 KiB must not allocate.
#[derive(Debug)]
enum Axes {
    Inline(u8, [Axis; INLINE]),
    Heap(Box<[Axis]>),
}

impl Axes {
    fn as_slice(&self) -> &[Axis] {
        match self {
            Self::Inline(n, axes) => &axes[..usize::from(*n)],
            Self::Heap(axes) => axes,
        }
    }
}

/// How C order runs over memory: `run` contiguous bytes, repeated along `axes`. Neighbouring axes
/// that continue each other are merged, so contiguous memory has no axes at all.
#[derive(Debug)]
struct Walk {
    nbytes: usize,
    run: usize,
    axes: Axes,
}

/// A part of a walk: `rows` rows of `cols` runs, or (`rows == 1`) any stretch of one row.
struct Piece {
    /// From the first element to the first run, in bytes.
    offset: isize,
    /// Bytes of the first run to leave out.
    skip: usize,
    /// Bytes of the piece.
    len: usize,
    run: usize,
    rows: usize,
    row_stride: isize,
    cols: usize,
    col_stride: isize,
}

impl Walk {
    fn new(addr: usize, itemsize: usize, shape: &[usize], strides: &[isize]) -> Result<Self> {
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return Err(bad("rank", shape, strides));
        }
        let empty = Axes::Inline(0, [Axis::default(); INLINE]);
        if itemsize == 0 || shape.contains(&0) {
            return Ok(Self { nbytes: 0, run: 0, axes: empty });
        }
        // Where the lowest and the highest byte lie, relative to the first element.
        let (mut low, mut high) = (0isize, isize::try_from(itemsize).ok());
        let (mut nbytes, mut contiguous) = (itemsize, true);
        for (&len, &stride) in shape.iter().zip(strides).rev().filter(|&(&len, _)| len > 1) {
            contiguous &= isize::try_from(nbytes) == Ok(stride);
            let overflow = || bad("size", shape, strides);
            nbytes = nbytes.checked_mul(len).ok_or_else(overflow)?;
            let last = isize::try_from(len - 1).ok().and_then(|n| n.checked_mul(stride));
            let last = last.ok_or_else(overflow)?;
            low = low.checked_add(last.min(0)).ok_or_else(overflow)?;
            high = high.and_then(|h| h.checked_add(last.max(0)));
        }
        let fits = isize::try_from(nbytes).is_ok()
            && addr != 0
            && addr.checked_add_signed(low).is_some()
            && high.and_then(|h| addr.checked_add_signed(h)).is_some();
        if !fits {
            return Err(bad("extent", shape, strides));
        }
        if contiguous {
            return Ok(Self { nbytes, run: nbytes, axes: empty });
        }
        Ok(Self::merged(nbytes, itemsize, shape, strides))
    }

    fn merged(nbytes: usize, itemsize: usize, shape: &[usize], strides: &[isize]) -> Self {
        let mut run = itemsize;
        let mut axes: Vec<Axis> = Vec::with_capacity(shape.len()); // innermost first
        for (&len, &stride) in shape.iter().zip(strides).rev().filter(|&(&len, _)| len > 1) {
            let step = stride.unsigned_abs();
            match axes.last_mut() {
                None if stride > 0 && step == run => run *= len,
                Some(inner)
                    if inner.len.checked_mul(inner.stride.unsigned_abs()) == Some(step)
                        && inner.stride.signum() == stride.signum() =>
                {
                    inner.len *= len;
                }
                _ => axes.push(Axis { len, stride }),
            }
        }
        axes.reverse();
        let axes = if axes.len() <= INLINE {
            let mut inline = [Axis::default(); INLINE];
            inline[..axes.len()].copy_from_slice(&axes);
            Axes::Inline(axes.len() as u8, inline)
        } else {
            Axes::Heap(axes.into())
        };
        Self { nbytes, run, axes }
    }

    /// Splits the range into pieces; `f` gets the bytes before each piece, and the piece.
    fn pieces(&self, at: usize, len: usize, mut f: impl FnMut(usize, &Piece)) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.nbytes);
        assert!(inside, "{len} bytes at {at} of {}", self.nbytes);
        let (outer, inner) = match self.axes.as_slice() {
            [] => (&[][..], Axis { len: 1, stride: 0 }),
            [outer @ .., inner] => (outer, *inner),
        };
        let (run, row_bytes) = (self.run, self.run * inner.len);
        let mut done = 0;
        while done < len {
            let left = len - done;
            let (row, within) = ((at + done) / row_bytes, (at + done) % row_bytes);
            // Whole rows, as many as the next axis out still has; else what is left of this one.
            let (rows, row_stride) = match outer.last() {
                Some(axis) if within == 0 && left >= row_bytes => {
                    ((left / row_bytes).min(axis.len - row % axis.len), axis.stride)
                }
                _ => (1, 0),
            };
            let bytes = if rows > 1 { rows * row_bytes } else { left.min(row_bytes - within) };
            f(
                done,
                &Piece {
                    offset: offset(outer, row) + (within / run) as isize * inner.stride,
                    skip: within % run,
                    len: bytes,
                    run,
                    rows,
                    row_stride,
                    cols: inner.len,
                    col_stride: inner.stride,
                },
            );
            done += bytes;
        }
    }
}

/// Bytes from the first element to row number `row`.
fn offset(axes: &[Axis], mut row: usize) -> isize {
    let mut offset = 0;
    for axis in axes.iter().rev() {
        offset += (row % axis.len) as isize * axis.stride;
        row /= axis.len;
    }
    offset
}

fn bad(what: &str, shape: &[usize], strides: &[isize]) -> Error {
    Error::Layout(format!("{what} of shape {shape:?} with strides {strides:?}"))
}

impl Piece {
    /// # Safety
    /// `src` is the piece's first run, `dst` has room for `len` bytes.
    unsafe fn gather(&self, src: *const u8, dst: *mut u8) {
        // SAFETY: passed on.
        unsafe {
            if self.skip == 0 && self.len == self.rows * self.cols * self.run {
                match self.run {
                    1 => self.plane::<1>(src, dst),
                    2 => self.plane::<2>(src, dst),
                    3 => self.plane::<3>(src, dst),
                    4 => self.plane::<4>(src, dst),
                    6 => self.plane::<6>(src, dst),
                    8 => self.plane::<8>(src, dst),
                    12 => self.plane::<12>(src, dst),
                    16 => self.plane::<16>(src, dst),
                    _ => self.runs(|at, done, n| copy(src.offset(at), dst.add(done), n)),
                }
            } else {
                self.runs(|at, done, n| copy(src.offset(at), dst.add(done), n));
            }
        }
    }

    /// # Safety
    /// `dst` is the piece's first run, `src` has `len` bytes.
    unsafe fn scatter(&self, src: *const u8, dst: *mut u8) {
        // SAFETY: passed on.
        self.runs(|at, done, n| unsafe { copy(src.add(done), dst.offset(at), n) });
    }

    /// Whole rows of runs of `N` bytes. Where the next axis out is the denser one (a transpose),
    /// small tiles use each cache line for several rows before it is dropped.
    ///
    /// # Safety
    /// As [`gather`](Self::gather), with `skip == 0`, whole rows, and `N == run`.
    unsafe fn plane<const N: usize>(&self, src: *const u8, dst: *mut u8) {
        let (rows, cols) = (self.rows, self.cols);
        let transposed = rows > 1 && self.row_stride.abs() < self.col_stride.abs();
        let (tall, wide) = if transposed { (16, 64) } else { (1, cols) };
        for top in (0..rows).step_by(tall) {
            for left in (0..cols).step_by(wide) {
                for row in top..rows.min(top + tall) {
                    // SAFETY: `row < rows` and `left < cols` stay within the piece, and so does
                    // every run below, `left..right` of the row.
                    unsafe {
                        let right = cols.min(left + wide);
                        let start =
                            row as isize * self.row_stride + left as isize * self.col_stride;
                        let mut from = src.offset(start);
                        let mut to = dst.add((row * cols + left) * N);
                        for _ in left..right {
                            to.copy_from_nonoverlapping(from, N);
                            from = from.wrapping_offset(self.col_stride);
                            to = to.wrapping_add(N);
                        }
                    }
                }
            }
        }
    }

    /// Calls `f` with each contiguous stretch: its offset from the first run, the bytes before it,
    /// and its length.
    fn runs(&self, f: impl Fn(isize, usize, usize)) {
        let (mut done, mut skip, mut row) = (0, self.skip, 0);
        while done < self.len {
            let mut at = row * self.row_stride;
            for _ in 0..self.cols {
                let n = (self.run - skip).min(self.len - done);
                f(at + skip as isize, done, n);
                done += n;
                skip = 0;
                if done == self.len {
                    break;
                }
                at += self.col_stride;
            }
            row += 1;
        }
    }
}

/// `memcpy` as a call into libc: see the module's note on concurrent writers.
///
/// # Safety
/// `n` bytes are readable at `src` and writable at `dst`, and do not overlap.
unsafe fn copy(src: *const u8, dst: *mut u8, n: usize) {
    // SAFETY: passed on.
    unsafe { libc::memcpy(dst.cast(), src.cast(), n) };
}

#[cfg(test)]
mod tests;
