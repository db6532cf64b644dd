//! Reads log entries, which come from outside: every malformed byte is a named error, and nothing
//! is allocated beyond what the entry's own length allows. Knows nothing of who applies them.

use flexkv_block::{Generation, Location, SlotId, Tier};

use super::encode::{LastLocation, checksum};
use super::*;

impl Entry {
    /// Reads the entry that was found at `place`.
    pub fn decode(bytes: &[u8], place: EntryPlace) -> Result<Self, EntryError> {
        let mut from = Reader { rest: bytes };
        let [magic, version, kind, reserved] = from.array("its header")?;
        if magic != MAGIC {
            return Err(EntryError::Magic { found: magic });
        }
        if version != VERSION {
            return Err(EntryError::Version { found: version });
        }
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(EntryError::TooLong { bytes: bytes.len() });
        }
        let ops = usize::from(u16::from_le_bytes(from.array("its header")?));
        let blocks = usize::from(u16::from_le_bytes(from.array("its header")?));
        let found = u64::from_le_bytes(from.array("its checksum")?);
        let computed = checksum(place, bytes);
        if found != computed {
            return Err(EntryError::Damaged { found, computed });
        }
        if reserved != 0 {
            return Err(EntryError::Reserved);
        }
        if blocks > MAX_ENTRY_BLOCKS {
            return Err(EntryError::TooManyBlocks { blocks });
        }
        let entry = match kind {
            KIND_CHECKPOINT => Self::Checkpoint(from.batch(kind, ops, blocks)?),
            KIND_DELTA => Self::Delta(from.batch(kind, ops, blocks)?),
            KIND_CHECKPOINT_END | KIND_ROTATE if ops + blocks != 0 => {
                return Err(EntryError::Count {
                    what: "operations and blocks",
                    said: ops + blocks,
                    found: 0,
                });
            }
            KIND_CHECKPOINT_END => Self::CheckpointEnd,
            KIND_ROTATE => Self::Rotate(Rotate {
                next_epoch: u32::from_le_bytes(from.array("the next epoch")?),
                resume_after: u64::from_le_bytes(from.array("the place to resume")?),
            }),
            found => return Err(EntryError::Kind { found }),
        };
        if !from.rest.is_empty() {
            return Err(EntryError::Trailing {
                bytes: from.rest.len(),
            });
        }
        Ok(entry)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], EntryError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(EntryError::Truncated { what })?;
        self.rest = rest;
        Ok(*head)
    }

    fn varint(&mut self, what: &'static str) -> Result<u64, EntryError> {
        let mut value = 0;
        // 35 bits are enough for everything written here.
        for shift in (0..35).step_by(7) {
            let [byte] = self.array(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(EntryError::Truncated { what })
    }

    fn batch(&mut self, kind: u8, ops: usize, blocks: usize) -> Result<Batch, EntryError> {
        let mut batch = Batch::default();
        let mut last = LastLocation::default();
        for _ in 0..ops {
            let [op] = self.array("an operation")?;
            if kind == KIND_CHECKPOINT && op == OP_REMOVE {
                return Err(EntryError::Operation { found: op, kind });
            }
            let count = self.varint("an operation's length")? as usize;
            if count == 0 {
                return Err(EntryError::EmptyOperation);
            }
            if count > blocks - batch.blocks() {
                return Err(EntryError::Count {
                    what: "blocks",
                    said: blocks,
                    found: batch.blocks() + count,
                });
            }
            self.op(op, kind, count, &mut batch, &mut last)?;
        }
        if batch.blocks() != blocks {
            return Err(EntryError::Count {
                what: "blocks",
                said: blocks,
                found: batch.blocks(),
            });
        }
        Ok(batch)
    }

    fn op(
        &mut self,
        op: u8,
        kind: u8,
        blocks: usize,
        batch: &mut Batch,
        last: &mut LastLocation,
    ) -> Result<(), EntryError> {
        let head = match op {
            OP_ADD_FIRST => Head::Add {
                parent: None,
                blocks,
            },
            OP_ADD_AFTER => Head::Add {
                parent: Some(u64::from_le_bytes(self.array("a parent")?)),
                blocks,
            },
            OP_REMOVE => Head::Remove { blocks },
            found => return Err(EntryError::Operation { found, kind }),
        };
        batch.heads.push(head);
        self.fingerprints(blocks, &mut batch.fingerprints)?;
        if matches!(head, Head::Add { .. }) {
            self.locations(blocks, &mut batch.locations, last)?;
        }
        Ok(())
    }

    fn fingerprints(&mut self, count: usize, out: &mut Vec<u64>) -> Result<(), EntryError> {
        let (head, rest) = self
            .rest
            .split_at_checked(8 * count)
            .ok_or(EntryError::Truncated {
                what: "fingerprints",
            })?;
        self.rest = rest;
        let (words, _) = head.as_chunks();
        out.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        Ok(())
    }

    fn locations(
        &mut self,
        mut count: usize,
        out: &mut Vec<Location>,
        last: &mut LastLocation,
    ) -> Result<(), EntryError> {
        while count > 0 {
            let head = self.varint("a location")?;
            let span = (head >> 3) as usize + 1;
            let step = if head & 4 == 0 { 1 } else { -1 };
            let tier =
                Tier::from_u8(head as u8 & 3).ok_or(EntryError::Location { what: "tier" })?;
            if span > count {
                return Err(EntryError::Location { what: "span" });
            }
            let first = last.slot + unzigzag(self.varint("a slot")?);
            last.generation += unzigzag(self.varint("a generation")?);
            let generation = u32::try_from(last.generation)
                .ok()
                .and_then(Generation::new)
                .ok_or(EntryError::Location { what: "generation" })?;
            for i in 0..span as i64 {
                let slot = u32::try_from(first + step * i)
                    .map_err(|_| EntryError::Location { what: "slot" })?;
                out.push(Location {
                    tier,
                    slot: SlotId(slot),
                    generation,
                });
                last.slot = i64::from(slot);
            }
            count -= span;
        }
        Ok(())
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
