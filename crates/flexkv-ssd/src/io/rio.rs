//! The engine on the crate `rio`, made sound: one thread of the process owns its ring, every buffer and
//! every completion.
//!
//! A completion of `rio` that is forgotten leaves the kernel writing to memory that may be gone, one
//! that is dropped blocks, and a ring that is dropped is not closed. So completions stay on that
//! thread, which lets go of an operation's memory and file after its completions alone; the process
//! has one ring, for ever; no more is in flight than the ring has room for; and only `read_at`,
//! `write_at` and `fsync` are used. Licence and advisory: docs/decisions/0013-ssd-engines.md.

#![deny(clippy::mem_forget)]

use std::fs::File;
use std::future::Future as _;
use std::io;
use std::mem::transmute;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{Builder, ThreadId};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use flexkv_ports::MemorySlice;
use rio::{AsIoVec, AsIoVecMut, Completion};

use super::{EngineParts, IoEngine, Op, Request};

/// Entries of the ring. An operation takes one for each of its parts.
const ENTRIES: usize = 512;
/// Operations in flight, of all engines together.
const PLACES: usize = ENTRIES / 2;

/// A place for operations to go to the thread of the ring.
pub struct Rio {
    driver: &'static Handle,
    client: Arc<Client>,
}

/// The thread of the ring, which never ends.
struct Handle {
    events: Sender<Event>,
    thread: ThreadId,
}

/// What an engine's operations have in common.
struct Client {
    files: Arc<Vec<File>>,
    settled: Arc<dyn Fn() + Send + Sync>,
    /// Operations that have not ended.
    open: Mutex<usize>,
    idle: Condvar,
}

enum Event {
    Start(Arc<Client>, Op),
    /// The completions at this place should be looked at.
    Ended(usize),
}

impl Rio {
    /// An engine for `parts`, on the ring of this process.
    ///
    /// # Errors
    /// If the kernel gives no ring.
    pub fn new(parts: &EngineParts) -> io::Result<Self> {
        static DRIVER: OnceLock<Result<Handle, i32>> = OnceLock::new();
        let driver = DRIVER.get_or_init(|| {
            let started = Driver::start();
            started.map_err(|error| error.raw_os_error().unwrap_or(libc::ENOSYS))
        });
        let driver = driver
            .as_ref()
            .map_err(|errno| io::Error::from_raw_os_error(*errno))?;
        let client = Arc::new(Client {
            files: parts.files.clone(),
            settled: parts.settled.clone(),
            open: Mutex::new(0),
            idle: Condvar::new(),
        });
        Ok(Self { driver, client })
    }
}

impl IoEngine for Rio {
    fn name(&self) -> &'static str {
        "rio"
    }

    fn submit(&self, op: Op) {
        *self.client.open() += 1;
        let start = Event::Start(self.client.clone(), op);
        if let Err(refused) = self.driver.events.send(start)
            && let Event::Start(client, op) = refused.into_inner()
        {
            (op.done)(Err(io::Error::other("the thread of the ring has ended")));
            client.ended();
        }
    }
}

impl Drop for Rio {
    fn drop(&mut self) {
        // A callback on that thread may be the last owner; what it waited for would never come.
        if std::thread::current().id() == self.driver.thread {
            return;
        }
        let mut open = self.client.open();
        while *open > 0 {
            let waited = self.client.idle.wait(open);
            open = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Client {
    fn open(&self) -> MutexGuard<'_, usize> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) {
        *self.open() -= 1;
        self.idle.notify_all();
    }
}

/// Memory as `rio` wants it: no reference to its bytes exists while the kernel has them.
struct Bytes(MemorySlice);

impl AsIoVec for Bytes {
    fn into_new_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.0.as_ptr().cast(),
            iov_len: self.0.len(),
        }
    }
}

impl AsIoVecMut for Bytes {}

/// A part of an operation that the kernel has.
enum Pending {
    Bytes(Completion<'static, usize>),
    Sync(Completion<'static, ()>),
}

impl Pending {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Bytes(bytes) => Pin::new(bytes).poll(context),
            Self::Sync(sync) => Pin::new(sync).poll(context).map_ok(|()| 0),
        }
    }
}

/// An operation that the kernel has. Fields are dropped in this order: a completion waits for the
/// kernel before memory and file may go.
struct Started {
    pending: Vec<Pending>,
    op: Op,
    client: Arc<Client>,
    moved: usize,
    error: Option<io::Error>,
}

/// Tells the thread to look at a place. It is called while the completion is locked, so it must not
/// look itself.
struct Bell {
    place: usize,
    events: Sender<Event>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // The thread never ends, so there is always someone to hear.
        self.events.send(Event::Ended(self.place)).ok();
    }
}

/// The thread's state.
struct Driver {
    places: Vec<Option<Started>>,
    free: Vec<usize>,
    /// Places whose operations the kernel does not know yet.
    new: Vec<usize>,
    /// Engines of which operations have ended since they settled.
    unsettled: Vec<Arc<Client>>,
    bells: Vec<Waker>,
    /// Operations for which there was no room.
    waiting: std::collections::VecDeque<(Arc<Client>, Op)>,
    ring: &'static rio::Rio,
}

