//! What is mapped, out of the text of `/proc/PID/maps`.

use super::text::{lines, words};

/// One mapping: neighbours of the same kind that are two differ in what the text does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Its first byte.
    pub start: usize,
    /// The byte behind its last, which is further up.
    pub end: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a mapping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the program's break leads through: writable, the process's own, of no file.
    Break,
    /// Any other such memory that nobody gave a name.
    Memory,
    /// Addresses that are taken and may not be touched.
    Reserved,
    /// Anything else.
    Other,
}

/// All mappings in the text, in its order. Lines of any other form are left out.
pub fn parse(text: &[u8]) -> Vec<Map> {
    lines(text).filter_map(map).collect()
}

fn map(line: &[u8]) -> Option<Map> {
    let mut words = words(line);
    let mut range = words.next()?.splitn(2, |byte| *byte == b'-');
    let (start, end) = (address(range.next()?)?, address(range.next()?)?);
    let (rights, _offset, _device) = (words.next()?, words.next()?, words.next()?);
    let (inode, name) = (words.next()?, words.next());
    let kind = match (inode, rights, name) {
        (b"0", b"rw-p", Some(b"[heap]")) => Kind::Break,
        (b"0", b"rw-p", None) => Kind::Memory,
        (b"0", b"---p", None) => Kind::Reserved,
        _ => Kind::Other,
    };
    (start < end).then_some(Map { start, end, kind })
}

fn address(digits: &[u8]) -> Option<usize> {
    let hex = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = str::from_utf8(digits).ok().filter(|_| hex)?;
    usize::from_str_radix(digits, 16).ok()
}
