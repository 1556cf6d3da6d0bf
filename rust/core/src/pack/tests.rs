#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// A view of `memory`: where its first element lies, and how it strides.
#[derive(Debug, Clone)]
struct View {
    itemsize: usize,
    shape: Vec<usize>,
    strides: Vec<isize>,
    first: usize,
    memory: Vec<u8>,
}

impl View {
    /// The bytes in C order, one element at a time.
    fn packed(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for n in 0..self.shape.iter().product() {
            let at = self.first.wrapping_add_signed(self.element(n));
            out.extend_from_slice(&self.memory[at..at + self.itemsize]);
        }
        out
    }

    fn element(&self, mut n: usize) -> isize {
        let mut offset = 0;
        for (&len, &stride) in self.shape.iter().zip(&self.strides).rev() {
            offset += (n % len) as isize * stride;
            n /= len;
        }
        offset
    }

    fn read(&self) -> Strided {
        let ptr = self.memory[self.first..].as_ptr();
        // SAFETY: `views` allocates all that the strides reach, and the test keeps it.
        unsafe { Strided::new(ptr, self.itemsize, &self.shape, &self.strides) }.unwrap()
    }
}

/// Any permutation of axes, steps, reversals, broadcasts and unit axes, up to rank 10.
fn views() -> impl Strategy<Value = View> {
    let axis = (1usize..5, 1usize..3, prop_oneof![6 => Just(1isize), 2 => Just(-1), 1 => Just(0)]);
    let item = prop_oneof![Just(1usize), Just(2), Just(3), Just(4), Just(5), Just(8), Just(24)];
    (item, prop::collection::vec(axis, 0..10), any::<u64>()).prop_map(|(itemsize, axes, seed)| {
        let mut axes = axes;
        for axis in axes.iter_mut().skip(5) {
            axis.0 = axis.0.min(2); // high rank, few elements
        }
        let mut order: Vec<usize> = (0..axes.len()).collect();
        if seed % 2 == 1 {
            order.sort_by_key(|&i| (seed >> (6 * i)) & 63);
        }
        let (mut size, mut first) = (itemsize, 0);
        let mut strides = vec![0; axes.len()];
        for &i in order.iter().rev() {
            let (len, step, sign) = axes[i];
            strides[i] = (size * step) as isize * sign;
            if sign < 0 {
                first += size * step * (len - 1);
            }
            size *= len * step;
        }
        let memory =
            (0..size).map(|i| (i as u64).wrapping_mul(seed | 1).to_le_bytes()[2]).collect();
        let shape = axes.iter().map(|a| a.0).collect();
        View { itemsize, shape, strides, first, memory }
    })
}

proptest! {
    #[test]
    fn gathers_like_a_loop_over_elements(view in views(), cut in 0.0..1.0f64) {
        let (strided, packed) = (view.read(), view.packed());
        prop_assert_eq!(strided.nbytes(), packed.len());

        let mut out = vec![0; packed.len()];
        strided.copy_to(&mut out);
        prop_assert_eq!(&out, &packed);

        let at = (cut * packed.len() as f64) as usize;
        let mut tail = vec![0; packed.len() - at];
        strided.gather(at, &mut tail);
        prop_assert_eq!(&tail, &packed[at..]);

        let mut joined = Vec::new();
        strided.blocks::<7>(|block| joined.extend_from_slice(block));
        strided.blocks::<64>(|block| joined.extend_from_slice(block));
        prop_assert_eq!(joined, packed.repeat(2));
    }

    #[test]
    fn scatters_what_it_gathers(view in views(), cut in 0.0..1.0f64) {
        prop_assume!(view.strides.iter().zip(&view.shape).all(|(&s, &n)| s != 0 || n == 1));
        let packed = view.packed();
        let mut memory = vec![0xAA; view.memory.len()];
        let ptr = memory[view.first..].as_mut_ptr();
        // SAFETY: as in `View::read`.
        let out = unsafe { StridedMut::new(ptr, view.itemsize, &view.shape, &view.strides) };
        let out = out.unwrap();
        let at = (cut * packed.len() as f64) as usize;
        out.scatter(0, &packed[..at]);
        out.scatter(at, &packed[at..]);
        let back = View { memory, ..view };
        prop_assert_eq!(back.packed(), packed);
    }
}

#[test]
fn flat_memory_is_copied_and_compared() {
    let bytes: Vec<u8> = (0..2000).map(|i| (i % 251) as u8).collect();
    for len in (0..300).chain([1000, 1900]) {
        for at in [0, 1, 64] {
            // The exact allocation: a sanitizer sees a byte too many.
            let memory = bytes[..at + len].to_vec();
            // SAFETY: `memory` outlives the description.
            let source = unsafe { Strided::new(memory.as_ptr(), 1, &[at + len], &[1]) }.unwrap();
            let flat = source.flat().unwrap();
            let mut out = vec![0; len];
            flat.copy(at, &mut out);
            assert_eq!(out, bytes[at..at + len]);
            assert!(flat.equals(at, &out));
            for wrong in [0, len / 2, len.saturating_sub(1)] {
                let Some(byte) = out.get_mut(wrong) else { continue };
                *byte ^= 1;
                assert!(!flat.equals(at, &out), "byte {wrong} of {len}");
                out[wrong] ^= 1;
            }
        }
    }
    // SAFETY: as above.
    let rows = unsafe { Strided::new(bytes.as_ptr(), 1, &[4, 4], &[8, 1]) }.unwrap();
    assert!(rows.flat().is_none());
}

