//! What the cache's threads meet at. With `--cfg shuttle` they are a scheduler's, which chooses who
//! goes on after each step.

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};
