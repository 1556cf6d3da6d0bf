//! What mimalloc offers.

use super::detect::{Within, function};
use super::stats::Stats;
use std::ffi::{c_int, c_long};
use std::ptr::null_mut;

/// The number of its option for how long unused pages are kept. The headers of 2.0.9 (under an
/// older name) to 3.3 give it this number; others are not known.
const PURGE_DELAY: c_int = 15;
const SURE: std::ops::RangeInclusive<c_int> = 209..=339;

/// The functions, each where it was found.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Mimalloc {
    pub collect: unsafe extern "C" fn(bool),
    pub version: Option<unsafe extern "C" fn() -> c_int>,
    pub option_set: Option<unsafe extern "C" fn(c_int, c_long)>,
    pub option_get: Option<unsafe extern "C" fn(c_int) -> c_long>,
    pub process_info: Option<ProcessInfo>,
}

type Out = *mut usize;
/// `mi_process_info`: each place may be null.
pub type ProcessInfo = unsafe extern "C" fn(Out, Out, Out, Out, Out, Out, Out, Out);

impl Mimalloc {
    /// Finds what the object has.
    pub fn find(within: &Within<'_>) -> Option<Self> {
        let collect: Option<unsafe extern "C" fn(bool)> = function!(within, c"mi_collect");
        Some(Self {
            collect: collect?,
            version: function!(within, c"mi_version"),
            option_set: function!(within, c"mi_option_set"),
            option_get: function!(within, c"mi_option_get"),
            process_info: function!(within, c"mi_process_info"),
        })
    }

    /// Its number as text: three digits are one for each part.
    pub fn version(&self) -> Option<String> {
        let number = self.number()?;
        let (major, minor, patch) = match number {
            100..1000 => (number / 100, number / 10 % 10, number % 10),
            10_000.. => (number / 10_000, number / 100 % 100, number % 100),
            _ => return Some(number.to_string()),
        };
        Some(format!("{major}.{minor}.{patch}"))
    }

    /// Lets go what this thread's heap and the heaps of threads that ended keep.
    pub fn collect(&self) {
        // SAFETY: takes a flag; collects only what is this thread's or nobody's.
        unsafe { (self.collect)(true) }
    }

    /// What it counts: bytes it has committed, and nothing about their use.
    pub fn stats(&self) -> Stats {
        let Some(ask) = self.process_info else { return Stats::default() };
        let (no, mut committed) = (null_mut, 0_usize);
        // SAFETY: places may be null, and the one that is not lives through the call.
        unsafe { ask(no(), no(), no(), no(), no(), &mut committed, no(), no()) };
        Stats { mapped: Some(committed as u64), ..Stats::default() }
    }

    /// How long unused pages are kept, in milliseconds; -1 for as long as possible.
    pub fn set_purge_delay(&self, milliseconds: c_long) -> Result<(), String> {
        let (Some(set), Some(get)) = (self.option_set, self.option_get) else {
            return Err("it has no mi_option_set".to_owned());
        };
        match self.number() {
            Some(number) if SURE.contains(&number) => {}
            _ => {
                let version = self.version().unwrap_or_else(|| "unknown".to_owned());
                return Err(format!(
                    "the number of this option is not known for version {version}: \
                     set MIMALLOC_PURGE_DELAY before the process starts"
                ));
            }
        }
        // SAFETY: an option that this version has.
        let took = unsafe {
            set(PURGE_DELAY, milliseconds);
            get(PURGE_DELAY)
        };
        if took == milliseconds { Ok(()) } else { Err(format!("it stayed at {took}")) }
    }

    fn number(&self) -> Option<c_int> {
        // SAFETY: takes nothing and returns a number.
        self.version.map(|ask| unsafe { ask() })
    }
}
