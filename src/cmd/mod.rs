//! The command line: subcommands, and what they share.
//!
//! Exit codes: 0 all went as it should, or the reader of the output is gone; 1 a run did not, or the
//! output cannot be written; 2 the command line, a scenario or a trace cannot be used; 3 a server cannot be
//! reached; 130 and 143 SIGINT and SIGTERM ended `io`, `mkswap` or a `sim` over a real server, with the report so
//! far.

mod check;
mod completions;
mod io;
mod ls;
mod mkswap;
mod out;
mod plan;
mod progress;
mod remote;
mod replay;
mod serve;
mod signals;
mod sim;
mod stress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// All went as it should.
const EXIT_OK: u8 = 0;
/// A run did not end as it should, or the output cannot be written.
const EXIT_FAILED: u8 = 1;
/// The command line, a scenario or a trace cannot be used.
const EXIT_USAGE: u8 = 2;
/// A server cannot be reached.
const EXIT_UNREACHABLE: u8 = 3;

#[derive(Parser)]
#[command(
    name = "netswap",
    version,
    about = "Swap over a network, without the deadlock",
    after_help = "Exit codes: 0 all went as it should, or the reader of the output is gone; 1 a run did not, or \
                  the output cannot be written; 2 the command line, a scenario or a trace cannot be \
                  used; 3 a server cannot be reached; 130 and 143 SIGINT and SIGTERM ended it early.\nLogging: NETSWAP_LOG=debug (tracing filter syntax), to standard error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a host under memory pressure that swaps over a network, protected and not
    Sim(Box<sim::Args>),
    /// Run randomly drawn scenarios with all protections on, and check every page and every frame
    Stress(stress::Args),
    /// Put a load on a file or a LUN of a real server, and verify every page
    Io(Box<io::Args>),
    /// Find out whether a file or a LUN of a real server is fit to swap on
    Check(check::Args),
    /// Print how much memory must be set aside before swapping starts, term by term
    Plan(plan::Args),
    /// Do again what an allocator trace says, and compare every outcome
    Replay(replay::Args),
    /// Make a file on a server, or a LUN, a swap area: write all of it, then the signature
    Mkswap(mkswap::Args),
    /// List a directory of an NFS export, or the targets and LUNs of an iSCSI portal
    Ls(ls::Args),
    /// Serve a file by the embedded server, with faults on demand, to clients of any kind
    Serve(serve::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Why the command ends early: what the process exits with, and a message for the user, if there is
/// anything to say.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    fn usage(message: impl ToString) -> Failure {
        Failure { code: EXIT_USAGE, message: Some(message.to_string()) }
    }

    /// The run did not end as it should.
    fn of_run(message: impl ToString) -> Failure {
        Failure { code: EXIT_FAILED, message: Some(message.to_string()) }
    }

    /// The same, after the runs came to `code`: nobody reading it does not make it better.
    fn after(self, code: u8) -> Failure {
        Failure { code: self.code.max(code), ..self }
    }
}

type Outcome = Result<u8, Failure>;

/// Parses the command line and carries it out.
pub(crate) fn run() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("NETSWAP_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let outcome = Cli::try_parse().map_err(told).and_then(|cli| match cli.command {
        Command::Sim(args) => sim::run(&args),
        Command::Stress(args) => stress::run(&args),
        Command::Io(args) => io::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Mkswap(args) => mkswap::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Completions(args) => completions::run(&args),
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, message }) => {
            if let Some(message) = message {
                out::note(format_args!("netswap: {message}"));
            }
            ExitCode::from(code)
        }
    }
}

/// Prints what the parser has to say: help and version are output, the rest are errors.
fn told(said: clap::Error) -> Failure {
    if said.use_stderr() {
        let text = said.to_string();
        // An argument in the wrong place is repeated, and may be a URL with a password.
        match without_secrets(&text, std::env::args().skip(1)) {
            shown if shown == text => drop(said.print()),
            shown => out::note(shown.trim_end()),
        }
        return Failure { code: EXIT_USAGE, message: None };
    }
    let printed = said.print();
    out::failed(printed).err().unwrap_or(Failure { code: EXIT_OK, message: None })
}

/// `text` without what may be a secret in one of `words`, which it may repeat in whole or behind a `=`.
fn without_secrets(text: &str, words: impl Iterator<Item = String>) -> String {
    words.fold(text.into(), |text: String, word| {
        let value = word.split_once('=').map_or("", |(_, value)| value);
        [word.as_str(), value]
            .into_iter()
            .filter(|part| part.contains(['@', '?']))
            .fold(text, |text, part| text.replace(part, &netswap::real::redacted(part)))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use netswap::iscsi::{IscsiListUrl, IscsiUrl};
    use netswap::nfs::NfsUrl;

    use super::*;

    /// The examples in the help of `command` and of those below it, as a shell splits them.
    fn examples(command: &clap::Command) -> Vec<Vec<String>> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter(|line| line.starts_with("  "));
        let lines = lines.filter_map(|line| line.find("netswap ").map(|at| &line[at..]));
        let below = command.get_subcommands().flat_map(examples);
        lines.map(split).chain(below).collect()
    }

    /// Up to a redirection, or to two blanks: what the example is for follows them.
    fn split(line: &str) -> Vec<String> {
        let line = line.split(" > ").next().unwrap();
        let mut words = vec![String::new()];
        let (mut quoted, mut before) = (false, ' ');
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted && before == ' ' => break,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
            before = c;
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_in_the_help_is_a_command_line() {
        let examples = examples(&Cli::command());
        assert!(examples.len() > 30, "{examples:?}");
        for words in examples {
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{words:?}: {error}");
            }
            for url in words.iter().filter(|word| word.contains("://")) {
                let lists = words[1] == "ls";
                let fine = match url.starts_with("nfs:") {
                    true if lists => NfsUrl::parse_directory(url).is_ok(),
                    true => url.parse::<NfsUrl>().is_ok(),
                    false if lists => url.parse::<IscsiListUrl>().is_ok(),
                    false => url.parse::<IscsiUrl>().is_ok(),
                };
                assert!(fine, "{words:?}");
            }
        }
    }

    #[test]
    fn what_the_parser_repeats_has_no_secret_in_it() {
        let url = "iscsi:/user%hunter2@host/t/1?target_password=hunter3";
        for (said, word) in [
            (format!("unexpected argument '{url}' found"), url.into()),
            (format!("invalid value '{url}' for '--backend'"), format!("--backend={url}")),
        ] {
            let shown = without_secrets(&said, [word].into_iter());
            assert!(!shown.contains("hunter") && shown.contains("@host/t/1"), "{shown}");
        }
        let plain = "unexpected argument 'area0' found";
        assert_eq!(without_secrets(plain, ["area0".into()].into_iter()), plain);
    }
}
