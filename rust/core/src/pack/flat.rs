//! Foreign memory without strides, copied in line with the code that reads or writes it.
//!
//! What the module above says holds here too: no reference, and one plain copy of each byte into
//! private memory. A fence behind the copy keeps the compiler from going back to the source.
#![allow(unsafe_code)]

use super::{Strided, StridedMut, copy};
use std::marker::PhantomData;
use std::sync::atomic::{Ordering, compiler_fence};

/// Bytes between what is copied and what is asked of memory meanwhile.
const AHEAD: usize = 2 << 10;
/// Bytes between what is written and what is asked for to be written to: hardware looks ahead too
/// little for stores, and not at all beyond a page.
const AHEAD_OF_WRITES: usize = 4 << 10;
/// Bytes that are copied, or compared, at a time.
const STRIP: usize = 128;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Foreign bytes, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Flat<'a> {
    base: *const u8,
    len: usize,
    of: PhantomData<&'a Strided>,
}

/// Bytes to be written, one behind the other: foreign, or borrowed.
#[derive(Debug)]
pub struct FlatMut<'a> {
    base: *mut u8,
    len: usize,
    of: PhantomData<&'a mut [u8]>,
}

impl Strided {
    /// The memory, if it has no strides.
    #[inline]
    pub fn flat(&self) -> Option<Flat<'_>> {
        let flat = Flat { base: self.base, len: self.walk.nbytes, of: PhantomData };
        self.walk.axes.as_slice().is_empty().then_some(flat)
    }
}

impl StridedMut {
    /// The memory, if it has no strides.
    #[inline]
    pub fn flat(&self) -> Option<FlatMut<'_>> {
        let flat = FlatMut { base: self.base, len: self.walk.nbytes, of: PhantomData };
        self.walk.axes.as_slice().is_empty().then_some(flat)
    }
}

impl<'a> From<&'a mut [u8]> for FlatMut<'a> {
    #[inline(always)]
    fn from(bytes: &'a mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), of: PhantomData }
    }
}

impl Flat<'_> {
    /// Copies the bytes from `at` on, as many as `out` holds, and asks for those behind them.
    ///
    /// # Panics
    /// When there are no such bytes.
    #[inline(always)]
    pub fn copy(&self, at: usize, out: &mut [u8]) {
        check(self.len, at, out.len());
        let from = self.base.wrapping_add(at);
        let (strips, rest) = out.as_chunks_mut::<STRIP>();
        for (i, strip) in strips.iter_mut().enumerate() {
            let from = from.wrapping_add(i * STRIP);
            ahead(from);
            // SAFETY: the range was checked.
            unsafe { strip.as_mut_ptr().copy_from_nonoverlapping(from, STRIP) };
        }
        if !rest.is_empty() {
            let behind = out.len().saturating_sub(STRIP);
            let from = from.wrapping_add(behind);
            // Some bytes once more, before any is looked at, are faster than a call.
            match out.last_chunk_mut::<STRIP>() {
                // SAFETY: the range was checked.
                Some(strip) => unsafe { strip.as_mut_ptr().copy_from_nonoverlapping(from, STRIP) },
                // SAFETY: as above; there is no strip.
                None => unsafe { out.as_mut_ptr().copy_from_nonoverlapping(from, out.len()) },
            }
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Whether the bytes from `at` on are these.
    ///
    /// # Panics
    /// When there are no such bytes.
    #[inline(always)]
    pub fn equals(&self, at: usize, bytes: &[u8]) -> bool {
        check(self.len, at, bytes.len());
        let from = self.base.wrapping_add(at);
        let (strips, rest) = bytes.as_chunks::<STRIP>();
        let mut differ = 0;
        for (i, strip) in strips.iter().enumerate() {
            let from = from.wrapping_add(i * STRIP);
            ahead(from);
            // SAFETY: the range was checked.
            differ |= unsafe { compare(from, strip) };
        }
        if !rest.is_empty() {
            let Some(strip) = bytes.last_chunk::<STRIP>() else {
                let mut private = [0; STRIP];
                let private = &mut private[..bytes.len()];
                // SAFETY: the range was checked.
                unsafe { private.as_mut_ptr().copy_from_nonoverlapping(from, bytes.len()) };
                return private == bytes;
            };
            // SAFETY: as above; the strip ends where the range does.
            differ |= unsafe { compare(from.wrapping_add(bytes.len() - STRIP), strip) };
        }
        differ == 0
    }
}

/// The bits in which a strip differs, all in one.
///
/// # Safety
/// The strip is readable.
#[inline(always)]
unsafe fn compare(from: *const u8, strip: &[u8; STRIP]) -> u64 {
    let mut private = [0; STRIP];
    // SAFETY: passed on.
    unsafe { private.as_mut_ptr().copy_from_nonoverlapping(from, STRIP) };
    let pairs = private.as_chunks::<8>().0.iter().zip(strip.as_chunks::<8>().0);
    pairs.fold(0, |all, (&one, &other)| all | u64::from_ne_bytes(one) ^ u64::from_ne_bytes(other))
}

#[inline(always)]
fn check(len: usize, at: usize, n: usize) {
    assert!(at <= len && n <= len - at, "{n} bytes at {at} of {len}");
}

#[inline(always)]
fn ahead(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..STRIP / LINE {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch may name any address.
        #[allow(unused_unsafe, reason = "newer standard libraries call it safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + LINE * line).cast());
        }
    }
}

