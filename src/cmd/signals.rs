//! SIGINT and SIGTERM: they end an event loop at its next turn instead of the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netswap::net::kernel::Waker;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether the user wants the command to end.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on the first of the signals is noted, and `waker` ends the loop's wait. The second one
    /// ends the process as if nobody had asked for the first.
    pub(super) fn on_signals(waker: Waker) -> io::Result<Stop> {
        let stop = Stop(Arc::default());
        let noted = Arc::clone(&stop.0);
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        // A thread of its own: a signal between the loop's look at the flag and its wait is not lost.
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if noted.swap(true, Ordering::Relaxed) {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                waker.wake();
            }
        })?;
        Ok(stop)
    }

    /// Whether a signal came.
    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
