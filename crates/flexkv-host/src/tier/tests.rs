//! The suites on the arena, its limits, and many threads at its state words.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use flexkv_block::{ArenaError, Generation};
use flexkv_ports::conformance::{self, TransportHarness};
use flexkv_ports::{HeapHub, HeapTransport, Transport};

use super::*;

fn config(slots: u32, block_bytes: usize) -> HostConfig {
    HostConfig {
        slots,
        block_bytes,
        namespace: NamespaceId::from_u128(1),
        arena: 2,
        huge_pages: false,
        populate: false,
    }
}

fn tier(slots: u32, block_bytes: usize) -> HostTier {
    HostTier::create(&config(slots, block_bytes)).expect("a small arena")
}

struct Harness {
    hub: HeapHub,
    owner: HostTier,
    reader: HostTier,
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        Arc::new(self.owner.clone())
    }

    fn endpoint(&self) -> String {
        HeapHub::endpoint("owner")
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        Arc::new(self.reader.clone())
    }

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(HeapTransport::new(self.hub.clone()))
    }

    fn dead_endpoint(&self) -> String {
        HeapHub::endpoint("nobody")
    }
}

#[test]
fn host_tier_conforms() {
    conformance::tier(|slots, block_bytes| Arc::new(tier(slots, block_bytes)));
}

#[test]
fn a_populated_tier_on_huge_pages_conforms() {
    conformance::tier(|slots, block_bytes| {
        let config = HostConfig {
            huge_pages: true,
            populate: true,
            ..config(slots, block_bytes)
        };
        Arc::new(HostTier::create(&config).expect("a small arena"))
    });
}

#[test]
fn what_is_said_to_lie_on_huge_pages_does() {
    let slots = |huge_pages| {
        let config = HostConfig {
            huge_pages,
            populate: true,
            ..config(16, 1 << 20)
        };
        HostTier::create(&config).expect("a small arena")
    };
    let (huge, ordinary) = (slots(true), slots(false));
    assert_eq!(ordinary.huge_bytes(), 0);
    assert_eq!(on_huge_pages(&huge), huge.huge_bytes());
    let slot = huge.reserve().expect("a slot");
    slot.bytes().write(0, &[7; 1 << 20]);
    let (at, other) = (slot.bytes().to_vec(), ordinary.reserve().expect("a slot"));
    assert!(at == [7; 1 << 20] && other.bytes().to_vec() == [0; 1 << 20]);
}

/// What the kernel says of the arena's mapping.
fn on_huge_pages(tier: &HostTier) -> usize {
    let begins = format!("{:x}-", tier.memory().base() as usize);
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
    let mapping = maps.lines().skip_while(|line| !line.starts_with(&begins));
    let line = mapping
        .map_while(|line| (!line.starts_with("VmFlags")).then_some(line))
        .find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: usize = kib.expect("a size").parse().expect("a number");
    kib << 10
}

#[tokio::test(start_paused = true)]
async fn a_transport_over_host_tiers_conforms() {
    conformance::transport(async |slots, block_bytes| {
        let harness = Harness {
            hub: HeapHub::new(),
            owner: tier(slots, block_bytes),
            reader: tier(slots, block_bytes),
        };
        harness.hub.register("owner", harness.owner());
        harness
    })
    .await;
}

#[test]
fn an_arena_larger_than_the_machine_is_refused() {
    let refused = HostTier::create(&config(u32::MAX, 1 << 30));
    let refused = refused.expect_err("4 EiB");
    assert!(
        matches!(refused, HostError::Layout(ArenaError::TooLarge { .. })),
        "another error: {refused}"
    );
    assert!(machine_memory() > 1 << 20, "the machine has memory");
}

#[test]
fn slots_are_aligned_for_their_size() {
    for (block_bytes, align) in [(1, 64), (4095, 64), (4096, 4096), (70_000, 4096)] {
        let tier = tier(3, block_bytes);
        let slots: Vec<_> = std::iter::from_fn(|| tier.reserve()).collect();
        assert_eq!(slots.len(), 3);
        for slot in slots {
            assert_eq!(slot.bytes().as_ptr() as usize % align, 0, "{block_bytes}");
        }
    }
}

