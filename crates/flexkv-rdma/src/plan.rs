//! What is read for a batch of blocks, and what came of it.
//!
//! Descriptors, payloads, descriptors again: first those that lie close together in one read each,
//! then each payload straight into its slot, then the descriptors once more, after all payloads.
//! Only the last read is signalled. Knows nothing of connections and time.

use flexkv_block::{DESCRIPTOR_BYTES, Descriptor, Location, SlotId, Tier};
use flexkv_ports::{FetchOutcome, MemorySlice, Want};

use crate::arena::RdmaArena;
use crate::nic::{Limits, Read};
use crate::wire::OwnersArena;

/// Blocks of a batch at most.
const BLOCKS: usize = 64;
/// Bytes of a batch of more than one block at most: what a connection's batches may have under way.
const BYTES: usize = 16 << 20;
/// Descriptors between two that are wanted, up to which one read takes both.
const GAP: u32 = 7;
/// Bytes that the descriptors of a batch take at most, both times together.
pub(crate) const SCRATCH_BYTES: usize = 2 * BLOCKS * (GAP as usize + 1) * DESCRIPTOR_BYTES;

/// The sizes of batches, by what block, device and owner are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Blocks of a batch.
    pub(crate) blocks: usize,
    /// Reads of a payload.
    pub(crate) pieces: usize,
    /// Bytes of one of them.
    pub(crate) piece_bytes: usize,
}

impl Sizes {
    /// The sizes for a queue pair that `batches` share.
    pub(crate) fn new(block_bytes: usize, limits: Limits, batches: usize) -> Self {
        let largest = usize::try_from(limits.message_bytes).unwrap_or(usize::MAX);
        let pieces = block_bytes.div_ceil(largest.max(1));
        let requests = limits.work_requests as usize / batches.max(1);
        let blocks = BLOCKS
            .min(BYTES / block_bytes)
            .min(requests / (pieces + 2))
            .max(1);
        Self {
            blocks,
            pieces,
            piece_bytes: largest.min(block_bytes),
        }
    }

    /// Work requests of a batch at most.
    pub(crate) fn requests(&self) -> usize {
        self.blocks * (self.pieces + 2)
    }
}

/// Descriptors that are read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    count: u32,
    /// Where they go, in bytes.
    at: usize,
}

/// Where the descriptors of a batch go.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Runs {
    fn new(slots: impl Iterator<Item = SlotId>) -> Self {
        let mut slots: Vec<u32> = slots.map(|slot| slot.0).collect();
        slots.sort_unstable();
        let (mut runs, mut bytes) = (Vec::<Run>::new(), 0);
        for slot in slots {
            let near = |run: &&mut Run| slot - (run.first + run.count - 1) <= GAP + 1;
            let count = match runs.last_mut().filter(near) {
                Some(run) => {
                    let more = slot + 1 - (run.first + run.count);
                    run.count += more;
                    more
                }
                None => {
                    runs.push(Run {
                        first: slot,
                        count: 1,
                        at: bytes,
                    });
                    1
                }
            };
            bytes += count as usize * DESCRIPTOR_BYTES;
        }
        Self { runs, bytes }
    }

    /// What the descriptor of `slot` said, before the payloads or after them.
    fn descriptor(&self, scratch: &MemorySlice, slot: SlotId, after: bool) -> Option<Descriptor> {
        let later = self.runs.partition_point(|run| run.first <= slot.0);
        let run = &self.runs[later.checked_sub(1)?];
        let at = run.at + (slot.0 - run.first) as usize * DESCRIPTOR_BYTES;
        let mut bytes = [0; DESCRIPTOR_BYTES];
        scratch.read(at + if after { self.bytes } else { 0 }, &mut bytes);
        Descriptor::from_bytes(&bytes, slot)
    }
}

/// Whether the owner can have a block there at all.
pub(crate) fn is_possible(owner: &OwnersArena, location: Location) -> bool {
    location.tier == Tier::Host && location.slot.0 < owner.layout.slots()
}

/// The reads of a batch. `scratch`, of `SCRATCH_BYTES`, takes the descriptors. None if a slot is not
/// one of this arena's, or the owner's arena does not hold what its layout says.
pub(crate) fn reads(
    owner: &OwnersArena,
    arena: &RdmaArena,
    wants: &[Want],
    scratch: (&MemorySlice, u32),
    sizes: Sizes,
) -> Option<(Vec<Read>, Runs)> {
    let runs = Runs::new(wants.iter().map(|want| want.location.slot));
    let mut reads = Vec::with_capacity(2 * runs.runs.len() + sizes.pieces * wants.len());
    let descriptors = |reads: &mut Vec<Read>, after: bool| {
        for (number, run) in runs.runs.iter().enumerate() {
            let (remote, remote_key) = owner.descriptors(SlotId(run.first), run.count)?;
            let at = run.at + if after { runs.bytes } else { 0 };
            reads.push(Read {
                remote,
                remote_key,
                into: scratch.0.part(at, run.count as usize * DESCRIPTOR_BYTES),
                local_key: scratch.1,
                fence: after && number == 0,
            });
        }
        Some(())
    };
    descriptors(&mut reads, false)?;
    for want in wants {
        let into = want.into.bytes();
        let local_key = arena.local_key(into)?;
        let offset = owner.layout.payload_offset(want.location.slot)?;
        let (remote, remote_key) = owner.find(offset, into.len())?;
        for at in (0..into.len()).step_by(sizes.piece_bytes) {
            let bytes = sizes.piece_bytes.min(into.len() - at);
            reads.push(Read {
                remote: remote + at as u64,
                remote_key,
                into: into.part(at, bytes),
                local_key,
                fence: false,
            });
        }
    }
    descriptors(&mut reads, true)?;
    Some((reads, runs))
}

/// What came of a want whose reads are all done.
pub(crate) fn judge(want: &Want, runs: &Runs, scratch: &MemorySlice) -> FetchOutcome {
    let Want { location, key, .. } = want;
    let wanted = |found: &Descriptor| found.location == *location && found.key == *key;
    let before = runs.descriptor(scratch, location.slot, false);
    let after = runs.descriptor(scratch, location.slot, true);
    let Some(shown) = before
        .filter(wanted)
        .filter(|before| after == Some(*before))
    else {
        return FetchOutcome::Stale;
    };
    let sum = want.into.bytes().checksum();
    if sum == shown.checksum {
        FetchOutcome::Fetched(sum)
    } else {
        FetchOutcome::Corrupt
    }
}

#[cfg(test)]
mod tests;
