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
        Started::read(&if kept { start } else { now.join(&0) })
    })
}

impl Started {
    /// Reads it from variables with a zero byte after each.
    fn read(all: &[u8]) -> Self {
        let number = |variable, tunable| {
            given(all, tunable).or_else(|| given(all, variable)).and_then(number)
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

/// A number as glibc reads it: those below zero are the largest there are.
fn number(text: &str) -> Option<usize> {
    match (text.strip_prefix("0x"), text.strip_prefix('-')) {
        (Some(digits), _) => usize::from_str_radix(digits, 16).ok(),
        (_, Some(digits)) => digits.parse().ok().map(usize::wrapping_neg),
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::Started;

    fn trim_threshold(all: &[u8]) -> Option<usize> {
        Started::read(all).trim_threshold
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
        let long = b"\xff=1\0glibc.malloc.trim_threshold=99999999999999999999";
        assert_eq!(trim_threshold(long), None);
        assert_eq!(trim_threshold(b"MALLOC_TRIM_THRESHOLD_=-1"), Some(usize::MAX));
    }

    #[test]
    fn each_of_four_keeps_the_thresholds_where_they_are() {
        for name in ["MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"] {
            assert!(Started::read(format!("{name}=1\0").as_bytes()).fixed, "{name}");
        }
        assert!(Started::read(b"GLIBC_TUNABLES=glibc.malloc.trim_threshold=1").fixed);
        let other = Started::read(b"MALLOC_ARENA_MAX=2\0MALLOC_MMAP_MAX_=x\0");
        assert_eq!(other, Started { arena_max: Some(2), ..Started::default() });
    }
}
