//! Slots: held by many, changed by one.

use super::{Id, fresh};
use hashbrown::HashMap;

/// One claim on a slot, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The claim.
    pub claim: Id,
    /// What the holder is called by those who keep the table.
    pub owner: u64,
}

/// A slot at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whether claims may be taken.
    pub open: bool,
    /// Whether only those who hold it already may take another.
    pub draining: bool,
    /// How often it was opened.
    pub epoch: u64,
    /// The turn of the one who changes it.
    pub turn: Option<Id>,
    /// Claims, oldest first.
    pub holders: Vec<Holder>,
}

/// What is left of a slot after one of its claims ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Let {
    /// Claims that remain.
    pub left: usize,
    /// Whether the slot drains: with none left, somebody waits for its turn.
    pub draining: bool,
}

#[derive(Default)]
pub(super) struct Slots {
    slots: HashMap<Id, Slot, foldhash::fast::FixedState>,
}

impl Slots {
    pub fn add(&mut self) -> Id {
        let id = fresh();
        self.slots.insert(id, Slot::default());
        id
    }

    pub fn forget(&mut self, slot: Id) -> bool {
        let unused =
            self.slots.get(&slot).is_some_and(|s| s.holders.is_empty() && s.turn.is_none());
        unused && self.slots.remove(&slot).is_some()
    }

    pub fn hold(&mut self, slot: Id, owner: u64, drained: bool) -> Option<Id> {
        let slot = self.slots.get_mut(&slot)?;
        let free = slot.open && (drained || !slot.draining);
        free.then(|| slot.take(owner))
    }

    pub fn release(&mut self, slot: Id, claim: Id) -> Option<Let> {
        let slot = self.slots.get_mut(&slot)?;
        let at = slot.holders.iter().position(|h| h.claim == claim)?;
        slot.holders.remove(at);
        Some(Let { left: slot.holders.len(), draining: slot.draining })
    }

    pub fn begin(&mut self, slot: Id, idle: bool) -> Option<Id> {
        let slot = self.slots.get_mut(&slot)?;
        if slot.turn.is_some() || (idle && !slot.holders.is_empty()) {
            return None;
        }
        if idle {
            slot.open = false;
        }
        slot.turn = Some(fresh());
        slot.turn
    }

    pub fn end(&mut self, slot: Id, turn: Id, open: bool, owner: Option<u64>) -> Option<Id> {
        let slot = self.slots.get_mut(&slot)?;
        if slot.turn != Some(turn) {
            return None;
        }
        slot.turn = None;
        // Who holds it keeps it open: a turn that did not need the slot idle changes nothing of that.
        let opened = open && !slot.open;
        slot.open = open || !slot.holders.is_empty();
        if opened {
            slot.epoch += 1;
        }
        if !slot.open || opened {
            slot.draining = false;
        }
        owner.filter(|_| slot.open).map(|owner| slot.take(owner))
    }

    pub fn drain(&mut self, slot: Id, on: bool) -> usize {
        let Some(slot) = self.slots.get_mut(&slot) else { return 0 };
        // What is closed is held by nobody: there is nothing to wait for.
        slot.draining = on && slot.open;
        slot.holders.len()
    }

    pub fn look(&self, slot: Id) -> Option<Slot> {
        self.slots.get(&slot).cloned()
    }

    pub fn abandon(&mut self) {
        for slot in self.slots.values_mut() {
            *slot = Slot { epoch: slot.epoch, ..Slot::default() };
        }
    }
}

impl Slot {
    fn take(&mut self, owner: u64) -> Id {
        let claim = fresh();
        self.holders.push(Holder { claim, owner });
        claim
    }
}
