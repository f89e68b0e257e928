//! `netswap replay`: an allocator trace of `netswap sim --alloc-trace`, done again without the simulation.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use netswap_reserve_model::replay::ReplayError;
use netswap_reserve_model::{Model, Replayed, replay};
use serde::Serialize;

use super::{EXIT_FAILED, EXIT_OK, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(
    after_help = "Every outcome has to be the one that was recorded: exit code 1 says that one was not, \
                  2 that the file is no trace or was cut."
)]
pub(super) struct Args {
    /// What `netswap sim --alloc-trace` wrote, plain or zstd
    #[arg(value_name = "FILE")]
    trace: PathBuf,
    /// Compare with a naive model too, which is slow: for small hosts
    #[arg(long)]
    model: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    operations: u64,
    frames: u64,
    charged: u64,
    refused: u64,
    freed: u64,
    lowest_free: u32,
    compared_with_model: bool,
    wall_s: f64,
}

pub(super) fn run(args: &Args) -> Outcome {
    let file = open(&args.trace)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.trace.display())))?;
    let started = Instant::now();
    let replayed = match replay(file, |header| args.model.then(|| Model::new(header))) {
        Ok(replayed) => replayed,
        Err(error @ (ReplayError::Differs { .. } | ReplayError::Counters { .. })) => {
            out::note(format_args!("netswap: {}: {error}", args.trace.display()));
            return Ok(EXIT_FAILED);
        }
        Err(error) => return Err(Failure::usage(format!("{}: {error}", args.trace.display()))),
    };
    let wall_s = started.elapsed().as_secs_f64();
    let Replayed { ops, frames, charged, refused, freed, lowest_free } = replayed;
    if args.json {
        let report = Report {
            operations: ops,
            frames,
            charged,
            refused,
            freed,
            lowest_free,
            compared_with_model: args.model,
            wall_s,
        };
        out::line(serde_json::to_string(&report).expect("a report has only plain fields"))?;
        return Ok(EXIT_OK);
    }
    out::line(format_args!(
        "{ops} operations in {wall_s:.2} s, each as recorded{}:\n\
         {frames} frames given out, {charged} of them charged to a reserve; {refused} allocations refused; \
         {freed} frames freed; at the lowest {lowest_free} were free",
        if args.model { ", and as the model says" } else { "" },
    ))?;
    Ok(EXIT_OK)
}

/// `Magic_Number` of a zstd frame (RFC 8878, section 3.1.1), as it lies in the file.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(path)?);
    if io::BufRead::fill_buf(&mut file)?.starts_with(&ZSTD_MAGIC) {
        return Ok(Box::new(zstd::Decoder::with_buffer(file)?));
    }
    Ok(Box::new(file))
}
