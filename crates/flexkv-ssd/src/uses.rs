//! In which order blocks were used, kept beside them so that it outlives the process.
//!
//! A file of fingerprints, to which a thread appends those of blocks that were written or used; the
//! last mention of a block counts. It is a hint: what is lost or damaged of it makes a block look as
//! if it had been used earlier or later, and nothing else. Nobody waits for it. Knows no slots.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The file's first bytes: magic, version, two reserved bytes.
const HEADER: [u8; 8] = *b"FKVU\x01\0\0\0";
/// Uses that may wait to be written; more are not kept.
const WAITING_MAX: usize = 1 << 20;
/// Uses within this time are written together.
const TOGETHER: Duration = Duration::from_millis(10);
/// For each slot, so many fingerprints are kept when the file is written anew.
const KEPT_PER_SLOT: usize = 2;
/// It is written anew when it has so many for each slot, and more than this.
const MOST_PER_SLOT: usize = 4;
const MOST_MIN: usize = 65_536;

/// The order of use, from now on. Dropping it waits until what was noted is written.
pub(crate) struct Uses {
    notes: Arc<Notes>,
    /// `None` if there is no file.
    thread: Option<JoinHandle<()>>,
}

/// What is yet to be written.
#[derive(Default)]
struct Notes {
    waiting: Mutex<Waiting>,
    /// There is something after there was nothing, or nothing comes any more.
    news: Condvar,
}

#[derive(Default)]
struct Waiting {
    fingerprints: Vec<u64>,
    closed: bool,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted, once there is something, and what else comes within a short time. `None` if
    /// nothing comes any more.
    fn take(&self) -> Option<Vec<u64>> {
        let nothing = |it: &mut Waiting| it.fingerprints.is_empty() && !it.closed;
        let waiting = self.news.wait_while(self.lock(), nothing);
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let open = |it: &mut Waiting| !it.closed;
        let waited = self.news.wait_timeout_while(waiting, TOGETHER, open);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut waiting.fingerprints);
        (!taken.is_empty()).then_some(taken)
    }
}

impl Uses {
    /// Goes on with the file at `path`, or begins it, for a tier of `slots` slots; without a file if
    /// there can be none. The other half says when each block was used last, as a number that grows.
    pub(crate) fn open(path: PathBuf, slots: usize) -> (Self, HashMap<u64, usize>) {
        let order = latest(&read(&path), slots.saturating_mul(KEPT_PER_SLOT));
        let notes = Arc::<Notes>::default();
        let noted = notes.clone();
        let most = slots.saturating_mul(MOST_PER_SLOT).max(MOST_MIN);
        let log = write_anew(&path, &order).map(|file| Log {
            path: path.clone(),
            file,
            count: order.len(),
            most,
            kept: slots.saturating_mul(KEPT_PER_SLOT),
        });
        let thread = log.and_then(|log| {
            let named = std::thread::Builder::new().name("flexkv-ssd-uses".to_owned());
            named.spawn(move || log.run(&noted))
        });
        let positions = order.into_iter().enumerate();
        let positions = positions.map(|(at, fingerprint)| (fingerprint, at));
        let thread = thread.map_err(|error| complain(&path, &error)).ok();
        (Self { notes, thread }, positions.collect())
    }

    /// Notes that these were used, the last one last.
    pub(crate) fn note(&self, fingerprints: impl IntoIterator<Item = u64>) {
        let mut waiting = self.notes.lock();
        let first = waiting.fingerprints.is_empty();
        if self.thread.is_some() && waiting.fingerprints.len() < WAITING_MAX {
            waiting.fingerprints.extend(fingerprints);
            if first {
                self.notes.news.notify_one();
            }
        }
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        self.notes.lock().closed = true;
        self.notes.news.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was told when it happened.
            let _ = thread.join();
        }
    }
}

/// The file while it is open.
struct Log {
    path: PathBuf,
    file: File,
    /// Fingerprints in it.
    count: usize,
    /// With more than so many it is written anew, with `kept`.
    most: usize,
    kept: usize,
}

impl Log {
    /// Writes what is noted, until nobody can note anything any more.
    fn run(mut self, noted: &Notes) {
        while let Some(all) = noted.take() {
            if let Err(error) = self.append(&all) {
                complain(&self.path, &error);
                return;
            }
        }
    }

    fn append(&mut self, fingerprints: &[u64]) -> io::Result<()> {
        self.file.write_all(&encode(fingerprints))?;
        self.count += fingerprints.len();
        if self.count > self.most {
            let order = latest(&read(&self.path), self.kept);
            self.file = write_anew(&self.path, &order)?;
            self.count = order.len();
        }
        Ok(())
    }
}

fn complain(path: &Path, error: &io::Error) {
    let file = path.display();
    tracing::warn!(%file, %error, "the order in which blocks are used is not kept");
}

fn encode(fingerprints: &[u64]) -> Vec<u8> {
    let bytes = fingerprints.iter().flat_map(|it| it.to_le_bytes());
    bytes.collect()
}

/// All fingerprints in a file; none of one that is missing or something else.
fn read(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap_or_default();
    let Some(bytes) = bytes.strip_prefix(&HEADER) else {
        return Vec::new();
    };
    let (whole, _) = bytes.as_chunks::<8>();
    whole.iter().map(|it| u64::from_le_bytes(*it)).collect()
}

/// The `most` that were mentioned last, each once, in order of their last mention.
fn latest(mentions: &[u64], most: usize) -> Vec<u64> {
    let mut known = HashSet::new();
    let backwards = mentions.iter().rev();
    let mut latest: Vec<u64> = backwards
        .filter(|it| known.insert(**it))
        .take(most)
        .copied()
        .collect();
    latest.reverse();
    latest
}

/// Replaces the file; gives it open for more.
fn write_anew(path: &Path, order: &[u64]) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut bytes = HEADER.to_vec();
    bytes.extend(encode(order));
    fs::write(&new, bytes)?;
    let file = OpenOptions::new().append(true).open(&new)?;
    fs::rename(&new, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
