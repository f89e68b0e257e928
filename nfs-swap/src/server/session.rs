//! One connection of the server: records in, replies out.

use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::Time;
use netswap_swap::Disk;

use super::{NfsServer, RecordState, faults};
use crate::rpc::RecordNext;

/// The server's end of one connection.
#[derive(Debug)]
pub struct ServerSession<'s, D: Disk> {
    server: &'s mut NfsServer<D>,
    i: usize,
}

impl<'s, D: Disk> ServerSession<'s, D> {
    pub(super) fn new(server: &'s mut NfsServer<D>, i: usize) -> ServerSession<'s, D> {
        ServerSession { server, i }
    }

    /// Bytes of the region where record buffer `record` begins.
    fn record_start(&self, record: usize) -> usize {
        (self.i * self.server.config.records + record) * self.server.record_bytes
    }

    /// The buffer that the current call goes to.
    fn fill(&mut self) -> Option<usize> {
        let connection = &mut self.server.connections[self.i];
        if connection.filling.is_none() {
            let free = connection.records.iter().position(|r| r.state == RecordState::Free)?;
            connection.records[free].state = RecordState::Filling;
            connection.filling = Some(free);
        }
        connection.filling
    }

    fn abort(&mut self) {
        self.server.stats.bad_calls += 1;
        let connection = &mut self.server.connections[self.i];
        connection.forget();
        connection.open = false;
        connection.action = Some(Action::Abort);
    }

    /// A call is whole: executes it in its buffer, which then holds the reply.
    fn execute(&mut self, now: Time, record: usize) {
        let server = &mut *self.server;
        server.now = now;
        server.carry_out_held(now);
        let connection = &mut server.connections[self.i];
        let len = connection.reader.taken();
        connection.reader.reset();
        connection.filling = None;
        let Some(mut len) = server.execute(self.i, record, len) else {
            self.abort();
            return;
        };
        if len == 0 {
            self.server.connections[self.i].records[record].state = RecordState::Free;
            return;
        }
        let server = &mut *self.server;
        let faults = server.config.faults;
        if faults::happens(&mut server.rng, faults.garbage_ppm) {
            let start = (self.i * server.config.records + record) * server.record_bytes;
            let bytes = &mut server.records.bytes_mut()[start..start + server.record_bytes];
            len = faults::damage(&mut server.rng, &mut server.counts, bytes, len);
        }
        let late = faults::happens(&mut server.rng, faults.late_ppm);
        let twice = faults::happens(&mut server.rng, faults.twice_ppm);
        server.counts.late += u64::from(late);
        server.counts.twice += u64::from(twice);
        let connection = &mut server.connections[self.i];
        let entry = &mut connection.records[record];
        entry.len = len;
        entry.again = u32::from(twice);
        if late {
            entry.state = RecordState::Late(now + faults.late_by);
        } else {
            entry.state = RecordState::Queued;
            connection.sendq.push_back(record);
        }
    }
}

impl<D: Disk> Session for ServerSession<'_, D> {
    fn handle_connected(&mut self, _now: Time) {
        let connection = &mut self.server.connections[self.i];
        connection.forget();
        connection.action = None;
        connection.open = true;
    }

    fn handle_disconnected(&mut self, _now: Time, _why: Disconnect) {
        let connection = &mut self.server.connections[self.i];
        connection.forget();
        connection.action = None;
        connection.open = false;
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        if !self.server.connections[self.i].open {
            return &mut [];
        }
        // Backpressure: without a buffer for the call, its mark is not taken either.
        let Some(record) = self.fill() else { return &mut [] };
        let start = self.record_start(record);
        let connection = &mut self.server.connections[self.i];
        match connection.reader.next() {
            RecordNext::Mark(missing) => &mut connection.mark[..missing],
            RecordNext::Body(left) => {
                // The reader's bound keeps this inside the buffer.
                let at = start + 4 + connection.reader.taken();
                &mut self.server.records.bytes_mut()[at..at + left]
            }
            RecordNext::End => &mut [],
        }
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        if n == 0 {
            return;
        }
        let connection = &mut self.server.connections[self.i];
        let record = connection.filling.expect("bytes received without a buffer");
        match connection.reader.next() {
            RecordNext::Mark(missing) => {
                assert!(n <= missing, "more bytes received than were asked for");
                let mark = connection.mark;
                if connection.reader.push_mark(&mark[..n]).is_err() {
                    self.abort();
                    return;
                }
            }
            RecordNext::Body(_) => connection.reader.advance(n),
            RecordNext::End => {}
        }
        if self.server.connections[self.i].reader.next() == RecordNext::End {
            self.execute(now, record);
        }
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        let server = &mut *self.server;
        let connection = &server.connections[self.i];
        let bytes: &'a [u8] = server.records.bytes_mut();
        let mut skip = connection.sent_front;
        for record in &connection.sendq {
            let start = (self.i * server.config.records + record) * server.record_bytes;
            let end = start + connection.records[*record].len;
            if out.try_push(&bytes[start + skip..end]).is_err() {
                break;
            }
            skip = 0;
        }
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        let late_by = self.server.config.faults.late_by;
        let connection = &mut self.server.connections[self.i];
        let mut left = n;
        while left > 0 {
            let record = *connection.sendq.front().expect("more bytes taken than were shown");
            let entry = &mut connection.records[record];
            let rest = entry.len - connection.sent_front;
            if left < rest {
                connection.sent_front += left;
                break;
            }
            left -= rest;
            connection.sent_front = 0;
            connection.sendq.pop_front();
            entry.state = if entry.again > 0 {
                entry.again -= 1;
                RecordState::Late(now + late_by)
            } else {
                RecordState::Free
            };
        }
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        self.server.connections[self.i].action.take()
    }

    fn poll_deadline(&self) -> Option<Time> {
        self.server.connections[self.i]
            .records
            .iter()
            .filter_map(|record| match record.state {
                RecordState::Late(until) => Some(until),
                _ => None,
            })
            .chain(self.server.held_deadline())
            .min()
    }

    fn handle_deadline(&mut self, now: Time) {
        self.server.carry_out_held(now);
        let connection = &mut self.server.connections[self.i];
        for (i, record) in connection.records.iter_mut().enumerate() {
            if matches!(record.state, RecordState::Late(until) if until <= now) {
                record.state = RecordState::Queued;
                connection.sendq.push_back(i);
            }
        }
    }
}
