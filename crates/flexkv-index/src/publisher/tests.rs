//! What a publisher asks for, when, and what it makes of each answer.

use bytes::Bytes;
use flexkv_block::{Generation, NamespaceId, SlotId, Tier};

use super::*;
use crate::log::{Entry, EntryPlace, Op};
use crate::record::NodeId;
use crate::residency::{LiveRun, Walk};

const MS: Duration = Duration::from_millis(1);
const KEPT: PublishOutcome = PublishOutcome::Renewed {
    lease_kept: true,
    log_kept: true,
};

fn at(slot: u32) -> Location {
    Location {
        tier: Tier::Host,
        slot: SlotId(slot),
        generation: Generation::FIRST,
    }
}

/// Live blocks `0..n`, one chain.
struct Live(u64);

impl LiveSet for Live {
    fn tell(&self, walk: &mut Walk, _: usize, each: &mut dyn FnMut(LiveRun<'_>)) {
        walk.end();
        let fingerprints: Vec<_> = (0..self.0).collect();
        let locations: Vec<_> = (0..self.0).map(|n| at(n as u32)).collect();
        each(LiveRun {
            parent: None,
            fingerprints: &fingerprints,
            locations: &locations,
        });
    }
}

/// A live set that must not be asked for.
struct Unasked;

impl LiveSet for Unasked {
    fn tell(&self, _: &mut Walk, _: usize, _: &mut dyn FnMut(LiveRun<'_>)) {
        panic!("a checkpoint was made");
    }
}

fn publisher(config: PublisherConfig) -> Publisher {
    let node = NodeId {
        name: "a".parse().expect("a good name"),
        incarnation: 1,
    };
    let id = NamespaceId::from_u128(1);
    let info = NodeInfo::new(node, id, 1, String::new(), vec![]).expect("good info");
    Publisher::new(config, info)
}

/// Answers everything that is asked for at `now` with what a healthy store says.
fn drain(publisher: &mut Publisher, now: Duration, live: &dyn LiveSet) -> Vec<PublishAction> {
    let mut actions = Vec::new();
    while let Some(action) = publisher.poll(now, live) {
        let renewal = matches!(action, PublishAction::Renew { .. });
        let outcome = if renewal { KEPT } else { PublishOutcome::Done };
        publisher.handle(now, outcome);
        actions.push(action);
    }
    actions
}

fn settled(config: PublisherConfig) -> Publisher {
    let mut publisher = publisher(config);
    drain(&mut publisher, Duration::ZERO, &Live(0));
    assert!(publisher.is_settled());
    publisher
}

/// One short line per action: what, which epoch, and the kinds of its entries.
fn summary(actions: &[PublishAction]) -> Vec<String> {
    let epoch = |log: &str| {
        log.rsplit('.')
            .next()
            .map(str::to_owned)
            .unwrap_or_default()
    };
    let kind = |(sequence, bytes): &(u64, Bytes)| {
        let place = EntryPlace {
            incarnation: 1,
            sequence: *sequence,
        };
        match Entry::decode(bytes, place).expect("a good entry") {
            Entry::Checkpoint(batch) => format!("c{}", batch.blocks()),
            Entry::CheckpointEnd => "end".to_owned(),
            Entry::Delta(batch) => format!("d{}", batch.blocks()),
            Entry::Rotate(to) => format!("rotate to {} after {}", to.next_epoch, to.resume_after),
        }
    };
    let line = |action: &PublishAction| match action {
        PublishAction::Append {
            log,
            entries,
            create,
            ..
        } => {
            let kinds: Vec<_> = entries.iter().map(kind).collect();
            let verb = if *create { "create" } else { "append" };
            format!(
                "{verb} {}: {}@{}",
                epoch(log),
                kinds.join(" "),
                entries[0].0
            )
        }
        PublishAction::Renew { record, log, .. } => {
            let record = NodeRecord::decode(record).expect("a good record");
            format!("renew {}: epoch {}", epoch(log), record.epoch)
        }
        PublishAction::Retire { log, .. } => format!("retire {}", epoch(log)),
    };
    actions.iter().map(line).collect()
}

#[test]
fn the_first_log_is_made_before_the_checkpoint_is() {
    let mut publisher = publisher(PublisherConfig::default());
    let first = publisher.poll(MS, &Unasked).expect("something to do");
    assert_eq!(summary(&[first]), ["create 1: c0@1"]);
    publisher.handle(MS, PublishOutcome::Done);
    let rest = drain(&mut publisher, MS, &Live(5000));
    let expected = ["renew 1: epoch 1", "append 1: c4096 c904 end@2"];
    assert_eq!(summary(&rest), expected);
    assert!(publisher.is_settled());
}

#[test]
fn changes_share_an_entry_and_keep_their_order() {
    let mut publisher = settled(PublisherConfig::default());
    publisher.stored(10 * MS, None, &[1], &[at(1)]);
    publisher.removed(11 * MS, &[1]);
    publisher.stored(11 * MS, None, &[1], &[at(2)]);
    assert_eq!(publisher.poll_timeout(), Some(12 * MS));
    assert_eq!(publisher.poll(11 * MS, &Unasked), None, "too early");
    let actions = drain(&mut publisher, 12 * MS, &Unasked);
    assert_eq!(summary(&actions), ["append 1: d3@3"]);
    let PublishAction::Append { entries, .. } = &actions[0] else {
        panic!("not an append");
    };
    let place = EntryPlace {
        incarnation: 1,
        sequence: 3,
    };
    let Ok(Entry::Delta(batch)) = Entry::decode(&entries[0].1, place) else {
        panic!("not a delta");
    };
    let ops: Vec<_> = batch.ops().collect();
    assert!(
        matches!(ops[1], Op::Remove { fingerprints: [1] }),
        "{ops:?}"
    );
    let last = Op::Add {
        parent: None,
        fingerprints: &[1],
        locations: &[at(2)],
    };
    assert_eq!(ops[2], last);
    assert_eq!(publisher.staleness(20 * MS, 3), Some(10 * MS));
    assert_eq!(publisher.staleness(20 * MS, 4), None);
}

#[test]
fn a_long_run_is_split_and_goes_on_where_it_was() {
    let mut publisher = settled(PublisherConfig::default());
    let fingerprints: Vec<u64> = (1..=5000).collect();
    let locations: Vec<_> = (1..=5000).map(at).collect();
    publisher.stored(MS, Some(77), &fingerprints, &locations);
    let actions = drain(&mut publisher, 10 * MS, &Unasked);
    assert_eq!(summary(&actions), ["append 1: d4096@3", "append 1: d904@4"]);
    let PublishAction::Append { entries, .. } = &actions[1] else {
        panic!("not an append");
    };
    let place = EntryPlace {
        incarnation: 1,
        sequence: 4,
    };
    let Ok(Entry::Delta(batch)) = Entry::decode(&entries[0].1, place) else {
        panic!("not a delta");
    };
    let parent = batch.ops().next().map(|op| match op {
        Op::Add { parent, .. } => parent,
        Op::Remove { .. } => None,
    });
    assert_eq!(parent, Some(Some(4096)));
}

#[test]
fn what_got_no_answer_is_repeated_as_it_was() {
    let mut publisher = settled(PublisherConfig::default());
    publisher.stored(MS, None, &[1], &[at(1)]);
    let mut now = 10 * MS;
    let first = publisher.poll(now, &Unasked).expect("an append");
    publisher.stored(now, None, &[2], &[at(2)]);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        publisher.handle(now, PublishOutcome::Unavailable);
        let next = publisher.poll_timeout().expect("a time to try again");
        assert_eq!(publisher.poll(next - MS, &Unasked), None);
        pauses.push(next - now);
        now = next;
        // A renewal may be due as well; the store answers neither.
        let mut again = publisher.poll(now, &Unasked).expect("a retry");
        if matches!(again, PublishAction::Renew { .. }) {
            publisher.handle(now, KEPT);
            again = publisher.poll(now, &Unasked).expect("a retry");
        }
        assert_eq!(again, first);
    }
    assert!(pauses[0] < 21 * MS, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(2)));
    assert!(pauses.iter().any(|pause| *pause > Duration::from_secs(1)));
    publisher.handle(now, PublishOutcome::Done);
    let rest = drain(&mut publisher, now, &Unasked);
    assert_eq!(summary(&rest), ["append 1: d1@4"]);
}

