//! Lists a directory of an export, as a sans-IO state machine of its own beside the paging client.
//!
//! ```text
//!   connect -> MNT -> LOOKUP... -> READDIRPLUS -> entries -> READDIRPLUS -> ... -> end
//!                                      ^  |          |
//!                  (READDIR if refused)   +<---------+-- NFS3ERR_BAD_COOKIE: from the first entry
//! ```
//! It is a [`Session`](netswap_net::Session) to the transport, as the client is; its user takes entries
//! by [`NfsLister::poll_event`] until the end. One call is outstanding at a time, and the next page of
//! entries is asked for when the last one has been taken, so a directory of any size is listed in
//! the pages given at construction.
//!
//! - here: what is asked for, and what the replies mean; `stream`: the session; `types`: what a user sets
//!   and gets.
//!
//! # Invariants
//! - A reply is read to its end before an entry of it is given out. What is malformed ends the
//!   connection, and the call is made again; four times in a row end the listing.
//! - A list ends: cookies must lead on. One that leads back to where the list was already (found by
//!   Brent's method, with one remembered cookie), a page without entries that is not the last, and
//!   more entries than were allowed, are errors.
//! - Cookies go with the verifier of the reply they came in (RFC 1813 section 3.3.16).
//! - Nothing is allocated after construction.

mod stream;
mod types;

use netswap_reserve::windows::{Direct, MapPageMut, Mapper};
use netswap_reserve::{Frame, PAGE_SIZE, Time};

use crate::dir::{DirArgs, DirError, DirHead, DirProc, DirReader, DirRecord};
use crate::link::{Link, Target};
use crate::message::{CONTROL_HEAD_BYTES, encode_message};
use crate::mount;
use crate::pages::MAP_RETRY;
use crate::proto::{self, FileHandle, LookupOk, NAME_BYTES_MAX, Nfsstat3, procs};
use crate::rpc::{self, AcceptStat, AuthSys, ReplyStat};
use crate::xdr::{Decoder, XdrError};
use stream::{Phase, Receiver};
pub use types::{ListError, ListEvent, ListStats, ListerConfig};

/// Garbage replies in a row after which the listing fails: as the client's.
const GARBAGE_MAX: u8 = 4;
/// Times a listing begins again before it gives up. Picked by eye: a directory that changes faster
/// than it can be read is no export of swap files.
const RESTARTS_MAX: u32 = 8;

/// What the current or the next call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Mnt,
    /// LOOKUP of the component with this number.
    Lookup(usize),
    List,
    /// All entries have been read.
    Ended,
    Failed(ListError),
}

/// The entries of one reply, as far as they were not given out.
#[derive(Debug)]
struct Page {
    reader: DirReader,
    left: u64,
    eof: bool,
}

/// Finds cookies that lead back, in constant memory: the remembered cookie moves on at powers of two,
/// so a circle of `n` pages is noticed within about `3 n` of them (Brent 1980).
#[derive(Debug)]
struct CircleGuard {
    remembered: u64,
    steps: u64,
    power: u64,
}

impl CircleGuard {
    /// At the start, whose cookie is 0.
    fn new() -> CircleGuard {
        CircleGuard { remembered: 0, steps: 0, power: 1 }
    }

    /// False if `cookie` was seen before.
    fn accepts(&mut self, cookie: u64) -> bool {
        if cookie == 0 || cookie == self.remembered {
            return false;
        }
        self.steps += 1;
        if self.steps == self.power {
            *self =
                CircleGuard { remembered: cookie, steps: 0, power: self.power.saturating_mul(2) };
        }
        true
    }
}

/// Lists one directory of an NFSv3 export.
///
/// ```
/// use netswap_net::{Action, Session};
/// use netswap_nfs::{ListerConfig, NfsLister};
/// use netswap_reserve::{Gfp, PagePool, PoolConfig, Time};
///
/// let pool = PagePool::new(PoolConfig::new(128));
/// let pages = (0..4).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
/// let config = ListerConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", "");
/// let mut lister = NfsLister::new(config, pages, Time::ZERO);
/// // A driver now moves its bytes, and calls `poll_event` until `ListEvent::End`.
/// assert!(matches!(lister.poll_action(Time::ZERO), Some(Action::Connect { .. })));
/// assert_eq!(lister.poll_event(Time::ZERO), None);
/// ```
///
/// The pages may be high ones ([`NfsLister::over`]): `M` maps them for as long as bytes are copied.
#[derive(Debug)]
pub struct NfsLister<P = Frame, M = Direct> {
    config: ListerConfig,
    auth: AuthSys,
    stats: ListStats,
    /// Where lists arrive.
    pages: Box<[P]>,
    mapper: M,
    /// When a window is asked for again.
    map_retry_at: Option<Time>,

