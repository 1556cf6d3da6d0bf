//! What bounds the memory of this process.

use super::groups::Place;
use super::text;
use std::path::Path;
use std::sync::Arc;

/// One bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The name of the file or resource: `memory.max`, `RLIMIT_AS`, `host`.
    pub kind: &'static str,
    /// The file, or the kind again.
    pub source: Arc<str>,
    /// How much.
    pub bytes: u64,
}

impl Limit {
    fn named(kind: &'static str, bytes: u64) -> Self {
        Self { kind, source: kind.into(), bytes }
    }

    /// What the machine has.
    pub fn host(meminfo: Option<&[u8]>) -> Option<Self> {
        let total = meminfo.and_then(|text| text::meminfo(text, "MemTotal:"));
        total.or_else(physical).map(|bytes| Self::named("host", bytes))
    }
}

/// The limits of a group and of all around it, as they are now. Files that are not there, or go
/// while they are read, limit nothing.
pub fn of_groups(place: &Place) -> Vec<Limit> {
    let mut found = Vec::new();
    for level in &place.levels {
        for kind in place.limits() {
            let path = level.join(kind);
            if let Some(Some(bytes)) = whole(&path).and_then(|text| text::limit(&text)) {
                found.push(Limit { kind, source: path.to_string_lossy().into(), bytes });
            }
        }
    }
    // A container's mount ends at its own group, and what is above still counts.
    let path = place.levels[0].join("memory.stat");
    let hidden = whole(&path).and_then(|text| text::stat(&text)?.hierarchical);
    if let Some(bytes) = hidden.filter(|bytes| found.iter().all(|l| l.bytes > *bytes)) {
        let source = path.to_string_lossy().into();
        found.push(Limit { kind: "hierarchical_memory_limit", source, bytes });
    }
    found
}

/// What the process was told to keep within when it was started.
pub fn of_process() -> Vec<Limit> {
    resources().into_iter().flatten().collect()
}

/// A file from its start to its end, but no more than any of ours has.
pub fn whole(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    const MOST: u64 = 4 << 20;
    let mut text = Vec::new();
    let mut file = std::fs::File::open(path).ok()?.take(MOST);
    file.read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(unix)]
fn resources() -> [Option<Limit>; 2] {
    macro_rules! limit {
        ($name:ident) => {{
            let mut found = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: it writes to what it is given, and nowhere else.
            let done = unsafe { libc::getrlimit(libc::$name, &raw mut found) } == 0;
            let bounded = done && found.rlim_cur != libc::RLIM_INFINITY;
            bounded.then(|| Limit::named(stringify!($name), found.rlim_cur as u64))
        }};
    }
    [limit!(RLIMIT_AS), limit!(RLIMIT_DATA)]
}

#[cfg(not(unix))]
fn resources() -> [Option<Limit>; 0] {
    []
}

#[cfg(unix)]
fn physical() -> Option<u64> {
    // SAFETY: sysconf reads constants of the system.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages).ok()?.checked_mul(crate::arena::page() as u64).filter(|bytes| *bytes > 0)
}

#[cfg(not(unix))]
fn physical() -> Option<u64> {
    None
}
