//! A device made of memory: queue pairs of this process that read each other's registered memory,
//! one thread a device, with the rules of a real one for keys, rights and ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, Weak};

use flexkv_ports::MemorySlice;
use flexkv_rdma::{
    Completions, Limits, Link, Nic, NicError, Pair, Path, PortAddress, Read, Region, Rights,
};

/// The wires: every registered region by its key, every queue pair by its number.
static WIRES: LazyLock<Wires> = LazyLock::new(Wires::default);

#[derive(Default)]
struct Wires {
    last: AtomicU32,
    regions: Mutex<HashMap<u32, (MemorySlice, Rights)>>,
    pairs: Mutex<HashMap<u32, Weak<SoftPair>>>,
}

impl Wires {
    fn number(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The bytes from `address` on, if this key opens them.
    fn open(&self, key: u32, address: u64, bytes: usize, as_peer: bool) -> Option<MemorySlice> {
        let regions = self.regions.lock().expect("no panic");
        let (slice, rights) = regions.get(&key)?;
        let at = usize::try_from(address.checked_sub(slice.as_ptr() as u64)?).ok()?;
        let inside = at.checked_add(bytes)? <= slice.len();
        let may = !as_peer || *rights == Rights::Read;
        (inside && may).then(|| slice.part(at, bytes))
    }
}

type Job = (Arc<SoftPair>, u64, Vec<Read>);

/// A device. While `stalled` nothing that is posted moves.
pub(crate) struct SoftNic {
    jobs: Sender<Job>,
    pub(crate) stalled: Arc<AtomicBool>,
}

impl SoftNic {
    pub(crate) fn new() -> Self {
        let (jobs, posted) = channel::<Job>();
        let stalled = Arc::new(AtomicBool::new(false));
        let stall = stalled.clone();
        std::thread::spawn(move || {
            for (pair, id, reads) in posted {
                while stall.load(Ordering::Relaxed) && pair.is_open() {
                    std::thread::yield_now();
                }
                pair.work(id, &reads);
            }
        });
        Self { jobs, stalled }
    }
}

struct SoftRegion(u32);

impl Region for SoftRegion {
    fn local_key(&self) -> u32 {
        self.0
    }

    fn remote_key(&self) -> u32 {
        self.0
    }
}

impl Drop for SoftRegion {
    fn drop(&mut self) {
        WIRES.regions.lock().expect("no panic").remove(&self.0);
    }
}

impl Nic for SoftNic {
    fn name(&self) -> &str {
        "soft"
    }

    fn address(&self) -> PortAddress {
        PortAddress {
            link: Link::Ethernet,
            lid: 0,
            gid: [1; 16],
            mtu: 3,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            work_requests: 4096,
            message_bytes: 1 << 20,
            reads: 16,
        }
    }

    fn register(&self, part: MemorySlice, peers_may: Rights) -> Result<Box<dyn Region>, NicError> {
        let key = WIRES.number();
        let mut regions = WIRES.regions.lock().expect("no panic");
        regions.insert(key, (part, peers_may));
        Ok(Box::new(SoftRegion(key)))
    }

    fn pair(&self, depth: u32, heard_by: Weak<dyn Completions>) -> Result<Box<dyn Pair>, NicError> {
        let pair = Arc::new(SoftPair {
            number: WIRES.number(),
            depth: depth as usize,
            heard_by,
            jobs: self.jobs.clone(),
            state: Mutex::new(State {
                open: true,
                path: None,
            }),
        });
        let mut pairs = WIRES.pairs.lock().expect("no panic");
        pairs.insert(pair.number, Arc::downgrade(&pair));
        Ok(Box::new(Handle(pair)))
    }
}

struct SoftPair {
    number: u32,
    depth: usize,
    heard_by: Weak<dyn Completions>,
    jobs: Sender<Job>,
    state: Mutex<State>,
}

struct State {
    open: bool,
    path: Option<Path>,
}

impl SoftPair {
    fn is_open(&self) -> bool {
        self.state.lock().expect("no panic").open
    }

    fn path(&self) -> Option<Path> {
        let state = self.state.lock().expect("no panic");
        state.path.filter(|_| state.open)
    }

    /// Does the reads, each under the lock, so that none touches memory once the pair is closed.
    fn work(&self, id: u64, reads: &[Read]) {
        for read in reads {
            let state = self.state.lock().expect("no panic");
            if !state.open {
                return;
            }
            if let Err(reason) = state
                .path
                .ok_or("not connected")
                .and_then(|path| copy(&path, read))
            {
                drop(state);
                self.tell(id, Err(NicError::new("read", reason)));
                return;
            }
        }
        self.tell(id, Ok(()));
    }

    fn tell(&self, id: u64, outcome: Result<(), NicError>) {
        if let Some(heard_by) = self.heard_by.upgrade() {
            heard_by.completed(id, outcome);
        }
    }
}

fn copy(path: &Path, read: &Read) -> Result<(), &'static str> {
    let bytes = read.into.len();
    let peer = WIRES
        .pairs
        .lock()
        .expect("no panic")
        .get(&path.theirs.number)
        .and_then(Weak::upgrade);
    let peers = peer
        .and_then(|peer| peer.path())
        .ok_or("no answer from the peer")?;
    if peers.theirs.number != path.ours.number
        || peers.theirs.first_packet != path.ours.first_packet
    {
        return Err("the peer is connected to another one");
    }
    if peers.theirs_may != Rights::Read {
        return Err("the peer lets nobody read");
    }
    let from = WIRES
        .open(read.remote_key, read.remote, bytes, true)
        .ok_or("the peer refuses the access")?;
    let local = read.into.as_ptr() as u64;
    let into = WIRES
        .open(read.local_key, local, bytes, false)
        .ok_or("the local memory is not what the request says")?;
    into.write_from(&from);
    Ok(())
}

struct Handle(Arc<SoftPair>);

impl Pair for Handle {
    fn number(&self) -> u32 {
        self.0.number
    }

    fn connect(&self, path: &Path) -> Result<(), NicError> {
        self.0.state.lock().expect("no panic").path = Some(*path);
        Ok(())
    }

    fn post(&self, id: u64, reads: Vec<Read>) -> Result<(), NicError> {
        if !self.0.is_open() {
            return Err(NicError::new("post reads", "the queue pair is closed"));
        }
        assert!(
            reads.len() <= self.0.depth,
            "more reads than the pair is deep"
        );
        let job = (self.0.clone(), id, reads);
        let sent = self.0.jobs.send(job);
        sent.map_err(|error| NicError::new("post reads", error))
    }

    fn close(&self) {
        self.0.state.lock().expect("no panic").open = false;
        WIRES.pairs.lock().expect("no panic").remove(&self.0.number);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
