//! The table of claims, for Python: numbers in, numbers out.

use std::sync::Arc;

use memweir_core::claims::{Claims, Part, Refused};
use pyo3::prelude::*;

/// Parts as Python gives them: accounts and bytes.
type Parts = Vec<(u64, usize)>;

/// Who holds what. Nothing of Python is kept in it, and no call of it waits.
#[pyclass(frozen, module = "memweir._core", name = "Claims")]
pub struct PyClaims {
    claims: Arc<Claims>,
}

/// A slot at one moment.
#[pyclass(frozen, get_all, module = "memweir._core", name = "ClaimSlot")]
pub struct PySlot {
    open: bool,
    draining: bool,
    epoch: u64,
    turn: Option<u64>,
    holders: Vec<(u64, u64)>,
}

/// An account at one moment, in bytes.
#[pyclass(frozen, get_all, eq, module = "memweir._core", name = "ClaimUsage")]
#[derive(PartialEq, Eq)]
pub struct PyUsage {
    limit: usize,
    promised: usize,
    held: usize,
    leaving: usize,
    peak: usize,
}

fn parts(given: &Parts) -> Vec<Part> {
    given.iter().map(|&(account, bytes)| Part { account, bytes }).collect()
}

fn refused(refused: Refused) -> (Parts, bool) {
    (refused.short.iter().map(|p| (p.account, p.bytes)).collect(), refused.behind)
}

/// A permit, or what is missing and whether somebody is before it.
type Reserved = (Option<u64>, Parts, bool);

#[pymethods]
impl PyClaims {
    #[new]
    fn new() -> Self {
        Self { claims: Claims::new() }
    }

    fn slot(&self) -> u64 {
        self.claims.slot()
    }

    fn forget(&self, slot: u64) -> bool {
        self.claims.forget(slot)
    }

    #[pyo3(signature = (slot, owner, drained=false))]
    fn hold(&self, slot: u64, owner: u64, drained: bool) -> Option<u64> {
        self.claims.hold(slot, owner, drained)
    }

    fn release(&self, slot: u64, claim: u64) -> Option<(usize, bool)> {
        self.claims.release(slot, claim).map(|end| (end.left, end.draining))
    }

    #[pyo3(signature = (slot, idle=true))]
    fn begin(&self, slot: u64, idle: bool) -> Option<u64> {
        self.claims.begin(slot, idle)
    }

    #[pyo3(signature = (slot, turn, opened, owner=None))]
    fn end(&self, slot: u64, turn: u64, opened: bool, owner: Option<u64>) -> Option<u64> {
        self.claims.end(slot, turn, opened, owner)
    }

    #[pyo3(signature = (slot, on=true))]
    fn drain(&self, slot: u64, on: bool) -> usize {
        self.claims.drain(slot, on)
    }

    fn look(&self, slot: u64) -> Option<PySlot> {
        let slot = self.claims.look(slot)?;
        let holders = slot.holders.iter().map(|h| (h.claim, h.owner)).collect();
        let (open, draining, epoch, turn) = (slot.open, slot.draining, slot.epoch, slot.turn);
        Some(PySlot { open, draining, epoch, turn, holders })
    }

    #[pyo3(signature = (limit=None))]
    fn account(&self, limit: Option<usize>) -> u64 {
        self.claims.account(limit.unwrap_or(usize::MAX))
    }

    #[pyo3(signature = (account, limit=None))]
    fn limit(&self, account: u64, limit: Option<usize>) -> bool {
        self.claims.limit(account, limit.unwrap_or(usize::MAX))
    }

    fn usage(&self, account: u64) -> Option<PyUsage> {
        let u = self.claims.usage(account)?;
        let (limit, promised, held) = (u.limit, u.promised, u.held);
        Some(PyUsage { limit, promised, held, leaving: u.leaving, peak: u.peak })
    }

    #[expect(clippy::needless_pass_by_value, reason = "made from Python's list for this call")]
    fn queue(&self, accounts: Vec<u64>) -> u64 {
        self.claims.queue(&accounts)
    }

    fn leave(&self, ticket: u64) {
        self.claims.leave(ticket);
    }

    #[pyo3(signature = (wanted, *, rest=false, ticket=None, jump=false))]
    #[expect(clippy::needless_pass_by_value, reason = "made from Python's list for this call")]
    fn reserve(&self, wanted: Parts, rest: bool, ticket: Option<u64>, jump: bool) -> Reserved {
        match self.claims.reserve(&parts(&wanted), rest, ticket, jump) {
            Ok(permit) => (Some(permit), Vec::new(), false),
            Err(why) => {
                let (short, behind) = refused(why);
                (None, short, behind)
            }
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "made from Python's list for this call")]
    #[pyo3(signature = (permit, exact, extra=None))]
    fn settle(&self, permit: u64, exact: Parts, extra: Option<u64>) -> Option<Parts> {
        self.claims.settle(permit, &parts(&exact), extra).err().map(|why| refused(why).0)
    }

    fn leaving(&self, permit: u64) -> bool {
        self.claims.leaving(permit)
    }

    fn free(&self, permit: u64) -> bool {
        self.claims.free(permit)
    }
}
