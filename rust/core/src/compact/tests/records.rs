//! Records are read as they were written, or refused.

use super::record::{Content, Draft, Item, MOST, Parsed, Stored, VERSION, fuzz, read};
use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

/// An array and what is kept of it.
struct Kept {
    layout: Layout,
    bytes: Vec<u8>,
    form: Option<(Form, Vec<u8>)>,
}

fn kept(books: &Books, layout: Layout, bytes: Vec<u8>) -> Kept {
    let form = encoded(books, Level::get(), &layout, (&bytes).into(), 4096);
    Kept { layout, bytes, form }
}

/// One of every kind.
fn arrays(books: &Books) -> Vec<Kept> {
    let padded = |i: usize| if i % 300 < 50 { 0.25 } else { value(photo(i, 3), 0) };
    let n = 6000;
    let padded: Vec<f32> = (0..n).map(padded).collect();
    let words = |f: &dyn Fn(usize) -> u64| (0..n).flat_map(|i| f(i).to_le_bytes()).collect();
    let (rows, hwc) = (image(&[8, 1176], 392, 196), image(&[40, 50, 3], 1, 0));
    [
        (layout("<f4", &[8, 1176]), floats(&rows)),
        (layout("bfloat16", &[8, 1176]), bf16(&rows)),
        (layout("<f4", &[40, 50, 3]), floats(&hwc)),
        (layout("<f4", &[n]), floats(&padded)),
        (layout("<i8", &[n]), words(&|i| u64::from(noise(i, 1) % 200) << 33)),
        (layout("<i4", &[2, n]), words(&|i| u64::from(noise(i, 1) % 2))),
        (layout("<i8", &[n]), words(&|i| u64::from(i > 77))),
        (layout("|b1", &[8 * n]), words(&|_| 0)),
        (layout("<f8", &[n]), words(&|i| u64::from(noise(i, 1)) << 32 | i as u64)),
        (layout("<i8", &[]), vec![1; 8]),
        (layout("<f4", &[0, 7]), vec![]),
        (Layout::new(DType::new("[('a', '<f4'), ('b', '|S3')]", 7), &[2]).unwrap(), vec![9; 14]),
    ]
    .map(|(layout, bytes)| kept(books, layout, bytes))
    .into()
}

fn written(arrays: &[Kept], piece: usize) -> Vec<u8> {
    let names: Vec<String> = (0..arrays.len()).map(|i| format!("array {i} ä")).collect();
    let pieces = |kept: &'_ Kept| -> Vec<Vec<u8>> {
        let codes = kept.form.as_ref().map_or(&kept.bytes, |(_, codes)| codes);
        // The last piece of a slab reaches further.
        codes.chunks(piece).map(Vec::from).chain([vec![0xEE; 5]]).collect()
    };
    let pieces: Vec<_> = arrays.iter().map(pieces).collect();
    let slices: Vec<Vec<&[u8]>> =
        pieces.iter().map(|p| p.iter().map(Vec::as_slice).collect()).collect();
    let item = |i: usize| {
        let content = match &arrays[i].form {
            Some((form, _)) => Content::Compact(form, &slices[i]),
            None => Content::Raw(&slices[i]),
        };
        Item { name: &names[i], layout: &arrays[i].layout, content }
    };
    let items: Vec<_> = (0..arrays.len()).map(item).collect();
    let draft = Draft::new(&items).unwrap();
    let mut out = vec![7; 3];
    draft.write(&mut out);
    assert_eq!((out.len(), &out[..3]), (3 + draft.nbytes(), &[7; 3][..]));
    out.split_off(3)
}

fn bytes(array: &Parsed) -> Vec<u8> {
    match &array.stored {
        Stored::Raw(bytes) => bytes.to_vec(),
        Stored::Compact(form, codes) => {
            let mut out = vec![0; form.nbytes()];
            form.decode(&[codes], &mut out).unwrap();
            out
        }
    }
}

