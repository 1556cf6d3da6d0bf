//! Arrays as processors make them, and what goes wrong with them.
#![allow(unsafe_code)]

use arbitrary::{Result, Unstructured};
use memweir_core::layout::{DType, Layout};
use memweir_core::pack::{Strided, StridedMut};

/// An array, packed and in memory of some strides.
pub struct Image {
    pub layout: Layout,
    pub bytes: Vec<u8>,
    pub memory: Vec<u8>,
    kind: Kind,
    strides: Vec<isize>,
    first: usize,
}

/// What the images of one model share.
#[derive(Debug, Clone)]
struct Kind {
    token: &'static str,
    size: usize,
    shape: Vec<usize>,
    /// Neighbouring elements of one channel.
    inner: usize,
    /// Elements of a plane that is repeated once, or 0.
    half: usize,
    values: Values,
}

/// What a level, 0 to 255 in most images, stands for.
#[derive(Debug, Clone)]
enum Values {
    /// `(k / 255 - mean) / deviation` of each channel, or the same with the division in front.
    Normal {
        channels: [(f32, f32); 4],
        folded: bool,
    },
    Lattice {
        step: f32,
        origin: f32,
    },
    Bits {
        first: u32,
        step: u32,
    },
    Gamma,
}

const CONSTANTS: [(f32, f32); 8] = [
    (0.481_454_66, 0.268_629_54),
    (0.457_827_5, 0.261_302_6),
    (0.408_210_73, 0.275_777_1),
    (0.485, 0.229),
    (0.456, 0.224),
    (0.406, 0.225),
    (0.5, 0.5),
    (0.0, 1.0),
];

/// Bits that comparisons of floats get wrong, and some that padding is made of.
const ODD: [u32; 16] = [
    0,
    0x8000_0000, // -0.0
    0x7FC0_0000, // NaN
    0xFFC0_0000,
    0x7FC0_1234, // with a payload
    0x7F80_0001, // signalling
    0xFFFF_FFFF,
    0x7F80_0000, // infinities
    0xFF80_0000,
    1, // denormals
    0x8000_0001,
    0x007F_FFFF,
    0x7F7F_FFFF, // the largest
    0x4B40_0000,
    0x3F80_0000,
    0xBF80_0000,
];

const TOKENS: [(&str, usize); 15] = [
    ("<f4", 4),
    ("<f4", 4),
    ("<f4", 4),
    ("bfloat16", 2),
    ("bfloat16", 2),
    ("<f2", 2),
    ("<i4", 4),
    ("<u4", 4),
    ("<i2", 2),
    ("<f8", 8),
    ("<i8", 8),
    ("|u1", 1),
    ("|b1", 1),
    (">f4", 4),
    ("<c8", 8),
];

impl Kind {
    fn read(u: &mut Unstructured) -> Result<Self> {
        let (token, size) = TOKENS[usize::from(u.arbitrary::<u8>()?) % TOKENS.len()];
        let [how, a, b] = u.arbitrary::<[u8; 3]>()?;
        let (a, b) = (usize::from(a), usize::from(b));
        let (h, w) = (38 + a % 20, 38 + b % 20);
        let (shape, inner, half) = match how % 10 {
            0 => (vec![4 + a % 12, 1176], 392, 196),
            1 => (vec![4 + a % 12, 768], 256, 0),
            2 => (vec![1, 3, h, w], h * w, 0),
            3 => (vec![h, w, 3], 1, 0),
            4 => (vec![2, 3, h, w], h * w, 3 * h * w),
            5 => (vec![3, 2, h, w], 2 * h * w, h * w),
            6 => (vec![1 + a % 5, 2048 + b], 2048 + b, 0),
            7 => (vec![4096 + 16 * a + b], 4096 + 16 * a + b, 0),
            8 => (vec![8 + a % 8, 6 * (1 + b)], 2 * (1 + b), 1 + b),
            _ => (vec![1 + a % 7, 1 + b % 7, 1 + a / 7, 1 + b / 7, 3], 1, 0),
        };
        let values = match u.arbitrary::<u8>()? {
            n @ 0..96 => {
                let channel = |i| CONSTANTS[(usize::from(n) + i) % CONSTANTS.len()];
                let channels = std::array::from_fn(|i| channel(if n < 48 { i } else { 0 }));
                Values::Normal { channels, folded: n % 2 == 1 }
            }
            96..128 => {
                let channels = [(u.arbitrary()?, u.arbitrary()?); 4];
                Values::Normal { channels, folded: false }
            }
            128..192 => Values::Lattice { step: u.arbitrary()?, origin: u.arbitrary()? },
            192..240 => Values::Bits { first: u.arbitrary()?, step: u.arbitrary()? },
            _ => Values::Gamma,
        };
        Ok(Self { token, size, shape, inner, half, values })
    }

