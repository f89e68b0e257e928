//! A TCP proxy between the client and a server: it can cut connections by a reset after the n-th byte, or flip a bit of it,
//! and gives all that passes to a [`RecordLog`], as it came.
//!
//! Bytes are logged before they are passed on, so the log has each call before its answer, and each answer before
//! whatever the client does because of it. If connections are cut, the server sees another source port with each, as if
//! the client could not keep its own. Otherwise it sees the client's ports, at another address.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use super::record_log::{RecordLog, Way};

/// How often a thread looks whether its connection was cut by the other.
const LOOK: Duration = Duration::from_millis(5);
/// Where the client's ports are kept: an address of the loopback that nobody else takes them at.
const KEPT_AT: [u8; 4] = [127, 0, 0, 3];

/// What becomes of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// It is the last that passes.
    Cut,
    /// A bit of it is another. Bytes count from the end of a login: what comes before has no digest.
    Flip,
}

/// Which connections are harmed.
pub(crate) struct Cuts {
    rng: Xoshiro256PlusPlus,
    left: u32,
    bytes_max: u64,
    harm: Harm,
}

impl Cuts {
    pub(crate) fn none() -> Cuts {
        Cuts::new(0, 0, 1)
    }

    /// The first `left` connections, each after at most `bytes_max` bytes in one of the directions.
    pub(crate) fn new(seed: u64, left: u32, bytes_max: u64) -> Cuts {
        Cuts { rng: Xoshiro256PlusPlus::seed_from_u64(seed), left, bytes_max, harm: Harm::Cut }
    }

    /// The same, but that a bit is flipped.
    pub(crate) fn flips(seed: u64, left: u32, bytes_max: u64) -> Cuts {
        Cuts { harm: Harm::Flip, ..Cuts::new(seed, left, bytes_max) }
    }

    fn draw(&mut self) -> Option<(Way, Limit)> {
        self.left = self.left.checked_sub(1)?;
        let drawn = self.rng.next_u64();
        let way = if drawn >> 63 == 0 { Way::ToServer } else { Way::ToClient };
        Some((way, Limit { harm: self.harm, bytes: 1 + drawn % self.bytes_max }))
    }
}

/// The byte that is harmed.
#[derive(Clone, Copy)]
struct Limit {
    harm: Harm,
    bytes: u64,
}

struct Shared {
    target: SocketAddr,
    keeps_ports: bool,
    log: Arc<RecordLog>,
    cuts: Mutex<Cuts>,
    closing: AtomicBool,
    /// Grows when all connections are to be cut.
    wave: AtomicU32,
    made: AtomicU32,
    in_a_record: AtomicU32,
}

pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(crate) fn start(target_port: u16, log: &Arc<RecordLog>, cuts: Cuts) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target: SocketAddr::from(([127, 0, 0, 1], target_port)),
            keeps_ports: cuts.left == 0,
            log: log.clone(),
            cuts: Mutex::new(cuts),
            closing: AtomicBool::new(false),
            wave: AtomicU32::new(0),
            made: AtomicU32::new(0),
            in_a_record: AtomicU32::new(0),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut pipes: Vec<JoinHandle<()>> = Vec::new();
            for client in listener.incoming() {
                if of_thread.closing.load(Ordering::Acquire) {
                    break;
                }
                let (client, shared) = (client.unwrap(), of_thread.clone());
                pipes.push(std::thread::spawn(move || shared.serve(client)));
            }
            pipes.into_iter().for_each(|pipe| pipe.join().unwrap());
        });
        Proxy { port, shared, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections there are, wherever they are in their records.
    pub(crate) fn cut_all(&self) {
        self.shared.wave.fetch_add(1, Ordering::AcqRel);
    }

    /// Bytes harmed, and how many of them were inside of a record.
    pub(crate) fn cuts(&self) -> (u32, u32) {
        let read = |count: &AtomicU32| count.load(Ordering::Acquire);
        (read(&self.shared.made), read(&self.shared.in_a_record))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // The listener wakes up to see it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

impl Shared {
    fn serve(&self, client: TcpStream) {
        let wave = self.wave.load(Ordering::Acquire);
        // Closed, a socket answers by a reset.
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        let Ok(server) = self.connect(&client) else { return };
        set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        for socket in [&client, &server] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            socket.set_write_timeout(Some(LOOK)).unwrap();
        }
        let conn = self.log.begin(self.target.port());
        let cut = self.cuts.lock().unwrap().draw();
        let limit = |way| cut.filter(|(of, _)| *of == way).map(|(_, limit)| limit);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.pass(
                    &client,
                    &server,
                    conn,
                    Way::ToServer,
                    limit(Way::ToServer),
                    (&over, wave),
                );
            });
            self.pass(&server, &client, conn, Way::ToClient, limit(Way::ToClient), (&over, wave));
        });
        self.log.end(conn);
    }

    fn connect(&self, client: &TcpStream) -> std::io::Result<TcpStream> {
        if !self.keeps_ports {
            return TcpStream::connect(self.target);
        }
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::from((KEPT_AT, client.peer_addr()?.port())))?;
        connect(&socket, &self.target)?;
        Ok(socket.into())
    }

    /// Passes bytes on until either side ends, or the limit is reached.
    fn pass(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        conn: usize,
        way: Way,
        limit: Option<Limit>,
        (over, wave): (&AtomicBool, u32),
    ) {
        let mut buf = vec![0; 64 << 10];
        let harm = limit.map_or(Harm::Cut, |limit| limit.harm);
        let mut left = limit.map_or(u64::MAX, |limit| limit.bytes);
        let is_over = || {
            let is_cut = self.wave.load(Ordering::Acquire) != wave;
            is_cut || over.load(Ordering::Acquire) || self.closing.load(Ordering::Acquire)
        };
        let waits = |error: &std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            )
        };
        'all: while left > 0 && !is_over() {
            let counts = harm == Harm::Cut || self.log.is_full(conn);
            let most = match counts {
                true => buf.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
                false => buf.len(),
            };
            let got = match from.read(&mut buf[..most]) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if waits(&error) => continue,
                Err(_) => break,
            };
            let is_inside = self.log.pass(conn, way, &buf[..got]);
            left -= if counts { got as u64 } else { 0 };
            if left == 0 {
                self.made.fetch_add(1, Ordering::AcqRel);
                self.in_a_record.fetch_add(u32::from(is_inside), Ordering::AcqRel);
                if harm == Harm::Flip {
                    buf[got - 1] ^= 0x10;
                    left = u64::MAX;
                }
            }
            let mut rest = &buf[..got];
            while !rest.is_empty() {
                match to.write(rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(error) if waits(&error) && !is_over() => {}
                    Err(_) => break 'all,
                }
            }
        }
        over.store(true, Ordering::Release);
    }
}
