//! Copies between engine memory of several strided layers and a real node's arena.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flexkv_engine::{Attachment, Copier, Finished, KvLayer, KvMemory, LoadBlock};
use flexkv_ports::{CacheError, Memory, MemorySlice, Ticket};
use tokio::runtime::Runtime;

use crate::cache::BLOCK_BYTES;
use crate::memfd::MemfdMemory;
use crate::support::{Node, Process, keys};

const LONG: Duration = Duration::from_secs(30);
/// Blocks of the engine's memory.
const BLOCKS: usize = 12;
/// Per layer: where it begins, its stride, its bytes of a block. The second and the third take
/// turns, as K and V of one tensor may.
const LAYERS: [(usize, usize, usize); 4] = [
    (0, 1000, 1000),
    (13_000, 3000, 1024),
    (14_100, 3000, 1024),
    (50_003, 1048, 1048),
];
const MEMORY_BYTES: usize = 65_536;
const EMPTY: u8 = 0xee;

/// An engine's KV memory, and what ought to be in it.
struct Engine {
    memory: Arc<dyn Memory>,
    expected: Vec<u8>,
}

impl Engine {
    fn new() -> Self {
        let engine = Self {
            memory: Arc::new(MemfdMemory::new(MEMORY_BYTES)),
            expected: vec![EMPTY; MEMORY_BYTES],
        };
        engine.all().write(0, &engine.expected);
        engine
    }

    fn all(&self) -> MemorySlice {
        MemorySlice::new(self.memory.clone(), 0, MEMORY_BYTES).expect("all of it")
    }

    fn layers(&self) -> Vec<KvLayer> {
        let base = self.memory.base() as usize;
        let layers = LAYERS.iter();
        layers
            .map(|(at, block_stride, block_bytes)| KvLayer {
                base: base + at,
                block_stride: *block_stride,
                block_bytes: *block_bytes,
                blocks: BLOCKS,
            })
            .collect()
    }

    fn memory(&self) -> KvMemory {
        // SAFETY: `self.memory` is mapped until the engine is dropped, which each test does last;
        // what races there is bytes that the test does not look at.
        unsafe { KvMemory::new(self.layers()) }.expect("well described")
    }

    /// Says what block `id` ought to hold.
    fn expect(&mut self, id: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for (at, stride, len) in LAYERS {
            let (part, others) = rest.split_at(len);
            self.expected[at + id * stride..][..len].copy_from_slice(part);
            rest = others;
        }
        assert!(rest.is_empty());
    }

    /// Puts bytes into block `id`.
    fn put(&mut self, id: usize, bytes: &[u8]) {
        self.expect(id, bytes);
        self.all().write(0, &self.expected);
    }

    /// That all memory, also between and behind the blocks, holds what was said.
    fn check(&self) {
        let found = self.all().to_vec();
        let wrong = (0..MEMORY_BYTES).find(|at| found[*at] != self.expected[*at]);
        assert_eq!(wrong, None, "the first byte that is not as expected");
    }
}

/// A node on a runtime of its own, as if it were another process.
struct Host {
    node: Option<Node>,
    runtime: Runtime,
}

impl Host {
    fn start(slots: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let node = Some(Node::start(slots));
        drop(inside);
        Self { node, runtime }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("it runs")
    }

    fn attach(&self) -> Arc<Attachment> {
        Arc::new(Attachment::attach(self.node().server.path(), LONG).expect("attach"))
    }

    fn stop(&mut self) {
        let node = self.node.take().expect("it runs");
        self.runtime.block_on(node.server.shutdown());
    }
}

/// Bytes of a block that no other number has.
fn content(n: usize) -> Vec<u8> {
    let mix = |at: usize| (at * 31 + n * 101 + (at >> 8) * n) as u8;
    (0..BLOCK_BYTES).map(mix).collect()
}

