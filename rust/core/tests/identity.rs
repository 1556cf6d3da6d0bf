//! The vectors that every implementation of `docs/identity.md` agrees on.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code)]

use memweir_core::digest::{self, Algorithm, CopyHasher, Digest, Hasher, ImageMeta, Source};
use memweir_core::layout::{DType, Layout};
use memweir_core::pack::Strided;
use memweir_core::value::Frames;
use serde_json::Value;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Blake3, Algorithm::Sha256];

fn vectors(kind: &str) -> Vec<Value> {
    let text = include_str!("../../../tests/vectors/identity.json");
    let all: Vec<Value> = serde_json::from_str(text).unwrap();
    let some: Vec<_> = all.into_iter().filter(|v| v["kind"] == kind).collect();
    assert!(!some.is_empty());
    some
}

fn content(vector: &Value) -> Vec<u8> {
    let n = number(&vector["length"]);
    (0..n).map(|i| (i % 251) as u8 ^ (i >> 8) as u8).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    let digits = text(value).as_bytes().chunks(2);
    digits.map(|p| u8::from_str_radix(str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn check(vector: &Value, name: impl Fn(Algorithm) -> Digest) {
    for (algorithm, key) in ALGORITHMS.into_iter().zip(["blake3", "sha256"]) {
        let expected = Digest::from_hex(text(&vector[key])).unwrap();
        assert_eq!(name(algorithm), expected, "{key} of {vector}");
    }
}

#[test]
fn bytes() {
    for vector in vectors("bytes") {
        let content = content(&vector);
        check(&vector, |algorithm| digest::bytes(algorithm, &content));
        check(&vector, |algorithm| {
            let mut hasher = Hasher::new(algorithm);
            content.chunks(1000).for_each(|part| hasher.update(part));
            digest::bytes_of(algorithm, hasher.len(), &hasher.finish())
        });
    }
}

#[test]
fn arrays() {
    for vector in vectors("array") {
        let content = content(&vector);
        let shape: Vec<usize> = vector["shape"].as_array().unwrap().iter().map(number).collect();
        let dtype = DType::new(text(&vector["token"]), number(&vector["itemsize"]));
        let layout = Layout::new(dtype, &shape).unwrap();
        // SAFETY: `content` outlives the description.
        let strided = unsafe { Strided::new(content.as_ptr(), 1, &[content.len()], &[1]) }.unwrap();
        check(&vector, |algorithm| {
            digest::array(algorithm, &layout, &digest::content(algorithm, &strided))
        });
        check(&vector, |algorithm| {
            let hashes = digest::contents(algorithm, &[Source::Strided(&strided)], Some(2));
            digest::array(algorithm, &layout, &hashes[0])
        });
        check(&vector, |algorithm| {
            let (mut hasher, mut out) = (CopyHasher::new(algorithm), vec![0; content.len()]);
            hasher.copy(&strided, &mut out);
            assert_eq!(out, content);
            digest::array(algorithm, &layout, &hasher.finish())
        });
    }
}

#[test]
fn images() {
    for vector in vectors("image") {
        let content = content(&vector);
        let palette = vector["palette"].as_array().map(|p| (text(&p[0]), unhex(&p[1])));
        let transparency = match &vector["transparency"] {
            none if none.get("none").is_some() => Vec::new(),
            value => frames(value),
        };
        let meta = ImageMeta {
            mode: text(&vector["mode"]),
            width: vector["width"].as_u64().unwrap(),
            height: vector["height"].as_u64().unwrap(),
            palette: palette.as_ref().map(|(mode, bytes)| (*mode, bytes.as_slice())),
            transparency: &transparency,
            orientation: number(&vector["orientation"]) as u8,
        };
        check(&vector, |algorithm| {
            digest::image(algorithm, &meta, content.len() as u64, &algorithm.hash(&content))
        });
    }
}

#[test]
fn values() {
    for vector in vectors("value") {
        let frames = frames(&vector["value"]);
        assert_eq!(hex(&frames), text(&vector["frames"]), "{vector}");
        check(&vector, |algorithm| {
            digest::value(algorithm, frames.len() as u64, &algorithm.hash(&frames))
        });
    }
}

fn frames(value: &Value) -> Vec<u8> {
    let mut frames = Frames::new(Vec::new());
    write(&mut frames, value);
    frames.into_inner()
}

fn write(frames: &mut Frames<Vec<u8>>, value: &Value) {
    let (kind, inner) = value.as_object().unwrap().iter().next().unwrap();
    match kind.as_str() {
        "none" => frames.none(),
        "bool" => frames.bool(inner.as_bool().unwrap()),
        "int" => frames.int(&unhex(&value["twos"])),
        "float" | "bits" => {
            let bits = unhex(&value["bits"]).try_into().unwrap();
            frames.float(f64::from_bits(u64::from_le_bytes(bits)));
        }
        "str" => frames.text(text(inner).as_bytes()),
        "bytes" => frames.bytes(&unhex(inner)),
        "list" | "tuple" => {
            let items = inner.as_array().unwrap();
            if kind == "list" {
                frames.list(items.len())
            } else {
                frames.tuple(items.len())
            }
            items.iter().for_each(|item| write(frames, item));
        }
        "dict" => {
            let items = inner.as_array().unwrap();
            let mut items: Vec<_> =
                items.iter().map(|item| (self::frames(&item[0]), &item[1])).collect();
            items.sort_by(|(a, _), (b, _)| a.cmp(b));
            frames.mapping(items.len());
            for (key, item) in items {
                frames.key(&key);
                write(frames, item);
            }
        }
        other => panic!("unknown kind {other}"),
    }
}

#[test]
fn hexadecimal_round_trips_and_refuses_the_rest() {
    let digest = digest::bytes(Algorithm::Blake3, b"weir");
    assert_eq!(Digest::from_hex(&digest.to_string()), Ok(digest));
    assert_eq!(Digest::from_hex(&digest.to_string().to_uppercase()), Ok(digest));
    for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
        assert!(Digest::from_hex(bad).is_err(), "{bad:?}");
    }
    assert!("md5".parse::<Algorithm>().is_err());
}
