//! Who holds what: counts, epochs, holders, turns, byte permits and tickets in the order they came.
//!
//! Numbers only. No object of anybody's is kept here and nothing is called back, so that the table
//! may be asked from anywhere, a finalizer included: its lock is held for some nanoseconds, over no
//! more than its own arithmetic. Whoever waits does so elsewhere and asks again.
//!
//! A *slot* is something that can be held by many and changed by one. While it is open, claims may
//! be taken; who wants to change it takes the *turn*, of which there is one. A turn that needs the
//! slot idle closes it in the same step, so that a slot that is not open is held by nobody.

mod permits;
mod slots;

use crate::proc::fork::{self, Forked, lock};
use crate::sync::{Mutex, MutexGuard};
pub use permits::{Part, Refused, Usage};
pub use slots::{Holder, Let, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a table names: slots, claims, turns, accounts, permits and tickets. Never 0.
pub type Id = u64;

/// Numbers are of the process, and go on in a forked child: none is ever of two things.
static NEXT: AtomicU64 = AtomicU64::new(1);

fn fresh() -> Id {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A table of claims.
pub struct Claims {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    slots: slots::Slots,
    permits: permits::Permits,
}

impl Claims {
    /// An empty table, which a forked child finds empty of holders.
    pub fn new() -> Arc<Self> {
        let claims = Arc::new(Self { table: Mutex::default() });
        fork::register(&claims);
        claims
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// A new slot, closed.
    pub fn slot(&self) -> Id {
        self.table().slots.add()
    }

    /// Forgets a slot that nobody holds or changes. Whether it did.
    pub fn forget(&self, slot: Id) -> bool {
        self.table().slots.forget(slot)
    }

    /// A claim on an open slot; `None` while it is closed, or drains and `drained` is false.
    pub fn hold(&self, slot: Id, owner: u64, drained: bool) -> Option<Id> {
        self.table().slots.hold(slot, owner, drained)
    }

    /// Ends a claim. `None` when there is none of that number, or no more.
    pub fn release(&self, slot: Id, claim: Id) -> Option<Let> {
        self.table().slots.release(slot, claim)
    }

    /// Takes the turn to change a slot; with `idle` only when nobody holds it, and then it is
    /// closed. `None` when another has the turn or somebody holds it.
    pub fn begin(&self, slot: Id, idle: bool) -> Option<Id> {
        self.table().slots.begin(slot, idle)
    }

    /// Ends a turn: the slot is open from now on, or not. With `owner` the one whose turn it was
    /// has a claim on the open slot before anybody else can close it.
    pub fn end(&self, slot: Id, turn: Id, open: bool, owner: Option<u64>) -> Option<Id> {
        self.table().slots.end(slot, turn, open, owner)
    }

    /// Refuses new claims until the next turn ends, or until `on` is false. How many there are.
    pub fn drain(&self, slot: Id, on: bool) -> usize {
        self.table().slots.drain(slot, on)
    }

    /// A slot as it is.
    pub fn look(&self, slot: Id) -> Option<Slot> {
        self.table().slots.look(slot)
    }

    /// A new account of so many bytes.
    pub fn account(&self, limit: usize) -> Id {
        self.table().permits.account(limit)
    }

    /// What an account has given out.
    pub fn usage(&self, account: Id) -> Option<Usage> {
        self.table().permits.usage(account)
    }

    /// Changes the limit of an account; what is given out stays.
    pub fn limit(&self, account: Id, limit: usize) -> bool {
        self.table().permits.set_limit(account, limit)
    }

    /// A place in the line for bytes of these accounts.
    pub fn queue(&self, accounts: &[Id]) -> Id {
        self.table().permits.queue(accounts)
    }

    /// Leaves the line.
    pub fn leave(&self, ticket: Id) {
        self.table().permits.leave(ticket);
    }

    /// Promises bytes, all of them or none. With `rest`, what is left of each account where that
    /// is more. Who came first is served first on each account, but for `jump`.
    ///
    /// # Errors
    /// [`Refused`] says what is missing, and whether somebody is before it in the line.
    pub fn reserve(
        &self,
        parts: &[Part],
        rest: bool,
        ticket: Option<Id>,
        jump: bool,
    ) -> Result<Id, Refused> {
        self.table().permits.reserve(parts, rest, ticket, jump)
    }

    /// Makes a permit stand for exactly these bytes, which exist; `extra`, what was promised beside
    /// it for the change, goes into it.
    ///
    /// # Errors
    /// [`Refused`], and the permits are as they were, when they do not fit into their accounts.
    pub fn settle(&self, permit: Id, parts: &[Part], extra: Option<Id>) -> Result<(), Refused> {
        self.table().permits.settle(permit, parts, extra)
    }

    /// Notes that the bytes of a permit are on their way out. Whether there is such a permit.
    pub fn leaving(&self, permit: Id) -> bool {
        self.table().permits.leaving(permit)
    }

    /// Gives the bytes of a permit back. Whether there was such a permit.
    pub fn free(&self, permit: Id) -> bool {
        self.table().permits.free(permit)
    }
}

impl Forked for Claims {
    fn hold(self: Arc<Self>) -> Box<dyn std::any::Any> {
        fork::hold(self, |claims| &claims.table)
    }

    /// Whoever held, changed, promised or waited is not here.
    fn forked(&self) {
        let mut table = self.table();
        table.slots.abandon();
        table.permits.abandon();
    }

    fn in_child(&self) {}
}
