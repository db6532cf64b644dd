//! A session with the node, as Python holds it.
//!
//! Every call lets go of the interpreter while it waits. Knows nothing of who asks.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use flexkv_block::BlockKey;
use flexkv_engine::Attachment as Session;
use flexkv_ports::{CacheError, KvCache as _, LoadLimits, Loaded, Removals, Ticket};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raised, refused, seconds};
use crate::keys::block_keys;

/// Offsets in the arena, blocks that were here, blocks that came from peers.
type Answer = (Vec<usize>, usize, usize);

/// A session with the node of this host; may be used from any thread.
#[pyclass(frozen, module = "flexkv._native")]
pub(crate) struct Attachment {
    pub(crate) session: Arc<Session>,
    /// What the node tells of blocks it no longer holds, once somebody asked.
    removals: OnceLock<Removals>,
}

impl Attachment {
    /// Waits for what `call` makes of the session, without the interpreter.
    fn wait_for<'s, T, C>(
        &'s self,
        py: Python<'_>,
        call: impl FnOnce(&'s Session) -> Result<C, CacheError> + Send,
    ) -> PyResult<T>
    where
        T: Send,
        C: Future<Output = Result<T, CacheError>>,
    {
        let session = &self.session;
        py.detach(|| session.block_on(call(session)?))
            .map_err(raised)
    }
}

#[pymethods]
impl Attachment {
    #[new]
    fn new(py: Python<'_>, socket: PathBuf, timeout_s: f64) -> PyResult<Self> {
        let within = seconds("timeout_s", timeout_s)?;
        let session = py.detach(|| Session::attach(&socket, within));
        Ok(Self {
            session: Arc::new(session.map_err(raised)?),
            removals: OnceLock::new(),
        })
    }

    /// The namespace's id, in hexadecimal.
    #[getter]
    fn namespace(&self) -> String {
        self.session.namespace().to_string()
    }

    /// Bytes of every block.
    #[getter]
    fn block_bytes(&self) -> usize {
        self.session.block_bytes()
    }

    /// Whether the session has ended.
    #[getter]
    fn gone(&self) -> bool {
        !self.session.is_attached()
    }

    /// How much of a prompt exists: ticket, leading blocks, how many of them are here.
    #[pyo3(name = "match")]
    fn match_prefix(&self, py: Python<'_>, keys: &[u8]) -> PyResult<(u64, usize, usize)> {
        let keys = &block_keys("keys", keys)?;
        let hit = self.wait_for(py, |session| Ok(session.steps()?.match_prefix(keys)))?;
        Ok((hit.ticket.0, hit.blocks, hit.local))
    }

    /// Starts bringing the first blocks of a match here.
    #[pyo3(signature = (ticket, blocks, deadline_s, recompute_s=None))]
    fn launch(
        &self,
        py: Python<'_>,
        ticket: u64,
        blocks: usize,
        deadline_s: f64,
        recompute_s: Option<f64>,
    ) -> PyResult<()> {
        let recompute = recompute_s.map(|time| seconds("recompute_s", time));
        let limits = LoadLimits {
            deadline: seconds("deadline_s", deadline_s)?,
            recompute: recompute.transpose()?,
        };
        self.wait_for(py, |session| {
            Ok(session.steps()?.launch(Ticket(ticket), blocks, limits))
        })
    }

    /// What was brought; `None` while it is under way.
    fn poll(&self, py: Python<'_>, ticket: u64) -> PyResult<Option<Answer>> {
        let loaded = self.wait_for(py, |session| Ok(session.steps()?.poll(Ticket(ticket))))?;
        Ok(loaded.as_ref().map(answer))
    }

    /// As `poll`, but waits.
    fn wait(&self, py: Python<'_>, ticket: u64, timeout_s: f64) -> PyResult<Option<Answer>> {
        let within = seconds("timeout_s", timeout_s)?;
        let loaded = self.wait_for(py, |session| {
            Ok(session.steps()?.wait(Ticket(ticket), within))
        })?;
        Ok(loaded.as_ref().map(answer))
    }

    /// The checksums of the blocks that `poll` names, for [`crate::copier::Copier`] to compare.
    fn checksums(&self, py: Python<'_>, ticket: u64) -> PyResult<Vec<u64>> {
        let loaded = self.wait_for(py, |session| Ok(session.steps()?.poll(Ticket(ticket))))?;
        let loaded = loaded.ok_or_else(|| refused(format!("ticket {ticket} is under way")))?;
        let blocks = loaded.blocks.iter();
        Ok(blocks.map(|block| block.checksum.0).collect())
    }

    /// Gives up all that a ticket holds.
    fn cancel(&self, py: Python<'_>, ticket: u64) -> PyResult<()> {
        self.wait_for(py, |session| Ok(session.steps()?.cancel(Ticket(ticket))))
    }

    /// Brings what exists of a prompt here; nobody waits.
    fn prefetch(&self, py: Python<'_>, keys: &[u8], deadline_s: f64) -> PyResult<u64> {
        let keys = &block_keys("keys", keys)?;
        let deadline = seconds("deadline_s", deadline_s)?;
        let ticket = self.wait_for(py, |session| Ok(session.steps()?.prefetch(keys, deadline)))?;
        Ok(ticket.0)
    }

    /// Keys of blocks that the node no longer holds, and how many more there were.
    fn removed<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, u64)> {
        let removals = match self.removals.get() {
            Some(removals) => removals,
            None => {
                let watch = self.wait_for(py, |session| Ok(session.client()?.removals()))?;
                self.removals.get_or_init(|| watch)
            }
        };
        let removed = removals.take();
        let keys = removed.keys.into_iter().flat_map(BlockKey::to_bytes);
        Ok((PyBytes::new(py, &keys.collect::<Vec<u8>>()), removed.lost))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.session)
    }
}

fn answer(loaded: &Loaded) -> Answer {
    let blocks = loaded.blocks.iter();
    let offsets = blocks.map(|block| block.bytes.offset()).collect();
    (offsets, loaded.local, loaded.remote)
}
