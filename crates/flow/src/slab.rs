//! Requests by number, and the links of the lists that they stand in.

/// Which list a link is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All that wait, by arrival.
    All = 0,
    /// Those of a band, by arrival.
    Band = 1,
    /// Those of a flow, by arrival.
    Flow = 2,
}

/// No request.
pub(crate) const NIL: u32 = u32::MAX;

/// The neighbours in one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) before: u32,
    pub(crate) after: u32,
}

/// Values by number; numbers of those that left are given again.
#[derive(Debug)]
pub(crate) struct Slab<V> {
    slots: Vec<Option<Slot<V>>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    links: [Link; 3],
}

impl<V> Slab<V> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: V) -> u32 {
        let slot = Some(Slot { value, links: [Link { before: NIL, after: NIL }; 3] });
        if let Some(number) = self.free.pop() {
            self.slots[number as usize] = slot;
            return number;
        }
        self.slots.push(slot);
        // The caller bounds how many there are, far below 2^32.
        (self.slots.len() - 1) as u32
    }

    /// Takes out a value that stands in no list any more.
    pub(crate) fn remove(&mut self, number: u32) -> Option<V> {
        let slot = self.slots.get_mut(number as usize)?.take()?;
        self.free.push(number);
        if self.free.len() == self.slots.len() {
            // Nobody waits: what a rush needed is given back.
            *self = Self::new();
        }
        Some(slot.value)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&V> {
        Some(&self.slots.get(number as usize)?.as_ref()?.value)
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut V> {
        Some(&mut self.slots.get_mut(number as usize)?.as_mut()?.value)
    }

    pub(crate) fn link(&self, kind: Kind, number: u32) -> Link {
        let slot = self.slots.get(number as usize).and_then(Option::as_ref);
        slot.map_or(Link { before: NIL, after: NIL }, |slot| slot.links[kind as usize])
    }

    /// Changes a link; none where there is no such number.
    pub(crate) fn relink(&mut self, kind: Kind, number: u32, change: impl FnOnce(&mut Link)) {
        if let Some(Some(slot)) = self.slots.get_mut(number as usize) {
            change(&mut slot.links[kind as usize]);
        }
    }
}