/// Polls until `count` jobs have ended.
fn drained(copier: &Copier, count: usize) -> BTreeMap<u64, Finished> {
    let mut ended = BTreeMap::new();
    for _ in 0..3000 {
        for finished in copier.drain() {
            let job = finished.job;
            assert!(ended.insert(job, finished).is_none(), "job {job} twice");
        }
        if ended.len() >= count {
            assert_eq!(ended.len(), count);
            return ended;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("{} of {count} jobs ended within 30 s", ended.len());
}

fn done(job: u64, blocks: usize) -> Finished {
    Finished {
        job,
        ok: true,
        bad_blocks: Vec::new(),
        bytes: (blocks * BLOCK_BYTES) as u64,
    }
}

/// Matches and loads a prompt; its ticket and its blocks, to be copied to `ids`.
fn launch(
    attachment: &Attachment,
    blocks: std::ops::Range<u128>,
    ids: &[i64],
) -> (Ticket, Vec<LoadBlock>) {
    let steps = attachment.steps().expect("this process");
    let keys = keys(blocks);
    let loaded = attachment.block_on(async {
        let hit = steps.match_prefix(&keys).await?;
        steps.launch(hit.ticket, hit.blocks, LONG).await?;
        Ok((hit.ticket, steps.wait(hit.ticket, LONG).await?))
    });
    let (ticket, loaded) = loaded.expect("load");
    let loaded = loaded.expect("in time").blocks;
    assert_eq!(loaded.len(), ids.len());
    let blocks = loaded.iter().zip(ids).map(|(view, id)| LoadBlock {
        offset: view.bytes.offset() as u64,
        block: *id,
        checksum: Some(view.checksum),
    });
    (ticket, blocks.collect())
}

fn unchecked(blocks: &[LoadBlock]) -> Vec<LoadBlock> {
    let none = |block: &LoadBlock| LoadBlock {
        checksum: None,
        ..*block
    };
    blocks.iter().map(none).collect()
}

#[test]
fn strided_layers_come_back_as_they_were() {
    let host = Host::start(8);
    let (writer, reader) = (host.attach(), host.attach());
    let (mut from, mut to) = (Engine::new(), Engine::new());
    let saved = [5, 0, 11, 3];
    for (n, id) in saved.into_iter().enumerate() {
        from.put(id, &content(n));
    }
    let copier = Copier::new(writer, from.memory(), 2).expect("copier");
    let ids = saved.map(|id| id as i64);
    copier
        .store(1, keys(0..2), 0, ids[..2].to_vec())
        .expect("store");
    assert_eq!(drained(&copier, 1)[&1], done(1, 2));
    copier
        .store(2, keys(0..4), 2, ids[2..].to_vec())
        .expect("store");
    assert_eq!(drained(&copier, 1)[&2], done(2, 2));
    copier.store(3, keys(0..4), 0, ids.to_vec()).expect("again");
    assert_eq!(drained(&copier, 1)[&3], done(3, 0), "nothing is new");
    let (ticket, blocks) = launch(&reader, 0..4, &[7, 8, 1, 10]);
    let loader = Copier::new(reader.clone(), to.memory(), 2).expect("copier");
    loader.load(9, blocks[..2].to_vec()).expect("load");
    loader.load(10, unchecked(&blocks[2..])).expect("load");
    let ended = drained(&loader, 2);
    assert_eq!((&ended[&9], &ended[&10]), (&done(9, 2), &done(10, 2)));
    for (n, id) in [7, 8, 1, 10].into_iter().enumerate() {
        to.expect(id, &content(n));
    }
    to.check();
    from.check();
    let steps = reader.steps().expect("this process");
    reader.block_on(steps.cancel(ticket)).expect("cancel");
    assert_eq!(
        (host.node().cache.tickets(), host.node().cache.pins()),
        (0, 0)
    );
}

#[test]
fn what_cannot_be_copied_fails_alone() {
    let host = Host::start(8);
    let session = host.attach();
    let (mut from, mut to) = (Engine::new(), Engine::new());
    from.put(2, &content(2));
    let saver = Copier::new(session.clone(), from.memory(), 1).expect("copier");
    let wrong = [-1, BLOCKS as i64, i64::MAX, i64::MIN];
    saver
        .store(1, keys(0..5), 0, [&[2], &wrong[..]].concat())
        .expect("store");
    let ended = drained(&saver, 1).remove(&1).expect("there");
    assert_eq!((ended.ok, &ended.bad_blocks[..]), (false, &wrong[..]));
    assert_eq!(ended.bytes, BLOCK_BYTES as u64, "block 2 was stored");
    assert_eq!(
        host.node().cache.granted(),
        0,
        "slots of the others are free"
    );

    let (_, good) = launch(&session, 0..1, &[4]);
    let arena = 8 * BLOCK_BYTES as u64;
    let bad_ids = wrong.map(|block| LoadBlock { block, ..good[0] });
    let bad_offsets = [arena - BLOCK_BYTES as u64 + 1, arena, u64::MAX];
    let bad_offsets = bad_offsets.map(|offset| LoadBlock {
        offset,
        block: 5,
        checksum: None,
    });
    let blocks = [&bad_ids[..], &good, &bad_offsets].concat();
    let loader = Copier::new(session, to.memory(), 1).expect("copier");
    loader.load(2, blocks).expect("load");
    let mut ended = drained(&loader, 1).remove(&2).expect("there");
    ended.bad_blocks.sort_unstable();
    assert!(!ended.ok);
    assert_eq!(ended.bad_blocks, [i64::MIN, -1, 5, 5, 5, 12, i64::MAX]);
    assert_eq!(ended.bytes, BLOCK_BYTES as u64);
    to.expect(4, &content(2));
    to.check();
}

#[test]
fn other_bytes_than_promised_are_bad() {
    let host = Host::start(4);
    let session = host.attach();
    let mut engine = Engine::new();
    engine.put(0, &content(1));
    engine.put(1, &content(2));
    let copier = Copier::new(session.clone(), engine.memory(), 1).expect("copier");
    copier.store(1, keys(0..2), 0, vec![0, 1]).expect("store");
    drained(&copier, 1);
    let (_, blocks) = launch(&session, 0..2, &[8, 9]);
    let arena = session.client().expect("this process").arena().clone();
    let at = blocks[0].offset as usize + BLOCK_BYTES - 1;
    let byte = MemorySlice::new(arena, at, 1).expect("in the arena");
    byte.write(0, &[!byte.to_vec()[0]]);
    copier.load(2, blocks).expect("load");
    let ended = drained(&copier, 1).remove(&2).expect("there");
    assert_eq!((ended.ok, ended.bad_blocks), (false, vec![8]));
}

#[test]
fn jobs_end_when_their_node_does() {
    let mut host = Host::start(64);
    let session = host.attach();
    let engine = Engine::new();
    let copier = Copier::new(session.clone(), engine.memory(), 2).expect("copier");
    copier.store(0, keys(0..2), 0, vec![0, 1]).expect("store");
    drained(&copier, 1);
    let (_, verified) = launch(&session, 0..2, &[4, 5]);
    let trusted = unchecked(&verified);
    for job in 1..=500 {
        let first = u128::from(job) * 10;
        copier
            .store(job, keys(first..first + 3), 0, vec![1, 2, 3])
            .expect("store");
    }
    host.stop();
    copier
        .store(501, keys(7000..7002), 0, vec![6, 7])
        .expect("it begins");
    copier.load(502, trusted).expect("it begins");
    copier.load(503, verified).expect("it begins");
    let ended = drained(&copier, 503);
    assert_eq!(copier.pending(), 0);
    for job in 1..=500 {
        let ended = &ended[&job];
        let bad: &[i64] = if ended.ok { &[] } else { &[1, 2, 3] };
        assert_eq!(ended.bad_blocks, bad);
    }
    assert_eq!(ended[&501].bad_blocks, [6, 7], "nobody took them");
    assert_eq!(ended[&502].bad_blocks, [4, 5], "nobody holds them still");
    assert_eq!(ended[&503], done(503, 2), "they are what was promised");
    assert!(!session.is_attached());
}

#[test]
fn many_jobs_are_in_flight() {
    const JOBS: u64 = 400;
    let host = Host::start(4);
    let session = host.attach();
    let mut engine = Engine::new();
    engine.put(0, &content(0));
    let copier = Copier::new(session.clone(), engine.memory(), 3).expect("copier");
    copier.store(0, keys(0..1), 0, vec![0]).expect("store");
    drained(&copier, 1);
    let (ticket, block) = launch(&session, 0..1, &[3]);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (copier, block) = (&copier, &block);
            scope.spawn(move || {
                for job in (thread..JOBS).step_by(4) {
                    if thread == 0 {
                        copier.load(job, block.clone()).expect("load");
                    } else {
                        let keys = keys(u128::from(job) + 100..u128::from(job) + 101);
                        copier.store(job, keys, 0, vec![0]).expect("store");
                    }
                }
            });
        }
    });
    let ended = drained(&copier, JOBS as usize);
    assert!(ended.values().all(|ended| ended.ok));
    assert!((0..JOBS).step_by(4).all(|job| ended[&job] == done(job, 1)));
    let steps = session.steps().expect("this process");
    session.block_on(steps.cancel(ticket)).expect("cancel");
    let cache = &host.node().cache;
    assert_eq!((cache.tickets(), cache.granted(), cache.pins()), (0, 0, 0));
    engine.expect(3, &content(0));
    engine.check();
}

