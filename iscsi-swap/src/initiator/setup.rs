//! From an open connection to a unit that can be used: login, then three questions to the unit.

use std::net::SocketAddr;

use netswap_net::Action;
use netswap_reserve::{Span, Time};
use netswap_swap::{BackendState, StoreError};

use super::portals::Group;
use super::receive::{PROBE_LEN, Violation};
use super::task::{Kind, PROBE, ProbeStep, Step, Task, TaskState};
use super::unit::{
    Unit, UnmapLimits, capacity_10, identity, is_thin, modes, takes_unmap, transfer_blocks,
};
use super::{IscsiBackend, Link};
use crate::login::{LoginError, LoginStep, REDIRECTS_MAX, login_status};
use crate::pdu::LoginResponse;
use crate::scsi::Sense;
use crate::scsi::data::{CAPACITY_LEN, Capacity, INQUIRY_LEN, is_disk};
use crate::window::CmdWindow;

impl IscsiBackend {
    /// The connection is open.
    pub(super) fn start_login(&mut self, now: Time) {
        self.enter(now, Link::Login);
        self.window = CmdWindow::new(self.config.first_cmd_sn);
        self.exp_stat_sn = 0;
        self.expect_first_stat_sn = true;
        self.login_tag = self.make_tag(self.tasks.len());
        match self.login.start() {
            Ok(()) => self.login_due = true,
            Err(error) => self.login_failed(now, error, login_status::AUTHENTICATION),
        }
    }

    pub(super) fn take_login_step(
        &mut self,
        now: Time,
        response: &LoginResponse,
        step: Result<LoginStep, LoginError>,
    ) -> Result<(), Violation> {
        if response.status == 0 && response.isid != self.config.isid {
            return Err(Violation::Login(LoginError::Mismatch("ISID")));
        }
        match step {
            Ok(LoginStep::Again) => self.login_due = true,
            Ok(LoginStep::Done(_)) if response.tsih == 0 => {
                return Err(Violation::Login(LoginError::Mismatch("TSIH")));
            }
            Ok(LoginStep::Done(params)) => {
                tracing::debug!(server = %self.label, ?params, "logged in");
                self.params = params;
                self.rx.set_digests(params.digests());
                self.tx.set_digests(params.digests());
                self.stats.logins += 1;
                self.redirects = 0;
                self.login_error = None;
                let group = params.group.map_or(Group::Portal(self.remote), Group::Tag);
                // The target has terminated what came over an earlier connection (section 6.3.5).
                if self.fence.prove(self.sessions.logged_in(group, self.connection)) {
                    tracing::info!(server = %self.label, "session reinstated: no late copies");
                }
                self.enter(now, Link::Probe);
                self.tasks[PROBE].retries = 0;
                self.probe(ProbeStep::Ready);
            }
            Ok(LoginStep::Moved { to, permanent }) => self.redirected(now, to, permanent),
            Err(error) => match error {
                LoginError::Refused(status) => self.login_failed(now, error, status),
                LoginError::Auth(_) => {
                    self.login_failed(now, error, login_status::AUTHENTICATION);
                }
                LoginError::MovedToName | LoginError::Moved | LoginError::NoDigest(_) => {
                    self.login_failed(now, error, login_status::INITIATOR_ERROR);
                }
                _ => {
                    self.login_error = Some(error);
                    return Err(Violation::Login(error));
                }
            },
        }
        Ok(())
    }

    /// A target that is short of something is asked again, one that objects only if it was content
    /// before: a target that restarts may not know its units yet.
    fn login_failed(&mut self, now: Time, error: LoginError, status: u16) {
        tracing::warn!(server = %self.label, %error, "login failed");
        self.login_error = Some(error);
        let initiator_error = status >> 8 != 3;
        if initiator_error && self.state == BackendState::Starting {
            return self.fail(now, StoreError::Refused { code: u32::from(status) });
        }
        self.leave(now, Action::Abort);
    }

    /// The target is elsewhere (section 11.13.5, class 1): for the next connection, or for good.
    fn redirected(&mut self, now: Time, to: SocketAddr, permanent: bool) {
        self.redirects += 1;
        if self.redirects > REDIRECTS_MAX {
            self.redirects = 0;
            let error = LoginError::TooManyRedirects;
            return self.login_failed(now, error, login_status::MOVED_TEMPORARILY);
        }
        tracing::debug!(server = %self.label, %to, permanent, "redirected");
        self.stats.redirects += 1;
        if permanent {
            self.portals.replace(to);
        }
        self.moved_to = Some(to);
        self.leave(now, Action::Abort);
    }

    /// Asks the unit the next question.
    pub(super) fn probe(&mut self, step: ProbeStep) {
        let len = match step {
            ProbeStep::Ready => {
                self.probed = Unit::default();
                self.probe_again = false;
                0
            }
            ProbeStep::Inquiry => INQUIRY_LEN,
            ProbeStep::Capacity => CAPACITY_LEN,
            ProbeStep::Capacity10 => 8,
            ProbeStep::Identity | ProbeStep::Limits | ProbeStep::Provisioning => 252,
            ProbeStep::Caching => 192,
        };
        let before = &self.tasks[PROBE];
        self.tasks[PROBE] = Task {
            kind: Kind::Probe(step),
            step: Step::Command,
            len: len as u32,
            state: TaskState::Queued,
            shown: before.shown,
            // Those of all questions: a unit that changes all the time is not for use.
            retries: before.retries,
            ..Task::default()
        };
    }

