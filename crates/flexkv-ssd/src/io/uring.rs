//! The engine on io_uring: one thread that submits and reaps, files and memory registered with the
//! kernel.
//!
//! All operations pass through that thread, so that the ring has a single issuer. It sleeps in the
//! kernel; an eventfd that the ring watches wakes it for new operations.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use flexkv_ports::{Memory, MemorySlice};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::EventfdFlags;

use super::{EngineParts, IoEngine, Op, Request};

/// The kernel registers no longer pieces of memory.
const PIECE: usize = 1 << 30;
/// Bytes of a huge page. A piece of nothing but huge pages costs the kernel less at each transfer.
const HUGE_PAGE: usize = 2 << 20;
/// Marks the completion that says there are new operations.
const WAKE: u64 = u64::MAX;

/// An io_uring with its thread.
pub struct Uring {
    queue: Option<Sender<Op>>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the thread.
struct Bell {
    fd: OwnedFd,
    /// The thread sleeps, or is about to, and nobody has woken it.
    asleep: AtomicBool,
}

impl Bell {
    /// For whoever has put something into the queue. A thread that is awake looks there by itself.
    fn ring(&self) {
        // Pairs with the fence of `may_sleep`: either we see it asleep or it sees our work.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::AcqRel) {
            // It can only fail if the counter is full, and then it is heard.
            rustix::io::write(&self.fd, &1u64.to_ne_bytes()).ok();
        }
    }

    /// For the thread, before it sleeps: whether it may, as nothing has come meanwhile.
    fn may_sleep<T>(&self, work: &Receiver<T>) -> bool {
        self.asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        work.is_empty() || !self.asleep.swap(false, Ordering::AcqRel)
    }

    /// For the thread, when it is awake.
    fn awake(&self) {
        self.asleep.store(false, Ordering::Release);
    }

    /// From now on a ring counts as new.
    fn heard(&self) {
        let mut count = [0; 8];
        rustix::io::read(&self.fd, &mut count).ok();
    }
}

impl Uring {
    /// A ring for `parts`.
    ///
    /// # Errors
    /// If the kernel gives no ring or does not take the files. Memory that it does not register is
    /// used all the same, at more cost.
    pub fn new(parts: &EngineParts) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = Arc::new(Bell {
            fd: rustix::event::eventfd(0, flags)?,
            asleep: AtomicBool::new(false),
        });
        let (queue, work) = unbounded();
        let (ready, started) = bounded(1);
        let (parts, heard) = (parts.clone(), bell.clone());
        // A ring with a single issuer belongs to the thread that makes it.
        let run = move || match Driver::new(&parts, work, heard) {
            Ok(driver) => {
                ready.send(Ok(())).ok();
                driver.run();
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread = Builder::new().name("ssd-io-uring".to_owned()).spawn(run)?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread of the ring ended")))?;
        Ok(Self {
            queue: Some(queue),
            bell,
            thread: Some(thread),
        })
    }
}

impl IoEngine for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn submit(&self, op: Op) {
        let queue = self
            .queue
            .as_ref()
            .unwrap_or_else(|| unreachable!("taken in drop only"));
        match queue.send(op) {
            Ok(()) => self.bell.ring(),
            Err(refused) => {
                let gone = io::Error::other("the thread of the ring has ended");
                (refused.into_inner().done)(Err(gone));
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.queue = None;
        self.bell.ring();
        let here = std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != here) {
            thread.join().ok();
        }
    }
}

/// An operation that the kernel has, in as many entries of the ring as it has parts.
struct Started {
    op: Op,
    /// Entries still to end.
    left: usize,
    /// Bytes moved so far.
    moved: usize,
    /// What became of the first one that failed.
    error: Option<i32>,
}

/// Operations that the kernel has. If this is dropped while there are any, the kernel would go on
/// to use memory that is gone: the process ends instead.
struct InFlight {
    ops: Vec<Option<Started>>,
    free: Vec<usize>,
}

impl InFlight {
    fn new(depth: usize) -> Self {
        Self {
            ops: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.ops.len()
    }

    /// One entry of an operation has ended; gives back the operation with its last one.
    fn ended(&mut self, place: usize, result: i32) -> Option<Started> {
        let it = self.ops.get_mut(place)?;
        let started = it.as_mut()?;
        match usize::try_from(result) {
            Ok(moved) => started.moved += moved,
            Err(_) => started.error = started.error.or(Some(-result)),
        }
        started.left -= 1;
        if started.left > 0 {
            return None;
        }
        self.free.push(place);
        it.take()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.is_empty() {
            tracing::error!("SSD transfers were left in flight; the process ends");
            std::process::abort();
        }
    }
}

/// Memory that the kernel knows, in pieces.
struct Registered {
    base: usize,
    /// Where each piece ends.
    ends: Vec<usize>,
    /// The number of its first piece.
    first: u16,
}

/// The thread's state. Fields are dropped in this order: what is in flight is looked at first.
struct Driver {
    in_flight: InFlight,
    ring: IoUring,
    registered: Vec<Registered>,
    work: Receiver<Op>,
    bell: Arc<Bell>,
    /// One request to watch the bell serves for all its rings.
    rings_on: bool,
    /// Operations have ended that nobody has settled.
    ended: bool,
    settled: Arc<dyn Fn() + Send + Sync>,
    /// Keep registered files and memory alive.
    files: Arc<Vec<File>>,
    _memory: Vec<Arc<dyn Memory>>,
}

impl Driver {
    fn new(parts: &EngineParts, work: Receiver<Op>, bell: Arc<Bell>) -> io::Result<Self> {
        let depth = parts.depth.max(1);
        // Two entries for each, and one for the bell.
        let ring = ring((2 * depth + 1).next_power_of_two())?;
        let fds: Vec<_> = parts.files.iter().map(|file| file.as_raw_fd()).collect();
        ring.submitter().register_files(&fds)?;
        let registered = register(&ring, &parts.memory);
        Ok(Self {
            in_flight: InFlight::new(depth as usize),
            ring,
            registered,
            work,
            bell,
            rings_on: true,
            ended: false,
            settled: parts.settled.clone(),
            files: parts.files.clone(),
            _memory: parts.memory.clone(),
        })
    }

