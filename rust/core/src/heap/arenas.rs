//! glibc's arenas, out of the text that `malloc_info` writes.
//!
//! What an arena has free at its top is nowhere said, but everything free is, and so is everything
//! free in its lists: the top is the rest. Libraries before 2.30 leave the top out of the former.

/// One arena.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arena {
    /// Bytes taken from the system and not given back.
    pub system: u64,
    /// The most that it ever had.
    pub most: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Of these, bytes in lists of free memory.
    pub listed: u64,
}

impl Arena {
    /// Bytes at the top.
    pub fn top(&self) -> u64 {
        self.free.saturating_sub(self.listed)
    }
}

/// The arenas in the text, the main one first; nothing for what is no such text.
pub fn parse(text: &[u8]) -> Vec<Arena> {
    let mut found = Vec::new();
    let mut inside = None;
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let line = line.trim();
        if line.starts_with("<heap ") {
            inside = Some(Arena::default());
        } else if line == "</heap>" {
            found.extend(inside.take());
        } else if let Some(arena) = &mut inside {
            if line.starts_with("<size ") || line.starts_with("<unsorted ") {
                add(&mut arena.listed, number(line, " total=\""));
            } else if line.starts_with("<total type=\"fast\"")
                || line.starts_with("<total type=\"rest\"")
            {
                add(&mut arena.free, number(line, " size=\""));
            } else if line.starts_with("<system type=\"max\"") {
                add(&mut arena.most, number(line, " size=\""));
            } else if line.starts_with("<system type=\"current\"") {
                add(&mut arena.system, number(line, " size=\""));
            }
        }
    }
    found
}

/// Bytes at the tops of all arenas but the main one; `None` where the library does not tell.
pub fn tops(arenas: &[Arena]) -> Option<u64> {
    // Every arena that was ever used has some bytes there.
    let told = arenas.iter().any(|arena| arena.top() > 0);
    told.then(|| arenas.iter().skip(1).map(Arena::top).fold(0, u64::saturating_add))
}

fn add(sum: &mut u64, more: Option<u64>) {
    *sum = sum.saturating_add(more.unwrap_or(0));
}

fn number(line: &str, before: &str) -> Option<u64> {
    let (_, rest) = line.split_once(before)?;
    rest.split_once('"')?.0.parse().ok()
}
