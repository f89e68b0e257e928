//! `netswap mkswap`: makes a file on a server, or a LUN, a swap area.

use std::fs::File;
use std::io::Read;

use netswap::real::{Interrupt, MkswapError, MkswapOptions, OpenOptions, Progress, make_area};
use netswap::units::{Bytes, Nanos};
use serde_json::json;

use super::progress::{self, Lines};
use super::remote::{self, Connect};
use super::signals::interruptible;
use super::{EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = remote::with_urls("Examples:
  netswap mkswap nfs://server/export/area0 --size 1GiB
  netswap mkswap nfs://server/export/area0 --size 1GiB --label build-host --force
  netswap mkswap iscsi://server/iqn.2026-01.org.example:disk/1
  netswap mkswap 'nfs://127.0.0.1/swap/area0?nfsport=20490&mountport=20490' --size 64MiB --json\n
Every page is written, and the signature last. A file or LUN that holds anything but zeros is read before and refused.\n
Exit codes: 0 made; 1 the server failed, or has no space; 2 the command line, or there is something that is not \
overwritten without --force; 3 nobody answers; 130 and 143 ended by SIGINT (Ctrl-C) or SIGTERM. A second signal ends it at once."))]
pub(super) struct Args {
    /// The file or the LUN
    url: String,
    /// Length of the area. A file is given it, and must have it if it is there already; a LUN may be longer
    /// [default: all of a LUN]
    #[arg(long)]
    size: Option<Bytes>,
    /// Overwrite whatever is there
    #[arg(long)]
    force: bool,
    /// Label of the area, of at most 16 bytes
    #[arg(long, default_value = "", value_parser = parse_label)]
    label: [u8; 16],
    /// UUID of the area, as 01234567-89ab-cdef-0123-456789abcdef; a random one if not given
    #[arg(long, value_parser = parse_uuid)]
    uuid: Option<[u8; 16]>,
    /// How long one request may take; a bare number is seconds
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = remote::some_time)]
    timeout: Nanos,
    #[command(flatten)]
    connect: Connect,
    /// Print JSON: one object
    #[arg(long)]
    json: bool,
}

fn parse_label(text: &str) -> Result<[u8; 16], String> {
    let mut label = [0; 16];
    match label.get_mut(..text.len()) {
        Some(room) if !text.contains('\0') => room.copy_from_slice(text.as_bytes()),
        _ => return Err(format!("{} bytes; a label has 16 at most, and no NUL", text.len())),
    }
    Ok(label)
}

fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let error = || "write it as 01234567-89ab-cdef-0123-456789abcdef".to_string();
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    let digits: String = text.split('-').collect();
    if groups != [8, 4, 4, 4, 12] || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(error());
    }
    let value = u128::from_str_radix(&digits, 16).map_err(|_| error())?;
    Ok(value.to_be_bytes())
}

fn format_uuid(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    let group = |range: std::ops::Range<usize>| &digits[range];
    [group(0..8), group(8..12), group(12..16), group(16..20), group(20..32)].join("-")
}

/// A random UUID (RFC 9562 section 5.4).
pub(super) fn random_uuid() -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut uuid))
        .map_err(|error| Failure::of_run(format_args!("/dev/urandom: {error}: give --uuid")))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

pub(super) fn run(args: &Args) -> Outcome {
    interruptible(|interrupt| run_until(args, interrupt))
}

fn run_until(args: &Args, interrupt: Interrupt) -> Outcome {
    let url = remote::url(&args.url)?;
    let uuid = args.uuid.map_or_else(random_uuid, Ok)?;
    let options = MkswapOptions {
        bytes: args.size.map(|size| size.0),
        force: args.force,
        uuid,
        label: args.label,
        request_timeout: args.timeout.span(),
    };
    let open = OpenOptions { interrupt, ..args.connect.options(1) };
    let result = with_progress(|told| make_area(&url, &open, &options, told));
    if let (true, Err(MkswapError::Interrupted { read, written, wanted, .. })) =
        (args.json, &result)
    {
        out::line(json!({
            "url": url.to_string(),
            "pages": wanted,
            "pages_read": read,
            "pages_written": written,
            "ended_early": "interrupted",
        }))?;
    }
    let made = result.map_err(not_made)?;
    let seconds = made.took.as_nanos() as f64 / 1e9;
    let label = args.label.split(|byte| *byte == 0).next().unwrap_or_default();
    let label = String::from_utf8_lossy(label);
    let bytes = u64::from(made.slots) * netswap::reserve::PAGE_SIZE as u64;
    if args.json {
        out::line(json!({
            "url": url.to_string(),
            "uuid": format_uuid(uuid),
            "label": label,
            "bytes": bytes,
            "pages": made.slots,
            "created": made.is_new,
            "pages_read": made.pages_read,
            "pages_written": made.pages_written,
            "took_s": seconds,
        }))?;
    } else {
        out::line(format_args!(
            "{}: swap area of {}, {} pages, {}label {label:?}, UUID {}; {} in {seconds:.1} s",
            url,
            Bytes(bytes),
            made.slots,
            if made.is_new { "created, " } else { "" },
            format_uuid(uuid),
            format_args!("{} written", out::count(made.pages_written, "page")),
        ))?;
    }
    Ok(EXIT_OK)
}

/// What it means for a command that no area was made.
pub(super) fn not_made(error: MkswapError) -> Failure {
    let code = match () {
        () if error.is_usage() || error.is_refusal() => EXIT_USAGE,
        () if error.is_unreachable() => EXIT_UNREACHABLE,
        () => EXIT_FAILED,
    };
    Failure { code, message: Some(error.to_string()) }
}

/// Lets an area be made by `make`, and shows how far it is.
pub(super) fn with_progress<T>(make: impl FnOnce(&mut dyn FnMut(Progress)) -> T) -> T {
    // How much there is of a LUN is not known before it is open.
    let mut pages = 0;
    let mut bar = None;
    let mut lines = Lines::new();
    let made = make(&mut |progress| {
        let (what, done) = match progress {
            Progress::Begun(slots) => {
                pages = u64::from(slots);
                bar = Some(progress::bar(pages, "{msg} [{bar:40}] {percent}% {eta}"));
                return;
            }
            Progress::Read(done) => ("reading what is there", done),
            Progress::Written(done) => ("writing", done),
        };
        if let Some(bar) = &bar {
            bar.set_message(what);
            bar.set_position(done);
        }
        lines.tell(format_args!("{what}: {done} of {pages} pages"));
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_and_labels_are_read_strictly_and_printed_as_they_were_written() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(format_uuid(parse_uuid(text).unwrap()), text);
        let signed = "+1234567-89ab-cdef-0123-456789abcdef";
        for wrong in ["", "0123", &text[1..], &text.replace('-', ""), signed] {
            assert!(parse_uuid(wrong).is_err(), "{wrong}");
        }
        assert_eq!(&parse_label("swap").unwrap()[..5], b"swap\0");
        assert!(parse_label("sixteen bytes are").is_err());
        let uuid = format_uuid(random_uuid().unwrap());
        assert_eq!(&uuid[14..15], "4", "{uuid}");
    }
}
