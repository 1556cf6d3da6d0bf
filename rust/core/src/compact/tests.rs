//! What goes in comes out, bit by bit, at every level and through any chunks.

use super::decode::Out;
use super::*;

mod books;
mod foreign;
mod random;
mod records;

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

fn layout(token: &str, shape: &[usize]) -> Layout {
    let size = match token {
        "bfloat16" => 2,
        token => token[2..].parse().unwrap(),
    };
    Layout::new(DType::new(token, size), shape).unwrap()
}

/// Noise that is the same every time.
fn noise(i: usize, seed: u32) -> u32 {
    let x = (i as u32 ^ seed).wrapping_mul(0x9E37_79B1);
    let x = (x ^ x >> 15).wrapping_mul(0x85EB_CA6B);
    x ^ x >> 13
}

/// Levels as of a photograph: neighbours are alike, all 256 occur.
fn photo(i: usize, seed: u32) -> u8 {
    let wave = ((i as f32 / 300.0 + seed as f32).sin() * 130.0 + 127.0) as i32;
    (wave + noise(i, seed) as i32 % 9).clamp(0, 255) as u8
}

fn value(level: u8, channel: usize) -> f32 {
    (f32::from(level) / 255.0 - MEAN[channel]) / DEVIATION[channel]
}

/// The element that the `i`-th repeats.
fn repeats(i: usize, half: usize) -> usize {
    i - i.checked_div(half).map_or(0, |plane| plane % 2 * half)
}

