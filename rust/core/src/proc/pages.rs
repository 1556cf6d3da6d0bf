//! Resident pages of mapped files, dropped while nobody has written to them.
//!
//! The kernel reads them again from the file when they are used next. A private map may hold pages
//! that were written to and are nowhere else: a map with any of these is left alone.

use std::io;
use std::path::Path;

/// What came of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Bytes that were resident in what was dropped.
    pub bytes: u64,
    /// Maps that were dropped.
    pub maps: u64,
    /// Maps that were left alone, since pages of theirs were written to.
    pub dirty: u64,
}

/// One map of a file, as `/proc/self/smaps` tells.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Map {
    start: usize,
    end: usize,
    resident: u64,
    written: u64,
    /// Whether the kernel told of pages that were written to.
    told: bool,
}

/// The maps of the file with this device and inode. Names are not compared: a file may have been
/// replaced, and have another name in a container.
fn maps_of(smaps: &str, device: &str, inode: u64) -> Vec<Map> {
    let mut found: Vec<Map> = Vec::new();
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(kind) = first.strip_suffix(':') {
            let (true, Some(map)) = (inside, found.last_mut()) else { continue };
            let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) << 10;
            match kind {
                "Rss" => map.resident = bytes,
                "Private_Dirty" | "Shared_Dirty" | "Anonymous" | "Swap" => {
                    map.written += bytes;
                    map.told |= kind == "Anonymous";
                }
                _ => {}
            }
            continue;
        }
        let (_, _, on, number) = (words.next(), words.next(), words.next(), words.next());
        let ours = on == Some(device) && number.and_then(|n| n.parse().ok()) == Some(inode);
        inside = false;
        if let (true, Some((start, end))) = (ours, range(first)) {
            found.push(Map { start, end, ..Map::default() });
            inside = true;
        }
    }
    found
}

/// Drops the resident pages of every map of a file that nobody has written to. Whoever calls this
/// sees to it that nobody maps or unmaps the file meanwhile, nor begins to write to its maps.
#[cfg(target_os = "linux")]
pub fn drop_clean(path: &Path) -> io::Result<Dropped> {
    let mut dropped = Dropped::default();
    let Some((device, inode)) = named_in_maps(path)? else { return Ok(dropped) };
    let smaps = std::fs::read("/proc/self/smaps")?;
    for map in maps_of(&String::from_utf8_lossy(&smaps), &device, inode) {
        if map.written > 0 || !map.told {
            dropped.dirty += 1;
        } else if map.resident > 0 {
            // SAFETY: pages of a file that nobody has written to hold what the file holds, and are
            // read again when they are used next. That the range is still such a map is the
            // caller's part: nobody maps or unmaps the file, and nobody writes to its maps, while
            // this runs. The kernel checks that the range is mapped at all.
            let failed = unsafe {
                libc::madvise(
                    std::ptr::with_exposed_provenance_mut(map.start),
                    map.end - map.start,
                    libc::MADV_DONTNEED,
                )
            };
            if failed == 0 {
                dropped.bytes += map.resident;
                dropped.maps += 1;
            }
        } else {
            dropped.maps += 1;
        }
    }
    Ok(dropped)
}

/// The device and inode that maps of a file have; `None` for an empty one, which has no maps. They
/// are not always those of `stat`: in a container's overlay a map is of the file below. So one is
/// made, and looked at.
#[cfg(target_os = "linux")]
fn named_in_maps(path: &Path) -> io::Result<Option<(String, u64)>> {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    let length = crate::arena::page();
    // SAFETY: a new map of an open file at an address that the kernel chooses; nobody reads it.
    let map = unsafe {
        let (reads, fd) = (libc::PROT_READ, file.as_raw_fd());
        libc::mmap(std::ptr::null_mut(), length, reads, libc::MAP_PRIVATE, fd, 0)
    };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let maps = std::fs::read("/proc/self/maps");
    // SAFETY: the map of above, which nobody else knows.
    unsafe { libc::munmap(map, length) };
    let named = named_at(&String::from_utf8_lossy(&maps?), map.addr());
    named.map(Some).ok_or_else(|| io::Error::other("the kernel does not tell what is mapped"))
}

/// The device and inode of the map that an address lies in.
fn named_at(maps: &str, address: usize) -> Option<(String, u64)> {
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = range(words.next()?)?;
        let (device, inode) = (words.nth(2)?, words.next()?.parse().ok()?);
        (start..end).contains(&address).then(|| (device.to_owned(), inode))
    })
}

fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    Some((parse(start)?, parse(end)?))
}

/// Not supported here.
#[cfg(not(target_os = "linux"))]
pub fn drop_clean(_path: &Path) -> io::Result<Dropped> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-7f10 rw-p 00000000 fd:01 42 /a/weights.bin
Rss:                  64 kB
Shared_Dirty:          0 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
7f10-7f20 rw-p 00010000 fd:01 42 /a/weights.bin
Rss:                   8 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
7f20-7f30 rw-p 00000000 00:00 0
Rss:                  12 kB
Private_Dirty:        12 kB
7f30-7f40 r--p 00000000 fd:02 42 /b/other.bin
Rss:                   4 kB
7f40-7f50 r--p 00000000 fd:01 42 /a/weights.bin
Rss:                   4 kB
";

    #[test]
    fn only_maps_of_the_file_are_found_with_what_was_written_to_them() {
        let found = maps_of(SMAPS, "fd:01", 42);
        let clean = Map { start: 0x7f00, end: 0x7f10, resident: 64 << 10, written: 0, told: true };
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], clean);
        assert_eq!(found[1].written, 8 << 10);
        // Where the kernel does not tell, nobody knows.
        assert!(!found[2].told);
        assert!(maps_of(SMAPS, "fd:01", 43).is_empty());
        assert!(maps_of("no such\nRss: x\n-\n7-8", "fd:01", 42).is_empty());
    }

    #[test]
    fn a_file_is_called_what_its_map_is_called() {
        assert_eq!(named_at(SMAPS, 0x7f10), Some(("fd:01".into(), 42)));
        assert_eq!(named_at(SMAPS, 0x7f3f), Some(("fd:02".into(), 42)));
        assert_eq!(named_at(SMAPS, 0x7f50), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_written_page_keeps_its_map_and_clean_ones_are_dropped() {
        use std::io::Write;
        let path = std::env::temp_dir().join(format!("memweir-pages-{}", std::process::id()));
        let length = 64 << 10;
        let mut written = std::fs::File::create(&path).unwrap();
        written.write_all(&vec![7; length]).unwrap();
        written.sync_all().unwrap(); // pages that are not on disk yet count as written to
        let file = std::fs::File::open(&path).unwrap();
        use std::os::fd::AsRawFd;
        // SAFETY: a new private map of an open file; it is read and written within its length.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        // SAFETY: as above; nobody else knows the map.
        let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), length) };
        assert!(bytes.iter().all(|&byte| byte == 7));
        let first = drop_clean(&path).unwrap();
        assert_eq!((first.bytes, first.maps, first.dirty), (length as u64, 1, 0));
        assert!(bytes.iter().all(|&byte| byte == 7));
        bytes[5000] = 8;
        let second = drop_clean(&path).unwrap();
        assert_eq!((second.bytes, second.maps, second.dirty), (0, 0, 1));
        assert_eq!(bytes[5000], 8);
        // SAFETY: the map of above, which nothing refers to any more.
        unsafe { libc::munmap(map, length) };
        std::fs::remove_file(&path).unwrap();
    }
}
