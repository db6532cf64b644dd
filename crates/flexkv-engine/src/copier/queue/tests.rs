//! In which order copies are taken, and what becomes of those that nobody made.

use std::sync::Arc;

use flexkv_ports::{HeapMemory, MemorySlice};

use super::*;

fn load(to: i64) -> Copy {
    Copy::Load {
        from: MemorySlice::new(Arc::new(HeapMemory::new(1)), 0, 1).expect("a byte"),
        to,
        checksum: None,
    }
}

fn store(from: i64) -> Copy {
    Copy::Store {
        from,
        to: MemorySlice::new(Arc::new(HeapMemory::new(1)), 0, 1).expect("a byte"),
    }
}

fn block(claim: &Claim) -> i64 {
    match claim.copy() {
        Copy::Load { to: block, .. } | Copy::Store { from: block, .. } => *block,
    }
}

#[test]
fn loads_pass_stores_that_have_begun() {
    let queue = Queue::default();
    let mut stored = queue.push(vec![store(1), store(2)]);
    let first = queue.next().expect("a copy");
    assert_eq!(block(&first), 1);
    let _loaded = [
        queue.push(vec![load(10), load(11)]),
        queue.push(vec![load(12)]),
    ];
    let order: Vec<_> = (0..4).filter_map(|_| queue.next()).collect();
    let blocks: Vec<_> = order.iter().map(block).collect();
    assert_eq!(blocks, [10, 11, 12, 2]);
    first.end(Ok(Some(Checksum(7))));
    assert!(stored.try_recv().is_err(), "one is under way");
    order.into_iter().for_each(|claim| claim.end(Err(Bad)));
    let outcomes = stored.try_recv().expect("all have ended");
    assert_eq!(outcomes, [Ok(Some(Checksum(7))), Err(Bad)]);
}

#[test]
fn a_stopped_queue_gives_up_what_was_not_taken() {
    let queue = Queue::default();
    let mut taken = queue.push(vec![load(1)]);
    let mut half = queue.push(vec![load(2), load(3)]);
    let claims = [queue.next().expect("a copy"), queue.next().expect("a copy")];
    queue.stop();
    assert!(queue.next().is_none());
    let mut late = queue.push(vec![load(4)]);
    for claim in claims {
        claim.end(Ok(None));
    }
    assert_eq!(taken.try_recv(), Ok(vec![Ok(None)]), "it was made");
    for given_up in [&mut half, &mut late] {
        let closed = given_up.try_recv().expect_err("not all were made");
        assert_eq!(closed, oneshot::error::TryRecvError::Closed);
    }
}

#[test]
fn nothing_to_copy_is_done() {
    assert_eq!(Queue::default().push(Vec::new()).try_recv(), Ok(vec![]));
}
