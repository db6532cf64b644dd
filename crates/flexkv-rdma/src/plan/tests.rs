//! Which reads a batch takes, in which order, and where they go.

use std::sync::{Arc, Weak};

use flexkv_block::{ArenaLayout, BlockKey, Checksum, Generation, NamespaceId};
use flexkv_host::{HostConfig, HostTier};
use flexkv_ports::{BlockTier as _, HeapMemory, WriteSlot};

use super::*;
use crate::nic::{
    Completions, Link, Nic, NicError, Pair, PortAddress, QueueAddress, Region, Rights,
};
use crate::wire::{ANSWER_BYTES, Answer, Chunk, Introduction, encode_answer};

/// Registers memory under the key 7, and does nothing else.
struct Keys;

impl Region for Keys {
    fn local_key(&self) -> u32 {
        7
    }

    fn remote_key(&self) -> u32 {
        7
    }
}

impl Nic for Keys {
    fn name(&self) -> &str {
        "keys"
    }

    fn address(&self) -> PortAddress {
        PortAddress {
            link: Link::Ethernet,
            lid: 0,
            gid: [0; 16],
            mtu: 3,
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn register(&self, _: MemorySlice, _: Rights) -> Result<Box<dyn Region>, NicError> {
        Ok(Box::new(Self))
    }

    fn pair(&self, _: u32, _: Weak<dyn Completions>) -> Result<Box<dyn Pair>, NicError> {
        Err(NicError::new("make a queue pair", "there are none"))
    }
}

const LIMITS: Limits = Limits {
    work_requests: 4096,
    message_bytes: 1 << 20,
    reads: 16,
};
const BASE: u64 = 0x1000_0000;
const BLOCK: usize = 5000;
const SLOTS: u32 = 100;

fn layout() -> ArenaLayout {
    let namespace = NamespaceId::from_u128(2);
    ArenaLayout::new(1, namespace, SLOTS, BLOCK as u64, u64::MAX).expect("a layout")
}

/// An owner whose arena lies at `BASE`, whole, under the key 9.
fn owner() -> OwnersArena {
    let introduction = Introduction {
        queue: QueueAddress {
            port: Keys.address(),
            number: 1,
            first_packet: 1,
        },
        reads: 1,
    };
    let whole = Chunk {
        address: BASE,
        bytes: layout().file_bytes() as u64,
        key: 9,
    };
    let bytes = encode_answer(&introduction, &layout(), &[whole]);
    let answer = Answer::decode(bytes.first_chunk().expect("a head")).expect("an answer");
    answer.arena(&bytes[ANSWER_BYTES..]).expect("an arena")
}

/// A reader's tier, and its memory registered.
fn reader() -> (HostTier, Arc<RdmaArena>) {
    let tier = HostTier::create(&HostConfig {
        slots: SLOTS,
        block_bytes: BLOCK,
        namespace: NamespaceId::from_u128(2),
        arena: 3,
        huge_pages: false,
        populate: false,
    })
    .expect("a small arena");
    let arena = RdmaArena::register(Arc::new(Keys), tier.memory(), *tier.layout());
    (tier, arena.expect("registered"))
}

fn want(slot: u32, into: WriteSlot) -> Want {
    Want {
        location: Location {
            tier: Tier::Host,
            slot: SlotId(slot),
            generation: Generation::FIRST,
        },
        key: BlockKey::from_u128(u128::from(slot)),
        into,
    }
}

fn scratch() -> MemorySlice {
    let memory = HeapMemory::new(SCRATCH_BYTES);
    MemorySlice::new(Arc::new(memory), 0, SCRATCH_BYTES).expect("all of it")
}

#[test]
fn descriptors_come_before_and_after_and_payloads_go_straight_into_their_slots() {
    let (tier, arena) = reader();
    let slots = [40, 3, 5, 12, 13];
    let wants: Vec<_> = slots
        .map(|slot| want(slot, tier.reserve().expect("a slot")))
        .into();
    let scratch = scratch();
    let sizes = Sizes::new(BLOCK, LIMITS, 4);
    let planned = reads(&owner(), &arena, &wants, (&scratch, 8), sizes);
    let (reads, runs) = planned.expect("a plan");
    // Slots 3 to 13 are one run of 11, 40 is one of 1.
    let descriptors = [(3, 11), (40, 1)];
    assert_eq!(reads.len(), 2 + 5 + 2);
    for (after, part) in [(false, &reads[..2]), (true, &reads[7..])] {
        for (number, (read, (first, count))) in part.iter().zip(descriptors).enumerate() {
            assert_eq!(read.remote, BASE + 4096 + 64 * first);
            assert_eq!((read.remote_key, read.local_key), (9, 8));
            assert_eq!(read.into.len(), 64 * count);
            assert_eq!(read.fence, after && number == 0, "payloads come first");
        }
    }
    let places: Vec<_> = [&reads[..2], &reads[7..]].concat();
    let places: Vec<_> = places
        .iter()
        .map(|read| (read.into.offset(), read.into.len()))
        .collect();
    assert_eq!(places, [(0, 704), (704, 64), (768, 704), (1472, 64)]);
    for (want, read) in wants.iter().zip(&reads[2..7]) {
        let offset = layout().payload_offset(want.location.slot).expect("a slot") as u64;
        assert_eq!((read.remote, read.remote_key), (BASE + offset, 9));
        assert_eq!(
            (read.into.as_ptr(), read.into.len()),
            (want.into.bytes().as_ptr(), BLOCK)
        );
        assert_eq!((read.local_key, read.fence), (7, false));
    }
    assert_eq!(runs.bytes, 768);
}

#[test]
fn a_payload_above_the_largest_message_is_read_in_pieces() {
    let (tier, arena) = reader();
    let wants = vec![want(0, tier.reserve().expect("a slot"))];
    let limits = Limits {
        message_bytes: 2048,
        ..LIMITS
    };
    let sizes = Sizes::new(BLOCK, limits, 4);
    assert_eq!((sizes.pieces, sizes.piece_bytes), (3, 2048));
    let scratch = scratch();
    let planned = reads(&owner(), &arena, &wants, (&scratch, 8), sizes);
    let (reads, _) = planned.expect("a plan");
    let offset = BASE + layout().payload_offset(SlotId(0)).expect("a slot") as u64;
    let pieces: Vec<_> = reads[1..4]
        .iter()
        .map(|read| (read.remote - offset, read.into.len()))
        .collect();
    assert_eq!(pieces, [(0, 2048), (2048, 2048), (4096, 904)]);
}

#[test]
fn batches_are_as_large_as_device_and_bounds_allow() {
    let sizes = |block_bytes, work_requests, message_bytes| {
        let limits = Limits {
            work_requests,
            message_bytes,
            reads: 16,
        };
        let sizes = Sizes::new(block_bytes, limits, 4);
        assert!(sizes.requests() * 4 <= work_requests as usize || sizes.blocks == 1);
        (sizes.blocks, sizes.pieces)
    };
    assert_eq!(sizes(4096, 16_384, 1 << 31), (64, 1));
    assert_eq!(sizes(1 << 20, 16_384, 1 << 31), (16, 1), "16 MiB at a time");
    assert_eq!(sizes(64 << 20, 16_384, 8 << 20), (1, 8));
    assert_eq!(
        sizes(4096, 120, 1 << 31),
        (10, 1),
        "a queue pair of few work requests"
    );
    assert_eq!(sizes(4096, 1, 1 << 31), (1, 1));
}

#[test]
fn scratch_memory_suffices_for_any_slots() {
    let mut rng = fastrand::Rng::with_seed(3);
    for spread in [1, 2, 9, 64, 1000, u32::MAX / 64] {
        let slots = (0..BLOCKS as u32).map(|n| SlotId(n * spread + rng.u32(..spread)));
        assert!(2 * Runs::new(slots).bytes <= SCRATCH_BYTES);
    }
    let worst = (0..BLOCKS as u32).map(|n| SlotId(n * (GAP + 1)));
    assert!(2 * Runs::new(worst).bytes <= SCRATCH_BYTES);
    let same = Runs::new([SlotId(4), SlotId(4), SlotId(4)].into_iter());
    assert_eq!(same.bytes, DESCRIPTOR_BYTES);
}

#[test]
fn a_block_counts_only_between_equal_descriptors_and_with_its_checksum() {
    let (tier, _arena) = reader();
    let want = want(6, tier.reserve().expect("a slot"));
    want.into.bytes().write(0, &[5; BLOCK]);
    let shown = Descriptor {
        location: want.location,
        key: want.key,
        checksum: Checksum::of(&[5; BLOCK]),
    };
    let runs = Runs::new([SlotId(6)].into_iter());
    let scratch = scratch();
    let judged = |before: Descriptor, after: Descriptor| {
        for (at, descriptor) in [(0, before), (64, after)] {
            let words = descriptor.to_words().map(u64::to_le_bytes);
            scratch.write(at, words.as_flattened());
        }
        judge(&want, &runs, &scratch)
    };
    assert_eq!(judged(shown, shown), FetchOutcome::Fetched(shown.checksum));
    let mut other = shown;
    other.checksum.0 ^= 1;
    assert_eq!(judged(other, other), FetchOutcome::Corrupt);
    assert_eq!(
        judged(shown, other),
        FetchOutcome::Stale,
        "it changed meanwhile"
    );
    other = shown;
    other.location.generation = Generation::FIRST.next();
    assert_eq!(judged(other, other), FetchOutcome::Stale);
    assert_eq!(judged(shown, other), FetchOutcome::Stale);
    other = shown;
    other.key = BlockKey::from_u128(1 << 64 | 6);
    assert_eq!(
        judged(other, other),
        FetchOutcome::Stale,
        "the same fingerprint"
    );
    scratch.write(0, &[0; 128]);
    assert_eq!(
        judge(&want, &runs, &scratch),
        FetchOutcome::Stale,
        "no block"
    );
}
