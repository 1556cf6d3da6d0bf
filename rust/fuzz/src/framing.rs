//! Names over framed preimages, against a writer and a reader made from `docs/identity.md` alone.
//!
//! The reader is what proves that two values have two frames: it gets back what was written.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use memweir_core::digest::{self, Algorithm, CopyHasher, Digest, Hasher, ImageMeta};
use memweir_core::layout::{DType, Layout};
use memweir_core::value::Frames;
use sha2::Digest as _;

/// Plain data. Integers are little-endian two's complement, of any length.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    None,
    Bool(bool),
    Int(Vec<u8>),
    Float(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// Items by the frames of their keys.
    Mapping(BTreeMap<Vec<u8>, (Value, Value)>),
    Digest([u8; 32]),
    Array([u8; 32]),
    Image([u8; 32]),
}

/// Names of two values, and of contents that the same bytes describe.
pub fn check(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let one = value(&mut u, 0);
    // The second is often the first with one thing changed.
    let other = if flip(&mut u) { changed(&one, &mut u) } else { value(&mut u, 0) };
    let (first, second) = (frames(&one), frames(&other));
    for (value, frames) in [(&one, &first), (&other, &second)] {
        assert_eq!(*frames, naive(value), "{value:?}");
        let mut rest = &frames[..];
        assert_eq!(read(&mut rest).as_ref(), Some(value), "another value has these frames");
        assert!(rest.is_empty(), "{value:?}");
    }
    assert_eq!(one == other, first == second, "{one:?} and {other:?}");
    assert!(first == second || !first.starts_with(&second) && !second.starts_with(&first));
    names(&mut u, &first);
    // Any bytes that read as a value are that value's frames.
    let mut rest = input;
    if let Some(value) = read(&mut rest) {
        assert_eq!(frames(&value), input[..input.len() - rest.len()]);
    }
}

fn value(u: &mut Unstructured, depth: usize) -> Value {
    match byte(u) % if depth < 12 { 12 } else { 9 } {
        0 => Value::None,
        1 => Value::Bool(flip(u)),
        2 | 3 => Value::Int(shortest(&some(u, 24))),
        4 => Value::Float(u.arbitrary().unwrap_or_default()),
        5 => Value::Text(String::from_utf8_lossy(&some(u, 24)).into_owned()),
        6 => Value::Bytes(some(u, 24)),
        7 => Value::Digest(named(u)),
        8 => match byte(u) % 2 {
            0 => Value::Array(named(u)),
            _ => Value::Image(named(u)),
        },
        9 => Value::List(items(u, depth)),
        10 => Value::Tuple(items(u, depth)),
        _ => {
            let pairs = (0..byte(u) % 5).map(|_| {
                let (key, item) = (value(u, depth + 1), value(u, depth + 1));
                (frames(&key), (key, item))
            });
            Value::Mapping(pairs.collect())
        }
    }
}

/// Another value, or the same: what an accident in framing would take for it.
fn changed(value: &Value, u: &mut Unstructured) -> Value {
    let wrap = byte(u);
    match value {
        Value::List(items) if wrap.is_multiple_of(3) => Value::Tuple(items.clone()),
        Value::List(items) | Value::Tuple(items) if !items.is_empty() && wrap % 3 == 1 => {
            let at = usize::from(byte(u)) % items.len();
            let mut items = items.clone();
            items[at] = changed(&items[at], u);
            Value::List(items)
        }
        Value::List(items) => Value::List(items.iter().flat_map(flat).collect()),
        Value::Text(text) if wrap.is_multiple_of(2) => Value::Bytes(text.clone().into_bytes()),
        Value::Int(bytes) if wrap.is_multiple_of(2) => {
            Value::Int(shortest(&[bytes, &[wrap][..]].concat()))
        }
        Value::Int(bytes) => Value::Bytes(bytes.clone()),
        Value::Float(bits) => Value::Float(bits ^ 1 << (wrap % 64)),
        Value::Bool(value) => Value::Int(vec![u8::from(*value)]),
        Value::Digest(name) => Value::Array(*name),
        Value::Array(name) => Value::Image(*name),
        value if wrap.is_multiple_of(2) => Value::List(vec![value.clone()]),
        value => value.clone(),
    }
}

fn flat(value: &Value) -> Vec<Value> {
    match value {
        Value::List(items) | Value::Tuple(items) => items.clone(),
        value => vec![value.clone()],
    }
}

fn items(u: &mut Unstructured, depth: usize) -> Vec<Value> {
    (0..byte(u) % 6).map(|_| value(u, depth + 1)).collect()
}

