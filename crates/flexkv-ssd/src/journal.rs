//! The journal of one directory: a file that grows by a record for every change.
//!
//! Records are collected and written by whoever asks for that first; whoever comes meanwhile leaves
//! its records to them. Whoever waits for a record is told once it is in the file, so a process that
//! is killed later loses nothing of it. A thread of its own does what takes long: it has the device
//! keep everything, and writes the file anew without records that are outdated.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::format::{self, Held, RECORD_BYTES, Record};

/// Told whether it was written.
pub(crate) type Written = Box<dyn FnOnce(bool) + Send>;

/// A journal is not written anew before it has this many records.
const RECORDS_MIN: u64 = 1 << 16;

/// What takes long.
enum Order {
    Sync(Written),
    Renew,
}

/// A journal being written.
pub(crate) struct Journal {
    shared: Arc<Shared>,
    /// `None` once it is closed.
    thread: Mutex<Option<(Sender<Order>, JoinHandle<()>)>>,
}

/// What a journal is made of.
pub(crate) struct JournalParts {
    /// The directory it lies in.
    pub(crate) dir: PathBuf,
    pub(crate) epoch: u64,
    /// The files that must be on the device before a sync is.
    pub(crate) files: Arc<Vec<File>>,
    /// All blocks of the directory, at any time.
    pub(crate) live: Box<dyn Fn() -> Vec<Held> + Send + Sync>,
}

struct Shared {
    parts: JournalParts,
    waiting: Mutex<Waiting>,
    writer: Mutex<Writer>,
}

/// Records that nobody has written yet.
#[derive(Default)]
struct Waiting {
    records: Vec<(Record, Written)>,
    closed: bool,
}