#[test]
fn a_store_that_cannot_be_reached_costs_no_checkpoint() {
    let mut publisher = publisher(PublisherConfig::default());
    let mut now = MS;
    for outcome in [
        PublishOutcome::Unavailable,
        PublishOutcome::Denied,
        PublishOutcome::Full,
        PublishOutcome::LogLost,
    ] {
        let action = publisher.poll(now, &Unasked).expect("a try");
        assert!(summary(&[action])[0].starts_with("create "));
        publisher.stored(now, None, &[1], &[at(1)]);
        publisher.handle(now, outcome);
        now = publisher.poll_timeout().expect("a next try").max(now);
    }
    drain(&mut publisher, now, &Live(1));
    assert!(publisher.is_settled());
}

#[test]
fn whatever_fails_a_lease_is_renewed_three_times_while_it_lasts() {
    let config = PublisherConfig {
        lease_ttl: 900 * MS,
        ..PublisherConfig::default()
    };
    for outcome in [
        PublishOutcome::Unavailable,
        PublishOutcome::Denied,
        PublishOutcome::Full,
    ] {
        let mut publisher = settled(config.clone());
        let mut now = 300 * MS;
        for _ in 0..10 {
            let action = publisher.poll(now, &Unasked).expect("a renewal");
            assert_eq!(summary(&[action]), ["renew 1: epoch 1"]);
            publisher.handle(now, outcome);
            let next = publisher.poll_timeout().expect("a next try");
            assert!(next - now <= 300 * MS, "{outcome:?}: {:?}", next - now);
            now = next;
        }
    }
}

