//! The wire record of a reference: every value round-trips, nothing else decodes.

use memweir_core::descriptor::{Descriptor, Origin, VERSION, fuzz};
use memweir_core::layout::{DType, Layout};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn layout() -> impl Strategy<Value = Layout> {
    ("\\PC{0,12}", 0usize..100, vec(0usize..5000, 0..5))
        .prop_filter_map("too large", |(token, itemsize, shape)| {
            Layout::new(DType::new(&token, itemsize), &shape).ok()
        })
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        "\\PC{0,80}".prop_map(|s| Origin::Text(s.into())),
        vec(any::<u8>(), 0..80).prop_map(|b| Origin::Bytes(b.into())),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let digest = any::<[u8; 32]>;
    (
        ("\\PC{0,20}", layout(), any::<bool>(), digest()),
        (option::of(digest()), option::of(digest()), option::of(digest()), option::of(digest())),
        (option::of(origin()), option::of("\\PC{0,40}")),
    )
        .prop_map(|(base, digests, recipe)| Descriptor {
            name: base.0.into(),
            layout: base.1,
            torch: base.2,
            digest: base.3,
            key: digests.0,
            fingerprint: digests.1,
            image: digests.2,
            source: digests.3,
            origin: recipe.0,
            arguments: recipe.1.map(Into::into),
        })
}

proptest! {
    #[test]
    fn round_trip(value in descriptor()) {
        let record = value.encode();
        prop_assert_eq!(Descriptor::decode(&record), Ok(value));
    }

    #[test]
    fn self_delimiting(first in descriptor(), second in descriptor()) {
        let mut bytes = first.encode();
        let length = bytes.len();
        bytes.extend_from_slice(&second.encode());
        prop_assert_eq!(Descriptor::read(&bytes), Ok((first, length)));
        prop_assert_eq!(Descriptor::decode(&bytes[length..]), Ok(second));
        prop_assert!(Descriptor::decode(&bytes).is_err());
    }

    #[test]
    fn every_cut_is_refused(value in descriptor()) {
        let record = value.encode();
        for length in 0..record.len() {
            prop_assert!(Descriptor::decode(&record[..length]).is_err());
        }
    }

    #[test]
    fn every_changed_byte_is_refused(value in descriptor(), flip in 1u8..) {
        let record = value.encode();
        for at in 0..record.len() {
            let mut changed = record.clone();
            changed[at] ^= flip;
            prop_assert!(Descriptor::decode(&changed).is_err());
        }
    }

    #[test]
    fn damage_with_a_valid_check_decodes_canonically_or_not_at_all(
        value in descriptor(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut body = value.encode();
        body.truncate(body.len() - 4);
        let at = at.index(body.len());
        body[at] = byte;
        fuzz(&sealed(body));
    }

    #[test]
    fn noise_with_a_valid_head_is_no_panic(flags in 0u16..256, noise in vec(any::<u8>(), 0..300)) {
        let mut body = vec![VERSION];
        body.extend_from_slice(&flags.to_le_bytes());
        body.extend_from_slice(&noise);
        for end in 0..body.len() {
            fuzz(&sealed(body[..end].to_vec()));
        }
    }
}

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let check = blake3::hash(&body);
    body.extend_from_slice(&check.as_bytes()[..4]);
    body
}

fn qwen() -> Descriptor {
    let layout = Layout::new(DType::new("<f4", 4), &[4096, 1536]);
    Descriptor {
        name: "pixel_values".into(),
        layout: layout.unwrap_or_else(|error| unreachable!("{error}")),
        torch: true,
        digest: [1; 32],
        key: Some([2; 32]),
        fingerprint: Some([3; 32]),
        image: Some([4; 32]),
        source: Some([5; 32]),
        origin: None,
        arguments: None,
    }
}

#[test]
fn the_documented_bytes() {
    let mut body = vec![1, 0b0001_1111, 0];
    (1..=5).for_each(|n| body.extend_from_slice(&[n; 32]));
    body.extend_from_slice(b"\x0cpixel_values\x03<f4\x04\x02\x80\x20\x80\x0c");
    let record = sealed(body);
    assert_eq!(qwen().encode(), record);
    assert_eq!(record.len(), 190);
}

/// The body of a record with no optional field, cut before its layout.
fn head() -> Vec<u8> {
    let mut body = vec![VERSION, 0, 0];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(b"\x01x\x03<f4");
    body
}

fn refused(rest: &[u8]) -> String {
    let mut body = head();
    body.extend_from_slice(rest);
    match Descriptor::decode(&sealed(body)) {
        Ok(value) => format!("decoded {value:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn hostile_lengths() {
    assert!(refused(b"\x04\x01\x02").starts_with("decoded"), "the head itself is sound");
    assert!(refused(b"\x84\x00\x01\x02").contains("shortest form"));
    let axis = |last: &[u8]| refused(&[b"\x04\x01", [0xff; 9].as_slice(), last].concat());
    assert!(axis(b"\x01").contains("larger than the address space"), "2^64 - 1");
    assert!(axis(b"\x02").contains("shortest form"), "over 64 bits");
    assert!(axis(b"\xff\x01").contains("shortest form"), "eleven bytes");
    assert!(refused(b"\x04\x41").contains("65 axes"));
    assert!(refused(b"\x04\xff\xff\xff\xff\x0f").contains("axes"));
}

#[test]
fn what_is_not_a_record_says_why() {
    let why = |bytes: &[u8]| Descriptor::decode(bytes).map_err(|error| error.to_string());
    assert!(why(b"").is_err_and(|w| w.contains("it ends at byte 0")));
    assert!(why(b"\x02\x00\x00").is_err_and(|w| w.contains("version 2")));
    assert!(why(b"\x01\x00\x01").is_err_and(|w| w.contains("flags 0x0100")));
    assert!(why(b"\x01\x60\x00").is_err_and(|w| w.contains("flags 0x0060")));
    let mut long = qwen().encode();
    long.extend_from_slice(b"more");
    assert!(why(&long).is_err_and(|w| w.contains("4 bytes after its end")));
}

#[test]
fn debug_shows_no_source() {
    let mut value = qwen();
    value.origin = Some(Origin::Text("https://host/x.png?signature=hunter2".into()));
    assert!(!format!("{value:?}").contains("hunter2"));
    value.origin = Some(Origin::Bytes((*b"hunter2").into()));
    assert!(!format!("{value:?}").contains("hunter2"));
}
