//! A second mapping sees what the owner stores; files that are no arena are refused.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use flexkv_block::{BlockKey, Checksum, NamespaceId};
use flexkv_ports::{BlockTier as _, Eviction, HeapMemory};
use rustix::fs::{MemfdFlags, SealFlags};

use super::*;
use crate::{HostConfig, HostTier};

fn tier() -> HostTier {
    HostTier::create(&HostConfig {
        slots: 3,
        block_bytes: 5000,
        namespace: NamespaceId::from_u128(77),
        arena: 88,
        huge_pages: false,
        populate: false,
    })
    .expect("a small arena")
}

fn open(tier: &HostTier) -> MappedArena {
    let file = tier.fd().try_clone_to_owned().expect("another descriptor");
    MappedArena::open(file).expect("a good arena")
}

/// A memory file with this content, sealed against shrinking if `sealed`.
fn file(content: &[u8], sealed: bool) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = fs::memfd_create("test", flags).expect("a memory file");
    let mut file = std::fs::File::from(file);
    file.write_all(content).expect("write");
    file.seek(SeekFrom::Start(0)).expect("seek");
    if sealed {
        fs::fcntl_add_seals(file.as_fd(), SealFlags::SHRINK).expect("seal");
    }
    file.into()
}

fn refusal(file: OwnedFd) -> HostError {
    MappedArena::open(file).expect_err("not an arena to be mapped")
}

/// Stores block `n` of the owner.
fn put(tier: &HostTier, n: u8) -> (Location, BlockKey) {
    let slot = tier.reserve().expect("a free slot");
    slot.bytes().write(0, &[n; 5000]);
    let key = BlockKey::from_u128(u128::from(n));
    let location = tier.commit(slot, key, Checksum::of(&[n; 5000]));
    (location, key)
}

fn buffer() -> MemorySlice {
    MemorySlice::new(Arc::new(HeapMemory::new(5000)), 0, 5000).expect("inside")
}

#[test]
fn a_view_copies_blocks_that_the_owner_stored() {
    let tier = tier();
    let view = open(&tier);
    assert_eq!(view.layout(), tier.layout());
    assert_eq!(view.layout().namespace(), NamespaceId::from_u128(77));
    assert_eq!(view.layout().arena(), 88);
    view.populate()
        .expect("nothing to take, or there is memory");
    let (location, key) = put(&tier, 5);
    let into = buffer();
    let outcome = view.fetch(location, key, &into);
    assert_eq!(outcome, FetchOutcome::Fetched(Checksum::of(&[5; 5000])));
    assert_eq!(into.to_vec(), [5; 5000]);
}

#[test]
fn a_view_refuses_what_is_not_the_block_asked_for() {
    let tier = tier();
    let view = open(&tier);
    let (location, key) = put(&tier, 5);
    let into = buffer();
    let other_key = view.fetch(location, BlockKey::from_u128(6), &into);
    assert_eq!(other_key, FetchOutcome::Stale);
    for wrong in [
        Location {
            generation: location.generation.next(),
            ..location
        },
        Location {
            tier: Tier::Ssd,
            ..location
        },
        Location {
            slot: SlotId(1),
            ..location
        },
        Location {
            slot: SlotId(u32::MAX),
            ..location
        },
    ] {
        let outcome = view.fetch(wrong, key, &into);
        assert_eq!(outcome, FetchOutcome::Stale, "{wrong:?}");
    }
    assert_eq!(tier.evict(location), Eviction::Done);
    assert_eq!(view.fetch(location, key, &into), FetchOutcome::Stale);
}

/// Every bit of some bytes of the payload, and every bit of the descriptor.
#[test]
fn a_view_notices_every_changed_bit() {
    let tier = tier();
    let view = open(&tier);
    let (location, key) = put(&tier, 5);
    let memory = MemorySlice::new(tier.memory(), 0, tier.layout().file_bytes()).expect("all");
    let payload = tier.layout().payload_offset(location.slot).expect("a slot");
    let descriptor = tier
        .layout()
        .descriptor_offset(location.slot)
        .expect("a slot");
    let into = buffer();
    for at in [payload, payload + 2500, payload + 4999]
        .into_iter()
        .chain(descriptor..descriptor + 32)
    {
        for bit in 0..8 {
            let mut byte = [0];
            memory.read(at, &mut byte);
            memory.write(at, &[byte[0] ^ 1 << bit]);
            let outcome = view.fetch(location, key, &into);
            let expected = if at < descriptor + 24 {
                FetchOutcome::Stale
            } else {
                FetchOutcome::Corrupt
            };
            assert_eq!(outcome, expected, "bit {bit} of byte {at}");
            memory.write(at, &byte);
        }
    }
    let outcome = view.fetch(location, key, &into);
    assert!(matches!(outcome, FetchOutcome::Fetched(_)));
}

