//! What bounds the memory of this process.

use super::groups::Place;
use super::text;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
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

/// The limits of a group and of all around it, as they are now, and whether all could be read. Files
/// that are not there, or go while they are read, limit nothing. One that cannot be read now, as
/// where no descriptor is free, is taken for what it was `last`.
pub fn of_groups(place: &Place, last: &[Limit]) -> (Vec<Limit>, bool) {
    let mut complete = true;
    let mut read = |kind, path: PathBuf, parse: fn(&[u8]) -> Option<u64>| {
        let source = path.to_string_lossy();
        match present(&path) {
            Ok(text) => Some(Limit { kind, source: source.into(), bytes: parse(&text?)? }),
            Err(_) => {
                complete = false;
                last.iter().find(|limit| *limit.source == *source).cloned()
            }
        }
    };
    let mut found = Vec::new();
    for level in &place.levels {
        for kind in place.limits() {
            found.extend(read(kind, level.join(kind), |text| text::limit(text)?));
        }
    }
    // A container's mount ends at its own group, and what is above still counts.
    let path = place.levels[0].join("memory.stat");
    let hidden = read("hierarchical_memory_limit", path, |text| text::stat(text)?.hierarchical);
    found.extend(hidden.filter(|hidden| found.iter().all(|limit| limit.bytes > hidden.bytes)));
    (found, complete)
}

/// What the process was told to keep within when it was started.
pub fn of_process() -> Vec<Limit> {
    resources().into_iter().flatten().collect()
}

/// A file from its start to its end, but no more than any of ours has.
pub fn whole(path: &Path) -> Option<Vec<u8>> {
    present(path).ok()?
}

/// The same; `None` is a file that is not there, and an error one that cannot be read now.
pub fn present(path: &Path) -> io::Result<Option<Vec<u8>>> {
    const MOST: u64 = 4 << 20;
    let mut text = Vec::new();
    let Some(file) = if_there(File::open(path))? else { return Ok(None) };
    Ok(if_there(file.take(MOST).read_to_end(&mut text))?.map(|_| text))
}

/// Whether there is a file; an error where that cannot be said now.
pub fn is_there(path: &Path) -> io::Result<bool> {
    Ok(if_there(fs::metadata(path))?.is_some())
}

/// `None` for what is not there, or not for this process. All else may be better at another time.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied => {
                Ok(None)
            }
            _ if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) => Ok(None),
            _ => Err(error),
        },
    }
}

/// What the kernel says of files of groups and processes that went while they were open.
#[cfg(unix)]
const GONE: &[i32] = &[libc::ENODEV, libc::ESRCH];
#[cfg(not(unix))]
const GONE: &[i32] = &[];

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
