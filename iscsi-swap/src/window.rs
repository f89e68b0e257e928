//! Serial numbers and the command window (RFC 7143 sections 4.2.2.1 and 4.2.2.2).
//!
//! Numbers are 32-bit serials (RFC 1982): `a` is before `b` if the way up from `a` to `b` is shorter
//! than the way down. A target tells with every PDU up to which CmdSN it takes commands; the window
//! may be as small as nothing, and only ever moves up.

/// Whether serial `a` comes before serial `b`.
pub fn before(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) > 0
}

/// The initiator's side of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmdWindow {
    /// The CmdSN of the next command.
    next: u32,
    exp: u32,
    max: u32,
}

impl CmdWindow {
    /// A window for a session whose first command has number `first`: it admits none yet.
    pub fn new(first: u32) -> CmdWindow {
        CmdWindow { next: first, exp: first, max: first.wrapping_sub(1) }
    }

    /// The CmdSN that the next command will have; an immediate command carries it too.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The target's ExpCmdSN and MaxCmdSN, taken as section 4.2.2.1 says: a pair whose MaxCmdSN is
    /// below ExpCmdSN - 1 is ignored, and neither number moves down.
    pub fn update(&mut self, exp: u32, max: u32) {
        if before(max, exp.wrapping_sub(1)) {
            return;
        }
        if before(self.exp, exp) {
            self.exp = exp;
        }
        if before(self.max, max) {
            self.max = max;
        }
    }

    /// Whether the target takes another command now.
    pub fn is_open(&self) -> bool {
        !before(self.max, self.next)
    }

    /// Whether the target has taken the command of number `sn`, or knows that it will not come.
    pub fn is_taken(&self, sn: u32) -> bool {
        before(sn, self.exp)
    }

    /// Takes the number of the next command, if the target takes one.
    pub fn take(&mut self) -> Option<u32> {
        self.is_open().then(|| {
            let sn = self.next;
            self.next = sn.wrapping_add(1);
            sn
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_compare_across_the_wrap() {
        assert!(before(u32::MAX, 0));
        assert!(before(0, 1));
        assert!(!before(1, 1));
        assert!(!before(0, u32::MAX));
    }

    #[test]
    fn a_window_opens_as_the_target_says_and_never_closes_again() {
        let mut window = CmdWindow::new(u32::MAX);
        assert_eq!(window.take(), None);
        window.update(u32::MAX, 0);
        assert_eq!(window.take(), Some(u32::MAX));
        assert_eq!(window.take(), Some(0));
        assert_eq!(window.take(), None);
        window.update(u32::MAX, u32::MAX);
        assert!(!window.is_open());
        window.update(1, 1);
        assert_eq!(window.take(), Some(1));
        assert_eq!(window.take(), None);
    }

    #[test]
    fn a_pair_that_contradicts_itself_is_ignored() {
        let mut window = CmdWindow::new(10);
        window.update(20, 15);
        assert_eq!(window, CmdWindow::new(10));
        window.update(10, 9);
        assert!(!window.is_open());
    }
}
