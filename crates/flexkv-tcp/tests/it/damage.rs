//! Bits that arrive other than they were sent.

use std::io::Write as _;

use flexkv_ports::FetchOutcome;
use flexkv_tcp::wire::{ANSWER_BYTES, RESPONSE_BYTES};

use crate::faults::honest_answer;
use crate::support::{DEADLINE, Reader, Scripted, config, heap, is_fetched, store, welcome};

/// Bytes of the only block.
const BYTES: usize = 512;
/// Bytes before it.
const HEAD: usize = RESPONSE_BYTES + ANSWER_BYTES;

/// Whether byte `at` of an answer means nothing to a reader of this version, or not more than that
/// it should say when it has read: bit 0 of the flags.
fn may_change(at: usize, bit: u8) -> bool {
    let reserved = matches!(at, 6..8) || (RESPONSE_BYTES + 1..RESPONSE_BYTES + 8).contains(&at);
    reserved || (at == 4 && bit == 0)
}

/// What a reader makes of an honest answer of which this bit was flipped on the way.
async fn flipped(at: usize, bit: u8) -> FetchOutcome {
    let owner = Scripted::new(move |mut stream| {
        welcome(&mut stream, BYTES);
        let mut bytes = honest_answer(&mut stream, BYTES);
        bytes[at] ^= 1 << bit;
        // A reader that does not like the beginning may hang up.
        let _ = stream.write_all(&bytes);
        crate::support::listen_silently(stream);
    });
    let reader = Reader::with(config(BYTES), 1);
    let blocks = store(&*heap(1, 1), 1);
    // `outcomes` compares what was fetched with the block.
    let outcomes = reader.outcomes(&owner.endpoint, &blocks, DEADLINE).await;
    reader.all_buffers_return().await;
    outcomes[0]
}

#[tokio::test]
async fn every_bit_of_a_header_counts() {
    for at in 0..HEAD {
        for bit in 0..8 {
            let outcome = flipped(at, bit).await;
            let fetched = is_fetched(&outcome);
            assert_eq!(
                fetched,
                may_change(at, bit),
                "bit {bit} of byte {at}: {outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn every_byte_of_a_payload_counts() {
    for at in (HEAD..HEAD + BYTES).step_by(7).chain([HEAD + BYTES - 1]) {
        let outcome = flipped(at, (at % 8) as u8).await;
        assert_eq!(outcome, FetchOutcome::Corrupt, "byte {at}");
    }
}
