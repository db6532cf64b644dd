//! The journal of one directory: a file that grows by a record for every change, and the thread that
//! writes it.
//!
//! Whoever waits for a record is told once it is in the file, so a process that is killed later
//! loses nothing of it. Records that are outdated are left out when the file is written anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::format::{self, Held, RECORD_BYTES, Record};

/// Told whether it was written.
pub(crate) type Written = Box<dyn FnOnce(bool) + Send>;

/// Records written at once.
const BATCH_MAX: usize = 4096;
/// A journal is not written anew before it has this many records.
const RECORDS_MIN: u64 = 1 << 16;

enum Order {
    Append(Record, Written),
    Sync(Written),
}

/// A journal being written.
pub(crate) struct Journal {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What a journal is made of.
pub(crate) struct JournalParts {
    /// The directory it lies in.
    pub(crate) dir: PathBuf,
    pub(crate) epoch: u64,
    /// The files that must be on the device before a sync is.
    pub(crate) files: Arc<Vec<File>>,
    /// All blocks of the directory, at any time.
    pub(crate) live: Box<dyn Fn() -> Vec<Held> + Send>,
}

impl Journal {
    /// Writes a new journal of what is live now and goes on from there.
    pub(crate) fn start(parts: JournalParts) -> io::Result<Self> {
        let (file, records) = write_anew(&parts)?;
        let (orders, work) = unbounded();
        let mut writer = Writer {
            parts,
            file,
            records,
            limit: 0,
            broken: false,
        };
        writer.set_limit();
        let thread = Builder::new()
            .name("ssd-journal".to_owned())
            .spawn(move || writer.run(&work))?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Appends a record.
    pub(crate) fn append(&self, record: Record, written: Written) {
        self.send(Order::Append(record, written));
    }

    /// Has the device keep the files and the journal.
    pub(crate) fn sync(&self, synced: Written) {
        self.send(Order::Sync(synced));
    }

    fn send(&self, order: Order) {
        let sent = match &self.orders {
            Some(orders) => orders.send(order).map_err(|refused| refused.into_inner()),
            None => Err(order),
        };
        if let Err(Order::Append(_, told) | Order::Sync(told)) = sent {
            told(false);
        }
    }

    /// Writes everything that was ordered, has the device keep it, and notes that nothing is open.
    pub(crate) fn close(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// The thread's state.
struct Writer {
    parts: JournalParts,
    file: File,
    /// Records in the file.
    records: u64,
    /// The file is written anew once it has so many.
    limit: u64,
    /// The file took no more; nothing is promised since.
    broken: bool,
}

impl Writer {
    fn run(&mut self, work: &Receiver<Order>) {
        while let Ok(first) = work.recv() {
            let mut orders = vec![first];
            orders.extend(work.try_iter().take(BATCH_MAX - 1));
            self.carry_out(orders);
            if self.records > self.limit {
                self.renew();
            }
        }
        if self.sync() {
            self.append(&Record::Closed.encode(self.parts.epoch));
            self.sync();
        }
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        let mut bytes = Vec::with_capacity(orders.len() * RECORD_BYTES);
        for order in &orders {
            if let Order::Append(record, _) = order {
                bytes.extend_from_slice(&record.encode(self.parts.epoch));
            }
        }
        let written = self.append(&bytes);
        let mut synced = None;
        for order in orders {
            match order {
                Order::Append(_, told) => told(written),
                // One serves all that were ordered together.
                Order::Sync(told) => told(*synced.get_or_insert_with(|| self.sync())),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        if self.broken {
            return false;
        }
        self.records += (bytes.len() / RECORD_BYTES) as u64;
        if let Err(error) = self.file.write_all(bytes) {
            let dir = self.parts.dir.display();
            tracing::error!(%dir, %error, "the journal cannot be written");
            self.broken = true;
        }
        !self.broken
    }

    fn sync(&self) -> bool {
        let mut files = self.parts.files.iter().chain([&self.file]);
        !self.broken && files.all(|file| file.sync_data().is_ok())
    }

    /// Replaces the journal by a shorter one; if that fails, the old one goes on.
    fn renew(&mut self) {
        match write_anew(&self.parts) {
            Ok((file, records)) => (self.file, self.records) = (file, records),
            Err(error) => {
                let dir = self.parts.dir.display();
                tracing::warn!(%dir, %error, "the journal cannot be written anew");
            }
        }
        self.set_limit();
    }

    fn set_limit(&mut self) {
        self.limit = (4 * self.records).max(RECORDS_MIN);
    }
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
    let (found, boot) = format::read_journal_header(&bytes)?;
    if found != epoch {
        return None;
    }
    let mut held: Vec<Option<Held>> = vec![None; slots as usize];
    let mut closed = false;
    let (records, _) = bytes.get(RECORD_BYTES..)?.as_chunks::<RECORD_BYTES>();
    for record in records {
        closed = false;
        match Record::decode(record, epoch)? {
            // Slots of a time when the directory's share was larger are passed over.
            Record::Held(it) => {
                if let Some(slot) = held.get_mut(it.slot as usize) {
                    *slot = Some(it);
                }
            }
            Record::Freed { slot, generation } => {
                if let Some(slot) = held.get_mut(slot as usize)
                    && slot.is_some_and(|it| it.generation == generation)
                {
                    *slot = None;
                }
            }
            Record::Closed => closed = true,
        }
    }
    Some(Told {
        held: held.into_iter().flatten().collect(),
        trusted: closed || boot_id() == Some(boot),
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
