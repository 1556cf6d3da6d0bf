//! Having the allocator give back what it can, each in its own way.

use super::detect::{Allocator, Calls, errno};
use super::step::{Outcome, Step};

/// Asks the allocator to give back what is free.
pub fn release(allocator: &Allocator) -> Vec<Step> {
    match &allocator.calls {
        Calls::Glibc(glibc) => vec![Step::take("malloc_trim", || match glibc.trim() {
            Some(some) => Outcome::done(Some(i64::from(some))),
            None => Outcome::failed("the symbol malloc_trim is missing"),
        })],
        Calls::Jemalloc(jemalloc) => vec![
            Step::take("thread.tcache.flush", || mallctl(jemalloc.flush())),
            Step::take("arena.purge", || mallctl(jemalloc.purge())),
        ],
        Calls::Mimalloc(mimalloc) => vec![Step::take("mi_collect", || {
            mimalloc.collect();
            Outcome::done(None)
        })],
        Calls::Tcmalloc(tcmalloc) => vec![Step::take("ReleaseFreeMemory", || {
            tcmalloc.release();
            Outcome::done(None)
        })],
        Calls::Macos(macos) => {
            vec![Step::take("malloc_zone_pressure_relief", || match macos.relief {
                Some(relieve) => {
                    // SAFETY: no zone in particular and no goal; takes the zones' own locks.
                    let bytes = unsafe { relieve(std::ptr::null_mut(), 0) };
                    Outcome::done(i64::try_from(bytes).ok())
                }
                None => Outcome::failed("the symbol malloc_zone_pressure_relief is missing"),
            })]
        }
        Calls::Musl => vec![Step::missing(
            "malloc_trim",
            "musl has no malloc_trim: it gives free groups of blocks back by itself",
        )],
        Calls::Windows => {
            vec![Step::missing("release", "not supported on Windows: its heap is left as it is")]
        }
        Calls::Unknown(why) => vec![Step::missing("release", why.clone())],
    }
}

fn mallctl(failed: i32) -> Outcome {
    match failed {
        0 => Outcome::done(Some(0)),
        code => Outcome { returned: Some(i64::from(code)), ..Outcome::failed(errno(code)) },
    }
}
