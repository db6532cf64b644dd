//! `flexkv bench ssd`: its arguments. What is measured is known to `bench::ssd`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgAction, Args};
use flexkv_ssd::EngineChoice;

use super::print_rows;
use crate::bench::ssd::{self, FioMemory, Plan};
use crate::units::{parse_bytes, parse_duration};

/// The SSD tier on a directory: reads, writes, opening it again; beside fio if wanted.
///
/// Files of the size given are made in the directory, one for each engine and one more with
/// --with-fio, and removed afterwards. The directory must be on the device to be measured; /tmp may be memory.
///
///   flexkv bench ssd --dir /data
///   flexkv bench ssd --dir /data --sizes 1MiB --depths 32 --with-fio
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct SsdArgs {
    /// Where to make files
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Engines, which have their turns in each round
    #[arg(
        long,
        value_name = "ENGINE,...",
        value_delimiter = ',',
        default_value = "io-uring"
    )]
    engines: Vec<EngineChoice>,
    /// Sizes of blocks
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = parse_bytes,
          default_value = "256KiB,2MiB")]
    sizes: Vec<u64>,
    /// Transfers in flight
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "8,32",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    depths: Vec<u32>,
    /// How long each is measured in one round
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    time: Duration,
    /// Rounds, in each of which all have their turn
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Size of the files
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_bytes)]
    bytes: u64,
    /// Blocks of the tier that is opened again; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    recovered: u32,
    /// Whether blocks lie on huge pages, where the system has them
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    huge_pages: bool,
    /// Measure fio, too, which must be installed; its buffers lie on ordinary pages
    #[arg(long)]
    with_fio: bool,
    /// Have fio use huge pages, which must have been reserved (sysctl vm.nr_hugepages)
    #[arg(long, requires = "with_fio")]
    fio_huge_pages: bool,
    /// Print an array of rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: SsdArgs, out: &mut dyn Write) -> Result<()> {
    let memory = if args.fio_huge_pages {
        FioMemory::Huge
    } else {
        FioMemory::Ordinary
    };
    let plan = Plan {
        dir: args.dir,
        engines: args.engines,
        sizes: args.sizes.iter().map(|size| *size as usize).collect(),
        depths: args.depths,
        time: args.time,
        rounds: args.rounds,
        bytes: args.bytes,
        recovered: args.recovered,
        huge_pages: args.huge_pages,
        with_fio: args.with_fio.then_some(memory),
    };
    print_rows(&ssd::run(&plan).await?, args.json, out)
}