#[test]
fn flat_memory_is_written_in_strips() {
    let items: Vec<u8> = (0..100).collect();
    for n in 0..items.len() {
        let mut out = vec![0xEE; 8 + 2 * n];
        let mut flat = FlatMut::from(&mut out[4..4 + 2 * n]);
        flat.each::<8, 2, _>(0, &items[..n], |&i| [i, i + 1]);
        let expected: Vec<u8> = items[..n].iter().flat_map(|&i| [i, i + 1]).collect();
        assert_eq!(out[4..4 + 2 * n], expected);
        assert_eq!((&out[..4], &out[4 + 2 * n..]), (&[0xEE; 4][..], &[0xEE; 4][..]));
    }
    let mut out = [0; 8];
    let mut flat = FlatMut::from(&mut out[..]);
    flat.fill(0, 2, [1, 2]);
    flat.repeat(0, 4, 4);
    assert_eq!(out, [1, 2, 1, 2, 1, 2, 1, 2]);
}

#[test]
#[should_panic(expected = "3 bytes at 6 of 8")]
fn a_write_outside_is_a_bug() {
    FlatMut::from(&mut [0; 8][..]).fill(6, 3, [1]);
}

#[test]
#[should_panic(expected = "overlap")]
fn a_repetition_of_itself_is_a_bug() {
    FlatMut::from(&mut [0; 8][..]).repeat(0, 3, 4);
}

fn describe(itemsize: usize, shape: &[usize], strides: &[isize]) -> Result<usize> {
    // SAFETY: only the arithmetic is looked at; nothing is read.
    unsafe { Strided::new(8 as *const u8, itemsize, shape, strides) }.map(|s| s.nbytes())
}

#[test]
fn refuses_what_cannot_be_memory() {
    assert_eq!(describe(4, &[2, 3], &[12, 4]), Ok(24));
    assert_eq!(describe(4, &[], &[]), Ok(4));
    assert_eq!(describe(4, &[3, 0], &[isize::MAX, isize::MIN]), Ok(0));
    assert_eq!(describe(0, &[3], &[0]), Ok(0));
    assert!(describe(4, &[2], &[]).is_err());
    assert!(describe(1, &[1; 65], &[1; 65]).is_err());
    assert!(describe(1, &[usize::MAX, 2], &[0, 0]).is_err());
    assert!(describe(1, &[3], &[isize::MIN]).is_err());
    assert!(describe(1, &[2], &[-16]).is_err(), "reaches below address 0");
    assert!(describe(usize::MAX, &[1], &[0]).is_err());
    // SAFETY: refused, so never read.
    assert!(unsafe { Strided::new(std::ptr::null(), 1, &[1], &[1]) }.is_err());
}

#[test]
fn contiguous_memory_has_no_axes() {
    let bytes = [0u8; 24];
    let axes = |shape: &[usize], strides: &[isize]| {
        // SAFETY: `bytes` outlives the description.
        let s = unsafe { Strided::new(bytes.as_ptr(), 1, shape, strides) }.unwrap();
        s.walk.axes.as_slice().len()
    };
    assert_eq!(axes(&[2, 3, 4], &[12, 4, 1]), 0);
    assert_eq!(axes(&[1, 24, 1], &[-7, 1, 99]), 0);
    assert_eq!(axes(&[2, 2, 4], &[12, 4, 1]), 1, "rows of 8 bytes");
    assert_eq!(axes(&[2, 3, 4], &[4, 8, 1]), 2);
    assert_eq!(axes(&[2, 3, 4], &[0, 0, 0]), 1, "one byte, broadcast");
}

#[test]
fn drops_the_fourth_byte() {
    let memory: Vec<u8> = (0..4000).map(|i| (i % 251) as u8).collect();
    let view = View { itemsize: 1, shape: vec![1000, 3], strides: vec![4, 1], first: 0, memory };
    let mut joined = Vec::new();
    view.read().blocks::<1000>(|block| joined.extend_from_slice(block));
    assert_eq!(joined, view.packed());
}

#[test]
fn transposes_in_tiles() {
    let (rows, cols) = (70, 150);
    let memory: Vec<u8> = (0..rows * cols * 4).map(|i| (i % 251) as u8).collect();
    let (shape, strides) = (vec![cols, rows], vec![4, cols as isize * 4]);
    let view = View { itemsize: 4, shape, strides, first: 0, memory };
    let mut out = vec![0; view.memory.len()];
    view.read().copy_to(&mut out);
    assert_eq!(out, view.packed());
}

#[test]
#[should_panic(expected = "5 bytes at 20 of 24")]
fn a_range_outside_is_a_bug() {
    let bytes = [0u8; 24];
    // SAFETY: `bytes` outlives the description.
    let s = unsafe { Strided::new(bytes.as_ptr(), 1, &[24], &[1]) }.unwrap();
    s.gather(20, &mut [0; 5]);
}
