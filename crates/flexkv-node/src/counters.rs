//! The node's counters: one per outcome, so that "why was this a miss" can be answered.
//!
//! They go through the `metrics` facade to whatever recorder the caller brings; this module knows
//! no exporter.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};

/// Why a block that was looked up was not handed to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// No live node is known to have it.
    Absent,
    /// Its owner no longer had it.
    Stale,
    /// What arrived, or lay here, was not the block.
    Corrupt,
    /// Its owner did not answer.
    Unreachable,
    /// No slot could be freed to fetch it into.
    NoSpace,
    /// The load's deadline came first.
    Deadline,
    /// It lay on storage here that reported an error.
    Failed,
    /// A block before it could not be loaded, so it was of no use.
    Broken,
    /// Computing it was faster than fetching it.
    Recompute,
}

/// Handles of all metrics of one node.
pub(crate) struct Counters {
    pub(crate) lookups: Counter,
    pub(crate) looked_up_blocks: Counter,
    pub(crate) hit_local: Counter,
    pub(crate) hit_ssd: Counter,
    pub(crate) hit_remote: Counter,
    misses: [Counter; 9],
    pub(crate) stored_blocks: Counter,
    pub(crate) refused_blocks: Counter,
    pub(crate) evicted_blocks: Counter,
    pub(crate) evicted_staged: Counter,
    pub(crate) staged_writes: Counter,
    pub(crate) staged_reads: Counter,
    /// Blocks that were to be written and were not, though nothing failed.
    pub(crate) unwritten: Counter,
    pub(crate) staged_write_failed: Counter,
    pub(crate) staged_read_failed: Counter,
    pub(crate) staged_corrupt: Counter,
    pub(crate) staged_stale: Counter,
    pub(crate) staged_busy: Counter,
    pub(crate) staged_late: Counter,
    pub(crate) staged_lost: Counter,
    pub(crate) recovered_blocks: Counter,
    /// Blocks that were brought ahead of a load: all, those used, and those that left memory unused.
    pub(crate) ahead: [Counter; 3],
    pub(crate) staged_slots: Gauge,
    pub(crate) staged_free_slots: Gauge,
    pub(crate) fetched_bytes: Counter,
    pub(crate) fetched_stale: Counter,
    pub(crate) fetched_corrupt: Counter,
    pub(crate) fetched_unreachable: Counter,
    pub(crate) local_corrupt: Counter,
    pub(crate) reports_sent: Counter,
    pub(crate) reports_confirmed: Counter,
    pub(crate) reports_unfounded: Counter,
    pub(crate) stopped_loads: Counter,
    pub(crate) stopped_blocks: Counter,
    pub(crate) store_errors: Counter,
    pub(crate) publish_appends: Counter,
    pub(crate) over_budget: Counter,
    pub(crate) batch_interval: Gauge,
    pub(crate) peer_loaded: Counter,
    pub(crate) peer_gone: Counter,
    pub(crate) peer_resynced: Counter,
    pub(crate) peer_refused: Counter,
    pub(crate) peer_troubled: Counter,
    pub(crate) peers: Gauge,
    pub(crate) resident_blocks: Gauge,
    pub(crate) known_blocks: Gauge,
    pub(crate) known_replicas: Gauge,
    pub(crate) tickets: Gauge,
    pub(crate) free_slots: Gauge,
    pub(crate) filling_slots: Gauge,
    pub(crate) block_slots: Gauge,
    pub(crate) pinned_slots: Gauge,
    pub(crate) publish_to_visible: Histogram,
}

