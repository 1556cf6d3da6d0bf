use crate::proc::maps::*;
use proptest::prelude::*;

const MAPS: &[u8] =
    b"55d0c0000000-55d0c0200000 r-xp 00001000 fe:00 1234      /usr/bin/python3.11\n\
55d0c1000000-55d0c1001000 rw-p 00000000 00:00 0                          [heap]\n\
55d0c1001000-55d0c4001000 rw-p 00000000 00:00 0                          [heap]\n\
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n\
7f0000021000-7f0004000000 ---p 00000000 00:00 0 \n\
7f0010000000-7f0010001000 rw-s 00000000 00:01 7                          /dev/zero (deleted)\n\
7f0010001000-7f0010002000 rw-p 00000000 fe:00 99                         /a b\n\
7f0010002000-7f0010003000 rw-p 00000000 00:00 0                          [anon: named]\n\
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

#[test]
fn memory_of_no_file_is_told_from_the_rest() {
    let found = parse(MAPS);
    let kinds: Vec<_> = found.iter().map(|map| map.kind).collect();
    let mut expected = vec![Kind::Other, Kind::Break, Kind::Break, Kind::Memory, Kind::Reserved];
    expected.resize(10, Kind::Other);
    assert_eq!(kinds, expected);
    let heap = Map { start: 0x55d0_c100_1000, end: 0x55d0_c400_1000, kind: Kind::Break };
    assert_eq!(found[2], heap);
}

#[test]
fn what_is_no_mapping_is_left_out() {
    for line in [
        "",
        "1000-2000 rw-p 0 00:00",
        "1000 rw-p 0 00:00 0",
        "2000-1000 rw-p 0 00:00 0",
        "1000-1000 rw-p 0 00:00 0",
        "+1000-2000 rw-p 0 00:00 0",
        "1000--2000 rw-p 0 00:00 0",
        "-2000 rw-p 0 00:00 0",
        "10000000000000000-20000000000000000 rw-p 0 00:00 0",
        "1000-200\u{661} rw-p 0 00:00 0",
    ] {
        assert_eq!(parse(format!("{line}\n").as_bytes()), [], "{line:?}");
    }
    // The end of a text that was cut off could be that of another address.
    assert_eq!(parse(b"1000-2000 rw-p 0 00:00 0"), []);
}

proptest! {
    #[test]
    fn any_text_is_read(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(&text).iter().all(|map| map.start < map.end));
    }

    #[test]
    fn a_spoilt_text_is_read_too(at in 0..MAPS.len(), byte: u8, end in 0..=MAPS.len()) {
        let mut text = MAPS.to_vec();
        text[at] = byte;
        text.truncate(end);
        let found = parse(&text);
        prop_assert!(found.len() <= 11);
        prop_assert!(found.iter().all(|map| map.start < map.end));
    }
}
