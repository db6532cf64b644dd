//! The engine for kernels that refuse io_uring: threads that block in `preadv` and `pwritev`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::thread::{Builder, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};
use flexkv_ports::MemorySlice;

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
            let (work, parts) = (work.clone(), parts.clone());
            let run = move || serve(&work, &parts);
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

fn serve(work: &Receiver<Op>, parts: &EngineParts) {
    for op in work {
        let result = match parts.files.get(op.file) {
            Some(file) => transfer(file, &op),
            None => Err(io::Error::other(format!("there is no file {}", op.file))),
        };
        (op.done)(result);
        (parts.settled)();
    }
}

fn transfer(file: &File, op: &Op) -> io::Result<()> {
    let at = libc::off_t::try_from(op.offset)
        .map_err(|_| io::Error::other("the offset is beyond any file"))?;
    let pieces: Vec<libc::iovec> = op.request.parts().iter().map(piece).collect();
    let (fd, first, count) = (
        file.as_raw_fd(),
        pieces.as_ptr(),
        pieces.len() as libc::c_int,
    );
    loop {
        let n = match &op.request {
            // SAFETY: the slices keep their mapping alive and writable for `len` bytes each.
            Request::Read(_) => unsafe { libc::preadv(fd, first, count, at) },
            // SAFETY: as above, readable.
            Request::Write(_) | Request::WriteBoth(_) => unsafe {
                libc::pwritev(fd, first, count, at)
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

fn piece(bytes: &MemorySlice) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast(),
        iov_len: bytes.len(),
    }
}
