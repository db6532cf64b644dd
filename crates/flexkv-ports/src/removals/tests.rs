//! What watchers hear, and that nobody who does not listen costs memory.

use super::*;

fn keys(range: std::ops::Range<u128>) -> impl Iterator<Item = BlockKey> + Clone {
    range.map(BlockKey::from_u128)
}

#[test]
fn every_watcher_hears_of_removals_once() {
    let feed = RemovalFeed::default();
    feed.removed(keys(0..1));
    let (one, other) = (feed.watch(), feed.watch());
    feed.removed(keys(1..3));
    feed.removed(keys(2..4));
    for watcher in [&one, &other] {
        let removed = watcher.take();
        assert_eq!(removed.keys, keys(1..4).collect::<Vec<_>>());
        assert_eq!(removed.lost, 0);
        assert_eq!(watcher.take(), Removed::default());
    }
}

#[test]
fn a_block_that_came_back_is_no_news() {
    let feed = RemovalFeed::default();
    let watcher = feed.watch();
    feed.removed(keys(0..3));
    feed.stored(keys(1..2));
    assert_eq!(watcher.take().keys, [0, 2].map(BlockKey::from_u128));
}

#[test]
fn news_beyond_the_limit_are_counted() {
    let feed = RemovalFeed::default();
    let watcher = feed.watch();
    let most = MOST_UNTAKEN as u128;
    feed.removed(keys(0..most + 5));
    feed.removed(keys(0..2));
    feed.lost(3);
    let removed = watcher.take();
    assert_eq!(removed.keys.len(), MOST_UNTAKEN);
    assert_eq!(removed.lost, 8, "five new ones and three lost before");
}

#[test]
fn watchers_that_left_are_forgotten() {
    let feed = RemovalFeed::default();
    for _ in 0..10 {
        drop(feed.watch());
    }
    let _stays = feed.watch();
    assert_eq!(lock(&feed.watchers).len(), 1);
}

#[tokio::test]
async fn a_watcher_can_wait_for_news() {
    let feed = RemovalFeed::default();
    let watcher = feed.watch();
    let teller = feed.clone();
    let told = tokio::spawn(async move { teller.removed(keys(7..8)) });
    assert_eq!(watcher.next().await.keys, [BlockKey::from_u128(7)]);
    told.await.unwrap();
}
