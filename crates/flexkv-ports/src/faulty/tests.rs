//! Quiet decorators conform; loud ones fail as they were told, and the same way for one seed.

use bytes::Bytes;
use flexkv_block::{BlockKey, Checksum, Location, Tier};
use tokio::time::Instant;

use super::*;
use crate::conformance::{self, StoreUnderTest, TransportHarness};
use crate::{
    BlockTier, BoxFuture, FetchOutcome, HeapHub, HeapStore, HeapTier, HeapTransport, LogCursor,
    LogEntry, MetadataStore, StoreError, Suspect, SuspectReceiver, TierShape, Transport, Want,
    suspects,
};

const LONG: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

struct Harness {
    owner: Arc<dyn BlockTier>,
    reader: Arc<dyn BlockTier>,
    transport: FaultyTransport<HeapTransport>,
    faults: Faults,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl Harness {
    fn new(slots: u32, block_bytes: usize, seed: u64) -> Self {
        let shape = TierShape {
            tier: Tier::Host,
            slots,
            block_bytes,
        };
        let (owner, reader) = (HeapTier::new(shape), HeapTier::new(shape));
        let hub = HeapHub::new();
        let (tell, suspects) = suspects();
        hub.register("owner", Arc::new(owner.clone()));
        hub.register_suspects("owner", tell);
        let faults = Faults::new(seed);
        Self {
            owner: Arc::new(owner),
            reader: Arc::new(reader),
            transport: FaultyTransport::new(HeapTransport::new(hub), faults.clone()),
            faults,
            suspects: tokio::sync::Mutex::new(suspects),
        }
    }

    fn store(&self, count: u64) -> Vec<(Location, BlockKey)> {
        let store = |n: u64| {
            let slot = self.owner.reserve().expect("a free slot");
            let key = BlockKey::from_u128(n.into());
            let checksum = Checksum::of(&slot.bytes().to_vec());
            (self.owner.commit(slot, key, checksum), key)
        };
        (0..count).map(store).collect()
    }

    async fn fetch(&self, blocks: &[(Location, BlockKey)]) -> Vec<FetchOutcome> {
        let want = |(location, key): &(Location, BlockKey)| Want {
            location: *location,
            key: *key,
            into: self.reader.reserve().expect("a free slot"),
        };
        let wants = blocks.iter().map(want).collect();
        let endpoint = self.endpoint();
        let fetched = self.transport.fetch(&endpoint, wants, SECOND).await;
        assert_eq!(fetched.len(), blocks.len());
        fetched.iter().map(|fetched| fetched.outcome).collect()
    }
}

impl TransportHarness for Harness {
    fn owner(&self) -> Arc<dyn BlockTier> {
        self.owner.clone()
    }

    fn endpoint(&self) -> String {
        HeapHub::endpoint("owner")
    }

