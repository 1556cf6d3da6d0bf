//! Descriptions of memory: what is accepted lies within it, and is walked like a naive loop does.
#![allow(unsafe_code)]

use arbitrary::{Result, Unstructured};
use memweir_core::layout::{DType, Layout, MAX_RANK};
use memweir_core::pack::{Strided, StridedMut};

/// Bytes of the largest buffer.
const MOST: i128 = 32 << 10;
const ITEMS: [usize; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 31, 200];

/// A description, of an exact buffer where that is small enough, and of any memory at all.
pub fn check(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let _ = describe(&mut u).and_then(|()| walk(&mut u));
}

/// Any numbers: nothing overflows, and what is accepted is true.
fn describe(u: &mut Unstructured) -> Result<()> {
    let kind = u.arbitrary::<u8>()?;
    if kind % 4 != 3 {
        return Ok(());
    }
    let token: String = u.arbitrary()?;
    let (itemsize, address) = (wide(u)?, wide(u)?);
    let rank = u.int_in_range(0..=66)?;
    let shape: Vec<usize> = (0..rank).map(|_| wide(u)).collect::<Result<_>>()?;
    let strides: Vec<isize> =
        (0..rank).map(|_| Ok(wide(u)?.cast_signed())).collect::<Result<_>>()?;

    let dtype = DType::new(&token, itemsize);
    assert_eq!((dtype.token(), dtype.itemsize()), (&*token, itemsize));
    // Numpy's rule: an empty array has to be addressable without its empty axes.
    let mut factors = shape.iter().filter(|&&n| n > 0).map(|&n| n as u128);
    let size = factors.try_fold(itemsize as u128, u128::checked_mul);
    let elements = shape.iter().filter(|&&n| n > 0).try_fold(1usize, |all, &n| all.checked_mul(n));
    let fits = |bytes: &u128| *bytes <= isize::MAX as u128;
    let size = size.filter(fits).filter(|_| rank <= MAX_RANK && elements.is_some());
    let empty = shape.contains(&0);
    match Layout::new(dtype, &shape) {
        Ok(layout) => {
            assert_eq!(layout.shape(), shape);
            assert_eq!(Some(layout.nbytes() as u128), size.map(|n| if empty { 0 } else { n }));
        }
        Err(_) => assert_eq!(size, None, "{shape:?} of {itemsize}"),
    }

    let pointer = std::ptr::without_provenance(address);
    // SAFETY: nothing is read.
    if let Ok(strided) = unsafe { Strided::new(pointer, itemsize, &shape, &strides) } {
        let nbytes = strided.nbytes() as u128;
        if empty || itemsize == 0 {
            assert_eq!(nbytes, 0);
            return Ok(());
        }
        let (low, high) = reach(itemsize, &shape, &strides);
        assert_eq!(Some(nbytes), size, "accepted, though it is too large");
        let (low, high) = (address as i128 + low, address as i128 + high);
        assert!(low >= 0 && high <= usize::MAX as i128, "outside of memory: {low}..{high}");
    }
    Ok(())
}

