//! Dropping the fourth byte of every pixel: Pillow's memory for RGB, and `rgba[..., :3]`.
#![allow(unsafe_code)]

/// Bytes between a pixel and what is asked of memory meanwhile: the processor's own guesses end with
/// the page, and begin anew after every block that is hashed.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 8 << 10;

/// Copies the first three of every four bytes, for `n` pixels.
///
/// # Safety
/// Readable at `src`: four bytes for every pixel, three for the last. Writable at `dst`: three
/// bytes for every pixel.
pub(super) unsafe fn drop_fourth(src: *const u8, dst: *mut u8, n: usize) {
    // SAFETY: passed on, for the first pixels and for the rest.
    unsafe {
        let done = vector(src, dst, n);
        plain(src.add(4 * done), dst.add(3 * done), n - done);
    }
}

/// # Safety
/// As [`drop_fourth`].
unsafe fn plain(mut src: *const u8, mut dst: *mut u8, n: usize) {
    for _ in 0..n {
        // SAFETY: passed on; the pointers move past the last pixel only by address.
        unsafe { dst.copy_from_nonoverlapping(src, 3) };
        src = src.wrapping_add(4);
        dst = dst.wrapping_add(3);
    }
}

/// As many of the first pixels as whole registers take; returns how many that were.
///
/// # Safety
/// As [`drop_fourth`].
#[cfg(target_arch = "x86_64")]
unsafe fn vector(src: *const u8, dst: *mut u8, n: usize) -> usize {
    if !is_x86_feature_detected!("ssse3") {
        return 0;
    }
    // Every step writes 16 bytes for its 12: two more pixels have to follow the last step. They
    // also make the fourth byte of its last pixel readable.
    let steps = n.saturating_sub(2) / 4;
    // SAFETY: the feature is there, and the lengths are argued above.
    unsafe { ssse3(src, dst, steps) };
    4 * steps
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn vector(_src: *const u8, _dst: *mut u8, _n: usize) -> usize {
    0
}

/// `steps` times four pixels.
///
/// # Safety
/// Readable at `src`: 16 bytes for every step. Writable at `dst`: 12 bytes for every step, and
/// four more.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
unsafe fn ssse3(mut src: *const u8, mut dst: *mut u8, steps: usize) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_setr_epi8, _mm_shuffle_epi8,
        _mm_storeu_si128,
    };
    let keep = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    let mut step = || {
        // SAFETY: within the bytes that the caller promises for this step.
        unsafe {
            let pixels = _mm_loadu_si128(src.cast());
            _mm_storeu_si128(dst.cast(), _mm_shuffle_epi8(pixels, keep));
        }
        (src, dst) = (src.wrapping_add(16), dst.wrapping_add(12));
        src
    };
    // Four steps are a cache line of pixels.
    for _ in 0..steps / 4 {
        let [_, _, _, next] = [step(), step(), step(), step()];
        // SAFETY: a prefetch may name any address.
        #[allow(unused_unsafe, reason = "newer standard libraries call it safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(AHEAD).cast());
        }
    }
    for _ in 0..steps % 4 {
        step();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lengths_and_both_ways_agree() {
        let source: Vec<u8> = (0..400).map(|i| (i % 251) as u8).collect();
        let packed: Vec<u8> = source.chunks(4).flat_map(|p| p[..3].to_vec()).collect();
        for n in 0..=100usize {
            // The exact allocations: a sanitizer sees a byte too many on either side.
            let from = source[..(4 * n).saturating_sub(1)].to_vec();
            let (mut to, mut plainly) = (vec![0; 3 * n], vec![0; 3 * n]);
            // SAFETY: the lengths are those asked for.
            unsafe {
                drop_fourth(from.as_ptr(), to.as_mut_ptr(), n);
                plain(from.as_ptr(), plainly.as_mut_ptr(), n);
            }
            assert_eq!(to, packed[..3 * n]);
            assert_eq!(plainly, packed[..3 * n]);
        }
    }
}
