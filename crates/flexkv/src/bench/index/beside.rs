//! Matches while another thread changes the index as fast as it can.
//!
//! The writer lets conversations go and come back, one after the other; readers match any of them.

use std::sync::atomic::{AtomicBool, Ordering};

use flexkv_index::PrefixMatch;
use tokio::time::Instant;

use super::content::{Content, Filled, find, renew};
use super::{TIMES, warm};
use crate::bench::{Better, Row, time};
use crate::report::Times;

/// Tells the writer to stop when the readers are through, or fail.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Matches by so many readers, beside the writer if `busy`. The times of the slowest reader, and
/// what a block cost the writer, in us.
fn measure(filled: &mut Filled, content: &Content, readers: usize, busy: bool) -> (Times, f64) {
    let stop = AtomicBool::new(false);
    let (reader, owners) = (&filled.reader, &filled.owners);
    let writer = &mut filled.writer;
    let match_all = |number: usize| {
        let mut found = PrefixMatch::default();
        let prompts = &content.prompts;
        time(
            4 * TIMES,
            |i| warm(&prompts[(i * 31 + number * 7) % prompts.len()]),
            |keys| find(reader, owners[number], keys, &mut found),
        )
    };
    std::thread::scope(|scope| {
        let writer = busy.then(|| {
            scope.spawn(|| {
                let (began, mut blocks) = (Instant::now(), 0);
                for runs in content.runs.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    blocks += renew(writer, owners, runs);
                }
                began.elapsed().as_secs_f64() * 1e6 / blocks.max(1) as f64
            })
        });
        let stop_writer = StopOnDrop(&stop);
        let match_all = &match_all;
        let readers: Vec<_> = (0..readers)
            .map(|number| scope.spawn(move || match_all(number)))
            .collect();
        let times = readers.into_iter().filter_map(|reader| reader.join().ok());
        let slowest = times.max_by(|a, b| a.micros(0.99).total_cmp(&b.micros(0.99)));
        drop(stop_writer);
        let applied = writer.and_then(|writer| writer.join().ok());
        (slowest.unwrap_or_default(), applied.unwrap_or_default())
    })
}

/// Rows of matches beside a writer at full rate, against the same readers without one.
pub(super) fn rows(filled: &mut Filled, content: &Content) -> Vec<Row> {
    let mut rows = Vec::new();
    for (readers, target) in [(1, Some(2.0)), (2, None)] {
        let (quiet, _) = measure(filled, content, readers, false);
        let (busy, applied) = measure(filled, content, readers, true);
        let who = if readers == 1 {
            "1 reader"
        } else {
            "2 readers"
        };
        let row =
            |what: &str, value, unit| Row::new(format!("{who}{what}"), value, unit, Better::Lower);
        rows.push(row(
            ", nothing applied: match p99",
            quiet.micros(0.99),
            "us",
        ));
        rows.push(row(
            " beside deltas at full rate: match p50",
            busy.micros(0.5),
            "us",
        ));
        rows.push(row(
            " beside deltas at full rate: match p99",
            busy.micros(0.99),
            "us",
        ));
        let ratio = busy.micros(0.99) / quiet.micros(0.99);
        let mut ratio = row(
            " beside deltas at full rate: p99 against the quiet one",
            ratio,
            "x",
        );
        ratio.target = target;
        rows.push(ratio);
        rows.push(row(
            " beside deltas at full rate: apply, per block",
            applied,
            "us",
        ));
    }
    rows
}