/// A view of a private buffer that ends where the view does: a sanitizer sees a byte too many.
fn walk(u: &mut Unstructured) -> Result<()> {
    let itemsize = ITEMS[usize::from(u.arbitrary::<u8>()?) % ITEMS.len()];
    let rank = u.int_in_range(0..=10)?;
    let (mut shape, mut strides) = (Vec::new(), Vec::new());
    let (mut elements, mut span) = (1usize, itemsize as i128);
    for _ in 0..rank {
        let [len, how, stride] = u.arbitrary::<[u8; 3]>()?;
        let len = usize::from(len) % if shape.len() < 3 { 70 } else { 6 };
        // Axes often continue each other, densely or not, in either direction.
        let stride = match how % 8 {
            0 => isize::from(stride.cast_signed()),
            1 => itemsize.cast_signed() * isize::from(stride.cast_signed()),
            2 => -(span as isize),
            3 => span as isize + itemsize.cast_signed(),
            4 => 0,
            5 => 4,
            _ => span as isize,
        };
        if elements * len.max(1) > 1 << 14 {
            break;
        }
        elements *= len.max(1);
        let (low, high) = reach(itemsize, &[len], &[stride]);
        span = (span + high - low - itemsize as i128).min(MOST + 1);
        shape.insert(0, len);
        strides.insert(0, stride);
    }
    if u.arbitrary()? && shape.len() > 1 {
        let (a, b) = (u.choose_index(shape.len())?, u.choose_index(shape.len())?);
        shape.swap(a, b);
        strides.swap(a, b);
    }
    let (low, high) = reach(itemsize, &shape, &strides);
    if high - low > MOST {
        return Ok(());
    }
    let first = (-low) as usize;
    let memory: Vec<u8> = (0..(high - low) as u32).map(|i| (i ^ i >> 8) as u8).collect();
    let offsets = if itemsize == 0 { Vec::new() } else { offsets(&shape, &strides) };
    let at = |offset: &isize| first.checked_add_signed(*offset).unwrap();
    let packed: Vec<u8> =
        offsets.iter().flat_map(|o| &memory[at(o)..at(o) + itemsize]).copied().collect();

    // SAFETY: `memory` has all bytes from the lowest to the highest that are reached.
    let source = unsafe {
        Strided::new(memory.as_ptr().wrapping_add(first), itemsize, &shape, &strides).unwrap()
    };
    assert_eq!(source.nbytes(), packed.len());
    let mut out = vec![0; packed.len()];
    source.copy_to(&mut out);
    assert_eq!(out, packed);
    let (a, b) = (cut(u, packed.len())?, cut(u, packed.len())?);
    let part = a.min(b)..a.max(b);
    let mut out = vec![0; part.len()];
    source.gather(part.start, &mut out);
    assert_eq!(out, packed[part.clone()]);
    let mut joined = Vec::new();
    source.blocks::<61>(|block| joined.extend_from_slice(block));
    source.blocks::<4096>(|block| joined.extend_from_slice(block));
    assert_eq!(joined, packed.repeat(2));

    scatter(&memory, &packed, itemsize, (&shape, &strides), &offsets, first, part.start);
    Ok(())
}

/// Writing in two parts changes what is reached to what is given, and nothing else.
fn scatter(
    memory: &[u8],
    packed: &[u8],
    itemsize: usize,
    (shape, strides): (&[usize], &[isize]),
    offsets: &[isize],
    first: usize,
    cut: usize,
) {
    let mut written: Vec<u8> = memory.iter().map(|byte| !byte).collect();
    let pointer = written.as_mut_ptr().wrapping_add(first);
    // SAFETY: as for reading; nothing refers to the buffer meanwhile.
    let target = unsafe { StridedMut::new(pointer, itemsize, shape, strides).unwrap() };
    assert_eq!(target.nbytes(), packed.len());
    target.scatter(0, &packed[..cut]);
    target.scatter(cut, &packed[cut..]);
    // Where elements overlap they agree here: all bytes were read from the same memory.
    let mut expected: Vec<u8> = memory.iter().map(|byte| !byte).collect();
    for offset in offsets {
        let at = first.checked_add_signed(*offset).unwrap();
        expected[at..at + itemsize].copy_from_slice(&memory[at..at + itemsize]);
    }
    assert_eq!(written, expected);
}

/// The lowest byte, and the one behind the highest, relative to the first element.
fn reach(itemsize: usize, shape: &[usize], strides: &[isize]) -> (i128, i128) {
    if shape.contains(&0) || itemsize == 0 {
        return (0, 0);
    }
    let last = shape.iter().zip(strides).map(|(&n, &stride)| (n - 1) as i128 * stride as i128);
    let add = |all: i128, n: i128| all.saturating_add(n);
    let low = last.clone().map(|n| n.min(0)).fold(0, add);
    (low, last.map(|n| n.max(0)).fold(itemsize as i128, add))
}

/// Where each element lies, in C order.
fn offsets(shape: &[usize], strides: &[isize]) -> Vec<isize> {
    shape.iter().zip(strides).fold(vec![0], |offsets, (&len, &stride)| {
        let along = |&offset: &isize| (0..len).map(move |n| offset + n as isize * stride);
        offsets.iter().flat_map(along).collect()
    })
}

/// Small numbers, those around powers of two, and any.
fn wide(u: &mut Unstructured) -> Result<usize> {
    Ok(match u.arbitrary::<u8>()? {
        byte @ 0..128 => usize::from(byte),
        byte @ 128..192 => 1usize << (byte - 128),
        byte @ 192..224 => (1usize << (2 * (byte - 192))).wrapping_neg(),
        byte @ 224..240 => (usize::MAX >> (byte - 224)).wrapping_sub(u.arbitrary::<u8>()?.into()),
        _ => u.arbitrary()?,
    })
}

fn cut(u: &mut Unstructured, len: usize) -> Result<usize> {
    Ok(usize::from(u.arbitrary::<u16>()?) % (len + 1))
}
