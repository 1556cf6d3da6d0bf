//! Byte permits over several accounts, and the line for them.

use super::{Id, fresh};
use crate::budget::Budget;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// No account has more, so that sums of a few cannot overflow.
const MOST: usize = isize::MAX as usize;

/// Bytes of one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The account.
    pub account: Id,
    /// Bytes.
    pub bytes: usize,
}

/// Why bytes were not given out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// By how much each account falls short; empty when only the line is in the way.
    pub short: Vec<Part>,
    /// Whether somebody who came before waits for one of the accounts.
    pub behind: bool,
}

/// An account at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// What may exist or be promised.
    pub limit: usize,
    /// Promised to those who are about to take it.
    pub promised: usize,
    /// What exists, what is leaving included.
    pub held: usize,
    /// Of that, what is on its way out.
    pub leaving: usize,
    /// The most that was ever held or promised at once.
    pub peak: usize,
}

#[derive(Default)]
struct Account {
    budget: Budget,
    leaving: usize,
}

#[derive(Default)]
struct Permit {
    parts: Vec<Part>,
    exists: bool,
    leaving: bool,
}

struct Ticket {
    id: Id,
    accounts: Vec<Id>,
}

#[derive(Default)]
pub(super) struct Permits {
    accounts: HashMap<Id, Account, foldhash::fast::FixedState>,
    permits: HashMap<Id, Permit, foldhash::fast::FixedState>,
    line: VecDeque<Ticket>,
}

impl Permits {
    pub fn account(&mut self, limit: usize) -> Id {
        let id = fresh();
        let account = Account { budget: Budget::new(limit.min(MOST)), leaving: 0 };
        self.accounts.insert(id, account);
        id
    }

    pub fn set_limit(&mut self, account: Id, limit: usize) -> bool {
        let found = self.accounts.get_mut(&account);
        found.map(|a| a.budget.set_limit(limit.min(MOST))).is_some()
    }

    pub fn usage(&self, account: Id) -> Option<Usage> {
        let Account { budget, leaving } = self.accounts.get(&account)?;
        Some(Usage {
            limit: budget.limit(),
            promised: budget.owned() - budget.held(),
            held: budget.held(),
            leaving: *leaving,
            peak: budget.peak(),
        })
    }

    pub fn queue(&mut self, accounts: &[Id]) -> Id {
        let id = fresh();
        self.line.push_back(Ticket { id, accounts: accounts.to_vec() });
        id
    }

    pub fn leave(&mut self, ticket: Id) {
        self.line.retain(|t| t.id != ticket);
    }

    pub fn reserve(
        &mut self,
        parts: &[Part],
        rest: bool,
        ticket: Option<Id>,
        jump: bool,
    ) -> Result<Id, Refused> {
        let mut parts = joined(parts);
        let behind = !jump && self.is_behind(&parts, ticket);
        let short = self.short(&parts);
        if behind || !short.is_empty() {
            return Err(Refused { short, behind });
        }
        if rest {
            for part in &mut parts {
                let Some(account) = self.accounts.get(&part.account) else { continue };
                if account.budget.limit() < MOST {
                    part.bytes = account.budget.limit().saturating_sub(account.budget.owned());
                }
            }
        }
        let id = fresh();
        self.take(&parts, false);
        self.permits.insert(id, Permit { parts, exists: false, leaving: false });
        Ok(id)
    }

    pub fn settle(&mut self, permit: Id, parts: &[Part], extra: Option<Id>) -> Result<(), Refused> {
        let Some(old) = self.permits.remove(&permit) else { return Err(Refused::default()) };
        let more = extra.and_then(|id| self.permits.remove(&id).map(|permit| (id, permit)));
        let parts = joined(parts);
        let before = [Some((permit, old)), more];
        before.iter().flatten().for_each(|(_, permit)| self.give(permit));
        let short = self.short(&parts);
        if short.is_empty() {
            self.take(&parts, true);
            self.permits.insert(permit, Permit { parts, exists: true, leaving: false });
            return Ok(());
        }
        for (id, permit) in before.into_iter().flatten() {
            self.take(&permit.parts, permit.exists);
            if permit.leaving {
                self.lead_out(&permit.parts);
            }
            self.permits.insert(id, permit);
        }
        Err(Refused { short, behind: false })
    }

    pub fn leaving(&mut self, permit: Id) -> bool {
        let Some(found) = self.permits.get_mut(&permit) else { return false };
        if !found.leaving && found.exists {
            found.leaving = true;
            let parts = found.parts.clone();
            self.lead_out(&parts);
        }
        true
    }

    pub fn free(&mut self, permit: Id) -> bool {
        let Some(permit) = self.permits.remove(&permit) else { return false };
        self.give(&permit);
        true
    }

    pub fn abandon(&mut self) {
        for (_, permit) in self.permits.drain().collect::<Vec<_>>() {
            self.give(&permit);
        }
        self.line.clear();
    }

    /// Whether one of these accounts is waited for by somebody who came before.
    fn is_behind(&self, parts: &[Part], ticket: Option<Id>) -> bool {
        let wanted = |a: &Id| parts.iter().any(|p| p.account == *a);
        let mut before = self.line.iter().take_while(|t| Some(t.id) != ticket);
        before.any(|t| t.accounts.iter().any(wanted))
    }

    fn short(&self, parts: &[Part]) -> Vec<Part> {
        let lacking = |part: &Part| {
            // An account that is not there has no room.
            let account = self.accounts.get(&part.account);
            let bytes = account.map_or(part.bytes.max(1), |a| a.budget.shortfall(part.bytes));
            Part { account: part.account, bytes }
        };
        parts.iter().map(lacking).filter(|part| part.bytes > 0).collect()
    }

    /// Adds what fits, or was there a moment ago.
    fn take(&mut self, parts: &[Part], exists: bool) {
        for part in parts {
            let Some(account) = self.accounts.get_mut(&part.account) else { continue };
            // The limit may have been lowered below what is held already.
            let limit = account.budget.limit();
            account.budget.set_limit(MOST);
            let taken = account.budget.claim(part.bytes);
            account.budget.set_limit(limit);
            if taken && exists {
                account.budget.settle(part.bytes);
            }
        }
    }

    fn give(&mut self, permit: &Permit) {
        for part in &permit.parts {
            let Some(account) = self.accounts.get_mut(&part.account) else { continue };
            if permit.exists {
                account.budget.release(part.bytes);
            } else {
                account.budget.unclaim(part.bytes);
            }
            if permit.leaving {
                account.leaving = account.leaving.saturating_sub(part.bytes);
            }
        }
    }

    fn lead_out(&mut self, parts: &[Part]) {
        for part in parts {
            if let Some(account) = self.accounts.get_mut(&part.account) {
                account.leaving += part.bytes;
            }
        }
    }
}

/// Each account once, and no sizes that sums could not take.
fn joined(parts: &[Part]) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::with_capacity(parts.len());
    for part in parts {
        let bytes = part.bytes.min(MOST);
        match all.iter_mut().find(|p| p.account == part.account) {
            Some(found) => found.bytes = found.bytes.saturating_add(bytes).min(MOST),
            None => all.push(Part { account: part.account, bytes }),
        }
    }
    all
}
