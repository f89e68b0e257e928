//! The embedded NFS server on a socket of the loopback, in a thread of the test.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use netswap::net::kernel::{Clock, KernelConfig, KernelNet, ListenConfig, Waker};
use netswap::nfs::{NfsServer, NfsServerConfig};
use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig, Time};
use netswap::swap::signature::Header;
use netswap::swap::{Disk, MemDisk};

const CONNECTIONS: usize = 4;

/// What is done to the server in each of its turns.
type EachTurn = Box<dyn FnMut(&mut NfsServer<MemDisk>, &mut KernelNet) + Send>;
/// What the test may do to the server between two of its turns.
type Job = Box<dyn FnOnce(&mut NfsServer<MemDisk>, &mut KernelNet, &mut Option<EachTurn>) + Send>;

pub(crate) struct Served {
    pub(crate) addr: SocketAddr,
    jobs: Option<mpsc::Sender<Job>>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// A server that stands still, or is to.
pub(crate) struct Hang {
    hangs: mpsc::Receiver<()>,
    _release: mpsc::Sender<()>,
}

impl Hang {
    /// Waits until it does.
    pub(crate) fn wait(&self) {
        self.hangs.recv().unwrap();
    }
}

/// A disk with the header of an area, as `mkswap` leaves it.
pub(crate) fn area(slots: u32) -> MemDisk {
    area_in(slots, slots)
}

/// An area of `slots` at the beginning of a disk that has more.
pub(crate) fn area_in(disk_slots: u32, slots: u32) -> MemDisk {
    let mut disk = MemDisk::new(u64::from(disk_slots) * PAGE_SIZE as u64);
    let mut header = [0; PAGE_SIZE];
    Header::new(slots).write(&mut header);
    disk.write_at(0, &header).unwrap();
    disk
}

fn restart(server: &mut NfsServer<MemDisk>, net: &mut KernelNet) {
    server.restart(Time::ZERO);
    (0..CONNECTIONS).for_each(|at| net.make_ready(net.conn_at(at)));
}

impl Served {
    /// Serves `files` in the export `/swap`, and has disks of no bytes for some that clients create.
    pub(crate) fn new(files: Vec<(&'static str, MemDisk)>) -> Served {
        Served::with_config(NfsServerConfig::default(), files)
    }

    /// As [`Served::new`], by a server that is configured in another way.
    pub(crate) fn with_config(
        config: NfsServerConfig,
        files: Vec<(&'static str, MemDisk)>,
    ) -> Served {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (told, addr) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let config = NfsServerConfig { max_connections: CONNECTIONS, ..config };
            let pool = PagePool::new(PoolConfig::new(config.frames() + 256));
            let mut server = NfsServer::new(config, &pool).unwrap();
            files.into_iter().for_each(|(name, disk)| server.add_file(name, disk));
            server.add_spare(MemDisk::new(0));
            let config = KernelConfig { listeners: 1, ..KernelConfig::new(CONNECTIONS) };
            let mut net = KernelNet::new(config).unwrap();
            let at = "127.0.0.1:0".parse().unwrap();
            let listener = net.listen(&ListenConfig::new(at, CONNECTIONS)).unwrap();
            told.send((net.listener_addr(listener), net.waker())).unwrap();
            let clock = Clock::new();
            let mut each_turn = None;
            loop {
                net.wait(clock.now(), None).unwrap();
                loop {
                    match inbox.try_recv() {
                        Ok(job) => job(&mut server, &mut net, &mut each_turn),
                        Err(mpsc::TryRecvError::Empty) => break,
                        Err(mpsc::TryRecvError::Disconnected) => return,
                    }
                }
                if let Some(each_turn) = &mut each_turn {
                    each_turn(&mut server, &mut net);
                }
                let now = clock.now();
                while let Some(id) = net.next_ready(now) {
                    net.drive(now, id, &mut server.connection(id.index()));
                }
            }
        });
        let (addr, waker) = addr.recv().unwrap();
        Served { addr, jobs: Some(jobs), waker, thread: Some(thread) }
    }

    /// The URL of a file of the export.
    pub(crate) fn url(&self, file: &str) -> String {
        format!("nfs://{}/swap/{file}", self.addr)
    }

    /// Does something to the server, and waits until it is done.
    pub(crate) fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut NfsServer<MemDisk>) -> T + Send + 'static,
    ) -> T {
        self.with_net(|server, _, _| job(server))
    }

    /// The server crashes and is there again at once: every connection is reset.
    pub(crate) fn restart(&self) {
        self.with_net(|server, net, _| restart(server, net));
    }

    /// It does this in each of its turns from now on, however little of the machine the test itself has.
    pub(crate) fn each_turn(
        &self,
        each: impl FnMut(&mut NfsServer<MemDisk>, &mut KernelNet) + Send + 'static,
    ) {
        self.with_net(|_, _, each_turn| *each_turn = Some(Box::new(each)));
    }

    /// Once `is_due`, it says so and stands still, until what is returned is dropped.
    pub(crate) fn hang_when(
        &self,
        is_due: impl Fn(&NfsServer<MemDisk>) -> bool + Send + 'static,
    ) -> Hang {
        let (tell, hangs) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        self.each_turn(move |server, _| {
            if is_due(server) {
                let _ = tell.send(());
                // It ends when the other end goes, and at once from then on.
                let _ = released.recv();
            }
        });
        Hang { hangs, _release: release }
    }

    /// It restarts whenever it has taken `calls` more calls, so that each restart meets requests on their way. Returns
    /// how often it has.
    pub(crate) fn restart_every(&self, calls: u64) -> Arc<AtomicU32> {
        let restarts = Arc::new(AtomicU32::new(0));
        let (count, mut next) = (restarts.clone(), calls);
        self.each_turn(move |server, net| {
            if server.stats().calls >= next {
                next = server.stats().calls + calls;
                restart(server, net);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        restarts
    }

    fn with_net<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut NfsServer<MemDisk>, &mut KernelNet, &mut Option<EachTurn>) -> T
        + Send
        + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        let job: Job =
            Box::new(move |server, net, each| done.send(job(server, net, each)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        self.waker.wake();
        result.recv().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.waker.wake();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}