/// A photograph normalised by channel; of every two planes of `half` the second repeats.
fn image(shape: &[usize], inner: usize, half: usize) -> Vec<f32> {
    let n = shape.iter().product();
    (0..n).map(|i| value(photo(repeats(i, half), 7), i / inner % 3)).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect()
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// The form of an array, and its codes.
fn encoded(
    books: &Books,
    level: Level,
    layout: &Layout,
    source: Source,
    chunk: usize,
) -> Option<(Form, Vec<u8>)> {
    let mut plan = plan(books, layout, source)?;
    loop {
        let mut codes = vec![0xAA; plan.codes_len()];
        let mut chunks: Vec<_> = codes.chunks_mut(chunk).collect();
        match plan.encode_at(level, books, source, &mut chunks) {
            Ok(form) => return Some((form, codes)),
            Err(Refused::Again(again)) => plan = *again,
            Err(Refused::Raw) => return None,
        }
    }
}

/// Encodes in chunks of a size, and checks what is decoded at all levels, in whole and in parts.
fn round_trip_with(
    books: &Books,
    level: Level,
    layout: &Layout,
    bytes: &[u8],
    chunk: usize,
) -> Option<(Form, Vec<u8>)> {
    let (form, codes) = encoded(books, level, layout, bytes.into(), chunk)?;
    assert_eq!(form.codes_len(), codes.len());
    assert!(codes.len() + form.aside() <= bytes.len() * 3 / 4, "{}", form.name());
    let chunks: Vec<_> = codes.chunks(chunk).collect();
    let (size, all) = (form.itemsize(), bytes.len() / form.itemsize());
    for level in Level::all() {
        let mut out = vec![0x55; bytes.len()];
        form.decode_at(level, &chunks, 0..all, Out::Private(&mut out)).unwrap();
        assert!(out == bytes, "{level:?} {}", form.name());
        for part in 0..6 {
            let (a, b) = (noise(part, 1) as usize % (all + 1), noise(part, 2) as usize % (all + 1));
            let range = a.min(b)..a.max(b);
            let mut out = vec![0x55; range.len() * size];
            form.decode_at(level, &chunks, range.clone(), Out::Private(&mut out)).unwrap();
            assert!(out == bytes[range.start * size..range.end * size], "{range:?}");
        }
    }
    Some((form, codes))
}

/// The form of an array in new books, the same at every level, and again with books that know it.
fn round_trip(layout: &Layout, bytes: &[u8]) -> Option<Form> {
    let mut results = Level::all().map(|level| {
        let books = Books::default();
        let first = round_trip_with(&books, level, layout, bytes, 4096);
        let second = round_trip_with(&books, level, layout, bytes, 65_536);
        let len = |result: &Option<(Form, Vec<u8>)>| result.as_ref().map(|(_, codes)| codes.len());
        assert_eq!(len(&first), len(&second));
        first
    });
    let first = results.next().unwrap();
    for other in results {
        let codes = |r: &Option<(Form, Vec<u8>)>| r.as_ref().map(|(f, c)| (f.name(), c.clone()));
        assert!(codes(&first) == codes(&other), "levels differ");
    }
    first.map(|(form, _)| form)
}

fn named(layout: &Layout, bytes: &[u8]) -> String {
    round_trip(layout, bytes).map_or("raw".into(), |form| form.name())
}

#[test]
fn layouts_are_found() {
    for (shape, inner, half, name) in [
        (&[60, 1176][..], 392, 196, "u8 affine ×3, repeated plane dropped"),
        (&[60, 1176], 392, 0, "u8 affine ×3"),
        (&[1, 3, 96, 100], 9600, 0, "u8 affine ×3"),
        (&[1, 5, 3, 50, 50], 2500, 0, "u8 affine ×3"),
        (&[1, 100, 90, 3], 1, 0, "u8 affine ×3"),
        (&[64, 768], 1, 0, "u8 affine ×3"),
        (&[2, 3, 64, 64], 4096, 3 * 4096, "u8 affine ×3, repeated plane dropped"),
        (&[1, 2, 3, 70, 70], 4900, 3 * 4900, "u8 affine ×3, repeated plane dropped"),
        (&[3, 2, 70, 70], 9800, 4900, "u8 affine ×3, repeated plane dropped"),
        (&[3, 4, 4000], 16_000, 0, "u8 affine ×3"),
        (&[3, 1, 20_000], 20_000, 0, "u8 affine ×3"),
    ] {
        let image = image(shape, inner, half);
        assert_eq!(named(&layout("<f4", shape), &floats(&image)), name, "{shape:?}");
        let name = name.replace("affine", "palette");
        assert_eq!(named(&layout("bfloat16", shape), &bf16(&image)), name, "{shape:?}");
    }
    let gray: Vec<f32> = (0..50_000).map(|i| value(photo(i, 1), 0)).collect();
    assert_eq!(named(&layout("<f4", &[50_000]), &floats(&gray)), "u8 affine ×1");
}

#[test]
fn repetition_is_verified() {
    let shape = [60, 1176];
    let layout = layout("<f4", &shape);
    let mut bytes = floats(&image(&shape, 392, 196));
    let last = bytes.len() - 1;
    // One level further in the very last element: a value that fits, but no repetition.
    let level = value(photo(60 * 1176 - 1 - 196, 7).wrapping_add(1), 2);
    bytes[last - 3..].copy_from_slice(&level.to_le_bytes());
    assert_eq!(named(&layout, &bytes), "u8 affine ×3");
    let plan = plan(&Books::default(), &layout, &bytes).unwrap();
    assert_eq!(plan.codes_len(), bytes.len() / 8);
}

#[test]
fn padding_becomes_escapes() {
    // Rows of an image that is smaller than its batch.
    let (height, width) = (120, 150);
    let padded = |x: usize, y: usize| x >= 101 || y >= 80;
    let at = |i: usize| (i / (height * width), i % width, i / width % height);
    let values: Vec<f32> = (0..3 * height * width)
        .map(|i| (i, at(i)))
        .map(|(i, (c, x, y))| if padded(x, y) { 0.0 } else { value(photo(i, 3), c) })
        .collect();
    let shape = [1, 3, height, width];
    for (layout, bytes) in
        [(layout("<f4", &shape), floats(&values)), (layout("bfloat16", &shape), bf16(&values))]
    {
        let form = round_trip(&layout, &bytes).unwrap();
        let Encoding::Codes { escapes, .. } = form.encoding() else { panic!("{}", form.name()) };
        assert!(form.itemsize() == 2 || (3..=3 * 81).contains(&escapes.len()));
    }
}

#[test]
fn odd_values_are_exact_or_raw() {
    let shape = [1, 3, 200, 200];
    let layout = layout("<f4", &shape);
    let photo = image(&shape, 40_000, 0);
    let odd = [
        0x7FC0_0000,
        0x7F80_0001,
        0xFFFF_FFFF,
        0x8000_0000,
        1,
        0x807F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7F7F_FFFF,
        0x4B40_0000,
        photo[5].to_bits() + 1,
    ];
    for bits in odd {
        for at in [0, 1, 77_777, 119_999] {
            let mut values = photo.clone();
            values[at] = f32::from_bits(bits);
            let form = round_trip(&layout, &floats(&values)).unwrap();
            assert_eq!(form.aside(), size_of::<Escape>(), "{bits:x}");
        }
    }
    // One odd value inside the very sample that the lattice is fitted to.
    let flipped: Vec<f32> = photo
        .iter()
        .enumerate()
        .map(|(i, &x)| match i % 9973 {
            0 => f32::from_bits(x.to_bits() + 1),
            _ => x,
        })
        .collect();
    assert!(round_trip(&layout, &floats(&flipped)).is_some());
}

#[test]
fn what_does_not_fit_is_raw() {
    let n = 60_000;
    let of = |f: &dyn Fn(usize) -> f32| floats(&(0..n).map(f).collect::<Vec<_>>());
    let gamma = |i| (f32::from(photo(i, 1)) / 255.0).powf(2.2);
    for bytes in [
        of(&|i| noise(i, 1) as f32),
        of(&|i| f32::from_bits(noise(i, 2))),
        of(&|i| (noise(i, 3) % 1001) as f32),
        of(&gamma),
        of(&|i| f32::from_bits(u32::from(photo(i, 1)))),
        of(&|i| f32::from_bits(0x7FC0_0000 | (noise(i, 1) % 4096))),
        of(&|i| if i < n - n / 50 { value(photo(i, 1), 0) } else { noise(i, 1) as f32 }),
        of(&|i| match i {
            _ if i < n * 49 / 50 => value(photo(i, 1), 0),
            _ => f32::from_bits(value(photo(i, 1), 0).to_bits() ^ noise(i, 1) & 1),
        }),
    ] {
        assert_eq!(named(&layout("<f4", &[3, 100, 200]), &bytes), "raw");
    }
    // A mixture of zeros is two values, one of them beside the lattice or in runs: exact.
    named(&layout("<f4", &[n]), &of(&|i| if noise(i, 1) & 1 == 0 { 0.0 } else { -0.0 }));
}

#[test]
fn plain_arrays() {
    let n = 30_000;
    let of = |f: &dyn Fn(usize) -> f32| floats(&(0..n).map(f).collect::<Vec<_>>());
    for (bytes, name) in [
        (of(&|_| 0.0), "1 runs"),
        (of(&|_| f32::NAN), "1 runs"),
        (of(&|i| (i % 256) as f32), "u8 affine ×1"),
        (of(&|i| (noise(i, 1) % 256) as f32 * 1e36), "u8 affine ×1"),
        (of(&|i| (noise(i, 1) % 256) as f32 - 1e6), "u8 affine ×1"),
        (of(&|i| (noise(i, 1) % 2) as f32), "u8 affine ×1"),
    ] {
        assert_eq!(named(&layout("<f4", &[n]), &bytes), name);
    }
    let ints =
        |f: &dyn Fn(usize) -> i64| (0..n).flat_map(|i| f(i).to_le_bytes()).collect::<Vec<_>>();
    for (bytes, name) in [
        (ints(&|i| i64::from(i < 20_000)), "2 runs"),
        (ints(&|i| i64::from(i % 150 < 100)), "400 runs"),
        (ints(&|i| i64::from(noise(i, 1) % 2) * -7), "u8 palette of 2"),
        (ints(&|i| i64::from(noise(i, 1) % 256) << 40), "u8 palette of 256"),
        (ints(&|i| i as i64), "raw"),
        (ints(&|i| if i == n - 1 { 1 << 60 } else { i64::from(noise(i, 1) % 256) }), "raw"),
    ] {
        assert_eq!(named(&layout("<i8", &[n]), &bytes), name);
        assert_eq!(named(&layout("<f8", &[n / 3, 3]), &bytes), name);
    }
    let bools: Vec<u8> = (0..n).map(|i| u8::from(i % 1000 < 500)).collect();
    assert_eq!(named(&layout("|b1", &[n]), &bools), "60 runs");
    let words: Vec<u8> = (0..n).flat_map(|i| (noise(i, 1) % 200 * 300).to_le_bytes()).collect();
    assert_eq!(named(&layout("<i4", &[n]), &words), "u8 palette of 200");
}

#[test]
fn small_foreign_and_misdescribed_arrays_are_left_alone() {
    let books = Books::default();
    let zeros = vec![0; 1 << 20];
    for (token, size, n) in [
        ("<f4", 4, 4095),
        (">f4", 4, 8192),
        ("<c8", 8, 8192),
        ("<M8[s]", 8, 8192),
        ("<f4", 8, 8192),
        ("|S3", 3, 30_000),
    ] {
        let layout = Layout::new(DType::new(token, size), &[n]).unwrap();
        assert!(plan(&books, &layout, &zeros[..n * size]).is_none(), "{token}");
    }
    let layout = layout("<f4", &[8192]);
    assert!(plan(&books, &layout, &zeros[..8191 * 4]).is_none());
    let again = || plan(&books, &layout, &zeros[..8192 * 4]).unwrap();
    assert!(matches!(again().encode(&books, &zeros[..100], &mut []), Err(Refused::Raw)));
    let form = again().encode(&books, &zeros[..8192 * 4], &mut []).unwrap();
    assert!(form.decode(&[], &mut [0; 100]).is_err());
    assert!(form.decode_range(&[], 8000..8193, &mut [0; 193 * 4]).is_err());
}

#[test]
fn too_little_room_or_too_few_codes() {
    let shape = [60, 1176];
    let (layout, bytes) = (layout("<f4", &shape), floats(&image(&shape, 392, 196)));
    let books = Books::default();
    let plan = || plan(&books, &layout, &bytes).unwrap();
    let mut codes = vec![0; plan().codes_len()];
    let short = codes.len() - 1;
    assert!(matches!(plan().encode(&books, &bytes, &mut [&mut codes[..short]]), Err(Refused::Raw)));
    let form = plan().encode(&books, &bytes, &mut [&mut codes[..]]).unwrap();
    let mut out = vec![0; bytes.len()];
    assert!(form.decode(&[&codes[..short]], &mut out).is_err());
    // Empty and overlong chunks do no harm.
    form.decode(&[&[], &codes[..], &[], &[1, 2]], &mut out).unwrap();
    assert!(out == bytes);
}