#[test]
fn shutdown_ends_jobs_that_were_not_done() {
    let host = Host::start(64);
    let session = host.attach();
    let engine = Engine::new();
    let copier = Copier::new(session, engine.memory(), 1).expect("copier");
    for job in 0..300 {
        let first = u128::from(job) * 10;
        copier
            .store(job, keys(first..first + 2), 0, vec![0, 1])
            .expect("store");
    }
    copier.shutdown();
    assert_eq!(copier.pending(), 0);
    let ended = copier.drain();
    assert_eq!(ended.len(), 300, "all are told of");
    let cache = &host.node().cache;
    assert_eq!((cache.tickets(), cache.granted()), (0, 0));
    copier.shutdown();
    for refused in [
        copier.load(1, Vec::new()),
        copier.store(1, Vec::new(), 0, Vec::new()),
    ] {
        let error = refused.expect_err("over");
        assert!(error.to_string().contains("shut down"), "{error}");
    }
}

/// In a process of its own, so that no other test's threads are counted.
#[test]
fn shutdown_ends_the_threads() {
    let host = Host::start(8);
    let process = Process::start("copies", host.node().server.path());
    let output = process.output();
    assert!(output.contains("copying threads: 3, then 0"), "{output}");
}

/// What [`shutdown_ends_the_threads`] starts.
pub(crate) fn copies_and_counts_threads(socket: &std::path::Path) -> String {
    let count = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        let names = tasks.filter_map(name);
        names.filter(|name| name.starts_with("flexkv-copy")).count()
    };
    let session = Arc::new(Attachment::attach(socket, LONG).expect("attach"));
    let engine = Engine::new();
    let copier = Copier::new(session, engine.memory(), 3).expect("copier");
    copier.store(1, keys(0..2), 0, vec![0, 1]).expect("store");
    drained(&copier, 1);
    let before = count();
    copier.shutdown();
    format!("copying threads: {before}, then {}", count())
}