    fn reader(&self) -> Arc<dyn BlockTier> {
        self.reader.clone()
    }

    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.transport.clone())
    }

    fn dead_endpoint(&self) -> String {
        HeapHub::endpoint("nobody")
    }

    fn reported(&self) -> Option<BoxFuture<'_, Suspect>> {
        Some(Box::pin(async {
            let next = self.suspects.lock().await.next().await;
            next.expect("the hub keeps its end")
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_store_conforms() {
    conformance::store(async || {
        let store = HeapStore::new();
        StoreUnderTest {
            store: Arc::new(FaultyStore::new(store.clone(), Faults::new(1))),
            flush: Box::new(move || {
                store.flush();
                Box::pin(std::future::ready(()))
            }),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_quiet_transport_conforms() {
    conformance::transport(async |slots, bytes| Harness::new(slots, bytes, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gives_what_its_speed_allows() {
    let harness = Harness::new(20, 1000, 1);
    let stored = harness.store(20);
    harness.faults.set_speed(&harness.endpoint(), 4500.0);
    let began = Instant::now();
    let (first, second) = tokio::join!(harness.fetch(&stored[..2]), harness.fetch(&stored[2..]));
    assert_eq!(began.elapsed(), SECOND, "no longer than the deadline");
    let came = |of: &[FetchOutcome]| {
        let fetched = |outcome: &&FetchOutcome| matches!(outcome, FetchOutcome::Fetched(_));
        of.iter().filter(fetched).count()
    };
    assert_eq!((came(&first), came(&second)), (2, 2), "one wire for both");
    assert_eq!(second[2..], [FetchOutcome::Unreachable; 16]);
    assert_eq!(harness.reader.free_slots(), 20);
    harness.faults.quiet();
    assert_eq!(came(&harness.fetch(&stored).await), 20);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_conforms() {
    conformance::store(async || {
        let store = HeapStore::new();
        let faults = Faults::new(1);
        faults.set_store(StoreFaults {
            latency: Duration::ZERO..=Duration::from_millis(9),
            ..StoreFaults::default()
        });
        StoreUnderTest {
            store: Arc::new(FaultyStore::new(store.clone(), faults)),
            flush: Box::new(move || {
                store.flush();
                Box::pin(std::future::ready(()))
            }),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_not_done_and_a_lost_reply_is() {
    let inner = HeapStore::new();
    let faults = Faults::new(1);
    let store = FaultyStore::new(inner.clone(), faults.clone());
    let lost_request = StoreFaults {
        lost_request: 1.0,
        patience: SECOND,
        ..StoreFaults::default()
    };
    let lost_reply = StoreFaults {
        lost_reply: 1.0,
        patience: SECOND,
        ..StoreFaults::default()
    };
    for (loss, members) in [(lost_request, 0), (lost_reply, 1)] {
        faults.set_store(loss);
        let started = Instant::now();
        let renewed = store.renew("a", Bytes::new(), "log", LONG).await;
        assert!(matches!(renewed, Err(StoreError::Unavailable { .. })));
        assert!(started.elapsed() >= SECOND, "a lost call takes its time");
        let known = inner.members().await.expect("the inner store is fine");
        assert_eq!(known.len(), members);
    }
    assert_eq!(faults.injected(), 2);
    faults.quiet();
    let renewed = store.renew("a", Bytes::new(), "log", LONG).await;
    assert!(renewed.expect("quiet").lease_kept);
}

#[tokio::test(start_paused = true)]
async fn going_down_ends_calls_under_way() {
    let faults = Faults::new(1);
    let store = FaultyStore::new(HeapStore::new(), faults.clone());
    let cursors = [LogCursor {
        log: "a".into(),
        after: 0,
    }];
    let reading = store.read(&cursors, 10, LONG);
    let failing = async {
        tokio::time::sleep(SECOND).await;
        faults.set_down(true);
    };
    let started = Instant::now();
    let (read, ()) = tokio::join!(reading, failing);
    assert!(matches!(read, Err(StoreError::Unavailable { .. })));
    assert!(started.elapsed() < LONG, "the read went on waiting");
    assert!(store.members().await.is_err(), "still down");
    faults.set_down(false);
    assert!(store.members().await.is_ok(), "up again");
}

#[tokio::test(start_paused = true)]
async fn a_lost_append_can_be_repeated() {
    let inner = HeapStore::new();
    let faults = Faults::new(7);
    let store = FaultyStore::new(inner.clone(), faults.clone());
    faults.set_store(StoreFaults {
        lost_request: 0.3,
        lost_reply: 0.3,
        ..StoreFaults::default()
    });
    for sequence in 1..=50 {
        let entry = [LogEntry {
            sequence,
            bytes: Bytes::new(),
        }];
        while store.append("a", &entry, true, LONG).await.is_err() {}
    }
    assert!(faults.injected() > 10, "{} faults", faults.injected());
    let cursors = [LogCursor {
        log: "a".into(),
        after: 0,
    }];
    let read = inner.read(&cursors, 100, Duration::ZERO).await;
    let read = read.expect("the inner store is fine").remove(0);
    let sequences: Vec<_> = read.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn each_transport_fault_has_its_outcome() {
    let harness = Harness::new(4, 100, 1);
    let stored = harness.store(4);
    let none = TransportFaults::default;
    let cases = [
        (
            TransportFaults {
                hang: 1.0,
                ..none()
            },
            FetchOutcome::Unreachable,
            true,
        ),
        (
            TransportFaults {
                refused: 1.0,
                ..none()
            },
            FetchOutcome::Unreachable,
            false,
        ),
        (
            TransportFaults {
                unreachable: 1.0,
                ..none()
            },
            FetchOutcome::Unreachable,
            false,
        ),
        (
            TransportFaults {
                corrupt: 1.0,
                ..none()
            },
            FetchOutcome::Corrupt,
            false,
        ),
        (
            TransportFaults {
                stale: 1.0,
                ..none()
            },
            FetchOutcome::Stale,
            false,
        ),
        (
            TransportFaults {
                latency: LONG..=LONG,
                ..none()
            },
            FetchOutcome::Unreachable,
            true,
        ),
    ];
    for (faults, outcome, until_deadline) in cases {
        harness.faults.set_transport(faults.clone());
        let started = Instant::now();
        assert_eq!(harness.fetch(&stored).await, [outcome; 4], "{faults:?}");
        assert_eq!(started.elapsed() >= SECOND, until_deadline, "{faults:?}");
        assert_eq!(harness.reader.free_slots(), 4, "{faults:?}");
    }
    harness.faults.quiet();
    let fetched = harness.fetch(&stored).await;
    assert!(matches!(fetched[..], [FetchOutcome::Fetched(_), ..]));
}

#[tokio::test(start_paused = true)]
async fn a_cut_endpoint_is_unreachable_until_it_heals() {
    let harness = Harness::new(1, 100, 1);
    let stored = harness.store(1);
    for (cut, down, reached) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        harness.faults.set_cut(&harness.endpoint(), cut);
        harness.faults.set_down(down);
        let fetched = harness.fetch(&stored).await;
        assert_eq!(
            fetched != [FetchOutcome::Unreachable],
            reached,
            "cut {cut}, down {down}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_a_run() {
    let run = async |seed| {
        let harness = Harness::new(32, 100, seed);
        let stored = harness.store(32);
        harness.faults.set_transport(TransportFaults {
            hang: 0.2,
            corrupt: 0.2,
            stale: 0.2,
            latency: Duration::ZERO..=SECOND / 2,
            ..TransportFaults::default()
        });
        let started = Instant::now();
        let mut outcomes = Vec::new();
        for _ in 0..10 {
            outcomes.extend(harness.fetch(&stored).await);
        }
        (outcomes, started.elapsed())
    };
    let first = run(5).await;
    assert_eq!(first, run(5).await);
    assert_ne!(first, run(6).await);
}