#[inline(always)]
fn own(to: *const u8, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..n.div_ceil(LINE) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: as above; a processor that does not know the hint does nothing.
        #[allow(unused_unsafe, reason = "newer standard libraries call it safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(AHEAD_OF_WRITES + LINE * line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (to, n);
}

impl FlatMut<'_> {
    /// Bytes.
    #[inline(always)]
    pub fn nbytes(&self) -> usize {
        self.len
    }

    /// Writes what `f` makes of each item, from `at` on; of `K` items at a time, in private memory,
    /// so that vector code comes of it.
    ///
    /// # Panics
    /// When there is no room for it.
    #[inline(always)]
    pub fn each<const K: usize, const N: usize, T>(
        &mut self,
        at: usize,
        items: &[T],
        f: impl Fn(&T) -> [u8; N],
    ) {
        check(self.len, at, items.len() * N);
        let to = self.base.wrapping_add(at).cast::<[u8; N]>();
        let (strips, rest) = items.as_chunks::<K>();
        for (i, items) in strips.iter().enumerate() {
            let mut strip = [[0; N]; K];
            for (made, item) in strip.iter_mut().zip(items) {
                *made = f(item);
            }
            let to = to.wrapping_add(i * K);
            if K * N >= LINE {
                own(to.cast(), K * N);
            }
            // SAFETY: the range was checked, and what is private does not overlap it.
            unsafe { to.copy_from_nonoverlapping(strip.as_ptr(), K) };
        }
        let to = to.wrapping_add(strips.len() * K);
        for (i, item) in rest.iter().enumerate() {
            // SAFETY: the range was checked.
            unsafe { to.wrapping_add(i).write_unaligned(f(item)) };
        }
    }

    /// Writes the same `n` times, from `at` on.
    ///
    /// # Panics
    /// When there is no room for it.
    #[inline(always)]
    pub fn fill<const N: usize>(&mut self, at: usize, n: usize, item: [u8; N]) {
        check(self.len, at, n * N);
        let to = self.base.wrapping_add(at).cast::<[u8; N]>();
        for i in 0..n {
            // SAFETY: the range was checked.
            unsafe { to.wrapping_add(i).write_unaligned(item) };
        }
    }

    /// Writes `n` of the bytes from `from` on again, from `to` on.
    ///
    /// # Panics
    /// When there are no such bytes, or some are both.
    #[inline(always)]
    pub fn repeat(&mut self, from: usize, to: usize, n: usize) {
        check(self.len, from, n);
        check(self.len, to, n);
        assert!(from + n <= to || to + n <= from, "{n} bytes at {from} overlap those at {to}");
        own(self.base.wrapping_add(to), n);
        // SAFETY: the ranges were checked.
        unsafe { copy(self.base.wrapping_add(from), self.base.wrapping_add(to), n) };
    }
}
