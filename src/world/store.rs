//! The stores a world can swap to: the client of each, and the embedded server of each.

use std::io;

use netswap_iscsi::IscsiBackend;
use netswap_net::{Action, Answers, Disconnect, RecvVec, SendVec, Session};
use netswap_nfs::NfsBackend;
use netswap_reserve::Time;
use netswap_swap::machine::PatternDisk;
use netswap_swap::{
    BackendLimits, BackendState, Completion, Discard, DiscardLimits, Disk, MemDisk, Outstanding,
    Request, SubmitError, SwapBackend,
};

/// A client of either store. Large, and there are two at most: no box.
#[allow(clippy::large_enum_variant)]
pub(crate) enum StoreClient {
    Nfs(NfsBackend),
    Iscsi(IscsiBackend),
}

macro_rules! each {
    ($self:ident, $client:ident => $body:expr) => {
        match $self {
            StoreClient::Nfs($client) => $body,
            StoreClient::Iscsi($client) => $body,
        }
    };
}

impl Session for StoreClient {
    fn handle_connected(&mut self, now: Time) {
        each!(self, c => c.handle_connected(now))
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        each!(self, c => c.handle_disconnected(now, why))
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        each!(self, c => c.recv_buffer())
    }

    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        each!(self, c => c.recv_buffers(out))
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        each!(self, c => c.handle_received(now, n))
    }

    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        each!(self, c => c.poll_send(now, out))
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        each!(self, c => c.handle_sent(now, n))
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        each!(self, c => c.poll_action(now))
    }

    fn answers(&self) -> Answers {
        each!(self, c => Session::answers(c))
    }

    fn poll_deadline(&self) -> Option<Time> {
        each!(self, c => Session::poll_deadline(c))
    }

    fn handle_deadline(&mut self, now: Time) {
        each!(self, c => c.handle_deadline(now))
    }
}

impl SwapBackend for StoreClient {
    fn state(&self) -> BackendState {
        each!(self, c => c.state())
    }

    fn limits(&self) -> BackendLimits {
        each!(self, c => c.limits())
    }

    fn server(&self) -> &str {
        each!(self, c => c.server())
    }

    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        each!(self, c => c.submit(now, request))
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        each!(self, c => c.poll_completion(now))
    }

    fn poll_deadline(&self) -> Option<Time> {
        each!(self, c => SwapBackend::poll_deadline(c))
    }

    fn fences(&self) -> u64 {
        each!(self, c => c.fences())
    }

    fn discards(&self) -> Option<DiscardLimits> {
        each!(self, c => c.discards())
    }

    fn discard(&mut self, now: Time, discard: Discard) -> Result<(), Discard> {
        each!(self, c => c.discard(now, discard))
    }

    fn shutdown(&mut self, now: Time) {
        each!(self, c => c.shutdown(now))
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        each!(self, c => c.outstanding(visit))
    }
}

/// A disk of the far side: swap space, or the files that traced programs were loaded from.
pub(crate) enum FarDisk {
    Memory(MemDisk),
    Pattern(PatternDisk),
}

macro_rules! disk {
    ($self:ident, $disk:ident => $body:expr) => {
        match $self {
            FarDisk::Memory($disk) => $body,
            FarDisk::Pattern($disk) => $body,
        }
    };
}

impl Disk for FarDisk {
    fn len(&self) -> u64 {
        disk!(self, d => d.len())
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        disk!(self, d => d.read_at(offset, buf))
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        disk!(self, d => d.write_at(offset, buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        disk!(self, d => d.flush())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        disk!(self, d => d.set_len(len))
    }
}
