//! Where the memory controller keeps the files of this process's group.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Which of the two interfaces a group speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy of the memory controller's own.
    V1,
    /// The one hierarchy of all controllers.
    V2,
}

/// The group a process counts in, and the groups around it that can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// How to read it.
    pub version: Version,
    /// From the process's own group outwards to the mount; never empty.
    pub levels: Vec<PathBuf>,
}

impl Place {
    /// The file that counts what is charged to a group.
    pub fn usage(&self) -> PathBuf {
        self.levels[0].join(match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        })
    }

    /// The file that tells how long a group's processes waited for memory.
    pub fn pressure(&self) -> Option<PathBuf> {
        (self.version == Version::V2).then(|| self.levels[0].join("memory.pressure"))
    }

    /// The files that may hold a limit of a group.
    pub fn limits(&self) -> &'static [&'static str] {
        match self.version {
            Version::V1 => &["memory.limit_in_bytes"],
            Version::V2 => &["memory.max", "memory.high"],
        }
    }
}

/// The places to look at for a process's group, best first, from its `/proc/PID/cgroup` and
/// `mountinfo`; `root` is put before every path. In a hybrid system the memory controller belongs
/// to one of the two hierarchies, and only that one lists it.
pub fn places(cgroup: &[u8], mountinfo: &[u8], root: &Path) -> Vec<Place> {
    let mounts: Vec<Mount> = lines(mountinfo).filter_map(Mount::read).collect();
    let mut places = Vec::new();
    for version in [Version::V1, Version::V2] {
        let Some(path) = membership(cgroup, version) else { continue };
        let of = |mount: &&Mount| mount.version == version;
        let mut found: Vec<(usize, Place)> = mounts
            .iter()
            .filter(of)
            .filter_map(|mount| {
                let levels = mount.levels(path, root)?;
                Some((mount.root.as_os_str().len(), Place { version, levels }))
            })
            .collect();
        // The same group may be in sight at several places: most can be seen where most is mounted.
        found.sort_by_key(|(depth, _)| *depth);
        places.extend(found.into_iter().map(|(_, place)| place));
    }
    places
}

/// The path of a process in a hierarchy, from its `/proc/PID/cgroup`.
fn membership(cgroup: &[u8], version: Version) -> Option<&Path> {
    lines(cgroup).find_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match version {
            Version::V1 => controllers.split(|byte| *byte == b',').any(|name| name == b"memory"),
            Version::V2 => id == b"0" && controllers.is_empty(),
        };
        (fits && path.starts_with(b"/")).then(|| as_path(path))
    })
}

/// A line of `mountinfo` that mounts a hierarchy which may have the memory controller.
struct Mount {
    version: Version,
    /// The group that the mount shows.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn read(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let root = unescape(fields.nth(3)?);
        let point = unescape(fields.next()?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, _, options) = (rest.next()?, rest.next()?, rest.next()?);
        let version = match kind {
            b"cgroup2" => Version::V2,
            b"cgroup" => Version::V1,
            _ => return None,
        };
        let memory = options.split(|byte| *byte == b',').any(|option| option == b"memory");
        (version == Version::V2 || memory).then(|| Self {
            version,
            root: as_path(&root).to_owned(),
            point: as_path(&point).to_owned(),
        })
    }

    /// The folders of the group at `path` and of those around it, as far as they are mounted here.
    fn levels(&self, path: &Path, root: &Path) -> Option<Vec<PathBuf>> {
        // Both are relative to the namespace of whoever reads. What lies above it is shown as `..`,
        // and a folder of that name would lead out of the mount.
        let inside = path.strip_prefix(&self.root).ok()?;
        if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        let point = root.join(self.point.strip_prefix("/").ok()?);
        let depth = inside.components().count();
        let group: PathBuf = point.components().chain(inside.components()).collect();
        Some(group.ancestors().take(depth + 1).map(Path::to_owned).collect())
    }
}

/// Bytes in which blanks and backslashes are written as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let octal = |digit: u8| digit.checked_sub(b'0').filter(|d| *d < 8);
        let escaped = match rest {
            [b'\\', a, b, c, tail @ ..] => octal(*a)
                .zip(octal(*b))
                .zip(octal(*c))
                .map(|((a, b), c)| (a.wrapping_mul(64).wrapping_add(b * 8 + c), tail)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*first, tail));
        plain.push(byte);
        rest = after;
    }
    plain
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

#[cfg(unix)]
fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::new(str::from_utf8(bytes).unwrap_or("")))
}
