//! fio as a yardstick: one job at a time, its report read as JSON. Knows nothing of blocks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::process::Command;

use super::{FioMemory, GIB, Turn};

/// Random transfers past the page cache, with registered buffers and files.
pub(super) struct Job {
    /// Where its files lie: one for jobs that verify, one for all others.
    pub(super) dir: PathBuf,
    pub(super) bytes: u64,
    pub(super) block: usize,
    pub(super) depth: u32,
    pub(super) write: bool,
    pub(super) time: Duration,
    pub(super) memory: FioMemory,
    /// Compare each block with a checksum that it carries: CRC-32C, the cheapest of those that fio has.
    pub(super) verify: bool,
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<JobReport>,
}

#[derive(Deserialize)]
struct JobReport {
    read: Transfers,
    write: Transfers,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct Transfers {
    io_bytes: u64,
    /// Milliseconds.
    runtime: u64,
}

impl Job {
    /// Runs the job; the file is made by fio before it begins to count.
    pub(super) async fn run(&self) -> Result<Turn> {
        let way = if self.write { "randwrite" } else { "randread" };
        let time = format!("--runtime={}ms", self.time.as_millis());
        self.call(&[format!("--rw={way}"), time, "--time_based".to_owned()])
            .await
    }

    /// Writes the file that jobs which verify read.
    pub(super) async fn prepare(&self) -> Result<()> {
        let words = ["--rw=write", "--do_verify=0"].map(str::to_owned);
        self.call(&words).await.map(drop)
    }

    async fn call(&self, more: &[String]) -> Result<Turn> {
        let file = if self.verify { "fio-verified" } else { "fio" };
        let mut words = vec![
            "--name=peer".to_owned(),
            format!("--filename={}", self.dir.join(file).display()),
            format!("--size={}", self.bytes),
            format!("--bs={}", self.block),
            format!("--iodepth={}", self.depth),
            // A file that is written over, not one that grows.
            "--overwrite=1".to_owned(),
            "--ioengine=io_uring".to_owned(),
            "--fixedbufs".to_owned(),
            "--registerfiles".to_owned(),
            "--direct=1".to_owned(),
            match self.memory {
                FioMemory::Ordinary => "--mem=malloc".to_owned(),
                FioMemory::Huge => "--mem=mmaphuge".to_owned(),
            },
            "--output-format=json".to_owned(),
        ];
        if self.verify {
            words.push("--verify=crc32c".to_owned());
            // It would lie in the working directory.
            words.push("--verify_state_save=0".to_owned());
        }
        words.extend_from_slice(more);
        let output = Command::new("fio").args(&words).output().await;
        let output = output.context("cannot run fio; is it installed?")?;
        if !output.status.success() {
            bail!(
                "fio failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        parse(&output.stdout)
    }
}

fn parse(text: &[u8]) -> Result<Turn> {
    // Notes may stand before the report.
    let start = text.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let report: Report = serde_json::from_slice(&text[start..]).context("the report of fio")?;
    let [job] = &report.jobs[..] else {
        bail!("fio reports {} jobs instead of one", report.jobs.len());
    };
    let bytes = job.read.io_bytes + job.write.io_bytes;
    let seconds = (job.read.runtime + job.write.runtime) as f64 / 1e3;
    let gib = bytes as f64 / GIB;
    Ok(Turn {
        gib_per_second: gib / seconds,
        cpu_ms_per_gib: (job.usr_cpu + job.sys_cpu) / 100.0 * seconds * 1e3 / gib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_behind_notes() {
        let text = br#"note: something
{"jobs": [{"read": {"io_bytes": 1073741824, "runtime": 500}, "write": {"io_bytes": 0, "runtime": 0},
  "usr_cpu": 4.0, "sys_cpu": 6.0, "other": 1}]}"#;
        let turn = parse(text).expect("a report");
        assert_eq!((turn.gib_per_second, turn.cpu_ms_per_gib), (2.0, 50.0));
        assert!(parse(b"{\"jobs\": []}").is_err());
        assert!(parse(b"nothing").is_err());
    }
}