/// The fewest bytes that the same number is written in, found by trying.
fn shortest(bytes: &[u8]) -> Vec<u8> {
    let extended = |n: usize| {
        let sign = if bytes[n - 1] >= 0x80 { 0xFF } else { 0 };
        bytes[n..].iter().all(|&byte| byte == sign)
    };
    match (1..=bytes.len()).find(|&n| extended(n)) {
        Some(n) => bytes[..n].to_vec(),
        None => vec![0],
    }
}

/// What the core writes; an integer is given with its sign extended further.
fn frames(value: &Value) -> Vec<u8> {
    let mut frames = Frames::new(Vec::new());
    write(&mut frames, value);
    frames.into_inner()
}

fn write(frames: &mut Frames<Vec<u8>>, value: &Value) {
    match value {
        Value::None => frames.none(),
        Value::Bool(value) => frames.bool(*value),
        Value::Int(bytes) => {
            let sign = if bytes[bytes.len() - 1] >= 0x80 { 0xFF } else { 0 };
            let further = usize::from(bytes[0]) % 9;
            frames.int(&[&bytes[..], &[sign; 9][..further]].concat());
        }
        Value::Float(bits) => frames.float(f64::from_bits(*bits)),
        Value::Text(text) => frames.text(text.as_bytes()),
        Value::Bytes(bytes) => frames.bytes(bytes),
        Value::List(items) => {
            frames.list(items.len());
            items.iter().for_each(|item| write(frames, item));
        }
        Value::Tuple(items) => {
            frames.tuple(items.len());
            items.iter().for_each(|item| write(frames, item));
        }
        Value::Mapping(items) => {
            frames.mapping(items.len());
            for (key, (_, item)) in items {
                frames.key(key);
                write(frames, item);
            }
        }
        Value::Digest(name) => frames.digest(&Digest::new(*name)),
        Value::Array(name) => frames.array(&Digest::new(*name)),
        Value::Image(name) => frames.image(&Digest::new(*name)),
    }
}

/// The same from the table of the page.
fn naive(value: &Value) -> Vec<u8> {
    let many = |tag: u8, items: &[Value]| {
        let head = [&[tag][..], &u64(items.len())].concat();
        items.iter().map(naive).fold(head, |all, item| [all, item].concat())
    };
    match value {
        Value::None => b"N".to_vec(),
        Value::Bool(value) => vec![b'B', u8::from(*value)],
        Value::Int(bytes) => [b"I".to_vec(), field(bytes)].concat(),
        Value::Float(bits) => [&b"F"[..], &bits.to_le_bytes()].concat(),
        Value::Text(text) => [b"S".to_vec(), field(text.as_bytes())].concat(),
        Value::Bytes(bytes) => [b"Y".to_vec(), field(bytes)].concat(),
        Value::List(items) => many(b'L', items),
        Value::Tuple(items) => many(b'T', items),
        Value::Mapping(items) => {
            let mut pairs: Vec<_> = items.values().map(|(k, v)| (naive(k), naive(v))).collect();
            pairs.sort();
            let head = [&b"M"[..], &u64(pairs.len())].concat();
            pairs.into_iter().fold(head, |all, (key, item)| [all, key, item].concat())
        }
        Value::Digest(name) => [&b"D"[..], name].concat(),
        Value::Array(name) => [&b"A"[..], name].concat(),
        Value::Image(name) => [&b"P"[..], name].concat(),
    }
}

/// The value whose frames come first, if they are frames that a writer gives.
fn read(rest: &mut &[u8]) -> Option<Value> {
    let [tag] = exactly(rest)?;
    Some(match tag {
        b'N' => Value::None,
        b'B' => match exactly(rest)? {
            [bit @ (0 | 1)] => Value::Bool(bit == 1),
            _ => return None,
        },
        b'I' => Value::Int(framed(rest).filter(|bytes| shortest(bytes) == *bytes)?),
        b'F' => Value::Float(u64::from_le_bytes(exactly(rest)?)),
        b'S' => Value::Text(String::from_utf8(framed(rest)?).ok()?),
        b'Y' => Value::Bytes(framed(rest)?),
        b'L' => Value::List(many(rest)?),
        b'T' => Value::Tuple(many(rest)?),
        b'M' => {
            let mut items = BTreeMap::new();
            for _ in 0..u64::from_le_bytes(exactly(rest)?) {
                let before = *rest;
                let key = read(rest)?;
                let frames = before[..before.len() - rest.len()].to_vec();
                if items.last_key_value().is_some_and(|(last, _)| *last >= frames) {
                    return None;
                }
                items.insert(frames, (key, read(rest)?));
            }
            Value::Mapping(items)
        }
        b'D' => Value::Digest(exactly(rest)?),
        b'A' => Value::Array(exactly(rest)?),
        b'P' => Value::Image(exactly(rest)?),
        _ => return None,
    })
}

