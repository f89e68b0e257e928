//! Cuts allocator traces into inputs for the fuzz target `reserve_ops`:
//!
//! ```text
//! cargo run -p netswap-reserve-model --example fuzz_seeds -- FOLDER TRACE...
//! ```

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use netswap_reserve_model::fuzz;

/// Operations of an input, and inputs of a trace. Picked by eye.
const OPS: usize = 400;
const INPUTS: usize = 40;

fn open(path: &Path) -> std::io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    if path.extension().is_some_and(|extension| extension == "zst") {
        return Ok(Box::new(zstd::Decoder::new(file)?));
    }
    Ok(Box::new(file))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = args.next().ok_or("usage: fuzz_seeds FOLDER TRACE...")?;
    std::fs::create_dir_all(&folder)?;
    for path in args {
        let seeds = fuzz::seeds(|| Ok(open(&path)?), OPS, INPUTS)?;
        let name = path.file_stem().ok_or("a trace is a file")?.to_string_lossy().into_owned();
        for (i, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("{name}-{i:02}")), seed)?;
        }
        println!("{}: {} inputs", path.display(), seeds.len());
    }
    Ok(())
}