#[test]
fn renewals_come_three_to_a_lease_and_an_idle_log_gets_nothing_else() {
    let config = PublisherConfig {
        lease_ttl: 900 * MS,
        ..PublisherConfig::default()
    };
    let mut publisher = settled(config);
    assert_eq!(publisher.poll_timeout(), Some(300 * MS));
    assert_eq!(publisher.poll(299 * MS, &Unasked), None);
    for round in 1..5 {
        let idle = drain(&mut publisher, 300 * MS * round, &Unasked);
        assert_eq!(summary(&idle), ["renew 1: epoch 1"]);
    }
}

#[test]
fn a_loss_of_any_kind_begins_a_new_epoch() {
    let lost = |lease_kept, log_kept| PublishOutcome::Renewed {
        lease_kept,
        log_kept,
    };
    for outcome in [lost(false, true), lost(true, false), lost(false, false)] {
        let mut publisher = settled(PublisherConfig::default());
        let now = Duration::from_secs(4);
        publisher.poll(now, &Unasked).expect("a renewal");
        publisher.handle(now, outcome);
        let actions = drain(&mut publisher, now, &Live(3));
        let expected = ["create 2: c0@3", "renew 2: epoch 2", "append 2: c3 end@4"];
        assert_eq!(summary(&actions), expected);
    }
    let mut publisher = settled(PublisherConfig::default());
    publisher.stored(MS, None, &[1], &[at(1)]);
    publisher.poll(10 * MS, &Unasked).expect("an append");
    publisher.handle(10 * MS, PublishOutcome::LogLost);
    let actions = drain(&mut publisher, 10 * MS, &Live(1));
    assert_eq!(summary(&actions)[0], "create 2: c0@4");
    assert_eq!(publisher.stats().losses, 1);
}

#[test]
fn a_long_log_ends_in_the_next_one() {
    let config = PublisherConfig {
        rotate_min_bytes: 100,
        ..PublisherConfig::default()
    };
    let fingerprints: Vec<u64> = (0..40).collect();
    let locations: Vec<_> = (0..40).map(at).collect();
    let expected = [
        "append 1: d40@3",
        "create 2: c40 end@5",
        "renew 2: epoch 2",
        "append 1: rotate to 2 after 6@4",
        "retire 1",
        "append 2: d1@7",
    ];
    let mut publisher = settled(config);
    publisher.stored(MS, None, &fingerprints, &locations);
    let mut actions = drain(&mut publisher, 3 * MS, &Live(40));
    publisher.stored(4 * MS, Some(39), &[40], &[at(40)]);
    actions.extend(drain(&mut publisher, 6 * MS, &Live(41)));
    assert_eq!(summary(&actions), expected);
}

