//! Transfers between memory and files, behind one trait: io_uring, threads, or `rio` where that was
//! built in.
//!
//! An engine is given its files once and moves whole ranges of memory; a transfer that ends short is
//! an error. It knows nothing of blocks, slots or order: what is submitted later may end earlier.

#[cfg(feature = "rio")]
mod rio;
mod threads;
mod uring;

use std::fs::File;
use std::io;
use std::sync::Arc;

use flexkv_ports::{Memory, MemorySlice};

#[cfg(feature = "rio")]
pub use self::rio::Rio;
pub use threads::Threads;
pub use uring::Uring;

/// Called once, on a thread of the engine, with what became of an operation. It holds whatever must
/// stay until then.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Request {
    /// Fill this memory from the file.
    Read(MemorySlice),
    /// Write this memory to the file.
    Write(MemorySlice),
    /// Write these one after the other: one operation that ends once, with both.
    WriteBoth([MemorySlice; 2]),
    /// Have the device keep what was written to the file.
    Sync,
}

/// One operation on one file.
pub struct Op {
    /// Which of the engine's files.
    pub file: usize,
    /// Where in the file; of no meaning for `Sync`.
    pub offset: u64,
    /// What to do.
    pub request: Request,
    /// Whom to tell.
    pub done: Done,
}

/// Moves bytes between memory and files. Dropping an engine waits for what is in flight; every
/// operation's `done` is called exactly once.
pub trait IoEngine: Send + Sync {
    /// The engine's name in logs and tables.
    fn name(&self) -> &'static str;

    /// Starts an operation and returns at once.
    fn submit(&self, op: Op);
}

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineParts {
    /// The files that operations name, by their place here.
    pub files: Arc<Vec<File>>,
    /// Operations that may be in flight at once.
    pub depth: u32,
    /// Memory that operations will use often.
    pub memory: Vec<Arc<dyn Memory>>,
    /// Called on a thread of the engine after it has told of all operations that ended together, so
    /// that what follows from them can be done at once.
    pub settled: Arc<dyn Fn() + Send + Sync>,
}

impl Request {
    /// The memory that is moved, in the order of the file.
    fn parts(&self) -> &[MemorySlice] {
        match self {
            Self::Read(bytes) | Self::Write(bytes) => std::slice::from_ref(bytes),
            Self::WriteBoth(parts) => parts,
            Self::Sync => &[],
        }
    }

    /// What a transfer of `done` bytes means for this request.
    fn judge(&self, done: usize) -> io::Result<()> {
        let wanted: usize = self.parts().iter().map(MemorySlice::len).sum();
        if done == wanted {
            return Ok(());
        }
        let kind = match self {
            Self::Read(_) => io::ErrorKind::UnexpectedEof,
            Self::Write(_) | Self::WriteBoth(_) => io::ErrorKind::WriteZero,
            Self::Sync => return Ok(()),
        };
        let what = format!("{done} of {wanted} bytes were transferred");
        Err(io::Error::new(kind, what))
    }
}

#[cfg(test)]
mod tests;
