//! One suite per seam. Every implementation's tests call it, so all keep the same promises.
//!
//! A suite is a function that is given a maker and panics with what was expected and what came.
//! Each case starts from a fresh value of the maker. Suites know the traits and nothing of how
//! they are implemented; what an implementation can do beyond its trait is its own test's matter.
//! They assert no speed; waits are polled under generous deadlines.

mod cache;
mod staged;
mod store;
mod tier;
mod transport;

use std::time::Duration;

use flexkv_block::{BlockKey, Checksum, Location};

pub use cache::{CacheUnderTest, cache};
pub use staged::staged;
pub use store::{StoreUnderTest, store};
pub use tier::tier;
pub use transport::{TransportHarness, transport};

use crate::{BlockTier, ReadSlot};

/// Polls for this long before a wait has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The key of test block `n`.
fn key(n: u64) -> BlockKey {
    let low = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    BlockKey::from_u128((u128::from(n + 1) << 64) | u128::from(low))
}

/// The bytes of test block `n`: different for each `n`, from the first byte on.
fn block(n: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    if let Some(first) = bytes.first_mut() {
        *first = n as u8;
    }
    bytes
}

/// Stores test block `n` in a tier that has a free slot.
fn put(tier: &dyn BlockTier, n: u64) -> Location {
    let bytes = block(n, tier.shape().block_bytes);
    let slot = tier
        .reserve()
        .unwrap_or_else(|| panic!("no slot free for block {n}"));
    slot.bytes().write(0, &bytes);
    tier.commit(slot, key(n), Checksum::of(&bytes))
}

/// Pins test block `n`, which must be at `location`, and checks everything about it.
fn pinned(tier: &dyn BlockTier, location: Location, n: u64) -> ReadSlot {
    let pin = tier.pin(location, key(n));
    let slot = pin.unwrap_or_else(|e| panic!("block {n} at {location:?} is not readable: {e:?}"));
    assert_eq!(
        (slot.location(), slot.key()),
        (location, key(n)),
        "another block is pinned"
    );
    assert_eq!(
        slot.bytes().to_vec(),
        block(n, tier.shape().block_bytes),
        "bytes of block {n}"
    );
    assert!(slot.verify(), "block {n} has the wrong checksum");
    slot
}

/// Polls until `done`, or fails with `what` should have happened.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let polling = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, polling).await;
    assert!(in_time.is_ok(), "did not happen: {what}");
}
