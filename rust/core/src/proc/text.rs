//! Text of `/proc` and of cgroups, read as the bytes it is. Text of any other form is `None`.

/// Bytes of the pages that `statm` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statm {
    /// All resident pages.
    pub resident: u64,
    /// Those of files and shared memory.
    pub shared: u64,
}

/// What `status` says beyond that, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Resident pages of nobody but processes.
    pub anon: u64,
    /// Resident pages of files.
    pub file: u64,
    /// Resident pages of shared memory.
    pub shmem: u64,
    /// Pages in swap.
    pub swap: Option<u64>,
    /// The most that was ever resident.
    pub peak: Option<u64>,
}

/// What `memory.stat` says of a group and those below it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// File pages that would be dropped first.
    pub inactive_file: u64,
    /// The least of all limits above, those of groups that are out of sight among them (v1).
    pub hierarchical: Option<u64>,
}

/// Shares of the last 10, 60 and 300 seconds, in percent, and microseconds in all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stall {
    /// Of the last 10 seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last five minutes.
    pub avg300: f64,
    /// Since the start.
    pub total: u64,
}

/// Time in which memory was waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// By some task.
    pub some: Stall,
    /// By all of them.
    pub full: Stall,
}

/// What `smaps_rollup` says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollup {
    /// Resident pages, shared ones in part.
    pub pss: u64,
    /// Resident pages of this process alone.
    pub uss: u64,
    /// Anonymous memory in huge pages.
    pub huge: u64,
}

/// A decimal number and nothing else.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// A file that holds one number.
pub fn lone(text: &[u8]) -> Option<u64> {
    number(text.trim_ascii())
}

/// No memory is that large: v1 writes the largest multiple of a page for "no limit".
const UNLIMITED: u64 = 1 << 62;

/// The number of a limit; `Some(None)` says that there is none.
pub fn limit(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        text => Some(number(text).filter(|bytes| *bytes < UNLIMITED)).filter(|_| is_number(text)),
    }
}

/// Decimal digits, of any length.
fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// `/proc/PID/statm`. A process with no page at all is one that has ended.
pub fn statm(text: &[u8], page: u64) -> Option<Statm> {
    let mut fields = words(text);
    let mut pages = || number(fields.next()?)?.checked_mul(page);
    let (_, resident, shared) = (pages()?, pages()?, pages()?);
    (resident > 0).then_some(Statm { resident, shared })
}

/// `/proc/PID/status`.
pub fn status(text: &[u8]) -> Option<Status> {
    let names = ["VmHWM:", "RssAnon:", "RssFile:", "RssShmem:", "VmSwap:"];
    let [peak, anon, file, shmem, swap] = kibibytes(text, names);
    Some(Status { anon: anon?, file: file?, shmem: shmem?, swap, peak })
}

/// A field of `/proc/meminfo`, with its colon.
pub fn meminfo(text: &[u8], name: &str) -> Option<u64> {
    let [value] = kibibytes(text, [name]);
    value
}

/// `memory.stat` of either version.
pub fn stat(text: &[u8]) -> Option<Stat> {
    let names = ["hierarchical_memory_limit ", "total_inactive_file ", "inactive_file "];
    let [hierarchical, below, alone] = fields(text, names, |rest| number(words(rest).next()?));
    let hierarchical = hierarchical.filter(|bytes| *bytes < UNLIMITED);
    // v1 counts the group alone, and with `total_` those below it, which are charged to it, too.
    Some(Stat { inactive_file: below.or(alone)?, hierarchical })
}

/// `memory.pressure`, and `/proc/pressure/memory`.
pub fn pressure(text: &[u8]) -> Option<Pressure> {
    let line = |kind: &str| lines(text).find_map(|line| stall(line, kind));
    Some(Pressure { some: line("some")?, full: line("full")? })
}

fn stall(line: &[u8], kind: &str) -> Option<Stall> {
    let mut fields = words(line);
    if fields.next()? != kind.as_bytes() {
        return None;
    }
    let mut value = |name: &str| fields.next()?.strip_prefix(name.as_bytes());
    Some(Stall {
        avg10: percent(value("avg10=")?)?,
        avg60: percent(value("avg60=")?)?,
        avg300: percent(value("avg300=")?)?,
        total: number(value("total=")?)?,
    })
}

/// Digits, a point and digits.
fn percent(text: &[u8]) -> Option<f64> {
    let point = text.iter().position(|byte| *byte == b'.')?;
    let (whole, rest) = (&text[..point], &text[point + 1..]);
    if !is_number(whole) || !is_number(rest) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// `/proc/PID/smaps_rollup`.
pub fn rollup(text: &[u8]) -> Option<Rollup> {
    let names = ["Pss:", "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:", "AnonHugePages:"];
    let [pss, clean, dirty, hugetlb, huge] = kibibytes(text, names);
    let uss = clean?.checked_add(dirty?)?.checked_add(hugetlb.unwrap_or(0))?;
    Some(Rollup { pss: pss?, uss, huge: huge? })
}

/// The bytes of lines such as `VmSwap:       12 kB`, by what they begin with.
fn kibibytes<const N: usize>(text: &[u8], names: [&str; N]) -> [Option<u64>; N] {
    fields(text, names, |rest| number(rest.strip_suffix(b"kB")?.trim_ascii())?.checked_mul(1024))
}

/// What the first lines that begin with these names have after them, in one walk.
fn fields<const N: usize>(
    text: &[u8],
    names: [&str; N],
    value: impl Fn(&[u8]) -> Option<u64>,
) -> [Option<u64>; N] {
    let mut found = [None; N];
    for line in lines(text) {
        let of = names.iter().position(|name| line.starts_with(name.as_bytes()));
        if let Some(of) = of.filter(|of| found[*of].is_none()) {
            found[of] = Some(value(&line[names[of].len()..]));
        }
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    found.map(Option::flatten)
}

/// Lines that have ended: the rest of a file that was too long for its buffer is none.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', text).map(move |end| {
        let line = &text[start..end];
        start = end + 1;
        line
    })
}

pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}
