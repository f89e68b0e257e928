//! `netswap plan`: how much memory must be set aside, and for what.

use std::path::PathBuf;

use netswap::plan::host_plan;
use netswap::scenario::Scenario;

use super::{EXIT_OK, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  netswap plan\n  netswap plan --scenario my.toml")]
pub(super) struct Args {
    /// The scenario; the headline test if none is given
    #[arg(long, value_name = "FILE.toml")]
    scenario: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let scenario = match &args.scenario {
        Some(path) => Scenario::read(path).map_err(Failure::usage)?,
        None => Scenario::default(),
    };
    scenario.check_ranges().map_err(Failure::usage)?;
    let plan = host_plan(&scenario, 1);
    scenario.check(&plan).map_err(Failure::usage)?;
    out::line(plan)?;
    Ok(EXIT_OK)
}