    fn run(mut self) {
        let mut open = true;
        self.watch_bell();
        while open || !self.in_flight.is_empty() {
            open = self.take_work(open);
            self.settle();
            if !open && self.in_flight.is_empty() {
                break;
            }
            // Without room for more, the thread has only completions to wait for.
            let has_room = !self.in_flight.free.is_empty();
            if open && has_room && !self.bell.may_sleep(&self.work) {
                continue;
            }
            self.wait();
            self.bell.awake();
            self.reap();
            self.settle();
        }
    }

    /// Lets others do at once what follows from all that has ended.
    fn settle(&mut self) {
        if std::mem::take(&mut self.ended) {
            (self.settled)();
        }
    }

    /// Starts what waits, as far as there is room; says whether more can come.
    fn take_work(&mut self, open: bool) -> bool {
        while open && !self.in_flight.free.is_empty() {
            match self.work.try_recv() {
                Ok(op) => self.start(op),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        open
    }

    fn start(&mut self, op: Op) {
        if op.file >= self.files.len() {
            let what = format!("there is no file {}", op.file);
            self.ended = true;
            return (op.done)(Err(io::Error::other(what)));
        }
        let Some(place) = self.in_flight.free.pop() else {
            unreachable!("there was room when the operation was taken")
        };
        let entries = self.entries(&op);
        let left = entries.len();
        let entries = entries.into_iter().map(|it| it.user_data(place as u64));
        let entries: Vec<_> = entries.collect();
        self.in_flight.ops[place] = Some(Started {
            op,
            left,
            moved: 0,
            error: None,
        });
        for entry in &entries {
            self.push(entry);
        }
    }

    /// What an operation is to the ring. Parts that follow each other in the file are put into the
    /// ring together, so that the kernel makes one request of them for the device.
    fn entries(&self, op: &Op) -> Vec<squeue::Entry> {
        let file = types::Fixed(op.file as u32);
        if matches!(op.request, Request::Sync) {
            let sync = opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC);
            return vec![sync.build()];
        }
        let mut offset = op.offset;
        let parts = op.request.parts().iter();
        let entries = parts.map(|bytes| {
            let at = offset;
            offset += bytes.len() as u64;
            match op.request {
                Request::Read(_) => self.read(file, at, bytes),
                _ => self.write(file, at, bytes),
            }
        });
        entries.collect()
    }

    fn read(&self, file: types::Fixed, offset: u64, to: &MemorySlice) -> squeue::Entry {
        let (at, len) = (to.as_ptr(), to.len() as u32);
        match self.piece(to) {
            Some(piece) => opcode::ReadFixed::new(file, at, len, piece)
                .offset(offset)
                .build(),
            None => opcode::Read::new(file, at, len).offset(offset).build(),
        }
    }

    fn write(&self, file: types::Fixed, offset: u64, from: &MemorySlice) -> squeue::Entry {
        let (at, len) = (from.as_ptr().cast_const(), from.len() as u32);
        match self.piece(from) {
            Some(piece) => opcode::WriteFixed::new(file, at, len, piece)
                .offset(offset)
                .build(),
            None => opcode::Write::new(file, at, len).offset(offset).build(),
        }
    }

    /// The registered piece that a range lies in, if it lies in one.
    fn piece(&self, bytes: &MemorySlice) -> Option<u16> {
        let base = bytes.memory().base() as usize;
        let known = self.registered.iter().find(|known| known.base == base)?;
        let number = known.ends.partition_point(|end| *end <= bytes.offset());
        let end = known.ends.get(number)?;
        (bytes.offset() + bytes.len() <= *end).then_some(known.first + number as u16)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry's memory belongs to an operation in `in_flight`, which keeps it mapped
        // until the completion is reaped; or it is the bell, whose descriptor `self` holds.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit().ok();
        }
    }

