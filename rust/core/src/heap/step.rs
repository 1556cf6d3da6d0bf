//! What one step of giving back did.

use super::advice::Advice;
use super::sweep::Sweep;
use crate::proc::{limits, text};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

/// Why a step failed that panicked.
pub const BROKEN: &str = "it failed inside memweir; please report this";

/// One step, whether it could be taken or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The call that was made, or would have been.
    pub name: &'static str,
    /// Whether it was made, and not refused.
    pub ok: bool,
    /// Why not, or what it left undone.
    pub why: Option<String>,
    /// The allocator's own answer. It is no number of bytes, but on macOS.
    pub returned: Option<i64>,
    /// How long it took.
    pub seconds: f64,
    /// Anonymous memory of the process before, by the kernel's count.
    pub anon_before: Option<u64>,
    /// And after.
    pub anon_after: Option<u64>,
    /// What a sweep has to say beside.
    pub sweep: Option<Sweep>,
    /// What became of advice that was given for memory that is free now.
    pub advice: Option<Advice>,
}

/// What a call came to, before it is known what it cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// As in [`Step`].
    pub why: Option<String>,
    /// As in [`Step`].
    pub returned: Option<i64>,
    /// Whether the call was not made, or refused.
    pub failed: bool,
    /// As in [`Step`].
    pub sweep: Option<Sweep>,
    /// As in [`Step`].
    pub advice: Option<Advice>,
}

impl Outcome {
    /// The call was made and gave this answer.
    pub fn done(returned: Option<i64>) -> Self {
        Self { returned, ..Self::default() }
    }

    /// It was not made, or refused.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), failed: true, ..Self::default() }
    }
}

impl Step {
    /// Makes a call and notes what it cost. One that panics has failed, and what was done before it
    /// is still told.
    pub fn take(name: &'static str, call: impl FnOnce() -> Outcome) -> Self {
        let (anon_before, start) = (anon(), Instant::now());
        let outcome =
            catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Outcome::failed(BROKEN));
        Self {
            name,
            ok: !outcome.failed,
            why: outcome.why,
            returned: outcome.returned,
            seconds: start.elapsed().as_secs_f64(),
            anon_before,
            anon_after: anon(),
            sweep: outcome.sweep,
            advice: outcome.advice,
        }
    }

    /// A step that there is no call for. Asks the system nothing.
    pub fn missing(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            name,
            ok: false,
            why: Some(why.into()),
            returned: None,
            seconds: 0.0,
            anon_before: None,
            anon_after: None,
            sweep: None,
            advice: None,
        }
    }
}

/// Resident memory of this process that no file is behind, shared memory aside.
fn anon() -> Option<u64> {
    let text = limits::whole(Path::new("/proc/self/statm"))?;
    let statm = text::statm(&text, crate::arena::page() as u64)?;
    Some(statm.resident.saturating_sub(statm.shared))
}
