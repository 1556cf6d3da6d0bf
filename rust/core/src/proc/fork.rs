//! Locks that survive `fork`.
//!
//! A forked child has one thread; a lock that another thread held at that moment stays locked in
//! the child for ever, and what it guarded may be half changed. So every such lock is taken before
//! the fork and released after it on both sides, by handlers that run inside `fork` itself: Python's
//! own hooks would leave room for any Python code in between, finalizers that want such a lock
//! included. The locks are the standard library's: a waiter is known to the kernel alone, while a
//! user-space queue would name threads that the child lacks.

use crate::sync::{Mutex, MutexGuard};
use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Once, PoisonError, Weak};

/// State that must be whole in a forked child.
pub trait Forked: Send + Sync {
    /// Takes the lock; it is held until the returned value is dropped.
    fn hold(self: Arc<Self>) -> Box<dyn Any>;
    /// Runs in the child inside `fork`, with no lock held: notes that there was one.
    fn forked(&self);
    /// Runs in the child once code may run again: gives back what belonged to threads that are
    /// gone. A child that only executes another program never comes here.
    fn in_child(&self);
}

type Registry = Vec<Weak<dyn Forked>>;
// The standard library's own: it lives as long as the process.
static REGISTRY: std::sync::Mutex<Registry> = std::sync::Mutex::new(Vec::new());

#[derive(Default)]
struct Holding {
    states: Vec<(Box<dyn Any>, Arc<dyn Forked>)>,
    registry: Option<std::sync::MutexGuard<'static, Registry>>,
}

thread_local! {
    // The thread that forks is the one that runs all three handlers, in the child too.
    static HOLDING: RefCell<Holding> = RefCell::default();
}

/// Makes a state known to the handlers for as long as it lives.
pub fn register(state: &Arc<impl Forked + 'static>) {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the handlers are functions of this library, which is never unloaded. They take
        // and release locks that no thread holds while it waits for another, and allocate, which
        // the C library allows in them: its own locks are taken after `before` and released first.
        #[cfg(unix)]
        unsafe {
            libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child));
        }
    });
    let state: Arc<dyn Forked> = state.clone();
    let mut registry = registry();
    registry.retain(|s| s.strong_count() > 0);
    registry.push(Arc::downgrade(&state));
}

/// Takes every lock, in the order of registration. Nothing else ever holds two of them.
#[cfg(unix)]
extern "C" fn before() {
    let registry = registry();
    let alive: Vec<Arc<dyn Forked>> = registry.iter().filter_map(Weak::upgrade).collect();
    let states = alive.into_iter().map(|s| (s.clone().hold(), s)).collect();
    HOLDING.with_borrow_mut(|h| *h = Holding { states, registry: Some(registry) });
}

#[cfg(unix)]
extern "C" fn after_in_parent() {
    release(|_| ());
}

#[cfg(unix)]
extern "C" fn after_in_child() {
    super::process::forked();
    release(|state| state.forked());
}

#[cfg(unix)]
fn release(then: impl Fn(&dyn Forked)) {
    let Holding { states, registry } = HOLDING.take();
    drop(registry);
    for (guard, state) in states {
        drop(guard);
        then(&*state);
    }
}

/// To be called in a forked child before anything else is done with the states.
pub fn settle_in_child() {
    let alive: Vec<Arc<dyn Forked>> = registry().iter().filter_map(Weak::upgrade).collect();
    alive.iter().for_each(|state| state.in_child());
}

fn registry() -> std::sync::MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks; a panic elsewhere does not spread, since owners of memory keep their states usable
/// between any two steps.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guard together with the owner of its lock.
struct Held<O: 'static, T: 'static> {
    // Dropped in this order: the guard before what it points into.
    _guard: MutexGuard<'static, T>,
    _owner: Arc<O>,
}

/// Locks the mutex inside `owner` for as long as the returned value lives.
pub fn hold<O: 'static, T: 'static>(owner: Arc<O>, mutex: fn(&O) -> &Mutex<T>) -> Box<dyn Any> {
    let guard = lock(mutex(&owner));
    // SAFETY: the guard borrows from `*owner`, which does not move and lives at least as long:
    // `Held` drops the guard first and gives neither out.
    let guard = unsafe { std::mem::transmute::<MutexGuard<'_, T>, MutexGuard<'static, T>>(guard) };
    Box::new(Held { _guard: guard, _owner: owner })
}
