//! Locks that survive `fork`.
//!
//! A forked child has one thread; a lock that another thread held at that moment stays locked in
//! the child for ever, and what it guarded may be half changed. So every such lock is taken before
//! the fork and released after it on both sides. The locks are the standard library's: a waiter
//! is known to the kernel alone, while a user-space queue would name threads that the child lacks.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// State that must be whole in a forked child.
pub trait Forked: Send + Sync {
    /// Takes the lock; it is held until the returned value is dropped.
    fn hold(self: Arc<Self>) -> Box<dyn Any>;
    /// Runs in the child, with no lock held and no other thread alive.
    fn in_child(&self);
}

type Registry = Vec<Weak<dyn Forked>>;
static REGISTRY: Mutex<Registry> = Mutex::new(Vec::new());

#[derive(Default)]
struct Holding {
    // Dropped in this order.
    states: Vec<(Box<dyn Any>, Arc<dyn Forked>)>,
    registry: Option<MutexGuard<'static, Registry>>,
}

thread_local! {
    // The thread that forks is the one that runs all three hooks, in the child too.
    static HOLDING: RefCell<Holding> = RefCell::default();
}

/// Makes a state known to the hooks below for as long as it lives.
pub fn register(state: &Arc<impl Forked + 'static>) {
    let state: Arc<dyn Forked> = state.clone();
    let mut registry = lock(&REGISTRY);
    registry.retain(|s| s.strong_count() > 0);
    registry.push(Arc::downgrade(&state));
}

/// Takes every lock, in the order of registration. Nothing else ever holds two of them.
pub fn before() {
    let registry = lock(&REGISTRY);
    let alive: Vec<Arc<dyn Forked>> = registry.iter().filter_map(Weak::upgrade).collect();
    let states = alive.into_iter().map(|s| (s.clone().hold(), s)).collect();
    HOLDING.with_borrow_mut(|h| *h = Holding { states, registry: Some(registry) });
}

/// Releases the locks in the parent.
pub fn after_in_parent() {
    drop(HOLDING.take());
}

/// Releases the locks in the child and lets every state forget the threads that are gone.
pub fn after_in_child() {
    let Holding { states, registry } = HOLDING.take();
    drop(registry);
    for (guard, state) in states {
        drop(guard);
        state.in_child();
    }
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
