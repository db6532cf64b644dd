//! Background copies, as Python starts and drains them.
//!
//! Knows nothing of tensors: addresses and strides come as numbers.

use flexkv_block::Checksum;
use flexkv_engine::{Copier as Copies, KvLayer, KvMemory, LoadBlock};
use pyo3::prelude::*;

use crate::attachment::Attachment;
use crate::error::{raised, refused};
use crate::keys::block_keys;

/// Job, whether all was done, block ids that were not, bytes.
type Ended = (u64, bool, Vec<i64>, u64);

/// Copies between the arena and the KV memory of a worker, in threads of its own.
#[pyclass(frozen, module = "flexkv._native")]
pub(crate) struct Copier(Copies);

#[pymethods]
impl Copier {
    /// `layers`: address of block 0, stride between blocks, bytes of a block, number of blocks.
    #[new]
    #[pyo3(signature = (attachment, layers, threads = 1))]
    fn new(
        py: Python<'_>,
        attachment: &Attachment,
        layers: Vec<(usize, usize, usize, usize)>,
        threads: usize,
    ) -> PyResult<Self> {
        let layers = layers.into_iter();
        let layers = layers.map(|(base, block_stride, block_bytes, blocks)| KvLayer {
            base,
            block_stride,
            block_bytes,
            blocks,
        });
        // SAFETY: whoever makes a Copier in Python promises, as the stub file says, that the
        // memory stays there until `shutdown`, and that a block is left alone while a job has it.
        let memory = unsafe { KvMemory::new(layers.collect()) }.map_err(raised)?;
        let session = attachment.session.clone();
        let copier = py.detach(|| Copies::new(session, memory, threads));
        copier.map(Self).map_err(raised)
    }

    /// Fills blocks of the worker from the arena.
    #[pyo3(signature = (job, offsets, block_ids, checksums = None))]
    fn load(
        &self,
        py: Python<'_>,
        job: u64,
        offsets: Vec<u64>,
        block_ids: Vec<i64>,
        checksums: Option<Vec<u64>>,
    ) -> PyResult<()> {
        let sums = checksums.as_ref().map_or(offsets.len(), Vec::len);
        if offsets.len() != block_ids.len() || offsets.len() != sums {
            return Err(refused(format!(
                "{} offsets, {} block ids and {sums} checksums are not as many",
                offsets.len(),
                block_ids.len()
            )));
        }
        let blocks = offsets.into_iter().zip(block_ids).enumerate();
        let blocks = blocks.map(|(at, (offset, block))| LoadBlock {
            offset,
            block,
            checksum: checksums.as_ref().map(|sums| Checksum(sums[at])),
        });
        let blocks = blocks.collect();
        py.detach(|| self.0.load(job, blocks)).map_err(raised)
    }

    /// Stores blocks of the worker as `keys[first:]`.
    fn store(
        &self,
        py: Python<'_>,
        job: u64,
        keys: &[u8],
        first: usize,
        block_ids: Vec<i64>,
    ) -> PyResult<()> {
        let keys = block_keys("keys", keys)?;
        py.detach(|| self.0.store(job, keys, first, block_ids))
            .map_err(raised)
    }

    /// The jobs that have ended since the last call.
    fn drain(&self, py: Python<'_>) -> Vec<Ended> {
        let finished = py.detach(|| self.0.drain());
        let finished = finished.into_iter();
        finished
            .map(|ended| (ended.job, ended.ok, ended.bad_blocks, ended.bytes))
            .collect()
    }

    /// Jobs that have not ended.
    fn pending(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.pending())
    }

    /// Ends all jobs and threads; then the memory is not touched any more.
    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| self.0.shutdown());
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}