/// Ends the process if the thread panics: the kernel would go on to use memory that nobody keeps.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        tracing::error!("the thread of the ring has failed; the process ends");
        std::process::abort();
    }
}

impl Driver {
    /// The thread, once it has a ring.
    fn start() -> io::Result<Handle> {
        let (events, work) = unbounded();
        let (ready, started) = bounded(1);
        let rings = events.clone();
        let run = move || {
            let config = rio::Config {
                depth: ENTRIES,
                ..rio::Config::default()
            };
            match config.start() {
                Ok(ring) => {
                    ready.send(Ok(std::thread::current().id())).ok();
                    Self::new(ring, &rings).run(&work);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        Builder::new().name("ssd-rio".to_owned()).spawn(run)?;
        let started = started.recv();
        let thread = started.map_err(|_| io::Error::other("the thread of the ring ended"))??;
        Ok(Handle { events, thread })
    }

    fn new(ring: rio::Rio, events: &Sender<Event>) -> Self {
        let bell = |place| {
            let events = events.clone();
            Waker::from(Arc::new(Bell { place, events }))
        };
        Self {
            places: (0..PLACES).map(|_| None).collect(),
            free: (0..PLACES).rev().collect(),
            new: Vec::new(),
            unsettled: Vec::new(),
            bells: (0..PLACES).map(bell).collect(),
            waiting: std::collections::VecDeque::new(),
            ring: Box::leak(Box::new(ring)),
        }
    }

    fn run(mut self, work: &Receiver<Event>) {
        let _guard = EndOnPanic;
        while let Ok(first) = work.recv() {
            for event in std::iter::once(first).chain(work.try_iter().take(PLACES)) {
                match event {
                    Event::Start(client, op) => self.waiting.push_back((client, op)),
                    Event::Ended(place) => self.look(place),
                }
            }
            while !self.free.is_empty()
                && let Some((client, op)) = self.waiting.pop_front()
            {
                self.begin(client, op);
            }
            // The first look submits all that began.
            for place in std::mem::take(&mut self.new) {
                self.look(place);
            }
            for client in std::mem::take(&mut self.unsettled) {
                (client.settled)();
            }
        }
    }

    fn begin(&mut self, client: Arc<Client>, op: Op) {
        let Some(file) = client.files.get(op.file) else {
            let what = format!("there is no file {}", op.file);
            return self.tell(client.clone(), op, Err(io::Error::other(what)));
        };
        let Some(place) = self.free.pop() else {
            unreachable!("there was room when the operation was taken")
        };
        let pending = self.pending(file, &op);
        self.places[place] = Some(Started {
            pending,
            client,
            op,
            moved: 0,
            error: None,
        });
        self.new.push(place);
    }

    /// Puts the operation's parts into the ring.
    fn pending(&self, file: &File, op: &Op) -> Vec<Pending> {
        if matches!(op.request, Request::Sync) {
            let sync = self.ring.fsync(file);
            // SAFETY: the lifetime is that of the file alone, which outlives the completion: the
            // client in `Started` keeps it, and is dropped after it.
            return vec![Pending::Sync(unsafe {
                transmute::<Completion<'_, ()>, Completion<'static, ()>>(sync)
            })];
        }
        let mut offset = op.offset;
        let parts = op.request.parts().iter().map(|part| {
            let (at, bytes) = (offset, Bytes(part.clone()));
            offset += part.len() as u64;
            let moving = match op.request {
                Request::Read(_) => self.ring.read_at(file, &bytes, at),
                _ => self.ring.write_at(file, &bytes, at),
            };
            // SAFETY: the lifetime is that of the file and of `bytes`, of which `rio` has taken the
            // address and the length. Client and operation in `Started` keep file and memory, and
            // are dropped after the completion.
            Pending::Bytes(unsafe {
                transmute::<Completion<'_, usize>, Completion<'static, usize>>(moving)
            })
        });
        parts.collect()
    }

    /// Looks whether the operation at a place has ended.
    fn look(&mut self, place: usize) {
        let Some(started) = &mut self.places[place] else {
            return;
        };
        let mut context = Context::from_waker(&self.bells[place]);
        let (moved, error) = (&mut started.moved, &mut started.error);
        started
            .pending
            .retain_mut(|part| match part.poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(Ok(n)) => {
                    *moved += n;
                    false
                }
                Poll::Ready(Err(why)) => {
                    error.get_or_insert(why);
                    false
                }
            });
        if !started.pending.is_empty() {
            return;
        }
        if let Some(ended) = self.places[place].take() {
            self.free.push(place);
            let result = match ended.error {
                Some(error) => Err(error),
                None => ended.op.request.judge(ended.moved),
            };
            self.tell(ended.client, ended.op, result);
        }
    }

    fn tell(&mut self, client: Arc<Client>, op: Op, result: io::Result<()>) {
        (op.done)(result);
        client.ended();
        if !self.unsettled.iter().any(|it| Arc::ptr_eq(it, &client)) {
            self.unsettled.push(client);
        }
    }
}
