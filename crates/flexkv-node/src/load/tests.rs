//! What a load counts as its own node's, and what as brought from elsewhere.

use super::*;
use crate::plan::Distance;
use crate::tests::{TestNode, World, keys};

/// Has a load find a block here that it had asked for `before` times when it began to wait, and ends it.
async fn found_here(node: &TestNode, prompt: &[BlockKey], before: u8) -> Loaded {
    let limits = LoadLimits::from(Duration::from_secs(5));
    let mut load = Load::new(node.node.shared.clone(), prompt.into(), limits, None);
    load.attempts[0] = before;
    let source = Source {
        distance: Distance::Far,
        rate: 1e9,
        known: true,
        hope: 1e9,
        in_flight: 0,
        own: 0,
        asked: 0,
        spread: 0,
    };
    let claim = Claim {
        here: vec![0],
        ..Claim::default()
    };
    load.take(&source, claim).await;
    load.finish().loaded
}

#[tokio::test(start_paused = true)]
async fn a_block_that_came_before_it_was_asked_for_again_was_fetched() {
    let world = World::new();
    let node = world.node("a", 4);
    let prompt = keys(1, 1);
    node.store(&prompt, 0).await;
    let fetched = found_here(&node, &prompt, 1).await;
    assert_eq!((fetched.local, fetched.remote), (0, 1));
    let own = found_here(&node, &prompt, 0).await;
    assert_eq!((own.local, own.remote), (1, 0), "it was not asked for");
}