/// The hash that a record should have.
fn sealed(mut record: Vec<u8>) -> Vec<u8> {
    let body = record.len() - 16;
    let hash = blake3::hash(&record[..body]);
    record[body..].copy_from_slice(&hash.as_bytes()[..16]);
    record
}

fn refused(record: &[u8], why: &str) {
    let error = read(record, &Books::default()).expect_err(why).to_string();
    assert!(error.starts_with("malformed record: ") && error.contains(why), "{error}");
}

#[test]
fn every_kind_of_array_comes_back() {
    let books = Books::default();
    let arrays = arrays(&books);
    assert_eq!(arrays.iter().filter(|kept| kept.form.is_some()).count(), 8);
    for piece in [1000, 1 << 20] {
        let record = written(&arrays, piece);
        for books in [&books, &Books::default()] {
            let parsed = read(&record, books).unwrap();
            assert_eq!(parsed.len(), arrays.len());
            for (i, (array, kept)) in parsed.iter().zip(&arrays).enumerate() {
                assert_eq!((array.name, &array.layout), (&*format!("array {i} ä"), &kept.layout));
                assert!(bytes(array) == kept.bytes, "array {i}");
                let form = match &array.stored {
                    Stored::Compact(form, _) => Some(form.name()),
                    Stored::Raw(_) => None,
                };
                assert_eq!(form, kept.form.as_ref().map(|(form, _)| form.name()));
            }
        }
        let again = read(&record, &books).unwrap();
        let known = books.len();
        assert!(again.len() == arrays.len() && known == books.len(), "known books are found");
    }
    assert_eq!(read(&written(&[], 1), &books).unwrap().len(), 0);
}

#[test]
fn entries_share_one_book() {
    // Ever brighter images: each record has slots that those before it lack.
    let (theirs, ours) = (Books::default(), Books::default());
    let image = |top: usize, seed| -> Vec<u8> {
        let level = |i| (noise(i, seed) as usize % top) as u8;
        floats(&(0..4320).map(|i| value(level(i), i / 1440)).collect::<Vec<_>>())
    };
    for i in 0..200 {
        let one = kept(&theirs, layout("<f4", &[3, 36, 40]), image(57 + i, i as u32));
        let record = written(&[one], 4096);
        let parsed = read(&record, &ours).unwrap();
        assert!(bytes(&parsed[0]) == image(57 + i, i as u32), "entry {i}");
    }
    assert_eq!((theirs.len(), ours.len()), (1, 1));
    // What was imported serves images of our own.
    let own = kept(&ours, layout("<f4", &[3, 36, 40]), image(256, 5000));
    assert!(own.form.is_some() && ours.len() == 1);
}

#[test]
fn damage_is_found() {
    let books = Books::default();
    let record = written(&[kept(&books, layout("<i4", &[5]), vec![3; 20])], 100);
    assert!(read(&record, &books).is_ok());
    for len in 0..record.len() {
        assert!(read(&record[..len], &books).is_err(), "{len} bytes");
        let mut flipped = record.clone();
        for bit in 0..8 {
            flipped[len] ^= 1 << bit;
            assert!(read(&flipped, &books).is_err(), "bit {bit} of byte {len}");
            flipped[len] ^= 1 << bit;
        }
    }
    refused(&[&record[..], &[0]].concat(), "bytes of a record of");
    refused(&record[..record.len() - 1], "bytes of a record of");
    refused(b"PK", "it ends");
    refused(&[7; 100], "does not begin");
    let mut newer = record.clone();
    newer[8] = VERSION as u8 + 1;
    refused(&sealed(newer), "version 2 is newer than 1");
    let mut changed = record.clone();
    let last = changed.len() - 17;
    changed[last] ^= 1;
    refused(&changed, "checksum");
    assert_eq!(bytes(&read(&sealed(changed), &books).unwrap()[0])[19], 2, "a byte of the array");
}

