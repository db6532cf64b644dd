//! The simulated network is a transport like any other, and its faults do what they say.

use flexkv_block::{BlockKey, Checksum, Location, Tier};
use flexkv_ports::conformance::{TransportHarness, transport};
use flexkv_ports::{BlockTier, HeapTier, SuspectReceiver, TierShape, suspects};
use tokio::time::Instant;

use super::*;

struct Harness {
    network: Network,
    owner: Arc<dyn BlockTier>,
    reader: Arc<dyn BlockTier>,
    suspects: tokio::sync::Mutex<SuspectReceiver>,
}

impl Harness {
    fn new(slots: u32, block_bytes: usize) -> Self {
        let tier = || -> Arc<dyn BlockTier> {
            Arc::new(HeapTier::new(TierShape {
                tier: Tier::Host,
                slots,
                block_bytes,
            }))
        };
        let (hub, owner) = (HeapHub::new(), tier());
        let (tell, suspects) = suspects();
        hub.register("owner", owner.clone());
        hub.register_suspects("owner", tell);
        let rng = fastrand::Rng::with_seed(7);
        Self {
            network: Network::new(hub, Pauses::default(), None, rng),
            owner,
            reader: tier(),
            suspects: tokio::sync::Mutex::new(suspects),
        }
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
        Arc::new(self.network.transport("reader"))
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
async fn a_quiet_network_conforms() {
    transport(async |slots, block_bytes| Harness::new(slots, block_bytes)).await;
}

/// Something done to the network.
type Act<'a> = &'a dyn Fn(&Network);

/// Lost, cut off or paused: the fetch ends at its deadline, and its buffer is free again.
#[tokio::test(start_paused = true)]
async fn what_gets_no_answer_ends_at_its_deadline_and_works_again_afterwards() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let harness = Harness::new(1, 8);
    let slot = harness.owner.reserve().expect("free");
    let key = BlockKey::from_u128(1);
    let location: Location = harness.owner.commit(slot, key, Checksum::of(&[0; 8]));
    let transport = harness.transport();
    let fetch = async || {
        let into = harness.reader.reserve().expect("free");
        let want = Want {
            location,
            key,
            into,
        };
        let begun = Instant::now();
        let endpoint = harness.endpoint();
        let fetched = transport.fetch(&endpoint, vec![want], DEADLINE).await;
        (fetched[0].outcome, begun.elapsed())
    };
    let network = &harness.network;
    let ways: [(Act<'_>, Act<'_>); 3] = [
        (&|to| to.set_loss(1.0), &Network::heal),
        (&|to| to.partition("owner", "reader"), &Network::heal),
        (&|to| to.pauses.pause("owner"), &|to| {
            to.pauses.resume("owner")
        }),
    ];
    for (strike, repair) in ways {
        strike(network);
        assert_eq!(fetch().await, (FetchOutcome::Unreachable, DEADLINE));
        repair(network);
        assert!(matches!(fetch().await.0, FetchOutcome::Fetched(_)));
        assert_eq!(harness.reader.free_slots(), 1);
    }
}