#[test]
fn empty_jobs_end() {
    let host = Host::start(2);
    let engine = Engine::new();
    let copier = Copier::new(host.attach(), engine.memory(), 1).expect("copier");
    copier.load(1, Vec::new()).expect("load");
    copier.store(2, keys(0..1), 1, Vec::new()).expect("store");
    let ended = drained(&copier, 2);
    assert_eq!((&ended[&1], &ended[&2]), (&done(1, 0), &done(2, 0)));
}

#[test]
fn memory_that_cannot_be_is_refused_by_name() {
    let host = Host::start(2);
    let engine = Engine::new();
    let layers = engine.layers();
    let with = |change: fn(&mut KvLayer)| {
        let mut layers = layers.clone();
        change(&mut layers[2]);
        // SAFETY: none of these is ever copied from or to.
        unsafe { KvMemory::new(layers) }
    };
    for (memory, reason) in [
        (
            with(|layer| layer.base = 0),
            "layer 2 of the KV memory begins at address 0",
        ),
        (
            with(|layer| layer.blocks = 0),
            "layer 2 of the KV memory has no bytes",
        ),
        (with(|layer| layer.block_bytes = 0), "has no bytes"),
        (with(|layer| layer.block_stride = 1023), "stride below"),
        (
            with(|layer| layer.block_stride = usize::MAX / 4),
            "address space",
        ),
        (with(|layer| layer.base = usize::MAX - 100), "address space"),
    ] {
        let error = memory.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    // SAFETY: there is nothing to copy.
    let nothing = unsafe { KvMemory::new(Vec::new()) }.expect_err("nothing");
    assert!(nothing.to_string().contains("no layers"), "{nothing}");

    let session = host.attach();
    let larger = with(|layer| layer.block_bytes = 1025).expect("possible");
    let error = Copier::new(session.clone(), larger, 1).expect_err("another size");
    assert!(error.to_string().contains("4097 bytes"), "{error}");
    for threads in [0, 1000] {
        let error = Copier::new(session.clone(), engine.memory(), threads);
        let error = error.expect_err("no threads");
        assert!(matches!(error, CacheError::Invalid { .. }), "{error}");
    }
    let copier = Copier::new(session, engine.memory(), 1).expect("copier");
    for (first, blocks) in [(0, 2), (1, 3), (4, 0), (usize::MAX, 1)] {
        let error = copier.store(1, keys(0..3), first, vec![0; blocks]);
        assert!(error.is_err(), "{blocks} blocks from {first} on");
    }
    assert_eq!(copier.pending(), 0);
}