    fn value(&self, i: usize, level: u32) -> u32 {
        let k = level as f32;
        let value = match self.values {
            Values::Normal { channels, folded } => {
                let (mean, deviation) = channels[i / self.inner % 3];
                match folded {
                    false => (k / 255.0 - mean) / deviation,
                    true => (k - mean * 255.0) / (deviation * 255.0),
                }
            }
            Values::Lattice { step, origin } => k * step + origin,
            Values::Bits { first, step } => return first.wrapping_add(level.wrapping_mul(step)),
            Values::Gamma => (k / 255.0).powf(2.2),
        };
        value.to_bits()
    }

    /// The element that the `i`-th repeats.
    fn original(&self, i: usize) -> usize {
        i - i.checked_div(self.half).map_or(0, |plane| plane % 2 * self.half)
    }
}

/// Noise that is the same every time.
fn noise(i: usize, seed: u32) -> u32 {
    let x = (i as u32 ^ seed).wrapping_mul(0x9E37_79B1);
    let x = (x ^ x >> 15).wrapping_mul(0x85EB_CA6B);
    x ^ x >> 13
}

fn levels(u: &mut Unstructured) -> Result<impl Fn(usize) -> u32 + use<>> {
    let [how, seed, many] = u.arbitrary::<[u8; 3]>()?;
    let (seed, many) = (u32::from(seed), u32::from(many) + 1);
    let exact = if how >= 128 { 256 } else { many };
    Ok(move |i: usize| match how % 8 {
        0 => ((i / 7 % 256) as u32 + noise(i, seed) % 9).min(255),
        1 | 2 => noise(i, seed) % exact,
        3 => i as u32 / many % exact,
        4 => seed,
        5 => noise(i / (many as usize), seed) % exact,
        6 => noise(i, seed) % (many * many),
        _ => noise(i, seed) >> (many % 32),
    })
}

impl Image {
    /// An image of the same kind as the one `before` it, or of another.
    pub fn read(u: &mut Unstructured, before: Option<&Self>) -> Result<Self> {
        let kind = match before {
            Some(before) if u.arbitrary::<u8>()? % 4 != 3 => before.kind.clone(),
            _ => Kind::read(u)?,
        };
        let n: usize = kind.shape.iter().product();
        let level = levels(u)?;
        let mut elements: Vec<u32> =
            (0..n).map(|i| kind.value(i, level(kind.original(i)))).collect();
        for _ in 0..u.arbitrary::<u8>()? % 12 {
            spoil(u, &mut elements, &kind)?;
        }
        let mut bytes = Vec::with_capacity(n * kind.size);
        for bits in elements {
            match kind.size {
                1 => bytes.push((bits ^ bits >> 24) as u8),
                2 => bytes.extend(((bits >> 16) as u16).to_le_bytes()),
                4 => bytes.extend(bits.to_le_bytes()),
                _ => bytes.extend((u64::from(bits) << 32 | u64::from(bits >> 1)).to_le_bytes()),
            }
        }
        let layout = Layout::new(DType::new(kind.token, kind.size), &kind.shape).unwrap();
        let (strides, first, memory) = spread(u.arbitrary()?, &kind, &bytes);
        Ok(Self { layout, bytes, memory, kind, strides, first })
    }

