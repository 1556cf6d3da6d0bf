//! What the environment said when the process started.
//!
//! Allocators read it then, and never again: what is set later in the process looks the same to
//! whoever asks for a variable, and has no effect.

/// The value that a variable had at the start of the process, where the system tells.
pub fn at_start(name: &str) -> Option<String> {
    let all = std::fs::read("/proc/self/environ").ok()?;
    all.split(|byte| *byte == 0).find_map(|entry| {
        let value = std::str::from_utf8(entry).ok()?.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.to_owned())
    })
}

/// A number that glibc's allocator was given at the start, by its tunable or its variable.
pub fn glibc_number(variable: &str, tunable: &str) -> Option<usize> {
    let all = std::fs::read("/proc/self/environ").ok()?;
    tuned(&all, tunable).or_else(|| number(&at_start(variable)?))
}

/// The library's loader ends each tunable that it knows with a zero byte, in place: what was one
/// variable may be several.
fn tuned(all: &[u8], tunable: &str) -> Option<usize> {
    all.split(|byte| matches!(byte, 0 | b':')).find_map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        let pair = pair.strip_prefix("GLIBC_TUNABLES=").unwrap_or(pair);
        let (name, value) = pair.split_once('=')?;
        if name == tunable { number(value) } else { None }
    })
}

fn number(text: &str) -> Option<usize> {
    match text.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::tuned;

    #[test]
    fn tunables_are_found_whole_and_in_pieces() {
        let name = "glibc.malloc.trim_threshold";
        for all in [
            "A=1\0GLIBC_TUNABLES=glibc.malloc.trim_threshold=0x10:other=1\0B=2",
            "GLIBC_TUNABLES=glibc.malloc.top_pad=3\0glibc.malloc.trim_threshold=16\0",
            "GLIBC_TUNABLES=:=:x:glibc.malloc.trim_threshold=16",
        ] {
            assert_eq!(tuned(all.as_bytes(), name), Some(16), "{all:?}");
        }
        for all in ["", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=x", "GLIBC_TUNABLES=="] {
            assert_eq!(tuned(all.as_bytes(), name), None, "{all:?}");
        }
        assert_eq!(tuned(b"\xff=1\0glibc.malloc.trim_threshold=99999999999999999999", name), None);
    }
}
