//! Block contents: distinct per key, the same whole or in pieces, and any changed byte is noticed.

use flexkv_ports::{BlockTier, HeapTier, TierShape};

use super::*;

fn slot(bytes: usize) -> (HeapTier, flexkv_ports::WriteSlot) {
    let tier = HeapTier::new(TierShape {
        tier: flexkv_block::Tier::Host,
        slots: 1,
        block_bytes: bytes,
    });
    let slot = tier.reserve().unwrap();
    (tier, slot)
}

#[test]
fn keys_that_differ_in_either_half_have_unrelated_bytes() {
    let mut blocks = Vec::new();
    for key in [0u128, 1, 1 << 64] {
        let mut block = vec![0; 64];
        fill(BlockKey::from_u128(key), &mut block);
        blocks.push(block);
    }
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let same = blocks[a]
            .iter()
            .zip(&blocks[b])
            .filter(|(x, y)| x == y)
            .count();
        assert!(same < 16, "blocks {a} and {b} share {same} of 64 bytes");
    }
}

#[test]
fn a_block_written_in_pieces_is_the_block_filled_at_once() {
    for bytes in [8, 4096, 4097, 12_345] {
        let key = BlockKey::from_u128(77 << 60);
        let (_tier, slot) = slot(bytes);
        let sum = write_block(key, slot.bytes());
        let mut wanted = vec![0; bytes];
        fill(key, &mut wanted);
        assert_eq!(slot.bytes().to_vec(), wanted);
        assert_eq!(sum, Checksum::of(&wanted));
        assert!(check_block(key, slot.bytes()));
    }
}

#[test]
fn any_changed_byte_is_noticed() {
    let key = BlockKey::from_u128(3);
    let (_tier, slot) = slot(9000);
    write_block(key, slot.bytes());
    for at in [0, 4095, 4096, 8999] {
        let mut byte = [0];
        slot.bytes().read(at, &mut byte);
        slot.bytes().write(at, &[byte[0] ^ 1]);
        assert!(!check_block(key, slot.bytes()), "byte {at}");
        slot.bytes().write(at, &byte);
    }
    assert!(check_block(key, slot.bytes()));
    assert!(!check_block(BlockKey::from_u128(4), slot.bytes()));
}