fn many(rest: &mut &[u8]) -> Option<Vec<Value>> {
    (0..u64::from_le_bytes(exactly(rest)?)).map(|_| read(rest)).collect()
}

fn framed(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let len = usize::try_from(u64::from_le_bytes(exactly(rest)?)).ok()?;
    rest.split_off(..len).map(<[u8]>::to_vec)
}

fn exactly<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

/// Names of a value, bytes, an array and an image, against the formula of the page.
fn names(u: &mut Unstructured, frames: &[u8]) {
    let content = some(u, 255);
    let (mode, palette, transparency) = (text(u), (text(u), some(u, 16)), some(u, 16));
    let (width, height) = (u.arbitrary().unwrap_or(0u64), u.arbitrary().unwrap_or(0u64));
    let orientation = byte(u);
    let meta = ImageMeta {
        mode: &mode,
        width,
        height,
        palette: flip(u).then_some((&palette.0, &palette.1)),
        transparency: &transparency,
        orientation,
    };
    let with_palette = [field(palette.0.as_bytes()), field(&palette.1)].concat();
    let image = [
        field(mode.as_bytes()),
        field(&[width.to_le_bytes(), height.to_le_bytes()].concat()),
        field(if meta.palette.is_some() { &with_palette } else { &[] }),
        field(&transparency),
        field(&[orientation]),
    ];
    let shape: Vec<usize> = (0..byte(u) % 6).map(|_| usize::from(byte(u))).collect();
    let layout = Layout::new(DType::new(&mode, 1), &shape).unwrap();
    let axes: Vec<u8> = shape.iter().flat_map(|&n| u64(n)).collect();
    let array = [field(mode.as_bytes()), field(&axes)];
    for algorithm in [Algorithm::Blake3, Algorithm::Sha256] {
        let hash = |bytes: &[u8]| match algorithm {
            Algorithm::Blake3 => *blake3::hash(bytes).as_bytes(),
            Algorithm::Sha256 => sha2::Sha256::digest(bytes).into(),
        };
        let name = |kind: u8, fields: &[Vec<u8>], len: usize, content: &[u8; 32]| {
            let head = [&b"memweir identity\x01"[..], &[kind], &fields.concat()].concat();
            Digest::new(hash(&[&head[..], &u64(len), content].concat()))
        };
        let inner = hash(&content);
        assert_eq!(algorithm.hash(&content), inner);
        let mut hasher = Hasher::new(algorithm);
        let part = 1 + usize::from(orientation);
        content.chunks(part).for_each(|part| hasher.update(part));
        assert_eq!((hasher.len(), hasher.finish()), (content.len() as u64, inner));
        assert_eq!(CopyHasher::new(algorithm).finish(), hash(&[]));

        let len = content.len();
        assert_eq!(digest::bytes(algorithm, &content), name(1, &[], len, &inner));
        let size = layout.nbytes();
        assert_eq!(digest::array(algorithm, &layout, &inner), name(2, &array, size, &inner));
        let expected = name(3, &image, len, &inner);
        assert_eq!(digest::image(algorithm, &meta, len as u64, &inner), expected);
        let (len, inner) = (frames.len(), hash(frames));
        assert_eq!(digest::value(algorithm, len as u64, &inner), name(4, &[], len, &inner));
        let hex = expected.to_string();
        assert_eq!(Digest::from_hex(&hex), Ok(expected));
    }
    let _ = Digest::from_hex(&text(u));
}

fn u64(n: usize) -> [u8; 8] {
    (n as u64).to_le_bytes()
}

fn field(bytes: &[u8]) -> Vec<u8> {
    [&u64(bytes.len())[..], bytes].concat()
}

fn byte(u: &mut Unstructured) -> u8 {
    u.arbitrary().unwrap_or(0)
}

fn flip(u: &mut Unstructured) -> bool {
    byte(u) % 2 == 1
}

fn some(u: &mut Unstructured, most: u8) -> Vec<u8> {
    let len = usize::from(byte(u)).min(usize::from(most)).min(u.len());
    u.bytes(len).map(<[u8]>::to_vec).unwrap_or_default()
}

fn text(u: &mut Unstructured) -> String {
    String::from_utf8_lossy(&some(u, 20)).into_owned()
}

fn named(u: &mut Unstructured) -> [u8; 32] {
    let name: Result<[u8; 4]> = Arbitrary::arbitrary(u);
    std::array::from_fn(|i| name.map_or(0, |bytes| bytes[i % 4]))
}
