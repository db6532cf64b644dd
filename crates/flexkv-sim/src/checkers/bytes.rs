//! Bytes right: an engine only ever gets the bytes that belong to the key it asked for.

use flexkv_block::BlockKey;
use flexkv_ports::Loaded;

/// The only right content of block `key`.
pub(crate) fn content(key: BlockKey, block_bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(key.fingerprint());
    let mut bytes = key.to_bytes().to_vec();
    bytes.resize_with(block_bytes.max(BlockKey::BYTES), || rng.u8(..));
    bytes.truncate(block_bytes);
    bytes
}

/// Checks everything a load gave for the leading part of `keys`.
pub(crate) fn check(keys: &[BlockKey], loaded: &Loaded, block_bytes: usize) -> Result<(), String> {
    if loaded.blocks.len() > keys.len() {
        return Err(format!(
            "{} blocks loaded, {} asked for",
            loaded.blocks.len(),
            keys.len()
        ));
    }
    if loaded.local + loaded.remote != loaded.blocks.len() {
        return Err(format!("sources do not add up: {loaded:?}"));
    }
    for (i, (key, block)) in keys.iter().zip(&loaded.blocks).enumerate() {
        if block.key != *key {
            return Err(format!("block {i}: asked for {key}, got {}", block.key));
        }
        if block.bytes.to_vec() != content(*key, block_bytes) {
            return Err(format!("block {i} ({key}): wrong bytes"));
        }
    }
    Ok(())
}
