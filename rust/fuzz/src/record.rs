//! Records of whole entries: what was written is read, and whatever else is read harms nobody.
//!
//! An input makes arrays and the record of them, and then changes that record. Its length and its
//! hash are put right, so that every change gets as far as the reader lets it.

use crate::compact::{choose, encode};
use crate::image::Image;
use arbitrary::{Result, Unstructured};
use memweir_core::compact::record::{Content, Draft, Item, Parsed, Stored, fuzz, read};
use memweir_core::compact::{Books, Form};
use memweir_core::simd::Level;

/// Bytes before the first array, and of the hash behind the last.
const HEADER: usize = 24;
const CHECK: usize = 16;
/// Larger arrays are not decoded: a few bytes may stand for very many.
const MOST: usize = 1 << 20;

/// The bytes as a record, as the contents of one, and as what is done to one.
pub fn check(input: &[u8]) {
    choose(Level::get());
    assert!(read(input, &Books::default()).is_err() || input.starts_with(b"mwrecord"));
    fuzz(input);
    let _ = exchange(&mut Unstructured::new(input));
}

/// An array and its form, if it has one.
struct Kept {
    image: Image,
    form: Option<(Form, Vec<u8>)>,
}

fn exchange(u: &mut Unstructured) -> Result<()> {
    let books = Books::default();
    let mut kept: Vec<Kept> = Vec::new();
    for _ in 0..1 + u.arbitrary::<u8>()? % 2 {
        let image = Image::read(u, kept.last().map(|kept| &kept.image))?;
        let form = encode(&books, &image.layout, (&image.bytes).into(), 4096);
        kept.push(Kept { image, form });
    }
    let record = written(&kept, 1 + usize::from(u.arbitrary::<u16>()?));
    let there = Books::default();
    for books in [&there, &books, &there] {
        let arrays = read(&record, books).unwrap();
        assert_eq!(arrays.len(), kept.len());
        for (array, kept) in arrays.iter().zip(&kept) {
            assert_eq!(array.layout, kept.image.layout);
            assert!(decoded(array) == kept.image.bytes, "{}", array.name);
        }
    }

    // The books are those that honest arrays use, too.
    let mut changed = record.clone();
    for _ in 0..u.arbitrary::<u8>()? % 8 {
        change(u, &mut changed)?;
    }
    seal(&mut changed);
    if let Ok(arrays) = read(&changed, &books) {
        let small: Vec<_> = arrays.into_iter().filter(|a| a.layout.nbytes() < MOST).collect();
        let contents: Vec<_> = small.iter().map(decoded).collect();
        let again = rewritten(&small);
        for (array, bytes) in read(&again, &Books::default()).unwrap().iter().zip(&contents) {
            assert!(decoded(array) == *bytes, "{} was written and reads otherwise", array.name);
        }
    }
    let _ = read(&changed[..changed.len() / 2], &books);
    // What is encoded now may use tables that came with the record, and add to them.
    let encoded = |kept: &Kept| encode(&books, &kept.image.layout, (&kept.image.bytes).into(), 999);
    let anew: Vec<_> = kept.iter().map(encoded).collect();
    for (Kept { image, form }, anew) in kept.iter().zip(&anew) {
        for (form, codes) in form.iter().chain(anew) {
            let mut out = vec![0; image.bytes.len()];
            form.decode(&[codes], &mut out).unwrap();
            assert!(out == image.bytes, "a record has changed another's array");
        }
    }
    Ok(())
}

/// The record, from codes that lie in pieces.
fn written(kept: &[Kept], piece: usize) -> Vec<u8> {
    let pieces = |kept: &'_ Kept| -> Vec<Vec<u8>> {
        let codes = kept.form.as_ref().map_or(&kept.image.bytes, |(_, codes)| codes);
        codes.chunks(piece.max(64)).map(Vec::from).collect()
    };
    let pieces: Vec<_> = kept.iter().map(pieces).collect();
    let slices: Vec<Vec<&[u8]>> =
        pieces.iter().map(|p| p.iter().map(Vec::as_slice).collect()).collect();
    let names = ["pixel_values", "ä"];
    let item = |i: usize| {
        let content = match &kept[i].form {
            Some((form, _)) => Content::Compact(form, &slices[i]),
            None => Content::Raw(&slices[i]),
        };
        Item { name: names[i], layout: &kept[i].image.layout, content }
    };
    finished(&(0..kept.len()).map(item).collect::<Vec<_>>())
}

