//! `netswap ls`: what is in a directory of an export.

use netswap::nfs::NfsUrl;
use netswap::nfs::proto::Fattr3;
use netswap::real::{ListFailure, ListOptions, Listed, list};
use netswap::report::table;
use netswap::units::Nanos;
use serde_json::json;

use super::{EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  netswap ls nfs://server/export
  netswap ls 'nfs://127.0.0.1/swap?nfsport=20490&mountport=20490' --json\n
Columns: type and permissions, user, group, bytes, bytes that are stored (fewer: the file has holes), name.\n
Exit codes: 0 listed; 1 the server refused, or sent what is no list; 2 the command line; 3 nobody answers, or the \
portmapper does not know the server.")]
pub(super) struct Args {
    /// The directory: nfs://host[:port]/export/path[?nfsport=N&mountport=N&uid=N&gid=N]
    #[arg(value_parser = NfsUrl::parse_directory)]
    url: NfsUrl,
    /// How long it may take to connect, and each call
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: Nanos,
    /// Print JSON: an object an entry, one a line
    #[arg(long)]
    json: bool,
}

/// Names of `ftype3` (RFC 1813 section 2.6), and their letters.
const TYPES: [(&str, char); 8] = [
    ("unknown", '?'),
    ("file", '-'),
    ("directory", 'd'),
    ("block device", 'b'),
    ("character device", 'c'),
    ("symbolic link", 'l'),
    ("socket", 's'),
    ("fifo", 'p'),
];

/// As `ls -l` writes them.
fn permissions(attrs: &Fattr3) -> String {
    let letter = TYPES.get(attrs.ftype as usize).map_or('?', |(_, letter)| *letter);
    let bits = (0..9).map(|i| match attrs.mode & (0o400 >> i) {
        0 => '-',
        _ => ['r', 'w', 'x'][i % 3],
    });
    std::iter::once(letter).chain(bits).collect()
}

/// A name without what would move a terminal's cursor: a server may send any bytes.
fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .flat_map(|c| {
            let plain = (!c.is_control()).then_some(c);
            plain
                .into_iter()
                .chain(c.is_control().then(|| c.escape_default()).into_iter().flatten())
        })
        .collect()
}

fn row(entry: &Listed) -> Vec<String> {
    let name = printable(&entry.name);
    match &entry.attrs {
        Some(attrs) => vec![
            permissions(attrs),
            attrs.uid.to_string(),
            attrs.gid.to_string(),
            attrs.size.to_string(),
            attrs.used.to_string(),
            name,
        ],
        None => ["?"; 5].into_iter().map(String::from).chain([name]).collect(),
    }
}

fn object(entry: &Listed) -> serde_json::Value {
    let mut object = json!({
        "name": String::from_utf8_lossy(&entry.name),
        "fileid": entry.fileid,
    });
    if let Some(attrs) = &entry.attrs {
        let kind = TYPES.get(attrs.ftype as usize).map_or("unknown", |(name, _)| name);
        object["type"] = json!(kind);
        object["mode"] = json!(attrs.mode);
        object["nlink"] = json!(attrs.nlink);
        object["uid"] = json!(attrs.uid);
        object["gid"] = json!(attrs.gid);
        object["size"] = json!(attrs.size);
        object["used"] = json!(attrs.used);
        object["mtime_s"] = json!(attrs.mtime.0);
    }
    object
}

/// What it means for the command that there is no list.
fn not_listed(error: ListFailure) -> Failure {
    let code = if error.is_unreachable() { EXIT_UNREACHABLE } else { EXIT_FAILED };
    Failure { code, message: Some(error.to_string()) }
}

pub(super) fn run(args: &Args) -> Outcome {
    let options = ListOptions { within: args.timeout.span(), ..ListOptions::default() };
    let mut entries = list(&args.url, &options).map_err(not_listed)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        for entry in &entries {
            out::line(object(entry))?;
        }
    } else if !entries.is_empty() {
        let head = ["mode", "uid", "gid", "size", "used", "name"].map(String::from).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(entries.iter().map(row)).collect();
        out::print(table(&rows))?;
    }
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use netswap::nfs::ListError;

    use super::*;

    #[test]
    fn what_nobody_serves_is_unreachable_and_what_is_no_list_has_failed() {
        let server = "10.0.0.2:111".parse().unwrap();
        let unknown = ListFailure::Unregistered { server, service: "MOUNT", version: 3 };
        let failure = not_listed(unknown);
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
            let failure = not_listed(ListFailure::List { server: "nfs://h/e".into(), error });
            assert_eq!(failure.code, EXIT_FAILED);
        }
    }

    #[test]
    fn what_a_server_calls_its_files_does_not_move_the_cursor() {
        assert_eq!(printable(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
        assert_eq!(printable("größe".as_bytes()), "größe");
    }
}