#[test]
fn a_view_sees_which_block_a_slot_holds() {
    let tier = tier();
    let view = open(&tier);
    let slot = tier.reserve().expect("a free slot");
    let id = slot.slot();
    assert_eq!(view.descriptor(id), None, "a slot being filled");
    let key = BlockKey::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
    let location = tier.commit(slot, key, Checksum(9));
    let shown = Descriptor {
        location,
        key,
        checksum: Checksum(9),
    };
    assert_eq!(view.descriptor(id), Some(shown));
    assert_eq!(tier.evict(location), Eviction::Done);
    assert_eq!(view.descriptor(id), None, "an evicted block");
    assert_eq!(view.descriptor(SlotId(3)), None, "no such slot");
}

#[test]
fn a_view_outlives_the_owner() {
    let (view, (location, key)) = {
        let tier = tier();
        let block = put(&tier, 7);
        (open(&tier), block)
    };
    let into = buffer();
    let outcome = view.fetch(location, key, &into);
    assert_eq!(outcome, FetchOutcome::Fetched(Checksum::of(&[7; 5000])));
}

#[test]
fn the_descriptor_for_readers_does_not_let_them_write() {
    let tier = tier();
    let file = tier.read_only_file().expect("another descriptor");
    let written = io::pwrite(&file, b"x", 0);
    assert_eq!(written, Err(io::Errno::BADF));
    assert!(MappedArena::open(file).is_ok());
    let mode = fs::fstat(tier.fd()).expect("its status").st_mode & 0o777;
    assert_eq!(mode, 0o600, "other users cannot open it anew for writing");
}

/// Fetches run while the owner replaces the block as fast as it can.
#[test]
fn a_block_that_is_replaced_while_it_is_copied_is_stale_or_whole() {
    let tier = tier();
    let view = open(&tier);
    let stop = AtomicBool::new(false);
    let shown = Mutex::new(put(&tier, 0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in (1..=u8::MAX).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (location, _) = *shown.lock().expect("no panic");
                assert_eq!(tier.evict(location), Eviction::Done);
                *shown.lock().expect("no panic") = put(&tier, n);
            }
        });
        let into = buffer();
        let mut fetched = 0;
        for _ in 0..200_000 {
            let (location, key) = *shown.lock().expect("no panic");
            match view.fetch(location, key, &into) {
                FetchOutcome::Fetched(_) => {
                    fetched += 1;
                    assert_eq!(into.to_vec(), [key.as_u128() as u8; 5000]);
                }
                outcome => assert_eq!(outcome, FetchOutcome::Stale),
            }
            if fetched == 1000 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(fetched > 0, "nothing was ever fetched");
    });
}

#[test]
fn what_engines_scribble_does_not_confuse_the_owner() {
    let tier = tier();
    let slot = tier.reserve().expect("a free slot");
    slot.bytes().write(0, &[3; 5000]);
    let sum = Checksum::of(&[3; 5000]);
    let key = BlockKey::from_u128(1);
    let location = tier.commit(slot, key, sum);
    let whole = MemorySlice::new(tier.memory(), 0, 8192).expect("header and descriptors");
    whole.write(0, &[0xff; 8192]);
    assert!(tier.pin(location, key).expect("still there").verify());
    assert!(tier.pin(location, BlockKey::from_u128(2)).is_err());
    assert_eq!(tier.evict(location), Eviction::Done);
    assert_eq!(tier.free_slots(), 3);
}

#[test]
fn the_file_keeps_its_size() {
    let tier = tier();
    for bytes in [0, 1 << 30] {
        assert!(fs::ftruncate(tier.fd(), bytes).is_err(), "{bytes} bytes");
    }
}

#[test]
fn files_that_are_no_arena_are_refused() {
    let good = MemorySlice::new(tier().memory(), 0, 4096).expect("the header page");
    let mut good = good.to_vec();
    let magic = ArenaError::Magic { found: [0; 4] };
    assert_eq!(refusal(file(&[0; 8192], true)), magic.into());
    let length = ArenaError::Length {
        expected: 80,
        found: 3,
    };
    assert_eq!(refusal(file(b"FKV", true)), length.into());
    let length = ArenaError::Length {
        expected: 8192 + 3 * 8192,
        found: 4096,
    };
    assert_eq!(refusal(file(&good, true)), length.into());
    good.resize(8192 + 3 * 8192, 0);
    assert_eq!(refusal(file(&good, false)), HostError::NotSealed);
    assert!(MappedArena::open(file(&good, true)).is_ok());
    good[33] ^= 1;
    assert_eq!(refusal(file(&good, true)), ArenaError::Damaged.into());
}

#[test]
fn descriptors_that_are_no_files_are_refused() {
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let refused = refusal(pipe.into());
    assert!(matches!(refused, HostError::Refused { .. }), "{refused}");
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    assert!(MappedArena::open(null.into()).is_err());
}
