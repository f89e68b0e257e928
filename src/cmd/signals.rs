//! SIGINT and SIGTERM: they end an event loop at its next turn, or a run with the report so far, instead of the process at
//! once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use netswap::real::Interrupt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, Outcome};

/// Whether the user wants the command to end: the signal that said so, or 0.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicI32>);

impl Stop {
    /// From now on the first of the signals is noted, and `wake` ends the wait of whoever looks. The second one
    /// ends the process as if nobody had asked for the first.
    pub(super) fn on_signals(wake: impl Fn() + Send + 'static) -> io::Result<Stop> {
        let stop = Stop(Arc::default());
        let noted = Arc::clone(&stop.0);
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        // A thread of its own: a signal between the loop's look at the flag and its wait is not lost.
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if noted.swap(signal, Ordering::SeqCst) != 0 {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                wake();
            }
        })?;
        Ok(stop)
    }

    /// Whether a signal came.
    pub(super) fn is_asked(&self) -> bool {
        self.exit_code().is_some()
    }

    /// What a command exits with that a signal has ended early: what a shell says of one that died of it.
    fn exit_code(&self) -> Option<u8> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(128 + signal as u8),
        }
    }
}

/// Carries out `run`, which the first signal ends with the report so far, and the second at once.
pub(super) fn interruptible(run: impl FnOnce(Interrupt) -> Outcome) -> Outcome {
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    let stop = Stop::on_signals(move || raised.raise())
        .map_err(|error| Failure::of_run(format_args!("cannot wait for signals: {error}")))?;
    let outcome = run(interrupt);
    match (stop.exit_code(), outcome) {
        (None, outcome) => outcome,
        (Some(code), Ok(_)) => Ok(code),
        (Some(code), Err(failure)) => Err(Failure { code, ..failure }),
    }
}