/// Registers metrics of one node at a recorder.
struct Registrar<'a> {
    recorder: &'a dyn Recorder,
    node: String,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Registrar<'_> {
    fn key(&self, name: &'static str, label: Option<(&'static str, &'static str)>) -> Key {
        let mut labels = vec![Label::new("node", self.node.clone())];
        labels.extend(label.map(|(name, value)| Label::new(name, value)));
        Key::from_parts(name, labels)
    }

    fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> Counter {
        self.recorder
            .describe_counter(name.into(), Some(Unit::Count), help.into());
        self.recorder
            .register_counter(&self.key(name, label), &METADATA)
    }

    fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, &'static str)>,
    ) -> Gauge {
        self.recorder
            .describe_gauge(name.into(), Some(Unit::Count), help.into());
        self.recorder
            .register_gauge(&self.key(name, label), &METADATA)
    }

    fn slots(&self, used_for: &'static str) -> Gauge {
        let help = "Slots of the arena by what they are used for: nothing, being filled, a block";
        self.gauge("flexkv_slots", help, Some(("use", used_for)))
    }

    fn miss(&self, reason: &'static str) -> Counter {
        let help = "Blocks looked up but not handed to an engine, by reason";
        self.counter("flexkv_missed_blocks_total", help, Some(("reason", reason)))
    }

    fn hit(&self, source: &'static str) -> Counter {
        let help = "Verified blocks handed to engines, by source";
        self.counter("flexkv_hit_blocks_total", help, Some(("source", source)))
    }

    fn fetch(&self, outcome: &'static str) -> Counter {
        let help = "Single fetches from a peer that failed, by outcome";
        self.counter(
            "flexkv_fetch_failures_total",
            help,
            Some(("outcome", outcome)),
        )
    }

    fn report(&self, event: &'static str) -> Counter {
        let help = "Reports of blocks that arrived damaged: sent to owners, and what this node found \
                    when it was sent one";
        self.counter("flexkv_corrupt_reports_total", help, Some(("event", event)))
    }

    fn evicted(&self, tier: &'static str) -> Counter {
        let help = "Blocks evicted, by tier";
        self.counter("flexkv_evicted_blocks_total", help, Some(("tier", tier)))
    }

    fn staged_failure(&self, what: &'static str) -> Counter {
        let help = "Transfers of blocks to or from SSD that came to nothing, by reason";
        self.counter("flexkv_ssd_failures_total", help, Some(("reason", what)))
    }

    fn ahead(&self, outcome: &'static str) -> Counter {
        let help = "Blocks brought from SSD to memory after a lookup and ahead of a load: all of them, \
                    those that were used then, and those that left memory before";
        let name = "flexkv_ssd_prefetched_blocks_total";
        self.counter(name, help, Some(("outcome", outcome)))
    }

    fn peer(&self, event: &'static str) -> Counter {
        self.counter(
            "flexkv_peer_events_total",
            "Changes of peers seen",
            Some(("event", event)),
        )
    }
}

