//! `netswap completions`: a completion script for a shell.

use clap::CommandFactory;

use super::{Cli, EXIT_OK, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  netswap completions bash > /etc/bash_completion.d/netswap")]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "netswap", &mut script);
    out::print(String::from_utf8_lossy(&script))?;
    Ok(EXIT_OK)
}
