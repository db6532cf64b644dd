//! Moving one block: into its slot, or out of it. Knows the steps and what undoes them.

use std::io;
use std::sync::Arc;

use flexkv_block::{BlockKey, Checksum, Location};
use flexkv_ports::{
    HeapMemory, MemorySlice, ReadRefusal, ReadSlot, StagedRead, WriteRefusal, WriteSlot,
};
use tokio::sync::oneshot;

use super::pages::Page;
use super::{READS_MAX, Shared, refused};
use crate::format::{self, Held, PAGE, Record};
use crate::io::{Op, Request};
use crate::slots::Fate;
use crate::stats::count;

type Answer = oneshot::Sender<Result<Location, WriteRefusal>>;

/// A block on its way to disk, with whatever that uses.
struct Writing {
    shared: Arc<Shared>,
    held: Held,
    block: ReadSlot,
    page: Page,
    answer: Answer,
}

/// Writes a block into a free slot.
pub(super) async fn write(
    shared: &Arc<Shared>,
    block: ReadSlot,
    parent: Option<BlockKey>,
) -> Result<Location, WriteRefusal> {
    let Some(page) = shared.pages.take() else {
        count(&shared.stats.refused_busy, 1);
        return Err(WriteRefusal::Busy);
    };
    let (slot, generation) = free_slot(shared).await?;
    let held = Held {
        slot,
        generation,
        key: block.key(),
        parent,
        checksum: block.checksum(),
    };
    let frame = format::frame_page(&held, &shared.geometry, shared.epoch);
    page.bytes().write(0, &frame);
    let (answer, result) = oneshot::channel();
    let (file, offset) = shared.geometry.place(slot);
    let payload = aligned_copy(block.bytes());
    let parts = [page.bytes(), payload];
    let writing = Writing {
        shared: shared.clone(),
        held,
        block,
        page,
        answer,
    };
    shared.queue.submit(Op {
        file,
        offset,
        request: Request::WriteBoth(parts),
        done: Box::new(move |outcome| writing.ended(&outcome)),
    });
    result.await.unwrap_or(Err(WriteRefusal::Failed))
}

/// Takes a free slot, waiting for one that is about to be free.
async fn free_slot(shared: &Shared) -> Result<(u32, flexkv_block::Generation), WriteRefusal> {
    loop {
        let freed = shared.freed.notified();
        let mut freed = std::pin::pin!(freed);
        freed.as_mut().enable();
        {
            let mut slots = shared.slots();
            if shared.has_failed() {
                return Err(WriteRefusal::Full);
            }
            if let Some(taken) = slots.take() {
                return Ok(taken);
            }
            if !slots.is_leaving() {
                return Err(WriteRefusal::Full);
            }
        }
        shared.journal.flush();
        freed.await;
    }
}

impl Writing {
    /// The bytes are on disk, or not.
    fn ended(self, outcome: &io::Result<()>) {
        self.shared.note(outcome);
        if outcome.is_err() || self.shared.has_failed() {
            return self.refuse();
        }
        let record = Record::Held(self.held);
        let journal = self.shared.journal.clone();
        journal.append(record, Box::new(move |told| self.told(told)));
    }

    /// The journal has the block, or took nothing.
    fn told(self, told: bool) {
        if !told {
            self.shared.give_up();
            return self.refuse();
        }
        self.shared.slots().hold(&self.held);
        count(&self.shared.stats.written_blocks, 1);
        let location = self.shared.location(&self.held);
        self.answer(Ok(location));
    }

    fn refuse(self) {
        self.shared.slots().retire(self.held.slot);
        count(&self.shared.stats.lost_slots, 1);
        self.shared.freed.notify_waiters();
        self.answer(Err(WriteRefusal::Failed));
    }

    /// Lets go of what the transfer used before anyone is told.
    fn answer(self, answer: Result<Location, WriteRefusal>) {
        drop((self.block, self.page));
        // Nobody may be waiting any more.
        self.answer.send(answer).ok();
    }
}

/// Reads a block into memory and verifies it there.
pub(super) async fn read(
    shared: &Arc<Shared>,
    location: Location,
    key: BlockKey,
    into: WriteSlot,
) -> StagedRead {
    if shared.queue.reads_waiting() >= READS_MAX {
        return refused(into, ReadRefusal::Busy);
    }
    let Some(slot) = shared.local(location) else {
        return refused(into, ReadRefusal::Stale);
    };
    let Some(sum) = shared.slots().begin_read(slot, location.generation, key) else {
        return refused(into, ReadRefusal::Stale);
    };
    let (answer, result) = oneshot::channel();
    let reading = Reading {
        shared: shared.clone(),
        slot,
        sum,
    };
    let (file, at) = shared.geometry.place(slot);
    let bytes = aligned_for(into.bytes());
    let from = bytes.clone();
    let done = move |outcome: io::Result<()>| {
        // If nobody waits any more, both end here: the slot is free and the reader is counted out.
        answer.send((into, reading, outcome)).ok();
    };
    shared.queue.submit(Op {
        file,
        offset: at + PAGE as u64,
        request: Request::Read(bytes),
        done: Box::new(done),
    });
    match result.await {
        Ok((into, reading, outcome)) => {
            let outcome = reading.judge(&into, &from, &outcome);
            StagedRead { into, outcome }
        }
        Err(_) => unreachable!("an engine answers every operation"),
    }
}

/// A reader of a slot; counted out when dropped.
struct Reading {
    shared: Arc<Shared>,
    slot: u32,
    sum: Checksum,
}

impl Reading {
    /// Compares what came with what was written.
    fn judge(
        &self,
        into: &WriteSlot,
        from: &MemorySlice,
        outcome: &io::Result<()>,
    ) -> Result<Checksum, ReadRefusal> {
        self.shared.note(outcome);
        if outcome.is_err() {
            self.condemn(Fate::Retire);
            return Err(ReadRefusal::Failed);
        }
        if from.as_ptr() != into.bytes().as_ptr() {
            into.bytes().write_from(&from.part(0, into.bytes().len()));
        }
        if into.bytes().checksum() == self.sum {
            count(&self.shared.stats.read_blocks, 1);
            Ok(self.sum)
        } else {
            count(&self.shared.stats.corrupt_blocks, 1);
            self.condemn(Fate::Drop);
            Err(ReadRefusal::Corrupt)
        }
    }

    fn condemn(&self, fate: Fate) {
        self.shared.slots().condemn(self.slot, fate);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let left = self.shared.slots().end_read(self.slot);
        if left.is_some() {
            self.shared.tell_left(left);
            self.shared.journal.flush();
        }
    }
}

/// The same bytes where direct I/O can write them from, padded to whole pages.
fn aligned_copy(bytes: &MemorySlice) -> MemorySlice {
    let at = aligned_for(bytes);
    if at.as_ptr() != bytes.as_ptr() {
        at.write_from(bytes);
    }
    at
}

/// The memory itself if direct I/O can use it, or other memory of whole pages.
fn aligned_for(bytes: &MemorySlice) -> MemorySlice {
    let direct = bytes.len().is_multiple_of(PAGE) && bytes.as_ptr().addr().is_multiple_of(PAGE);
    if direct {
        return bytes.clone();
    }
    let len = bytes.len().next_multiple_of(PAGE);
    MemorySlice::new(Arc::new(HeapMemory::new(len)), 0, len)
        .unwrap_or_else(|| unreachable!("all of it"))
}