    step: Step,
    root: FileHandle,
    dir: FileHandle,
    procedure: DirProc,
    cookie: u64,
    cookieverf: [u8; 8],
    circle: CircleGuard,
    entries: u64,
    page: Option<Page>,
    restarted: bool,
    end_given: bool,

    link: Link,
    phase: Phase,
    xid: u32,
    head: Box<[u8]>,
    head_len: usize,
    timeouts: u32,
    jukebox: u32,
    garbage: u8,
    /// When the current call was first made.
    call_since: Time,
    rx: Receiver,
}

impl NfsLister {
    /// A listing as `config` says. Each reply has to fit into `pages`; eight are a good measure.
    ///
    /// # Panics
    /// If there are no pages.
    pub fn new(config: ListerConfig, pages: Vec<Frame>, now: Time) -> NfsLister {
        NfsLister::over(config, pages, Direct, now)
    }
}

impl<P: MapPageMut, M: Mapper> NfsLister<P, M> {
    /// As [`NfsLister::new`], with pages that `mapper` maps, if they are high ones. When no window is to
    /// be had, the listing waits, and counts it.
    ///
    /// # Panics
    /// If there are no pages. Later, if a page turns out to be one that `mapper` can never show.
    pub fn over(config: ListerConfig, pages: Vec<P>, mapper: M, now: Time) -> NfsLister<P, M> {
        assert!(!pages.is_empty(), "a listing without pages");
        let bad_path = config.components().any(|name| name.len() > NAME_BYTES_MAX)
            || config.export.len() > mount::PATH_BYTES_MAX;
        let target = if config.mount.is_some() { Target::Mount } else { Target::Nfs };
        let mut lister = NfsLister {
            auth: AuthSys {
                stamp: config.first_xid,
                machine: config.machine.clone(),
                uid: config.uid,
                gid: config.gid,
            },
            stats: ListStats::default(),
            rx: Receiver::new(pages.len() * PAGE_SIZE),
            pages: pages.into(),
            mapper,
            map_retry_at: None,
            step: Step::Mnt,
            root: FileHandle::EMPTY,
            dir: FileHandle::EMPTY,
            procedure: if config.attributes { DirProc::ReadDirPlus } else { DirProc::ReadDir },
            cookie: 0,
            cookieverf: [0; 8],
            circle: CircleGuard::new(),
            entries: 0,
            page: None,
            restarted: false,
            end_given: false,
            link: Link::new(now, target, config.reconnect_min),
            phase: Phase::Idle,
            xid: config.first_xid,
            head: vec![0; CONTROL_HEAD_BYTES].into(),
            head_len: 0,
            timeouts: 0,
            jukebox: 0,
            garbage: 0,
            call_since: now,
            config,
        };
        if bad_path {
            lister.step = Step::Failed(ListError::BadPath);
        } else {
            lister.issue(now);
        }
        lister
    }

    /// What has happened so far.
    pub fn stats(&self) -> ListStats {
        self.stats
    }

    /// Attributes and handles are not to be expected: the server has no READDIRPLUS, or it was not
    /// to be asked.
    pub fn is_plain(&self) -> bool {
        self.procedure == DirProc::ReadDir
    }

