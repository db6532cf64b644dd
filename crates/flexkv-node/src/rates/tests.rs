//! Rates on a clock that stands still until told: one fetch, several at a time, failures, old news.

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn deliver(link: &Arc<Link>, bytes: u64, time: Duration) {
    let delivery = link.begin(bytes);
    tokio::time::advance(time).await;
    delivery.arrived(bytes);
}

fn rate(link: &Link) -> f64 {
    link.speed().rate.expect("a measured rate").round()
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_bytes_over_time_and_follows_changes() {
    let link = Arc::new(Link::default());
    assert_eq!(link.speed().rate, None);
    deliver(&link, 1000, ms(100)).await;
    assert_eq!(rate(&link), 10_000.0);
    tokio::time::advance(ms(5000)).await;
    deliver(&link, 1000, ms(100)).await;
    assert_eq!(rate(&link), 10_000.0, "idle time does not count");
    for _ in 0..12 {
        deliver(&link, 1000, ms(1000)).await;
    }
    assert!((1000.0..1100.0).contains(&rate(&link)), "{}", rate(&link));
}

#[tokio::test(start_paused = true)]
async fn fetches_at_the_same_time_share_the_link() {
    let link = Arc::new(Link::default());
    let (first, second) = (link.begin(1000), link.begin(3000));
    assert_eq!(link.speed().in_flight, 4000);
    tokio::time::advance(ms(200)).await;
    first.arrived(1000);
    tokio::time::advance(ms(200)).await;
    second.arrived(3000);
    let expected = (1000.0 * MEMORY + 3000.0) / (0.2 * MEMORY + 0.2);
    assert_eq!(rate(&link), expected.round());
    assert_eq!(link.speed().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_tells_nothing_and_one_given_up_at_most_its_bytes() {
    let link = Arc::new(Link::default());
    let failing = link.begin(1000);
    tokio::time::advance(ms(1000)).await;
    failing.arrived(0);
    assert_eq!(link.speed().rate, None);
    assert!(!link.delivered_since(Instant::now() - ms(1000)));
    let slow = link.begin(1000);
    tokio::time::advance(ms(2000)).await;
    drop(slow);
    assert_eq!(rate(&link), 500.0);
    let cancelled = link.begin(100_000);
    tokio::time::advance(ms(1)).await;
    drop(cancelled);
    assert_eq!(rate(&link), 500.0, "too early to tell");
    assert_eq!(link.speed().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_old_rate_is_none() {
    let link = Arc::new(Link::default());
    let begun = Instant::now();
    deliver(&link, 1000, ms(100)).await;
    assert!(link.delivered_since(begun) && !link.delivered_since(Instant::now() + ms(1)));
    tokio::time::advance(FRESH).await;
    assert_eq!(link.speed().rate, None);
}