    fn watch_bell(&mut self) {
        let fd = types::Fd(self.bell.fd.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(self.rings_on);
        self.push(&entry.build().user_data(WAKE));
    }

    /// Submits, and sleeps until something has ended.
    fn wait(&self) {
        if let Err(error) = self.ring.submit_and_wait(1) {
            let passing = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
            if !error.raw_os_error().is_some_and(|n| passing.contains(&n)) {
                tracing::error!(%error, "io_uring refuses to work");
                std::thread::park_timeout(std::time::Duration::from_millis(10));
            }
        }
    }

    fn reap(&mut self) {
        let ended: Vec<cqueue::Entry> = self.ring.completion().collect();
        for entry in ended {
            if entry.user_data() == WAKE {
                self.rang(&entry);
                continue;
            }
            let place = entry.user_data() as usize;
            let Some(it) = self.in_flight.ended(place, entry.result()) else {
                continue;
            };
            let result = match it.error {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => it.op.request.judge(it.moved),
            };
            self.ended = true;
            (it.op.done)(result);
        }
    }

    /// The bell rang, or cannot be watched in the way that was asked for.
    fn rang(&mut self, entry: &cqueue::Entry) {
        if cqueue::more(entry.flags()) {
            return;
        }
        self.rings_on &= entry.result() >= 0;
        self.bell.heard();
        self.watch_bell();
    }
}

/// A ring whose work is done when its thread asks for it, or, on older kernels, a plain one.
fn ring(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        .or_else(|_| IoUring::new(entries))
}

/// Has the kernel pin the memory once instead of at every transfer.
fn register(ring: &IoUring, memory: &[Arc<dyn Memory>]) -> Vec<Registered> {
    let mut pieces = Vec::new();
    let mut registered = Vec::new();
    for region in memory.iter().filter(|region| !region.is_empty()) {
        let ends = ends(region.len());
        let Ok(first) = u16::try_from(pieces.len()) else {
            break;
        };
        if first.checked_add(ends.len() as u16).is_none() {
            break;
        }
        let mut at = 0;
        for end in &ends {
            pieces.push(libc::iovec {
                iov_base: region.base().wrapping_add(at).cast(),
                iov_len: end - at,
            });
            at = *end;
        }
        let base = region.base() as usize;
        registered.push(Registered { base, ends, first });
    }
    if pieces.is_empty() {
        return registered;
    }
    // SAFETY: the pieces are parts of mappings that the driver keeps until the ring is gone.
    match unsafe { ring.submitter().register_buffers(&pieces) } {
        Ok(()) => registered,
        Err(error) => {
            tracing::info!(%error, "io_uring did not register memory; transfers cost more CPU");
            Vec::new()
        }
    }
}

/// Where the pieces of a region of `len` bytes end. What is too short for a huge page, at its end,
/// is a piece of its own.
fn ends(len: usize) -> Vec<usize> {
    let huge = len - len % HUGE_PAGE;
    let mut ends: Vec<usize> = (PIECE..huge).step_by(PIECE).collect();
    ends.extend([huge, len].into_iter().filter(|end| *end > 0));
    ends.dedup();
    ends
}
