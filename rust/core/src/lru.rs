//! Stable slots with a recency list through them.
//!
//! Slots come in chunks, so that growing neither moves nor doubles anything: the byte account
//! of a cache has to hold at every moment, a reallocation included.

const CHUNK: usize = 64;
const NIL: u32 = u32::MAX;

/// Index of a slot; stays valid until the slot is removed.
pub type Id = u32;

struct Node<T> {
    prev: Id,
    next: Id,
    linked: bool,
    value: Option<T>,
}

/// Values in slots, some of them in a list from most to least recently used.
pub struct Lru<T> {
    chunks: Vec<Box<[Node<T>]>>,
    free: Id,
    head: Id,
    tail: Id,
    len: usize,
}

impl<T> Default for Lru<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: NIL, head: NIL, tail: NIL, len: 0 }
    }
}

impl<T> Lru<T> {
    /// Occupied slots, linked or not.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no slot is occupied.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of one more chunk when the next [`insert`](Self::insert) needs one, else 0.
    pub fn growth(&self) -> usize {
        if self.free == NIL { CHUNK * size_of::<Node<T>>() + size_of::<usize>() * 4 } else { 0 }
    }

    /// Bytes of all chunks.
    pub fn footprint(&self) -> usize {
        self.chunks.len() * (CHUNK * size_of::<Node<T>>() + size_of::<usize>() * 4)
    }

    /// Puts a value into a free slot; it is in the list only after [`link`](Self::link).
    pub fn insert(&mut self, value: T) -> Id {
        self.insert_with(|_| value)
    }

    /// [`insert`](Self::insert) for a value that knows its slot.
    pub fn insert_with(&mut self, value: impl FnOnce(Id) -> T) -> Id {
        if self.free == NIL {
            self.grow();
        }
        let id = self.free;
        let node = self.node_mut(id);
        node.value = Some(value(id));
        self.free = self.node(id).next;
        self.len += 1;
        id
    }

    /// Empties a slot, taking it off the list first.
    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.unlink(id);
        let free = self.free;
        let node = self.node_mut(id);
        let value = node.value.take()?;
        node.next = free;
        self.free = id;
        self.len -= 1;
        Some(value)
    }

    /// The value in a slot, if there is such a slot.
    pub fn get(&self, id: Id) -> Option<&T> {
        let chunk = self.chunks.get(id as usize / CHUNK)?;
        chunk[id as usize % CHUNK].value.as_ref()
    }

    /// The value in a slot, if there is such a slot.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(id as usize / CHUNK)?;
        chunk[id as usize % CHUNK].value.as_mut()
    }

    /// Whether the slot is in the list.
    pub fn is_linked(&self, id: Id) -> bool {
        self.node(id).linked
    }

    /// Makes a slot the most recently used.
    pub fn link(&mut self, id: Id) {
        if self.head == id {
            return;
        }
        self.unlink(id);
        let head = self.head;
        let node = self.node_mut(id);
        node.linked = true;
        node.prev = NIL;
        node.next = head;
        if head == NIL {
            self.tail = id;
        } else {
            self.node_mut(head).prev = id;
        }
        self.head = id;
    }

    /// Takes a slot off the list, if it is there; its value stays.
    pub fn unlink(&mut self, id: Id) {
        if !self.node(id).linked {
            return;
        }
        let node = self.node_mut(id);
        node.linked = false;
        let (prev, next) = (node.prev, node.next);
        match prev {
            NIL => self.head = next,
            _ => self.node_mut(prev).next = next,
        }
        match next {
            NIL => self.tail = prev,
            _ => self.node_mut(next).prev = prev,
        }
    }

    /// The least recently used slot of the list.
    pub fn oldest(&self) -> Option<Id> {
        (self.tail != NIL).then_some(self.tail)
    }

    /// The most recently used slot of the list.
    pub fn newest(&self) -> Option<Id> {
        (self.head != NIL).then_some(self.head)
    }

    /// The slot that was used next after a listed one.
    pub fn newer(&self, id: Id) -> Option<Id> {
        let prev = self.node(id).prev;
        (self.node(id).linked && prev != NIL).then_some(prev)
    }

    /// The slot that was used last before a listed one.
    pub fn older(&self, id: Id) -> Option<Id> {
        let next = self.node(id).next;
        (self.node(id).linked && next != NIL).then_some(next)
    }

    /// Every occupied slot, in no order.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        let all = self.chunks.iter().flat_map(|c| c.iter());
        (0u32..).zip(all).filter(|(_, n)| n.value.is_some()).map(|(id, _)| id)
    }

    fn grow(&mut self) {
        let base = self.chunks.len() * CHUNK;
        let node = |i: usize| {
            let next = if i + 1 == CHUNK { NIL } else { (base + i + 1) as Id };
            Node { prev: NIL, next, linked: false, value: None }
        };
        self.chunks.push((0..CHUNK).map(node).collect());
        self.free = base as Id;
    }

    fn node(&self, id: Id) -> &Node<T> {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node<T> {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_a_vec(ops in prop::collection::vec((0u8..5, 0usize..200), 1..400)) {
            let mut lru = Lru::default();
            let mut slots: Vec<(Id, usize)> = Vec::new();
            let mut order: Vec<Id> = Vec::new(); // most recently used first
            for (value, (op, pick)) in ops.into_iter().enumerate() {
                if op == 0 || slots.is_empty() {
                    let grows = lru.growth();
                    let before = lru.footprint();
                    let id = lru.insert(value);
                    prop_assert_eq!(lru.footprint(), before + grows);
                    prop_assert!(slots.iter().all(|&(other, _)| other != id));
                    slots.push((id, value));
                    continue;
                }
                let at = pick % slots.len();
                let (id, value) = slots[at];
                match op {
                    1 => {
                        prop_assert_eq!(lru.remove(id), Some(value));
                        slots.swap_remove(at);
                        order.retain(|&o| o != id);
                    }
                    2 => {
                        lru.link(id);
                        order.retain(|&o| o != id);
                        order.insert(0, id);
                    }
                    3 => {
                        lru.unlink(id);
                        order.retain(|&o| o != id);
                    }
                    _ => prop_assert_eq!(lru.get(id), Some(&value)),
                }
                prop_assert_eq!(lru.len(), slots.len());
                let walk = |from: Option<Id>, to: fn(&Lru<usize>, Id) -> Option<Id>| {
                    std::iter::successors(from, |&id| to(&lru, id)).collect::<Vec<Id>>()
                };
                prop_assert_eq!(&walk(lru.newest(), Lru::older), &order);
                order.reverse();
                prop_assert_eq!(&walk(lru.oldest(), Lru::newer), &order);
                order.reverse();
                prop_assert!(slots.iter().all(|&(s, _)| lru.is_linked(s) == order.contains(&s)));
            }
            let mut ids: Vec<Id> = lru.ids().collect();
            let mut expected: Vec<Id> = slots.iter().map(|&(id, _)| id).collect();
            ids.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(ids, expected);
        }
    }
}
