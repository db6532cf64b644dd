//! A second mapping sees what the owner stores; files that are no arena are refused.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;

use flexkv_block::{BlockKey, Checksum, NamespaceId};
use flexkv_ports::{BlockTier as _, Eviction};
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

#[test]
fn a_view_sees_the_same_bytes_at_another_address() {
    let tier = tier();
    let view = open(&tier);
    assert_eq!(view.layout(), tier.layout());
    assert_eq!(view.layout().namespace(), NamespaceId::from_u128(77));
    assert_eq!(view.layout().arena(), 88);
    assert_ne!(view.memory().base(), tier.memory().base());
    assert!(view.memory().fd().is_some());
    view.populate().expect("there is memory");

    let slot = tier.reserve().expect("a free slot");
    let seen = view.block(slot.slot()).expect("the same slot");
    seen.write(0, &[5; 5000]);
    assert_eq!(slot.bytes().to_vec(), [5; 5000]);
    assert_eq!(seen.offset(), slot.bytes().offset());
    assert!(view.block(SlotId(3)).is_none());
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
    let view = {
        let tier = tier();
        open(&tier)
    };
    let block = view.block(SlotId(2)).expect("slot 2 of 3");
    block.write(0, &[1; 5000]);
    assert_eq!(block.to_vec(), [1; 5000]);
}

#[test]
fn what_a_view_scribbles_does_not_confuse_the_owner() {
    let tier = tier();
    let view = open(&tier);
    let slot = tier.reserve().expect("a free slot");
    slot.bytes().write(0, &[3; 5000]);
    let sum = Checksum::of(&[3; 5000]);
    let key = BlockKey::from_u128(1);
    let location = tier.commit(slot, key, sum);
    let whole = MemorySlice::new(view.memory(), 0, 8192).expect("header and descriptors");
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
    let magic = HostError::Magic { found: [0; 4] };
    assert_eq!(refusal(file(&[0; 8192], true)), magic);
    let length = HostError::Length {
        expected: 80,
        found: 3,
    };
    assert_eq!(refusal(file(b"FKV", true)), length);
    let length = HostError::Length {
        expected: 8192 + 3 * 8192,
        found: 4096,
    };
    assert_eq!(refusal(file(&good, true)), length);
    good.resize(8192 + 3 * 8192, 0);
    assert_eq!(refusal(file(&good, false)), HostError::NotSealed);
    assert!(MappedArena::open(file(&good, true)).is_ok());
    good[33] ^= 1;
    assert_eq!(refusal(file(&good, true)), HostError::Damaged);
}

#[test]
fn descriptors_that_are_no_files_are_refused() {
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let refused = refusal(pipe.into());
    assert!(matches!(refused, HostError::Refused { .. }), "{refused}");
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    assert!(MappedArena::open(null.into()).is_err());
}