/// The record of what was read from one.
fn rewritten(arrays: &[Parsed]) -> Vec<u8> {
    let piece = |array: &Parsed<'_>| match array.stored {
        Stored::Raw(bytes) => [bytes.to_vec()],
        Stored::Compact(_, codes) => [codes.to_vec()],
    };
    let pieces: Vec<_> = arrays.iter().map(piece).collect();
    let slices: Vec<[&[u8]; 1]> = pieces.iter().map(|[piece]| [&piece[..]]).collect();
    let items: Vec<_> = arrays
        .iter()
        .zip(&slices)
        .map(|(array, slices)| {
            let content = match &array.stored {
                Stored::Raw(_) => Content::Raw(slices),
                Stored::Compact(form, _) => Content::Compact(form, slices),
            };
            Item { name: array.name, layout: &array.layout, content }
        })
        .collect();
    finished(&items)
}

fn finished(items: &[Item]) -> Vec<u8> {
    let draft = Draft::new(items).unwrap();
    let mut record = Vec::new();
    draft.write(&mut record);
    assert_eq!(record.len(), draft.nbytes());
    record
}

/// The array's bytes, in whole and in two parts.
fn decoded(array: &Parsed) -> Vec<u8> {
    match &array.stored {
        Stored::Raw(bytes) => {
            assert_eq!(bytes.len(), array.layout.nbytes());
            bytes.to_vec()
        }
        Stored::Compact(form, codes) => {
            assert_eq!((form.nbytes(), form.codes_len()), (array.layout.nbytes(), codes.len()));
            let size = form.itemsize();
            let mut out = vec![0x55; form.nbytes()];
            form.decode(&[codes], &mut out).unwrap();
            let (all, mut parts) = (out.len() / size, vec![0xAA; out.len()]);
            let (first, second) = parts.split_at_mut(all / 3 * size);
            let chunks: Vec<_> = codes.chunks(codes.len() / 5 + 1).collect();
            form.decode_range(&chunks, 0..all / 3, first).unwrap();
            form.decode_range(&chunks, all / 3..all, second).unwrap();
            assert!(parts == out, "{}: parts differ", array.name);
            out
        }
    }
}

/// Damages the part between header and hash, most often where arrays are described.
fn change(u: &mut Unstructured, record: &mut Vec<u8>) -> Result<()> {
    let end = record.len() - CHECK;
    let [how, value] = u.arbitrary::<[u8; 2]>()?;
    let at = usize::from(u.arbitrary::<u16>()?);
    let at = HEADER + at % (if how < 192 { 150 } else { end }).min(end - HEADER).max(1);
    let odd: u64 = match value % 8 {
        0 => 0,
        1 => u64::from(value),
        2 => u64::MAX,
        3 => 1 << (value / 4),
        4 => (1 << 31) + u64::from(value) / 8,
        _ => u.arbitrary()?,
    };
    let mut put = |bytes: &[u8]| {
        let len = bytes.len().min(end.saturating_sub(at));
        record[at..at + len].copy_from_slice(&bytes[..len]);
    };
    match how % 8 {
        0 | 1 => put(&[value]),
        2 => put(&odd.to_le_bytes()[..4]),
        3 => put(&odd.to_le_bytes()),
        4 => record[at] = record[at].wrapping_add(value),
        5 => record[at] ^= 1 << (value % 8),
        6 => _ = record.drain(at..(at + usize::from(value)).min(end)),
        _ => {
            let copy = record[at..(at + usize::from(value)).min(end)].to_vec();
            record.splice(at..at, copy);
        }
    }
    if record.len() < HEADER + CHECK {
        record.resize(HEADER + CHECK, 0);
    }
    if how == 255 {
        record[12] = value; // how many arrays there are
    }
    Ok(())
}

fn seal(record: &mut [u8]) {
    let body = record.len() - CHECK;
    let length = record.len() as u64;
    record[16..HEADER].copy_from_slice(&length.to_le_bytes());
    let hash = blake3::hash(&record[..body]);
    record[body..].copy_from_slice(&hash.as_bytes()[..CHECK]);
}
