//! What the environment told glibc's allocator when the process started.
//!
//! It is read there once, by the library, and never again: what is set later in the process looks
//! the same to whoever asks for a variable, and has no effect.

use std::sync::OnceLock;

/// What was given by a tunable or a variable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Started {
    /// The trim threshold.
    pub trim_threshold: Option<usize>,
    /// Bytes that stay at a top that is trimmed.
    pub top_pad: Option<usize>,
    /// How many arenas there may be.
    pub arena_max: Option<usize>,
    /// Whether anything was given that keeps glibc from moving its thresholds.
    pub fixed: bool,
}

/// What this process was started with. To be called first where no other thread sets variables:
/// who renames a process writes over those of its start, and then those of now have to do.
pub fn started() -> &'static Started {
    static STARTED: OnceLock<Started> = OnceLock::new();
    STARTED.get_or_init(|| {
        let start = std::fs::read("/proc/self/environ").unwrap_or_default();
        let now = std::env::vars_os().map(|(name, value)| {
            [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat()
        });
        let now: Vec<Vec<u8>> = now.collect();
        // What has nothing in common with now is not what it was.
        let kept = start.split(|byte| *byte == 0).any(|entry| now.iter().any(|own| own == entry));
        Started::read(&if kept { start } else { now.join(&0) }, is_strict())
    })
}

impl Started {
    /// Reads it from variables with a zero byte after each.
    fn read(all: &[u8], strict: bool) -> Self {
        let number = |variable, tunable| {
            let given = given(all, tunable).or_else(|| given(all, variable));
            given.and_then(|text| number(text, strict))
        };
        let trim_threshold = number("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold");
        let top_pad = number("MALLOC_TOP_PAD_", "glibc.malloc.top_pad");
        let arena_max = number("MALLOC_ARENA_MAX", "glibc.malloc.arena_max");
        let others = [
            number("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),
            number("MALLOC_MMAP_MAX_", "glibc.malloc.mmap_max"),
        ];
        let fixed = others.iter().chain([&trim_threshold, &top_pad]).any(Option::is_some);
        Self { trim_threshold, top_pad, arena_max, fixed }
    }
}

/// The library's loader ends each tunable that it knows with a zero byte, in place: what was one
/// variable may be several.
fn given<'a>(all: &'a [u8], wanted: &str) -> Option<&'a str> {
    let tunable = wanted.contains('.');
    all.split(|byte| *byte == 0 || (tunable && *byte == b':')).find_map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        let pair = pair.strip_prefix("GLIBC_TUNABLES=").unwrap_or(pair);
        let (name, value) = pair.split_once('=')?;
        (name == wanted).then_some(value)
    })
}

/// A number as glibc reads it: blanks and a sign first, then digits of the base that their start
/// tells, up to the first that is none of them, and 0 where there is none. Those below zero count
/// from the end, and the largest there is stands for those that are larger. Where it is `strict`,
/// nothing may follow, nor may it be too large.
fn number(text: &str, strict: bool) -> Option<usize> {
    let text = text.trim_start_matches([' ', '\t']);
    let (negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let (base, digits) = match digits {
        [b'0', b'x' | b'X', digits @ ..] => (16, digits),
        [b'0', digits @ ..] => (8, digits),
        digits => (10, digits),
    };
    let values = digits.iter().map_while(|digit| char::from(*digit).to_digit(base));
    let follows = values.clone().count() < digits.len();
    let value = values
        .into_iter()
        .try_fold(0u64, |value, digit| value.checked_mul(base.into())?.checked_add(digit.into()));
    if strict && (follows || value.is_none()) {
        return None;
    }
    let value = value.map_or(u64::MAX, |value| if negative { value.wrapping_neg() } else { value });
    Some(value.try_into().unwrap_or(usize::MAX))
}

/// Whether this glibc takes no number that something follows: 2.39 was the first.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn is_strict() -> bool {
    // SAFETY: it returns a constant of the library, which ends with a zero byte.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    let version = version.to_str().ok().and_then(|text| text.strip_prefix("2.")?.parse().ok());
    version.is_none_or(|minor: u32| minor >= 39)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn is_strict() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::{Started, number};

    fn trim_threshold(all: &[u8]) -> Option<usize> {
        Started::read(all, true).trim_threshold
    }

    #[test]
    fn tunables_are_found_whole_and_in_pieces() {
        for all in [
            "A=1\0GLIBC_TUNABLES=glibc.malloc.trim_threshold=0x10:other=1\0B=2",
            "GLIBC_TUNABLES=glibc.malloc.top_pad=3\0glibc.malloc.trim_threshold=16\0",
            "GLIBC_TUNABLES=:=:x:glibc.malloc.trim_threshold=16",
            "MALLOC_TRIM_THRESHOLD_=3\0GLIBC_TUNABLES=glibc.malloc.trim_threshold=16",
            "A=MALLOC_TRIM_THRESHOLD_=3:MALLOC_TRIM_THRESHOLD_=3\0MALLOC_TRIM_THRESHOLD_=16",
        ] {
            assert_eq!(trim_threshold(all.as_bytes()), Some(16), "{all:?}");
        }
        for all in ["", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=x", "GLIBC_TUNABLES=="] {
            assert_eq!(trim_threshold(all.as_bytes()), None, "{all:?}");
        }
        assert_eq!(trim_threshold(b"\xff=1\0glibc.malloc.trim_threshold=5"), Some(5));
    }

    #[test]
    fn numbers_are_read_as_far_as_they_go() {
        // What older ones read, and whether newer ones take it.
        for (text, expected, whole) in [
            ("131072", 131_072, true),
            ("128K", 128, false),
            ("100000000 ", 100_000_000, false),
            (" \t65536", 65_536, true),
            ("\n65536", 0, false),
            ("+7", 7, true),
            ("+ 7", 0, false),
            ("-1", usize::MAX, true),
            ("-+1", 0, false),
            ("0x20000", 0x20000, true),
            ("0XfF", 255, true),
            ("-0x1", usize::MAX, true),
            ("0xg", 0, false),
            ("010", 8, true),
            ("018", 1, false),
            ("09", 0, false),
            ("0", 0, true),
            ("", 0, true),
            ("x", 0, false),
            ("1e6", 1, false),
            ("1_000", 1, false),
            ("99999999999999999999", usize::MAX, false),
            ("-99999999999999999999", usize::MAX, false),
            ("0xfffffffffffffffff", usize::MAX, false),
        ] {
            assert_eq!(number(text, false), Some(expected), "{text:?}");
            assert_eq!(number(text, true), whole.then_some(expected), "{text:?}");
        }
    }

    #[test]
    fn each_of_four_keeps_the_thresholds_where_they_are() {
        for name in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"] {
            assert!(Started::read(format!("{name}=1\0").as_bytes(), true).fixed, "{name}");
        }
        assert!(Started::read(b"GLIBC_TUNABLES=glibc.malloc.trim_threshold=1", true).fixed);
        let other = Started::read(b"MALLOC_ARENA_MAX=2\0MALLOC_MMAP_MAX_=x\0", true);
        assert_eq!(other, Started { arena_max: Some(2), ..Started::default() });
    }
}
