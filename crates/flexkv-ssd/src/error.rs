//! Why an SSD tier cannot be opened. Once it is open, failures are counted, never returned as errors.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an SSD tier cannot be opened.
#[derive(Debug, Error)]
pub enum SsdError {
    /// No directory was named.
    #[error("an SSD tier needs at least one directory")]
    NoDirectory,
    /// The size of blocks is out of range.
    #[error("blocks of {bytes} bytes cannot be kept on SSD (1 to {max})")]
    BlockBytes {
        /// The size asked for.
        bytes: usize,
        /// The largest size.
        max: u64,
    },
    /// The directory's share is too small for one block.
    #[error("{path}: {bytes} bytes hold no block; one needs {needed}")]
    TooSmall {
        /// The directory.
        path: PathBuf,
        /// Its share.
        bytes: u64,
        /// The least share.
        needed: u64,
    },
    /// Another process has the directory.
    #[error("{path}: in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The same directory was named twice.
    #[error("{path}: named twice")]
    Twice {
        /// The directory.
        path: PathBuf,
    },
    /// All directories together have more blocks than a slot's number can tell apart.
    #[error(
        "{slots} slots are more than the {max} that a tier can have; use larger blocks or less space"
    )]
    TooMany {
        /// The slots there would be.
        slots: u64,
        /// The most there can be.
        max: u32,
    },
    /// io_uring was asked for and is not to be had.
    #[error("io_uring is not available: {source}")]
    NoIoUring {
        /// What the kernel said.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{path}: cannot {step}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl SsdError {
    /// An error of `step` at `path`, to be used with `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(
        path: &Path,
        step: &'static str,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            step,
            source: source.into(),
        }
    }
}