    /// A question was answered with `received` bytes in the small buffer.
    pub(super) fn probe_done(&mut self, now: Time, step: ProbeStep, data: [u8; PROBE_LEN]) {
        let received = self.tasks[PROBE].received as usize;
        let data = &data[..received.min(PROBE_LEN)];
        self.tasks[PROBE].state = TaskState::Free;
        if self.probe_again {
            return self.probe(ProbeStep::Ready);
        }
        match step {
            ProbeStep::Ready => self.probe(ProbeStep::Inquiry),
            ProbeStep::Inquiry if is_disk(data) => self.probe(ProbeStep::Capacity),
            ProbeStep::Inquiry => {
                let code = Sense::NO_SUCH_LUN.code();
                self.probe_refused(now, StoreError::Refused { code });
            }
            ProbeStep::Capacity | ProbeStep::Capacity10 => {
                let capacity = match step {
                    ProbeStep::Capacity => Capacity::parse(data).map(|c| (c.blocks, c.block_size)),
                    _ => capacity_10(data),
                };
                let Some((blocks, block_size)) = capacity else {
                    let what = "READ CAPACITY data too short";
                    return self.probe_refused(now, StoreError::Garbage { what });
                };
                (self.probed.blocks, self.probed.block_size) = (blocks, block_size);
                self.probed.is_thin = step == ProbeStep::Capacity && is_thin(data);
                if self.config.examine {
                    self.probe(ProbeStep::Identity);
                } else {
                    self.unit_ready(now);
                }
            }
            ProbeStep::Identity => {
                self.probed.identity = identity(data);
                self.probe(ProbeStep::Limits);
            }
            ProbeStep::Limits => {
                self.probed.transfer_blocks = transfer_blocks(data);
                self.probed.unmap = UnmapLimits::parse(data).filter(|_| self.probed.is_thin);
                // One that has no limits for it cannot do it.
                let asks = self.probed.unmap.is_some();
                self.probe(if asks { ProbeStep::Provisioning } else { ProbeStep::Caching });
            }
            ProbeStep::Provisioning => {
                self.probed.takes_unmap = takes_unmap(data);
                self.probe(ProbeStep::Caching);
            }
            ProbeStep::Caching => {
                self.probed.modes = modes(data);
                self.unit_ready(now);
            }
        }
    }

    /// A question was refused. Some need no answer.
    pub(super) fn probe_failed(&mut self, now: Time, step: ProbeStep, error: StoreError) {
        self.tasks[PROBE].state = TaskState::Free;
        match (step, error) {
            (ProbeStep::Capacity, StoreError::Refused { .. }) => self.probe(ProbeStep::Capacity10),
            (ProbeStep::Identity, StoreError::Refused { .. }) => self.probe(ProbeStep::Limits),
            (ProbeStep::Limits | ProbeStep::Provisioning, StoreError::Refused { .. }) => {
                self.probe(ProbeStep::Caching);
            }
            (ProbeStep::Caching, StoreError::Refused { .. }) => self.unit_ready(now),
            _ => self.probe_refused(now, error),
        }
    }

    /// The unit cannot be used as it is now.
    fn probe_refused(&mut self, now: Time, error: StoreError) {
        self.tasks[PROBE].state = TaskState::Free;
        if self.state == BackendState::Starting {
            return self.fail(now, error);
        }
        // It was usable before: perhaps its target has not set it up again yet.
        tracing::warn!(server = %self.label, %error, "unit not usable after reconnect");
        self.leave(now, Action::Abort);
    }

    fn unit_ready(&mut self, now: Time) {
        let unit = self.probed;
        let slots = match unit.slots() {
            Ok(slots) => slots,
            Err(error) => return self.fail(now, error),
        };
        if self.config.writable && unit.modes.is_some_and(|modes| modes.write_protected) {
            return self.fail(now, StoreError::ReadOnly);
        }
        if self.state == BackendState::Starting {
            self.state = BackendState::Ready { slots };
            self.unit = unit;
            if unit.identity.is_none() {
                self.portals.stay();
            }
        } else if let Some(what) = unit.differs(&self.unit) {
            // A unit that changed is another unit: its content is not ours.
            return self.fail(now, StoreError::Changed { what });
        }
        // How it is to be written may change; how much it takes at once was told to the submitter.
        self.unit.modes = unit.modes;
        (self.unit.is_thin, self.unit.unmap) = (unit.is_thin, unit.unmap);
        self.unit.takes_unmap = unit.takes_unmap;
        self.tasks[PROBE].retries = 0;
        self.setup_garbage = 0;
        self.backoff = self.config.backoff_min;
        // Section 13.15: how long a reconnect waits after a connection that was not logged out.
        let wait = Span::from_secs(u64::from(self.params.time2wait()));
        self.backoff = self.backoff.max(wait);
        self.enter(now, Link::Ready);
    }

    /// Logs out; what is outstanding is issued again in the next session.
    pub(super) fn start_logout(&mut self, now: Time) {
        if matches!(self.link, Link::Ready | Link::Probe) {
            self.logout_due = true;
            self.enter(now, Link::LoggingOut);
        }
    }
}
