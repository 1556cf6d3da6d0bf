//! The record of a reference: its decoder trusts nothing, and knows one form of each value.

use memweir_core::descriptor::{Descriptor, VERSION, fuzz};

/// The bytes are read as they are, then with what a mutation can hardly guess put right: the
/// version before them, and their own check behind.
pub fn check(input: &[u8]) {
    read(input);
    let body = [&[VERSION], input].concat();
    let seal = blake3::hash(&body);
    read(&[&body, &seal.as_bytes()[..4]].concat());
}

fn read(bytes: &[u8]) {
    fuzz(bytes);
    let Ok((value, used)) = Descriptor::read(bytes) else {
        assert!(Descriptor::decode(bytes).is_err(), "read as a whole, and not from its start");
        return;
    };
    let record = value.encode();
    assert_eq!(record, bytes[..used], "two records for one value");
    assert_eq!(Descriptor::decode(&record).as_ref(), Ok(&value), "another value");
    assert_eq!(Descriptor::decode(bytes).is_ok(), used == bytes.len());
    for cut in (0..used).rev().take(64) {
        assert!(Descriptor::read(&record[..cut]).is_err(), "{cut} bytes of {used} were enough");
    }
    // What a log would show.
    assert!(format!("{value:?}").len() < 16 * used + 1024);
}