impl Counters {
    pub(crate) fn register(recorder: &dyn Recorder, node: &str) -> Self {
        let at = Registrar {
            recorder,
            node: node.to_owned(),
        };
        let visible = "flexkv_publish_to_visible_seconds";
        recorder.describe_histogram(
            visible.into(),
            Some(Unit::Seconds),
            "From a change at this node to reading it back from the metadata store".into(),
        );
        recorder.describe_gauge(
            "flexkv_batch_interval_seconds".into(),
            Some(Unit::Seconds),
            "How long changes are gathered before they are published together".into(),
        );
        Self {
            lookups: at.counter("flexkv_lookups_total", "Prefixes looked up", None),
            looked_up_blocks: at.counter("flexkv_looked_up_blocks_total", "Blocks looked up", None),
            hit_local: at.hit("local"),
            hit_ssd: at.hit("ssd"),
            hit_remote: at.hit("remote"),
            misses: [
                at.miss("absent"),
                at.miss("stale"),
                at.miss("corrupt"),
                at.miss("unreachable"),
                at.miss("no_space"),
                at.miss("deadline"),
                at.miss("storage_failed"),
                at.miss("broken_prefix"),
                at.miss("recompute"),
            ],
            stored_blocks: at.counter(
                "flexkv_stored_blocks_total",
                "Blocks stored by engines",
                None,
            ),
            refused_blocks: at.counter(
                "flexkv_refused_blocks_total",
                "Blocks that engines wanted to store and no slot could be freed for",
                None,
            ),
            evicted_blocks: at.evicted("host"),
            evicted_staged: at.evicted("ssd"),
            staged_writes: at.counter(
                "flexkv_ssd_written_blocks_total",
                "Blocks written to SSD behind the engines' backs",
                None,
            ),
            staged_reads: at.counter(
                "flexkv_ssd_read_blocks_total",
                "Blocks read from SSD into memory and verified",
                None,
            ),
            unwritten: at.counter(
                "flexkv_ssd_unwritten_blocks_total",
                "Blocks that were to be written to SSD but left memory or found no room before",
                None,
            ),
            staged_write_failed: at.staged_failure("write"),
            staged_read_failed: at.staged_failure("read"),
            staged_corrupt: at.staged_failure("corrupt"),
            staged_stale: at.staged_failure("stale"),
            staged_busy: at.staged_failure("busy"),
            staged_late: at.staged_failure("deadline"),
            staged_lost: at.counter(
                "flexkv_ssd_lost_blocks_total",
                "Blocks lost with a directory that is not used any more",
                None,
            ),
            recovered_blocks: at.counter(
                "flexkv_ssd_recovered_blocks_total",
                "Blocks found on SSD when the node started",
                None,
            ),
            ahead: [at.ahead("brought"), at.ahead("used"), at.ahead("wasted")],
            staged_slots: at.gauge("flexkv_ssd_slots", "Blocks that SSD has room for", None),
            staged_free_slots: at.gauge("flexkv_ssd_free_slots", "Room that is free", None),
            fetched_bytes: at.counter(
                "flexkv_fetched_bytes_total",
                "Verified bytes from peers",
                None,
            ),
            fetched_stale: at.fetch("stale"),
            fetched_corrupt: at.fetch("corrupt"),
            fetched_unreachable: at.fetch("unreachable"),
            local_corrupt: at.counter(
                "flexkv_local_corrupt_blocks_total",
                "Blocks of this node whose bytes had changed; they are dropped",
                None,
            ),
            reports_sent: at.report("sent"),
            reports_confirmed: at.report("confirmed"),
            reports_unfounded: at.report("unfounded"),
            stopped_loads: at.counter(
                "flexkv_stopped_loads_total",
                "Loads that fetched less than there was, as computing the rest was faster",
                None,
            ),
            stopped_blocks: at.counter(
                "flexkv_stopped_blocks_total",
                "Blocks of those loads that were left to the engine",
                None,
            ),
            store_errors: at.counter(
                "flexkv_metadata_errors_total",
                "Calls that the metadata store refused or did not answer",
                None,
            ),
            publish_appends: at.counter("flexkv_publish_appends_total", "Appends to the log", None),
            over_budget: at.counter(
                "flexkv_publish_over_budget_total",
                "Batches that could not wait as long as the metadata store's budget wanted",
                None,
            ),
            batch_interval: recorder
                .register_gauge(&at.key("flexkv_batch_interval_seconds", None), &METADATA),
            peer_loaded: at.peer("loaded"),
            peer_gone: at.peer("gone"),
            peer_resynced: at.peer("resynced"),
            peer_refused: at.peer("refused"),
            peer_troubled: at.peer("faulty_log"),
            peers: at.gauge("flexkv_peers", "Peers whose blocks are known", None),
            resident_blocks: at.gauge("flexkv_resident_blocks", "Blocks this node holds", None),
            known_blocks: at.gauge(
                "flexkv_known_blocks",
                "Different blocks that this node knows of, at any node",
                None,
            ),
            known_replicas: at.gauge(
                "flexkv_known_replicas",
                "The same, each counted once for every node that holds it",
                None,
            ),
            tickets: at.gauge("flexkv_tickets", "Tickets that engines hold", None),
            free_slots: at.slots("free"),
            filling_slots: at.slots("filling"),
            block_slots: at.slots("block"),
            pinned_slots: at.gauge(
                "flexkv_pinned_slots",
                "Slots whose block is being read, by engines or peers",
                None,
            ),
            publish_to_visible: recorder.register_histogram(&at.key(visible, None), &METADATA),
        }
    }

    pub(crate) fn missed(&self, reason: Miss, blocks: usize) {
        self.misses[reason as usize].increment(blocks as u64);
    }
}