    /// The next thing that happened; `None` if the server has to answer first.
    pub fn poll_event(&mut self, now: Time) -> Option<ListEvent<'_>> {
        self.tick(now);
        if std::mem::take(&mut self.restarted) {
            return Some(ListEvent::Restarted);
        }
        if self.page.as_ref().is_some_and(|page| page.left == 0)
            && let Some(page) = self.page.take()
        {
            if page.eof {
                self.step = Step::Ended;
                self.hang_up();
            } else {
                self.go_to(now, Step::List);
            }
        }
        if let Some(page) = &mut self.page {
            return match page.reader.next(&self.pages, &mut self.mapper) {
                Ok(DirRecord::Entry(entry)) => {
                    page.left -= 1;
                    Some(ListEvent::Entry(entry))
                }
                Err(DirError::Map(_)) => {
                    // As `await_window`, which would borrow the page.
                    self.stats.map_waits += 1;
                    self.map_retry_at = Some(now + MAP_RETRY);
                    None
                }
                other => panic!("a list that was read before is now {other:?}"),
            };
        }
        let end = match self.step {
            Step::Ended => Ok(()),
            Step::Failed(error) => Err(error),
            _ => return None,
        };
        (!std::mem::replace(&mut self.end_given, true)).then_some(ListEvent::End(end))
    }

    /// Encodes the call of the current step under a new xid.
    fn issue(&mut self, now: Time) {
        self.xid = self.xid.wrapping_add(1);
        let (xid, auth, config, step) = (self.xid, &self.auth, &self.config, self.step);
        let (dir, procedure) = (self.dir, self.procedure);
        let max_count = (self.pages.len() * PAGE_SIZE) as u32;
        let args = DirArgs {
            dir,
            cookie: self.cookie,
            cookieverf: self.cookieverf,
            dir_count: max_count,
            max_count,
        };
        let number = match step {
            Step::Mnt => (mount::PROGRAM, mount::VERSION, mount::procs::MNT),
            Step::Lookup(_) => (proto::PROGRAM, proto::VERSION, procs::LOOKUP),
            Step::List => (proto::PROGRAM, proto::VERSION, procedure.number()),
            Step::Ended | Step::Failed(_) => return,
        };
        self.head_len = encode_message(&mut self.head, 0, |out| {
            rpc::encode_call(out, xid, number, auth)?;
            match step {
                Step::Mnt => out.opaque(config.export.as_bytes()),
                Step::Lookup(i) => {
                    dir.encode(out)?;
                    out.opaque(config.components().nth(i).unwrap_or_default().as_bytes())
                }
                _ => args.encode(out, procedure),
            }
        });
        self.timeouts = 0;
        self.enqueue(now);
    }

    fn go_to(&mut self, now: Time, step: Step) {
        self.step = step;
        self.jukebox = 0;
        self.call_since = now;
        self.issue(now);
    }

    /// From the directory `self.dir` on: the next name of the path, or the list.
    fn descend(&mut self, now: Time, component: usize) {
        if self.config.components().nth(component).is_some() {
            self.go_to(now, Step::Lookup(component));
        } else {
            self.go_to(now, Step::List);
        }
    }

    fn fail(&mut self, error: ListError) {
        tracing::debug!(server = %self.config.server, %error, "listing failed");
        self.step = Step::Failed(error);
        self.page = None;
        self.restarted = false;
        self.hang_up();
    }

    /// The list begins again: with the directory itself, or with MNT if handles are stale.
    fn restart(&mut self, now: Time, step: Step) {
        if self.stats.restarts == RESTARTS_MAX {
            self.fail(ListError::Unstable { restarts: RESTARTS_MAX });
            return;
        }
        self.stats.restarts += 1;
        // Nothing is to be forgotten if nothing was given.
        self.restarted = self.entries > 0;
        (self.cookie, self.cookieverf, self.entries) = (0, [0; 8], 0);
        self.circle = CircleGuard::new();
        if step == Step::Mnt && self.config.mount.is_some() {
            self.step = step;
            self.switch_to(now, Target::Mount);
        } else {
            self.go_to(now, step);
        }
    }

    fn good_reply(&mut self) {
        self.stats.replies += 1;
        self.garbage = 0;
        self.link.reset_backoff(self.config.reconnect_min);
        self.phase = Phase::Idle;
    }

    /// A reply without a list has come whole.
    fn handle_reply(&mut self, now: Time, bytes: &[u8]) -> Result<(), &'static str> {
        let what = XdrError::what;
        let mut dec = Decoder::new(bytes);
        let (_, stat) = rpc::decode_reply(&mut dec).map_err(what)?;
        if stat != ReplyStat::Accepted(AcceptStat::Success) {
            dec.end().map_err(what)?;
            self.good_reply();
            match stat {
                ReplyStat::Accepted(AcceptStat::SystemErr) => self.back_off(now),
                ReplyStat::Accepted(AcceptStat::ProcUnavail) if self.can_be_plain() => {
                    self.go_plain(now);
                }
                _ if stat.is_unserved() => {
                    let (program, version) = match self.step {
                        Step::Mnt => ("MOUNT", mount::VERSION),
                        _ => ("NFS", proto::VERSION),
                    };
                    self.fail(ListError::NotServed { program, version });
                }
                _ => self.fail(ListError::Refused { code: stat.refused_code() }),
            }
            return Ok(());
        }
        match self.step {
            Step::Mnt => {
                let mounted = mount::decode_mnt(&mut dec).map_err(what)?;
                dec.end().map_err(what)?;
                self.good_reply();
                match mounted {
                    Ok(root) => {
                        (self.root, self.dir) = (root, root);
                        if self.link.target() == Target::Mount {
                            self.step = match self.config.components().next() {
                                Some(_) => Step::Lookup(0),
                                None => Step::List,
                            };
                            self.switch_to(now, Target::Nfs);
                        } else {
                            self.descend(now, 0);
                        }
                    }
                    Err(status) => self.refused(now, status),
                }
            }
            Step::Lookup(component) => {
                let found = LookupOk::decode(&mut dec).map_err(what)?;
                dec.end().map_err(what)?;
                self.good_reply();
                match found {
                    Ok(found) => {
                        self.dir = found.object;
                        self.descend(now, component + 1);
                    }
                    Err(status) => self.refused(now, status),
                }
            }
            Step::List => {
                let Err(status) = DirHead::decode(&mut dec).map_err(what)? else {
                    return Err("a list that ends before it begins");
                };
                dec.end().map_err(what)?;
                self.good_reply();
                self.refused(now, status);
            }
            Step::Ended | Step::Failed(_) => {}
        }
        Ok(())
    }

    /// A reply with a list has come whole: `len` bytes of it, in the pages. It is read to its end.
    fn handle_list(&mut self, now: Time, head: DirHead, len: usize) -> Result<(), &'static str> {
        let mut reader = DirReader::new(0, len, self.procedure);
        let (mut count, mut last) = (0, self.cookie);
        let eof = loop {
            match reader.next(&self.pages, &mut self.mapper) {
                Ok(DirRecord::Entry(entry)) => {
                    count += 1;
                    last = entry.cookie;
                }
                Ok(DirRecord::End { eof }) => break eof,
                Err(DirError::Map(_)) => {
                    self.await_window(now);
                    self.phase = Phase::Unread { head, len };
                    return Ok(());
                }
                Err(error) => return Err(error.what()),
            }
        };
        if count == 0 && !eof {
            return Err("a list without entries that is not the last");
        }
        self.good_reply();
        self.stats.pages += 1;
        self.entries += count;
        if self.entries > self.config.entries_max {
            self.fail(ListError::TooMany { max: self.config.entries_max });
            return Ok(());
        }
        if !eof && (last == self.cookie || !self.circle.accepts(last)) {
            self.fail(ListError::Circle { cookie: last });
            return Ok(());
        }
        (self.cookie, self.cookieverf) = (last, head.cookieverf);
        reader.rewind();
        self.page = Some(Page { reader, left: count, eof });
        Ok(())
    }

    fn can_be_plain(&self) -> bool {
        self.step == Step::List && self.procedure == DirProc::ReadDirPlus
    }

    /// The server has no READDIRPLUS. Its cookies are not READDIR's, so the list begins again.
    fn go_plain(&mut self, now: Time) {
        self.procedure = DirProc::ReadDir;
        self.restart(now, Step::List);
    }

    /// The procedure of the current step failed.
    fn refused(&mut self, now: Time, status: Nfsstat3) {
        match status {
            Nfsstat3::Jukebox => self.back_off(now),
            Nfsstat3::BadCookie if self.step == Step::List && self.cookie != 0 => {
                self.restart(now, Step::List);
            }
            Nfsstat3::Stale if self.step != Step::Mnt => self.restart(now, Step::Mnt),
            Nfsstat3::NotSupp if self.can_be_plain() => self.go_plain(now),
            status => self.fail(ListError::Refused { code: status as u32 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_of_any_length_behind_a_path_of_any_length_is_noticed() {
        for path in 0..40u64 {
            for circle in 1..40u64 {
                let mut guard = CircleGuard::new();
                let cookie = |i: u64| 1 + if i < path { i } else { path + (i - path) % circle };
                let noticed = (0..).find(|i| !guard.accepts(cookie(*i))).unwrap();
                assert!(noticed >= path + circle, "{path} {circle}: too early");
                assert!(noticed <= 3 * (path + circle) + 2, "{path} {circle}: {noticed}");
            }
        }
    }

    #[test]
    fn cookies_in_any_order_without_a_repetition_are_accepted() {
        let mut guard = CircleGuard::new();
        // A permutation of all numbers, as cookies that are hashes are.
        assert!((1..5000u64).all(|i| guard.accepts(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        assert!(!guard.accepts(0), "0 is the start");
    }
}
