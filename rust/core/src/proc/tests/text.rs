use crate::proc::text::*;
use proptest::prelude::*;

const STATUS: &[u8] = b"Name:\tVmSwap:\t7 kB\nVmPeak:\t  400 kB\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\n\
RssAnon:\t     120 kB\nRssFile:\t      60 kB\nRssShmem:\t      20 kB\nVmSwap:\t       4 kB\nThreads:\t1\n";
const V1: &[u8] = b"cache 1\ninactive_file 10\nhierarchical_memory_limit 1000\n\
hierarchical_memsw_limit 2000\ntotal_cache 1\ntotal_inactive_file 30\n";
const V2: &[u8] = b"anon 5\nfile 6\nkernel 7\ninactive_anon 1\ninactive_file 40\n";
const PSI: &[u8] = b"some avg10=1.50 avg60=0.25 avg300=100.00 total=18446744073709551615\n\
full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
const ROLLUP: &[u8] = b"5646d32d6000-7ffdaaeac000 ---p 00000000 00:00 0    [rollup]\n\
Rss:                1724 kB\nPss:                 241 kB\nPss_Dirty:           116 kB\n\
Private_Clean:        40 kB\nPrivate_Dirty:       116 kB\nAnonHugePages:      2048 kB\n\
Private_Hugetlb:       4 kB\n";

#[test]
fn limits_of_both_versions() {
    for (written, limit_is) in [
        ("max\n", Some(None)),
        ("0\n", Some(Some(0))),
        ("104857600\n", Some(Some(104_857_600))),
        ("104857600", Some(Some(104_857_600))),
        // What v1 writes for "none", with pages of 4 and of 64 KiB, and what nobody can have.
        ("9223372036854771712\n", Some(None)),
        ("9223372036854710272\n", Some(None)),
        ("18446744073709551615\n", Some(None)),
        ("99999999999999999999999\n", Some(None)),
        ("", None),
        ("\n", None),
        ("maximum\n", None),
        ("-1\n", None),
        ("1 2\n", None),
        ("1.5\n", None),
        ("\u{661}\n", None),
    ] {
        assert_eq!(limit(written.as_bytes()), limit_is, "{written:?}");
    }
}

#[test]
fn statm_is_in_pages() {
    let read = statm(b"765 403 374 5 0 123 0\n", 4096).unwrap();
    assert_eq!((read.resident, read.shared), (403 * 4096, 374 * 4096));
    // A process that has ended, a file that was cut short, and numbers that no process has.
    for text in ["0 0 0 0 0 0 0\n", "765 403", "", "a b c\n", "1 18446744073709551615 1\n"] {
        assert_eq!(statm(text.as_bytes(), 4096), None, "{text:?}");
    }
}

#[test]
fn fields_of_status_are_found_by_their_line() {
    const KIB: u64 = 1024;
    let read = status(STATUS).unwrap();
    assert_eq!((read.anon, read.file, read.shmem), (120 * KIB, 60 * KIB, 20 * KIB));
    assert_eq!((read.swap, read.peak), (Some(4 * KIB), Some(300 * KIB)));
    // A kernel thread, or a kernel from before the split, has no such lines.
    assert_eq!(status(b"Name:\tcat\nVmRSS:\t200 kB\n"), None);
    let without = String::from_utf8(STATUS.to_vec()).unwrap().replace("VmHWM", "VmXXX");
    assert_eq!(status(without.as_bytes()).unwrap().peak, None);
    // Another unit is another number, and a line without its end may lack digits.
    assert_eq!(meminfo(b"MemTotal: 4 MB\n", "MemTotal:"), None);
    assert_eq!(meminfo(b"MemTotal: 4 kB", "MemTotal:"), None);
    assert_eq!(meminfo(b"MemTotal: 4 kB\n", "MemTotal:"), Some(4096));
}

#[test]
fn both_kinds_of_memory_stat() {
    assert_eq!(stat(V1), Some(Stat { inactive_file: 30, hierarchical: Some(1000) }));
    assert_eq!(stat(V2), Some(Stat { inactive_file: 40, hierarchical: None }));
    let free = b"hierarchical_memory_limit 9223372036854771712\ntotal_inactive_file 0\n";
    assert_eq!(stat(free), Some(Stat { inactive_file: 0, hierarchical: None }));
    assert_eq!(stat(b"anon 5\n"), None);
    assert_eq!(stat(b"inactive_file\ninactive_file x\n"), None);
}

#[test]
fn pressure_has_two_lines() {
    let read = pressure(PSI).unwrap();
    assert_eq!((read.some.avg10, read.some.avg60, read.some.avg300), (1.5, 0.25, 100.0));
    assert_eq!((read.some.total, read.full.total), (u64::MAX, 7));
    assert_eq!(pressure(&PSI[..PSI.len() / 2]), None);
    for wrong in ["nan", "inf", "1e9", ".5", "1.", "-1.00", "0x1.0"] {
        let text = String::from_utf8(PSI.to_vec()).unwrap().replace("1.50", wrong);
        assert_eq!(pressure(text.as_bytes()), None, "{wrong}");
    }
}

#[test]
fn own_pages_are_the_private_ones() {
    let read = rollup(ROLLUP).unwrap();
    assert_eq!(read, Rollup { pss: 241 << 10, uss: (40 + 116 + 4) << 10, huge: 2 << 20 });
    assert_eq!(rollup(&ROLLUP[..200]), None);
}

proptest! {
    #[test]
    fn numbers_are_those_of_the_standard_library(n: u64, zeros in 0usize..3, text in "[0-9 +-]{0,25}") {
        prop_assert_eq!(number(format!("{}{n}", "0".repeat(zeros)).as_bytes()), Some(n));
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        prop_assert_eq!(number(text.as_bytes()), text.parse().ok().filter(|_| plain));
    }

    /// Real text with some bytes changed, dropped and doubled: whatever comes, nothing panics.
    #[test]
    fn damaged_text_is_read_or_refused(
        which in 0usize..5,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..20),
    ) {
        let mut text = [STATUS, V1, V2, PSI, ROLLUP][which].to_vec();
        for (place, byte, how) in damage {
            if text.is_empty() {
                break;
            }
            let at = place.index(text.len());
            match how {
                0 => text[at] = byte,
                1 => text.truncate(at),
                2 => text.insert(at, byte),
                _ => text.extend_from_within(at..),
            }
            text.truncate(1 << 16);
        }
        if let Some(read) = status(&text) {
            prop_assert_eq!(read.anon % 1024, 0);
        }
        if let Some(read) = pressure(&text) {
            prop_assert!(read.some.avg10 >= 0.0 && read.full.avg300.is_finite());
        }
        if let Some(read) = rollup(&text) {
            prop_assert_eq!(read.uss % 1024, 0);
        }
        let _ = (stat(&text), statm(&text, 4096), limit(&text), lone(&text));
        let _ = meminfo(&text, "MemTotal:");
    }
}