    /// The array where it is strided.
    pub fn strided(&self) -> Strided {
        let pointer = self.memory.as_ptr().wrapping_add(self.first);
        // SAFETY: `spread` has made the memory for these strides; the caller keeps the image.
        unsafe { Strided::new(pointer, self.kind.size, &self.kind.shape, &self.strides).unwrap() }
    }

    /// Such memory, written to by `f`.
    pub fn decoded(&self, f: impl FnOnce(&StridedMut)) -> Vec<u8> {
        let mut memory = vec![GAP; self.memory.len()];
        let pointer = memory.as_mut_ptr().wrapping_add(self.first);
        // SAFETY: as above; nothing else refers to the memory meanwhile.
        f(&unsafe {
            StridedMut::new(pointer, self.kind.size, &self.kind.shape, &self.strides).unwrap()
        });
        memory
    }
}

/// What lies between strided elements.
const GAP: u8 = 0xA5;

/// Memory with gaps, transposed or reversed: strides, the first element's place, and the bytes.
fn spread(how: u8, kind: &Kind, bytes: &[u8]) -> (Vec<isize>, usize, Vec<u8>) {
    let (rank, size) = (kind.shape.len(), kind.size as isize);
    let mut order: Vec<usize> = (0..rank).collect();
    if how & 1 != 0 {
        order.rotate_left(1);
    }
    let (mut strides, mut step, mut first) = (vec![0; rank], size, 0);
    for &axis in order.iter().rev() {
        let len = kind.shape[axis] as isize;
        let reversed = how & 2 != 0 && axis == 0;
        first += if reversed { step * (len - 1) } else { 0 };
        strides[axis] = if reversed { -step } else { step };
        step = step * len + if how & 4 != 0 { size } else { 0 };
    }
    let mut memory = vec![GAP; step as usize];
    for (i, element) in bytes.chunks_exact(kind.size).enumerate() {
        let (mut rest, mut at) = (i, first);
        for (&len, &stride) in kind.shape.iter().zip(&strides).rev() {
            at += (rest % len) as isize * stride;
            rest /= len;
        }
        memory[at as usize..][..kind.size].copy_from_slice(element);
    }
    (strides, first as usize, memory)
}

/// One thing that a photograph has not.
fn spoil(u: &mut Unstructured, elements: &mut [u32], kind: &Kind) -> Result<()> {
    let n = elements.len();
    let [how, odd, len] = u.arbitrary::<[u8; 3]>()?;
    let (at, seed) = (usize::from(u.arbitrary::<u16>()?) * 7 % n, u32::from(odd));
    let end = n.min(at + 1 + usize::from(len) * usize::from(len) / 8);
    match how % 8 {
        0 => elements[at..end].fill(ODD[usize::from(odd) % ODD.len()]),
        1 => elements[at] = ODD[usize::from(odd) % ODD.len()],
        2 => elements[at] = elements[at].wrapping_add(seed.wrapping_sub(128)),
        3 => (at..end).for_each(|i| elements[i] = noise(i, seed)),
        4 => (at..end).for_each(|i| elements[i] = kind.value(i, noise(i, seed) % 300)),
        // The right and the lower part of every plane, as where images are padded to one size.
        5 => {
            let w = kind.shape.last().copied().unwrap_or(1).max(1);
            let h = kind.shape.iter().rev().nth(1).copied().unwrap_or(1);
            let bits = ODD[usize::from(odd) % ODD.len()];
            let outside = |i: usize| i % w >= w - at % w || i / w % h >= h - usize::from(len) % h;
            (0..n).filter(|&i| outside(i)).for_each(|i| elements[i] = bits);
        }
        6 => {
            let from = usize::from(odd) * n / 256;
            elements.copy_within(from..(from + end - at).min(n), at.min(n - (end - at)));
        }
        _ => {
            (at..n).step_by(1 + usize::from(len) * 16).for_each(|i| elements[i] ^= 1 << (odd % 32))
        }
    }
    Ok(())
}
