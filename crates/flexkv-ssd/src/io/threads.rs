//! The engine for kernels that refuse io_uring: threads that block in `pread` and `pwrite`.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::{EngineParts, IoEngine, Op, Request};

/// More threads than this only wait for each other.
const THREADS_MAX: u32 = 32;

/// Threads that each do one operation at a time.
pub struct Threads {
    queue: Option<Sender<Op>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// An engine of as many threads as may be in flight, at most 32.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn new(parts: &EngineParts) -> io::Result<Self> {
        let (queue, work) = unbounded::<Op>();
        let mut threads = Vec::new();
        for n in 0..parts.depth.clamp(1, THREADS_MAX) {
            let (work, files) = (work.clone(), parts.files.clone());
            let run = move || serve(&work, &files);
            threads.push(Builder::new().name(format!("ssd-io-{n}")).spawn(run)?);
        }
        let queue = Some(queue);
        Ok(Self { queue, threads })
    }
}

impl IoEngine for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn submit(&self, op: Op) {
        let queue = self
            .queue
            .as_ref()
            .unwrap_or_else(|| unreachable!("taken in drop only"));
        if let Err(refused) = queue.send(op) {
            let gone = io::Error::other("the threads of the engine have ended");
            (refused.into_inner().done)(Err(gone));
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue = None;
        let here = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner of an engine may be a callback on one of its threads.
            if thread.thread().id() != here {
                thread.join().ok();
            }
        }
    }
}

fn serve(work: &Receiver<Op>, files: &Arc<Vec<std::fs::File>>) {
    for op in work {
        let result = match files.get(op.file) {
            Some(file) => transfer(file, &op),
            None => Err(io::Error::other(format!("there is no file {}", op.file))),
        };
        (op.done)(result);
    }
}

fn transfer(file: &std::fs::File, op: &Op) -> io::Result<()> {
    let at = libc::off_t::try_from(op.offset)
        .map_err(|_| io::Error::other("the offset is beyond any file"))?;
    let fd = file.as_raw_fd();
    loop {
        let n = match &op.request {
            // SAFETY: the slice keeps its mapping alive and writable for `len` bytes.
            Request::Read(to) => unsafe { libc::pread(fd, to.as_ptr().cast(), to.len(), at) },
            // SAFETY: as above, readable.
            Request::Write(from) => unsafe {
                libc::pwrite(fd, from.as_ptr().cast(), from.len(), at)
            },
            Request::Sync => {
                file.sync_data()?;
                return Ok(());
            }
        };
        if let Ok(n) = usize::try_from(n) {
            return op.request.judge(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
