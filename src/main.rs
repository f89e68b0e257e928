//! The `netswap` command. One file a subcommand, under `cmd`.

mod cmd;

use std::process::ExitCode;

fn main() -> ExitCode {
    cmd::run()
}