#[test]
fn a_form_may_be_large_but_is_not_allocated() {
    // A run of 2^32 - 1 elements.
    let books = Books::default();
    let mut record = written(&[kept(&books, layout("<i8", &[4096]), vec![0; 32_768])], 1);
    let at =
        |record: &[u8], what: &[u8]| record.windows(what.len()).position(|w| w == what).unwrap();
    let axis = at(&record, &4096u64.to_le_bytes());
    record[axis..axis + 8].copy_from_slice(&u64::from(u32::MAX).to_le_bytes());
    refused(&sealed(record.clone()), "runs of another array");
    let end = at(&record, &4096u32.to_le_bytes());
    record[end..end + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let record = sealed(record);
    let parsed = read(&record, &books).unwrap();
    assert_eq!(parsed[0].layout.nbytes(), 8 * u32::MAX as usize);
    // Counts are compared with what is there before anything is made for them.
    let mut counts = record.clone();
    counts[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&sealed(counts), "4294967295 arrays");
}

#[test]
fn what_cannot_be_written_is_refused() {
    let layout = layout("<i4", &[5]);
    let content = Content::Raw(&[&[0; 20]]);
    let item = |name, content| Item { name, layout: &layout, content };
    assert!(Draft::new(&[item("a", content), item("a", content)]).is_err());
    assert!(Draft::new(&[item("a", Content::Raw(&[&[0; 19]]))]).is_err());
    let names: Vec<String> = (0..=MOST).map(|i| i.to_string()).collect();
    let many: Vec<_> = names.iter().map(|name| item(name, content)).collect();
    assert!(Draft::new(&many).is_err());
    assert!(Draft::new(&many[1..]).is_ok());
    let books = Books::default();
    let other = &arrays(&books)[0];
    let (form, codes) = other.form.as_ref().unwrap();
    assert!(Draft::new(&[item("a", Content::Compact(form, &[codes]))]).is_err());
}

#[test]
fn imported_tables_cannot_mislead_later_images() {
    let books = Books::default();
    let one = kept(&books, layout("<f4", &[3, 80, 40]), floats(&image(&[3, 80, 40], 3200, 0)));
    let (form, _) = one.form.as_ref().unwrap();
    let Encoding::Codes { book, .. } = form.encoding() else { panic!("{}", form.name()) };
    let slot = (0..=255).find(|&slot| book.channels[0].get(slot).is_some()).unwrap();
    let bits = book.channels[0].get(slot).unwrap().to_le_bytes();
    let record = written(&[one], 4096);
    let at = record.windows(4).position(|w| w == bits).unwrap();
    // One unit in the last place is another value in the right slot; a step further is not.
    for (value, fits) in [
        (f32::from_bits(u32::from_le_bytes(bits) + 1), true),
        (f32::from_le_bytes(bits) + 1.0 / 255.0 / DEVIATION[0], false),
        (f32::NAN, false),
    ] {
        let mut other = record.clone();
        other[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let other = sealed(other);
        assert_eq!(read(&other, &Books::default()).is_ok(), fits, "{value}");
        // A book that disagrees is another one.
        let known = books.len();
        let _ = read(&other, &books);
        assert_eq!(books.len(), known + usize::from(fits));
    }
}

proptest! {
    #[test]
    fn any_contents_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..4),
        nth in 0..12usize,
        resize in prop_oneof![3 => Just(0isize), 1 => -40..40isize],
    ) {
        static RECORDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
            let arrays = arrays(&Books::default());
            arrays.into_iter().map(|array| written(&[array], 4096)).collect()
        });
        let record = &RECORDS[nth];
        let mut contents = [&record[12..16], &record[24..record.len() - 16]].concat();
        // Heads are worth more changes than payloads.
        let head = contents.len().min(3500);
        for (at, byte, how) in changes {
            let at = &mut contents[at.index(head)];
            *at = match how { 0 => byte, 1 => 0, 2 => 0xFF, _ => at.wrapping_add(1) };
        }
        contents.resize(contents.len().saturating_add_signed(resize), 0);
        fuzz(&contents);
    }
}
