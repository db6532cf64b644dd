//! A report as bytes, and the queue of them: in order, bounded, and over when nobody puts anything in.

use flexkv_block::{Generation, SlotId, Tier};

use super::*;

fn suspect(n: u32) -> Suspect {
    Suspect {
        location: Location {
            tier: Tier::Host,
            slot: SlotId(n),
            generation: Generation::FIRST,
        },
        key: BlockKey::from_u128(n.into()),
    }
}

#[tokio::test]
async fn reports_come_in_order_until_all_senders_are_gone() {
    let (sender, mut receiver) = suspects();
    let other = sender.clone();
    assert!(sender.tell(suspect(1)) && other.tell(suspect(2)));
    drop((sender, other));
    assert_eq!(receiver.next().await, Some(suspect(1)));
    assert_eq!(receiver.next().await, Some(suspect(2)));
    assert_eq!(receiver.next().await, None);
}

#[tokio::test]
async fn reports_beyond_the_bound_are_lost_and_nobody_waits() {
    let (sender, mut receiver) = suspects();
    let told = (0..3000).filter(|n| sender.tell(suspect(*n))).count();
    assert_eq!(told, WAITING_MAX);
    assert_eq!(receiver.next().await, Some(suspect(0)));
    assert!(sender.tell(suspect(1)), "there is room again");
}

#[test]
fn a_report_says_the_same_when_it_is_read_and_garbage_is_none() {
    let bytes = suspect(7).encode();
    assert_eq!(Suspect::decode(&bytes), Some(suspect(7)));
    for (at, wrong) in [(0, b'X'), (7, 0)] {
        let mut other = bytes;
        other[at] = wrong;
        assert_eq!(Suspect::decode(&other), None, "magic");
    }
    let mut nowhere = bytes;
    nowhere[8..16].fill(0);
    assert_eq!(Suspect::decode(&nowhere), None, "no location");
}