impl Journal {
    /// Writes a new journal of what is live now and goes on from there.
    pub(crate) fn start(parts: JournalParts) -> io::Result<Self> {
        let writer = Writer::anew(&parts)?;
        let shared = Arc::new(Shared {
            parts,
            waiting: Mutex::default(),
            writer: Mutex::new(writer),
        });
        let (orders, work) = unbounded();
        let serving = shared.clone();
        let thread = Builder::new()
            .name("ssd-journal".to_owned())
            .spawn(move || serving.serve(&work))?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some((orders, thread))),
        })
    }

    /// Takes a record. It is written with the next call of `flush`, whoever makes it.
    pub(crate) fn append(&self, record: Record, written: Written) {
        let mut waiting = lock(&self.shared.waiting);
        if waiting.closed {
            drop(waiting);
            return written(false);
        }
        waiting.records.push((record, written));
    }

    /// Writes the records taken so far, or leaves that to whoever is writing now.
    pub(crate) fn flush(&self) {
        if self.shared.flush() {
            self.order(Order::Renew);
        }
    }

    /// Has the device keep the files and the journal.
    pub(crate) fn sync(&self, synced: Written) {
        self.order(Order::Sync(synced));
    }

    fn order(&self, order: Order) {
        let refused = match &*lock(&self.thread) {
            Some((orders, _)) => orders.send(order).err().map(|refused| refused.into_inner()),
            None => Some(order),
        };
        if let Some(Order::Sync(told)) = refused {
            told(false);
        }
    }

    /// Writes everything that was taken, has the device keep it, and notes that nothing is open.
    pub(crate) fn close(&self) {
        let thread = lock(&self.thread).take();
        if let Some((orders, thread)) = thread {
            drop(orders);
            thread.join().ok();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Says whether the file has become so long that it should be written anew.
    fn flush(&self) -> bool {
        loop {
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                // Whoever has it looks for more after they let go.
                Err(TryLockError::WouldBlock) => return false,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            self.write_waiting(&mut writer);
            let long = writer.is_long();
            drop(writer);
            if lock(&self.waiting).records.is_empty() {
                return long;
            }
        }
    }

    /// Those who wait are told while the writer is held: until they know, nobody looks at what is
    /// live in order to write the file anew.
    fn write_waiting(&self, writer: &mut Writer) {
        let records = std::mem::take(&mut lock(&self.waiting).records);
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        for (record, _) in &records {
            bytes.extend_from_slice(&record.encode(self.parts.epoch));
        }
        let written = writer.append(&self.parts.dir, &bytes);
        for (_, told) in records {
            told(written);
        }
    }

    /// The thread.
    fn serve(&self, work: &Receiver<Order>) {
        for order in work {
            match order {
                Order::Sync(told) => {
                    let mut others = vec![told];
                    let mut renew = false;
                    for order in work.try_iter() {
                        match order {
                            Order::Sync(told) => others.push(told),
                            Order::Renew => renew = true,
                        }
                    }
                    // One serves all that were ordered by now.
                    let synced = self.sync();
                    others.into_iter().for_each(|told| told(synced));
                    if renew {
                        self.renew();
                    }
                }
                Order::Renew => self.renew(),
            }
        }
        lock(&self.waiting).closed = true;
        if self.sync() {
            let closed = Record::Closed.encode(self.parts.epoch);
            lock(&self.writer).append(&self.parts.dir, &closed);
            self.sync();
        }
    }

    /// Writers go on meanwhile; what they write is not promised to be kept by this call.
    fn sync(&self) -> bool {
        let mut writer = lock(&self.writer);
        self.write_waiting(&mut writer);
        let file = if writer.broken {
            None
        } else {
            writer.file.try_clone().ok()
        };
        drop(writer);
        self.flush();
        let Some(file) = file else { return false };
        let mut files = self.parts.files.iter().chain([&file]);
        files.all(|file| file.sync_data().is_ok())
    }

    /// Replaces the journal by a shorter one; if that fails, the old one goes on.
    fn renew(&self) {
        let mut writer = lock(&self.writer);
        if !writer.is_long() {
            return;
        }
        match Writer::anew(&self.parts) {
            Ok(new) => *writer = new,
            Err(error) => {
                let dir = self.parts.dir.display();
                tracing::warn!(%dir, %error, "the journal cannot be written anew");
                writer.set_limit();
            }
        }
        drop(writer);
        self.flush();
    }
}

/// The open file.
struct Writer {
    file: File,
    /// Records in the file.
    records: u64,
    /// The file is to be written anew once it has so many.
    limit: u64,
    /// The file took no more; nothing is promised since.
    broken: bool,
}

impl Writer {
    /// A new file of what is live now.
    fn anew(parts: &JournalParts) -> io::Result<Self> {
        let (file, records) = write_anew(parts)?;
        let mut writer = Self {
            file,
            records,
            limit: 0,
            broken: false,
        };
        writer.set_limit();
        Ok(writer)
    }

    fn append(&mut self, dir: &Path, bytes: &[u8]) -> bool {
        if self.broken {
            return false;
        }
        self.records += (bytes.len() / RECORD_BYTES) as u64;
        if let Err(error) = self.file.write_all(bytes) {
            let dir = dir.display();
            tracing::error!(%dir, %error, "the journal cannot be written");
            self.broken = true;
        }
        !self.broken
    }

    fn is_long(&self) -> bool {
        self.records > self.limit
    }

    fn set_limit(&mut self) {
        self.limit = (4 * self.records).max(RECORDS_MIN);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A journal of what is live, in place of the one that is there.
fn write_anew(parts: &JournalParts) -> io::Result<(File, u64)> {
    let live = (parts.live)();
    let mut bytes = Vec::with_capacity((live.len() + 1) * RECORD_BYTES);
    let boot = boot_id().unwrap_or_default();
    bytes.extend_from_slice(&format::journal_header(parts.epoch, boot));
    for held in &live {
        bytes.extend_from_slice(&Record::Held(*held).encode(parts.epoch));
    }
    let new = parts.dir.join("journal.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    std::fs::rename(&new, path(&parts.dir))?;
    File::open(&parts.dir)?.sync_all()?;
    Ok((file, live.len() as u64))
}

/// Where a directory's journal lies.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("journal")
}

/// What a journal tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// What each slot holds, in no order.
    pub(crate) held: Vec<Held>,
    /// Whether the files are as the journal tells: the machine has not been started anew since, or
    /// everything was on the device before.
    pub(crate) trusted: bool,
}

/// Reads the journal of `epoch`; `None` if it is not there, of another epoch or damaged. A record
/// that was being written when the process ended does not count.
pub(crate) fn read(dir: &Path, epoch: u64, slots: u32) -> Option<Told> {
    let bytes = std::fs::read(path(dir)).ok()?;
    let text = format::read_journal(&bytes, epoch, slots)?;
    Some(Told {
        held: text.held,
        trusted: text.closed || boot_id() == Some(text.boot),
    })
}

/// Which start of the machine this is, if the system tells.
fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    Some(id.to_be_bytes())
}

#[cfg(test)]
mod tests;
