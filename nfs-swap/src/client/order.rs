//! Rows of the call table in an order of their own: a doubly linked list in a fixed table. Each row is in it once
//! at most.

use netswap_swap::queue::NONE;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u16,
    next: u16,
    is_in: bool,
}

const UNLINKED: Link = Link { prev: NONE, next: NONE, is_in: false };

/// Rows in order. All operations take constant time, but for [`Order::insert`] of a row that does not belong at
/// the end.
#[derive(Debug)]
pub(super) struct Order {
    links: Box<[Link]>,
    first: u16,
    last: u16,
    len: usize,
}

impl Order {
    /// Nothing of `rows` rows.
    pub(super) fn new(rows: usize) -> Order {
        Order { links: vec![UNLINKED; rows].into(), first: NONE, last: NONE, len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first row.
    pub(super) fn first(&self) -> Option<usize> {
        (self.first != NONE).then_some(usize::from(self.first))
    }

    /// The rows from the first on.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(self.first(), |row| {
            let next = self.links[*row].next;
            (next != NONE).then_some(usize::from(next))
        })
    }

    /// Puts `row` at the end.
    pub(super) fn push(&mut self, row: usize) {
        self.insert(row, |_| false);
    }

    /// Puts `row` behind the last one that it is not `before`.
    pub(super) fn insert(&mut self, row: usize, before: impl Fn(usize) -> bool) {
        assert!(!self.links[row].is_in, "a row that is there twice");
        let (at, mut prev, mut next) = (row as u16, self.last, NONE);
        while prev != NONE && before(usize::from(prev)) {
            (prev, next) = (self.links[usize::from(prev)].prev, prev);
        }
        self.links[row] = Link { prev, next, is_in: true };
        match prev {
            NONE => self.first = at,
            prev => self.links[usize::from(prev)].next = at,
        }
        match next {
            NONE => self.last = at,
            next => self.links[usize::from(next)].prev = at,
        }
        self.len += 1;
    }

    /// Takes `row` out, wherever it is. False if it is not there.
    pub(super) fn remove(&mut self, row: usize) -> bool {
        let Link { prev, next, is_in } = std::mem::replace(&mut self.links[row], UNLINKED);
        if !is_in {
            return false;
        }
        match prev {
            NONE => self.first = next,
            prev => self.links[usize::from(prev)].next = next,
        }
        match next {
            NONE => self.last = prev,
            next => self.links[usize::from(next)].prev = prev,
        }
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn rows_are_in_order_as_in_a_plain_list(
            steps in proptest::collection::vec((0..12usize, any::<bool>()), 1..200)
        ) {
            let mut order = Order::new(12);
            let mut naive: Vec<usize> = vec![];
            for (row, sorted) in steps {
                if let Some(at) = naive.iter().position(|other| *other == row) {
                    naive.remove(at);
                    prop_assert!(order.remove(row));
                } else {
                    prop_assert!(!order.remove(row));
                    if sorted {
                        order.insert(row, |other| other > row);
                        let at = naive.iter().rposition(|other| *other <= row).map_or(0, |at| at + 1);
                        naive.insert(at, row);
                    } else {
                        order.push(row);
                        naive.push(row);
                    }
                }
                prop_assert_eq!(order.iter().collect::<Vec<_>>(), naive.clone());
                prop_assert_eq!((order.len(), order.first()), (naive.len(), naive.first().copied()));
                prop_assert_eq!(order.is_empty(), naive.is_empty());
            }
        }
    }

    #[test]
    #[should_panic(expected = "there twice")]
    fn a_row_is_there_once() {
        let mut order = Order::new(2);
        order.push(1);
        order.push(1);
    }
}
