//! The ideal cache on prompts that can be followed by hand.

use super::*;

fn keys(numbers: &[u128]) -> Vec<BlockKey> {
    numbers.iter().map(|n| BlockKey::from_u128(*n)).collect()
}

#[test]
fn nodes_that_share_have_one_list_as_long_as_all_together() {
    let mut ideal = Ideal::new(2, 3, false);
    assert_eq!(ideal.serve(0, &keys(&[1, 2, 3, 4])), 0);
    assert_eq!(ideal.serve(1, &keys(&[1, 2, 3, 4, 5, 6])), 4);
    assert_eq!(ideal.serve(0, &keys(&[7])), 0);
    assert_eq!(ideal.serve(1, &keys(&[1, 2, 3, 4, 5, 6])), 5, "6 had to go");
}

#[test]
fn nodes_alone_have_one_each() {
    let mut ideal = Ideal::new(2, 3, true);
    assert_eq!(ideal.serve(0, &keys(&[1, 2])), 0);
    assert_eq!(ideal.serve(1, &keys(&[1, 2])), 0);
    assert_eq!(ideal.serve(0, &keys(&[1, 2, 3, 4])), 2);
    assert_eq!(ideal.serve(0, &keys(&[1, 2, 3, 4])), 3, "room for three");
}

#[test]
fn a_block_without_those_before_it_does_not_serve() {
    let mut ideal = Ideal::new(1, 2, false);
    ideal.serve(0, &keys(&[1, 2]));
    ideal.serve(0, &keys(&[3]));
    assert_eq!(ideal.serve(0, &keys(&[2])), 0, "2 was used before 1");
    assert_eq!(ideal.serve(0, &keys(&[1, 2])), 0, "1 is gone meanwhile");
}
