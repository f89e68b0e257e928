//! Standard output, whose reader may be gone and whose disk may be full; and standard error.
//!
//! A reader that is gone (`netswap plan | head -1`) has what it wanted: the command ends, silently and
//! without blame, as Rust's other tools do. Any other failure to write is an error, as the output
//! would be missing something. The library's `println!` would panic for both, so nothing here uses it.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use super::{EXIT_FAILED, EXIT_OK, Failure};

/// Prints `text` and ends the line; what was printed is out when this returns.
pub(super) fn line(text: impl fmt::Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Prints `text` as it is.
pub(super) fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    failed(write!(out, "{text}").and_then(|()| out.flush()))
}

/// What a failure to write standard output means.
pub(super) fn failed(written: io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure { code: EXIT_OK, message: None },
        _ => Failure {
            code: EXIT_FAILED,
            message: Some(format!("cannot write the output: {error}")),
        },
    })
}

/// A line on standard error. If nobody can read it, nobody can be told.
pub(super) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A number of things, in words: `1 seed`, `2 seeds`.
pub(super) fn count(n: u64, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_is_gone_is_no_failure_and_a_full_disk_is() {
        let gone = failed(Err(ErrorKind::BrokenPipe.into())).unwrap_err();
        assert_eq!((gone.code, gone.message), (EXIT_OK, None));
        let full = failed(Err(ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(full.code, EXIT_FAILED);
        assert!(full.message.unwrap().starts_with("cannot write the output: "));
        assert!(failed(Ok(())).is_ok());
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([count(0, "seed"), count(1, "seed")], ["0 seeds", "1 seed"]);
    }
}