#[test]
fn changes_beyond_the_limit_become_a_checkpoint() {
    let config = PublisherConfig {
        max_queue_bytes: 50_000,
        ..PublisherConfig::default()
    };
    let mut publisher = settled(config);
    let fingerprints: Vec<u64> = (0..20_000).collect();
    let locations: Vec<_> = (0..20_000).map(at).collect();
    publisher.stored(MS, None, &fingerprints, &locations);
    assert_eq!(publisher.stats().overflows, 1);
    let actions = drain(&mut publisher, 3 * MS, &Live(20_000));
    let summary = summary(&actions);
    assert_eq!(summary[..2], ["create 2: c0@5", "renew 2: epoch 2"]);
    assert!(
        !summary
            .iter()
            .any(|line| line.contains('d') && line.contains(": d"))
    );
    assert!(publisher.is_settled());
}

#[test]
fn what_runs_over_while_the_store_is_slow_is_dropped_at_once() {
    let limit = 1 << 10;
    let mut publisher = settled(PublisherConfig {
        max_queue_bytes: limit,
        ..PublisherConfig::default()
    });
    publisher.stored(MS, None, &[1], &[at(1)]);
    let slow = publisher.poll(3 * MS, &Unasked);
    assert!(
        matches!(slow, Some(PublishAction::Append { .. })),
        "{slow:?}"
    );
    let under_way = publisher.queued_bytes();
    // More than one entry holds, while the store has not answered yet.
    let fingerprints: Vec<u64> = (2..10_000).collect();
    let locations: Vec<_> = (2..10_000).map(at).collect();
    publisher.stored(4 * MS, Some(1), &fingerprints, &locations);
    assert_eq!(publisher.stats().overflows, 1);
    assert_eq!(publisher.queued_bytes(), under_way);
    publisher.handle(5 * MS, PublishOutcome::Done);
    assert_eq!(publisher.queued_bytes(), 0);
    let actions = drain(&mut publisher, 6 * MS, &Live(10_000));
    assert_eq!(
        summary(&actions)[..2],
        ["create 2: c0@5", "renew 2: epoch 2"]
    );
    assert!(publisher.is_settled());
}

/// A share of the store that pays for an entry of one block in `pause`.
fn share_with_pause(pause: Duration) -> Share {
    let mut share = Share::alone(1_000_000);
    while share.after_publishing(35) < pause {
        share.nodes += 1;
    }
    share
}

#[test]
fn what_was_published_is_paid_for_before_more_is() {
    let mut publisher = settled(PublisherConfig::default());
    publisher.set_share(share_with_pause(100 * MS));
    let quiet = 500 * MS;
    publisher.stored(quiet, None, &[1], &[at(1)]);
    assert_eq!(
        publisher.poll_timeout(),
        Some(quiet + 2 * MS),
        "after a quiet time at once"
    );
    drain(&mut publisher, quiet + 2 * MS, &Unasked);
    let paid = quiet + 2 * MS + publisher.interval();
    assert!(
        publisher.interval() >= 95 * MS,
        "{:?}",
        publisher.interval()
    );
    publisher.stored(quiet + 5 * MS, Some(1), &[2], &[at(2)]);
    publisher.stored(quiet + 90 * MS, Some(2), &[3], &[at(3)]);
    assert_eq!(publisher.poll_timeout(), Some(paid));
    assert_eq!(publisher.poll(paid - MS, &Unasked), None);
    let actions = drain(&mut publisher, paid, &Unasked);
    assert_eq!(summary(&actions), ["append 1: d2@4"]);
    assert_eq!(publisher.stats().over_budget, 0);
}

#[test]
fn a_change_waits_no_longer_than_the_longest_interval() {
    let config = PublisherConfig {
        batch_interval_max: 300 * MS,
        lease_ttl: Duration::from_secs(3600),
        ..PublisherConfig::default()
    };
    let mut publisher = settled(config);
    publisher.set_share(share_with_pause(10_000 * MS));
    for n in 1..=5_u32 {
        let now = 1000 * MS * n;
        publisher.stored(now, None, &[u64::from(n)], &[at(n)]);
        let first = n == 1;
        let due = now + if first { 2 * MS } else { 300 * MS };
        assert_eq!(publisher.poll_timeout(), Some(due));
        drain(&mut publisher, due, &Unasked);
        assert_eq!(publisher.interval(), 300 * MS);
        assert_eq!(publisher.stats().over_budget, u64::from(n - 1));
    }
}
