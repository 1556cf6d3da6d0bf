//! Foreign memory with strides: read into, or written from, packed bytes in C order.
//!
//! # Soundness
//! The memory belongs to somebody else, who may write to it from another thread while we look, and
//! no lock of ours can stop that. So no reference is ever made over it. Every byte is read once,
//! through a raw pointer, by a plain copy into private memory, and is interpreted only there; no
//! length, index or branch depends on what was read before it got there. A write meanwhile changes
//! which bytes the private copy holds, old or new, and nothing else: what is hashed or stored
//! afterwards is that one copy. What remains is that the memory stays mapped, which is the promise
//! of whoever called [`Strided::new`]: a buffer export, a DLPack or an Arrow capsule is held.
#![allow(unsafe_code)]

mod flat;
mod rgb;

pub use flat::{Flat, FlatMut};

use std::mem::MaybeUninit;

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
        // SAFETY: a slice is private memory of its length.
        unsafe { self.gather_to(at, out.as_mut_ptr(), out.len()) };
    }

    /// Hands on all elements in C order, `SIZE` bytes at a time, copied to this thread's stack.
    pub fn blocks<const SIZE: usize>(&self, mut f: impl FnMut(&[u8])) {
        let mut block = [MaybeUninit::<u8>::uninit(); SIZE];
        for at in (0..self.nbytes()).step_by(SIZE) {
            let len = SIZE.min(self.nbytes() - at);
            let to = block.as_mut_ptr().cast::<u8>();
            // SAFETY: `to` has room for `SIZE` bytes, and after the copy `len` of them are set.
            f(unsafe {
                self.gather_to(at, to, len);
                std::slice::from_raw_parts(to, len)
            });
        }
    }

    /// # Safety
    /// Writable at `out`: `len` bytes of private memory.
    unsafe fn gather_to(&self, at: usize, out: *mut u8, len: usize) {
        self.walk.pieces(at, len, |done, piece| {
            // SAFETY: `Walk` yields offsets of bytes that the description reaches, and exactly
            // `len` bytes in all, `done` of them before this piece. What is private cannot overlap.
            unsafe {
                let out = out.add(done);
                match piece {
                    Piece::Part { offset, len } => copy(self.base.offset(offset), out, len),
                    Piece::Runs(grid) => grid.gather(self.base.offset(grid.offset), out),
                }
            }
        });
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
            // SAFETY: as in `Strided::gather`; nothing in Rust owns what the destination reaches,
            // so `src` cannot overlap it.
            unsafe {
                match piece {
                    Piece::Part { offset, len } => {
                        copy(from.add(done), self.base.offset(offset), len)
                    }
                    Piece::Runs(grid) => {
                        grid.scatter(from.add(done), self.base.offset(grid.offset))
                    }
                }
            }
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

/// A part of a walk.
enum Piece {
    /// Bytes within one run.
    Part { offset: isize, len: usize },
    /// Whole runs, from the one at `offset` on.
    Runs(Grid),
}

/// `rows` rows of `cols` runs of `run` bytes each; `offset` leads from the first element to the
/// first run, the strides from run to run.
struct Grid {
    offset: isize,
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
    fn pieces(&self, at: usize, len: usize, mut f: impl FnMut(usize, Piece)) {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.nbytes);
        assert!(inside, "{len} bytes at {at} of {}", self.nbytes);
        let (outer, inner) = match self.axes.as_slice() {
            [] => (&[][..], Axis { len: 1, stride: 0 }),
            [outer @ .., inner] => (outer, *inner),
        };
        let (run, mut done) = (self.run, 0);
        while done < len {
            let left = len - done;
            let (nth, skip) = ((at + done) / run, (at + done) % run);
            let (row, col) = (nth / inner.len, nth % inner.len);
            let offset = offset(outer, row) + col as isize * inner.stride;
            if skip != 0 || left < run {
                let len = left.min(run - skip);
                f(done, Piece::Part { offset: offset + skip as isize, len });
                done += len;
                continue;
            }
            // Whole rows, as many as the next axis out still has; else what is left of this one.
            let (rows, row_stride) = match outer.last() {
                Some(axis) if col == 0 => {
                    let whole = (left / run / inner.len).min(axis.len - row % axis.len);
                    (whole.max(1), axis.stride)
                }
                _ => (1, 0),
            };
            let cols = (inner.len - col).min(left / run);
            let col_stride = inner.stride;
            f(done, Piece::Runs(Grid { offset, run, rows, row_stride, cols, col_stride }));
            done += rows * cols * run;
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

impl Grid {
    /// # Safety
    /// `src` is the grid's first run, `dst` has room for all its bytes.
    unsafe fn gather(&self, src: *const u8, dst: *mut u8) {
        // SAFETY: passed on; `N` is the length of a run.
        unsafe {
            match self.run {
                1 => self.gather_runs::<1>(src, dst),
                2 => self.gather_runs::<2>(src, dst),
                3 if self.rows == 1 && self.col_stride == 4 => {
                    rgb::drop_fourth(src, dst, self.cols)
                }
                3 => self.gather_runs::<3>(src, dst),
                4 => self.gather_runs::<4>(src, dst),
                6 => self.gather_runs::<6>(src, dst),
                8 => self.gather_runs::<8>(src, dst),
                12 => self.gather_runs::<12>(src, dst),
                16 => self.gather_runs::<16>(src, dst),
                _ => self.each(|at, nth| copy(src.offset(at), dst.add(nth * self.run), self.run)),
            }
        }
    }

    /// # Safety
    /// `dst` is the grid's first run, `src` has all its bytes.
    unsafe fn scatter(&self, src: *const u8, dst: *mut u8) {
        // SAFETY: passed on.
        self.each(|at, nth| unsafe { copy(src.add(nth * self.run), dst.offset(at), self.run) });
    }

    /// Calls `f` with each run: its offset from the first one, and its number.
    fn each(&self, f: impl Fn(isize, usize)) {
        for row in 0..self.rows {
            for col in 0..self.cols {
                let at = row as isize * self.row_stride + col as isize * self.col_stride;
                f(at, row * self.cols + col);
            }
        }
    }

    /// Short runs, of a length known to the compiler. Where the next axis out is the denser one
    /// (a transpose), small tiles use each cache line for several rows before it is dropped.
    ///
    /// # Safety
    /// As [`gather`](Self::gather), and `N == run`.
    unsafe fn gather_runs<const N: usize>(&self, src: *const u8, dst: *mut u8) {
        let (rows, cols) = (self.rows, self.cols);
        let transposed = rows > 1 && self.row_stride.abs() < self.col_stride.abs();
        let (tall, wide) = if transposed { (16, 64) } else { (1, cols) };
        for top in (0..rows).step_by(tall) {
            for left in (0..cols).step_by(wide) {
                for row in top..rows.min(top + tall) {
                    let n = wide.min(cols - left);
                    let start = row as isize * self.row_stride + left as isize * self.col_stride;
                    // SAFETY: runs `left..left + n` of row `row` are within the grid.
                    unsafe {
                        let to = dst.add((row * cols + left) * N);
                        line::<N>(src.offset(start), self.col_stride, to, n);
                    }
                }
            }
        }
    }
}

/// `n` runs of `N` bytes, `stride` apart.
///
/// # Safety
/// The runs are readable, and `dst` has room for all of them.
unsafe fn line<const N: usize>(mut src: *const u8, stride: isize, mut dst: *mut u8, n: usize) {
    for _ in 0..n {
        // SAFETY: passed on; the pointers move past the last run only by address.
        unsafe { dst.copy_from_nonoverlapping(src, N) };
        src = src.wrapping_offset(stride);
        dst = dst.wrapping_add(N);
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
