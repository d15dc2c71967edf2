//! Lists of what is in a [`Slab`], by links: whoever leaves does so in one step, wherever it stands.

use crate::slab::{Kind, Link, NIL, Slab};

/// The ends of one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    first: u32,
    last: u32,
    kind: Kind,
}

impl List {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { first: NIL, last: NIL, kind }
    }

    pub(crate) fn first(self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.first == NIL
    }

    pub(crate) fn push<V>(&mut self, slab: &mut Slab<V>, number: u32) {
        let before = self.last;
        slab.relink(self.kind, number, |link| *link = Link { before, after: NIL });
        slab.relink(self.kind, before, |link| link.after = number);
        if before == NIL {
            self.first = number;
        }
        self.last = number;
    }

    pub(crate) fn unlink<V>(&mut self, slab: &mut Slab<V>, number: u32) {
        let Link { before, after } = slab.link(self.kind, number);
        slab.relink(self.kind, before, |link| link.after = after);
        slab.relink(self.kind, after, |link| link.before = before);
        if self.first == number {
            self.first = after;
        }
        if self.last == number {
            self.last = before;
        }
    }
}