#[test]
fn the_memory_has_a_file() {
    let tier = tier(1, 8);
    let fd = tier.memory().fd().map(|_| ());
    assert!(fd.is_some());
    assert_eq!(tier.memory().len(), tier.layout().file_bytes());
}

#[test]
fn a_slot_counts_its_generations() {
    let slot = Slot::default();
    let key = BlockKey::from_u128(1);
    let mut last = None;
    for _ in 0..10 {
        slot.reserve();
        let next = slot.next_generation();
        assert_eq!(next, last.map_or(Generation::FIRST, Generation::next));
        slot.commit(key, Checksum(0));
        assert!(slot.pin(next, key).is_some());
        slot.unpin();
        assert_eq!(slot.evict(next), Eviction::Done);
        assert!(slot.pin(next, key).is_none());
        last = Some(next);
    }
}

/// One block at a time in each slot, known to all threads.
struct Shown {
    blocks: Vec<Mutex<Option<(Location, u64)>>>,
    pins: AtomicU64,
    refused: AtomicU64,
    pinned: AtomicU64,
}

const STRESS_SLOTS: u32 = 3;
const STRESS_BYTES: usize = 512;

fn fill(tier: &HostTier, shown: &Shown, value: u64) {
    let Some(slot) = tier.reserve() else { return };
    let bytes = value.to_le_bytes().repeat(STRESS_BYTES / 8);
    slot.bytes().write(0, &bytes);
    let index = slot.slot().0 as usize;
    if value.is_multiple_of(7) {
        return;
    }
    let key = BlockKey::from_u128(value.into());
    let location = tier.commit(slot, key, Checksum::of(&bytes));
    *shown.blocks[index].lock().expect("no panic") = Some((location, value));
}

fn read(tier: &HostTier, shown: &Shown, index: usize) {
    let known = *shown.blocks[index].lock().expect("no panic");
    let Some((location, value)) = known else {
        return;
    };
    let other = BlockKey::from_u128(u128::from(value) | (1 << 64));
    assert!(tier.pin(location, other).is_err(), "another key is pinned");
    let Ok(pin) = tier.pin(location, BlockKey::from_u128(value.into())) else {
        shown.refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    shown.pins.fetch_add(1, Ordering::Relaxed);
    for _ in 0..3 {
        let bytes = pin.bytes().to_vec();
        let words = bytes.chunks_exact(8);
        assert!(
            words.into_iter().all(|word| word == value.to_le_bytes()),
            "a pinned block changed"
        );
        std::thread::yield_now();
    }
}

fn evict(tier: &HostTier, shown: &Shown, index: usize) {
    let known = *shown.blocks[index].lock().expect("no panic");
    let Some((location, _)) = known else { return };
    if tier.evict(location) == Eviction::Pinned {
        shown.pinned.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writers, readers and evictors race on a few slots. A reader that has a pin must find the bytes
/// of its own block, and nothing may leak.
#[test]
fn a_pinned_block_never_changes_under_races() {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 20_000;
    let tier = tier(STRESS_SLOTS, STRESS_BYTES);
    let shown = Shown {
        blocks: (0..STRESS_SLOTS).map(|_| Mutex::new(None)).collect(),
        pins: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        pinned: AtomicU64::new(0),
    };
    let work = |thread: u64| {
        let mut rng = fastrand::Rng::with_seed(thread);
        for round in 0..ROUNDS {
            let index = rng.usize(..STRESS_SLOTS as usize);
            match rng.u8(..4) {
                0 => fill(&tier, &shown, thread * ROUNDS + round + 1),
                1 => evict(&tier, &shown, index),
                _ => read(&tier, &shown, index),
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        (0..THREADS).for_each(|thread| drop(scope.spawn(move || work(thread))));
    });
    let counts = [&shown.pins, &shown.refused, &shown.pinned];
    let counts = counts.map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|count| *count > 0), "no race: {counts:?}");
    for block in shown.blocks {
        if let Some((location, _)) = block.into_inner().expect("no panic") {
            assert_ne!(tier.evict(location), Eviction::Pinned, "a pin leaked");
        }
    }
    assert_eq!(tier.free_slots(), STRESS_SLOTS as usize, "a slot leaked");
}
