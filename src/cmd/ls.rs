//! `netswap ls`: what a server has at a URL.

use netswap::real::{ListFailure, ListOptions, SchemeTable};
use netswap::report::table;
use netswap::units::Nanos;

use super::{EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, Failure, Outcome, out, remote};

#[derive(clap::Args)]
#[command(after_help = remote::with_urls("Examples:
  netswap ls nfs://server/export
  netswap ls 'nfs://127.0.0.1/swap?nfsport=20490&mountport=20490' --json
  netswap ls iscsi://server                      the targets
  netswap ls iscsi://server/iqn.2026-01.org.example:disk      its LUNs\n
Columns of a directory: type and permissions, user, group, bytes, bytes that are stored (fewer: the file has holes), name.\n
Exit codes: 0 listed; 1 the server refused, or sent what is no list; 2 the command line; 3 nobody answers, or the \
portmapper does not know the server."))]
pub(super) struct Args {
    /// A directory, the targets of a portal, or the LUNs of a target
    url: String,
    /// How long it may take to connect, and each call
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = remote::some_time)]
    timeout: Nanos,
    /// Print JSON: an object an entry, one a line
    #[arg(long)]
    json: bool,
}

/// What it means for the command that there is no list.
fn not_listed(error: ListFailure) -> Failure {
    let code = match () {
        () if error.is_usage() => EXIT_USAGE,
        () if error.is_unreachable() => EXIT_UNREACHABLE,
        () => EXIT_FAILED,
    };
    Failure { code, message: Some(error.to_string()) }
}

pub(super) fn run(args: &Args) -> Outcome {
    let options = ListOptions { within: args.timeout.span(), ..ListOptions::default() };
    let listing = SchemeTable::builtin().list(&args.url, &options).map_err(not_listed)?;
    if args.json {
        for entry in &listing.entries {
            out::line(&entry.value)?;
        }
    } else if !listing.entries.is_empty() {
        let head = listing.columns.iter().map(ToString::to_string).collect();
        let rows = listing.entries.into_iter().map(|entry| entry.cells);
        out::print(table(&std::iter::once(head).chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use netswap::nfs::ListError;
    use netswap::real::nfs::NfsListFailure;

    use super::*;

    #[test]
    fn what_nobody_serves_is_unreachable_and_what_is_no_list_has_failed() {
        let server = "10.0.0.2:111".parse().unwrap();
        let unknown = NfsListFailure::Unregistered { server, service: "MOUNT", version: 3 };
        let failure = not_listed(unknown.into());
        assert_eq!(failure.code, EXIT_UNREACHABLE);
        assert_eq!(
            failure.message.as_deref(),
            Some(
                "the portmapper at 10.0.0.2:111 does not know MOUNT version 3: is the NFS server running? If it \
                 is, name its ports by nfsport= and mountport= in the URL"
            )
        );
        for error in [
            ListError::TooMany { max: 5 },
            ListError::Circle { cookie: 7 },
            ListError::NotServed { program: "NFS", version: 3 },
        ] {
            let refused = NfsListFailure::Refused { server: "nfs://h/e".into(), error };
            assert_eq!(not_listed(refused.into()).code, EXIT_FAILED);
        }
    }
}
