//! `flexkv bench transport`: its arguments. What is measured is known to `bench::transport`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use flexkv_tcp::TlsFiles;

use super::print_rows;
use crate::bench::transport::{self, Plan};
use crate::cli::{Again, usage};
use crate::units::{parse_bytes, parse_duration};

/// Transports between two processes: TCP and shared memory beside memcpy of the same slots.
///
/// Without --peer the owner is a process of this host. Between two hosts, with the same secret,
/// sizes and memory on both:
///
///   flexkv bench transport --serve 10.0.0.1:7500 --secret-file secret    # on the first
///   flexkv bench transport --peer 10.0.0.1:7500 --secret-file secret     # on the second
///
/// The owner uses one port for each size, from the given one on. Every block is verified; a checksum alone
/// has rows of its own.
///
/// With --striped a node reads all blocks from three owners, then from those and one that has 1 % of
/// their speed; the target is 0.9 of what the three bring.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct TransportArgs {
    /// Fetch from the owner that serves there
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["serve", "local"])]
    peer: Option<SocketAddr>,
    /// Fetch from a process of this host, as without any of the three
    #[arg(long, conflicts_with = "serve")]
    local: bool,
    /// Be the owner, until standard input ends
    #[arg(long, value_name = "ADDRESS")]
    serve: Option<SocketAddr>,
    /// Fetch from four processes of this host at once, one of them slow
    #[arg(long, conflicts_with_all = ["peer", "serve", "batch", "time", "tls_certificate_file"])]
    striped: bool,
    /// Sizes of blocks
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = parse_bytes,
          default_value = "64KiB,256KiB,1MiB")]
    sizes: Vec<u64>,
    /// Blocks fetched at once
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,32",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    batch: Vec<usize>,
    /// How long each transport is measured in one round
    #[arg(long, value_name = "DURATION", default_value = "400 ms", value_parser = parse_duration)]
    time: Duration,
    /// Rounds, in each of which all transports have their turn
    #[arg(long, value_name = "N", default_value_t = 7,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    rounds: usize,
    /// Memory of each side for each size
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    memory: u64,
    /// First line: what both sides know
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Measure TLS, too: a certificate for both sides, which bears the owner's address
    #[arg(long, value_name = "FILE", requires_all = ["tls_key_file", "tls_ca_file"])]
    tls_certificate_file: Option<PathBuf>,
    /// The certificate's private key
    #[arg(long, value_name = "FILE", requires = "tls_certificate_file")]
    tls_key_file: Option<PathBuf>,
    /// Certificates of the authorities that are believed
    #[arg(long, value_name = "FILE", requires = "tls_certificate_file")]
    tls_ca_file: Option<PathBuf>,
    /// The name that the certificate bears instead of an address
    #[arg(long, value_name = "NAME", requires = "tls_certificate_file")]
    tls_name: Option<String>,
    /// Print an array of rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: TransportArgs, again: &Again, out: &mut dyn Write) -> Result<()> {
    let local = args.local || (args.peer.is_none() && args.serve.is_none());
    let secret = match &args.secret_file {
        Some(file) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        None if !local => {
            return Err(usage("--peer and --serve need --secret-file"));
        }
        None => format!("{:032x}", fastrand::Rng::new().u128(..)),
    };
    let plan = Plan {
        sizes: args.sizes.iter().map(|size| *size as usize).collect(),
        batches: args.batch,
        time: args.time,
        rounds: args.rounds,
        memory: args.memory,
        secret: secret.clone().into_bytes(),
        tls: args
            .tls_certificate_file
            .zip(args.tls_key_file)
            .zip(args.tls_ca_file)
            .map(|((certificate, key), authorities)| TlsFiles {
                certificate,
                key,
                authorities,
                name: args.tls_name,
            }),
    };
    if let Some(listen) = args.serve {
        return transport::serve(&plan, listen, out).await;
    }
    let rows = match args.peer {
        Some(peer) => transport::run(&plan, &transport::offers(&plan, peer)?, None).await?,
        None => {
            let mut file = tempfile::NamedTempFile::new().context("cannot make a file")?;
            file.write_all(secret.as_bytes())?;
            let (path, program) = (file.path().to_owned(), again.command()?);
            if args.striped {
                transport::striped(&plan, program, path).await?
            } else {
                transport::local(&plan, program, path).await?
            }
        }
    };
    print_rows(&rows, args.json, out)
}
