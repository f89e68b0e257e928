//! Several portals of one target, and which of the sessions over them are dead.
//!
//! There is one session at a time. When its connection is lost, the next portal has its turn, with the same ISID. If
//! that belongs to the same portal group, the login reinstates the session (RFC 7143 section 6.3.5): what was sent
//! over the old connection is dead before anything is sent again, which two sessions side by side could not promise.
//!
//! A portal of another group starts a session of its own (section 4.4.3). What the old one has read it may still carry
//! out: writes that were sent over it are issued again and end well, but a copy of them is loose
//! (`netswap_swap::fence`), until a login to their own group.
//!
//! # Invariant
//! [`Sessions::logged_in`] names no connection over which a write was sent that may still be carried out.

use std::net::SocketAddr;

use arrayvec::ArrayVec;

/// Portal groups that are remembered. Picked by eye; past that, copies stay loose.
const GROUPS_MAX: usize = 8;

/// Where the next connection goes.
#[derive(Debug)]
pub(super) struct Portals {
    addrs: Box<[SocketAddr]>,
    at: usize,
    /// The only one from now on.
    fixed: bool,
}

impl Portals {
    pub(super) fn new(first: SocketAddr, others: &[SocketAddr]) -> Portals {
        let addrs = [&[first], others].concat().into();
        Portals { addrs, at: 0, fixed: others.is_empty() }
    }

    pub(super) fn current(&self) -> SocketAddr {
        self.addrs[self.at]
    }

    /// The connection to the portal at hand was lost: the next has its turn. Whether all have had it since the first.
    pub(super) fn turn(&mut self) -> bool {
        if !self.fixed {
            self.at = (self.at + 1) % self.addrs.len();
        }
        self.fixed || self.at == 0
    }

    /// The portal at hand is elsewhere, for good.
    pub(super) fn replace(&mut self, to: SocketAddr) {
        self.addrs[self.at] = to;
    }

    /// There is nothing to tell by that another portal leads to the same unit.
    pub(super) fn stay(&mut self) {
        self.fixed = true;
    }
}

/// A portal group, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Its TargetPortalGroupTag (13.9).
    Tag(u16),
    /// Of a target that does not say.
    Portal(SocketAddr),
}

/// The sessions that may still carry something out: one a portal group.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The group, and the first connection over which something was sent that is not known to be dead.
    alive: ArrayVec<(Group, u32), GROUPS_MAX>,
    /// As that, of a group that had no place.
    forgotten: Option<u32>,
}

impl Sessions {
    /// The login over `connection` is complete, in `group`: the connection up to which everything is dead.
    pub(super) fn logged_in(&mut self, group: Group, connection: u32) -> u32 {
        self.alive.retain(|(other, _)| *other != group);
        let firsts = self.alive.iter().map(|(_, first)| *first).chain(self.forgotten);
        let through = firsts.min().map_or(connection, |first| first.min(connection)) - 1;
        if self.alive.try_push((group, connection)).is_err() {
            self.forgotten.get_or_insert(connection);
        }
        through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([10, 0, 0, 2], port).into()
    }

    #[test]
    fn portals_have_their_turn() {
        let mut portals = Portals::new(addr(1), &[addr(2), addr(3)]);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(portals.current().port());
            portals.turn();
        }
        assert_eq!(seen, [1, 2, 3, 1]);
        portals.replace(addr(9));
        portals.stay();
        assert!(portals.turn() && portals.current() == addr(9));
        let mut alone = Portals::new(addr(1), &[]);
        assert!(alone.turn() && alone.current() == addr(1));
    }

    #[test]
    fn a_session_is_dead_when_its_own_group_has_another() {
        let mut sessions = Sessions::default();
        let [one, two] = [Group::Tag(1), Group::Tag(2)];
        assert_eq!(sessions.logged_in(one, 1), 0);
        assert_eq!(sessions.logged_in(one, 2), 1);
        assert_eq!(sessions.logged_in(two, 3), 1, "what went over 2 is alive");
        assert_eq!(sessions.logged_in(two, 4), 1);
        assert_eq!(sessions.logged_in(one, 5), 3, "what went over 4 is alive");
        assert_eq!(sessions.logged_in(two, 6), 4);
        assert_eq!(sessions.logged_in(Group::Portal(addr(1)), 7), 4);
    }

    #[test]
    fn more_groups_than_are_remembered_stay_alive() {
        let mut sessions = Sessions::default();
        let groups = GROUPS_MAX as u32 + 2;
        (1..=groups).for_each(|n| {
            sessions.logged_in(Group::Tag(n as u16), n);
        });
        for n in 1..=groups {
            let through = sessions.logged_in(Group::Tag(n as u16), groups + n);
            assert!(through <= GROUPS_MAX as u32, "{through}");
        }
    }
}
