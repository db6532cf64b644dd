//! Namespaces and block keys, from Python's values.
//!
//! Knows nothing of nodes: what it computes depends on its arguments alone.

use flexkv_block::{
    BlockKey, BlockLayout, ClusterSecret, KeyChain as Chain, LayerShape, Namespace, RequestScope,
    Shard,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::refused;

/// The keys that describe a namespace; each must be there.
const FIELDS: [&str; 8] = [
    "model",
    "revision",
    "dtype",
    "engine_layout",
    "tokens_per_block",
    "layers",
    "tensor_parallel",
    "pipeline_parallel",
];

/// The namespace's id in hexadecimal, and the key before the first block of a request in it.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
pub(crate) fn derive_root<'py>(
    py: Python<'py>,
    namespace: &Bound<'py, PyDict>,
    secret: &[u8],
    tensor_rank: u32,
    pipeline_stage: u32,
    lora: String,
    salt: String,
    multimodal: Vec<Vec<u8>>,
) -> PyResult<(String, Bound<'py, PyBytes>)> {
    let namespace = read_namespace(namespace)?;
    let shard = Shard {
        tensor_rank,
        pipeline_stage,
    };
    let checked = namespace
        .check()
        .and_then(|()| namespace.check_shard(shard));
    checked.map_err(|error| refused(error.to_string()))?;
    let scope = RequestScope {
        lora,
        salt,
        multimodal,
    };
    let secret = cluster_secret(secret)?;
    let root = namespace.root(&secret, shard, &scope);
    let id = namespace.id(&secret).to_string();
    Ok((id, PyBytes::new(py, &root.to_bytes())))
}

/// Reads a namespace; every problem names its key.
fn read_namespace(dict: &Bound<'_, PyDict>) -> PyResult<Namespace> {
    for key in dict.keys() {
        let key: String = key.extract()?;
        if !FIELDS.contains(&key.as_str()) {
            let known = FIELDS.join(", ");
            return Err(refused(format!(
                "namespace has the unknown key `{key}`; the keys are {known}"
            )));
        }
    }
    let layers: Vec<u64> = field(dict, "layers")?;
    let layers = layers.into_iter();
    let layers = layers.map(|block_bytes| LayerShape::Opaque { block_bytes });
    let layout = BlockLayout::new(field(dict, "tokens_per_block")?, layers.collect());
    Ok(Namespace {
        model: field(dict, "model")?,
        revision: field(dict, "revision")?,
        dtype: field(dict, "dtype")?,
        layout: layout.map_err(|error| refused(error.to_string()))?,
        engine_layout: field(dict, "engine_layout")?,
        tensor_parallel: field(dict, "tensor_parallel")?,
        pipeline_parallel: field(dict, "pipeline_parallel")?,
    })
}

fn field<'py, T>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let missing = || refused(format!("namespace has no key `{name}`"));
    let value = dict.get_item(name)?.ok_or_else(missing)?;
    let extracted: Result<T, PyErr> = value.extract().map_err(Into::into);
    extracted.map_err(|error| PyTypeError::new_err(format!("namespace key `{name}`: {error}")))
}

fn cluster_secret(bytes: &[u8]) -> PyResult<ClusterSecret> {
    if bytes.is_empty() {
        return Err(refused("the cluster secret is empty"));
    }
    Ok(ClusterSecret::derive(bytes))
}

/// The keys of the argument `name`, 16 bytes each.
pub(crate) fn block_keys(name: &str, bytes: &[u8]) -> PyResult<Vec<BlockKey>> {
    let (keys, rest) = bytes.as_chunks::<{ BlockKey::BYTES }>();
    if rest.is_empty() {
        return Ok(keys.iter().copied().map(BlockKey::from_bytes).collect());
    }
    Err(refused(format!(
        "{name} has {} bytes, which are no keys of {} bytes each",
        bytes.len(),
        BlockKey::BYTES
    )))
}

/// Computes the keys of a prompt, block by block.
#[pyclass(module = "flexkv._native")]
pub(crate) struct KeyChain(Chain);

#[pymethods]
impl KeyChain {
    #[new]
    fn new(root: &[u8], secret: &[u8], tokens_per_block: usize) -> PyResult<Self> {
        let root = block_keys("root", root)?;
        let [root] = root[..] else {
            return Err(refused(format!(
                "root is {} keys instead of one",
                root.len()
            )));
        };
        if tokens_per_block == 0 {
            return Err(refused("tokens_per_block is 0"));
        }
        let secret = cluster_secret(secret)?;
        Ok(Self(Chain::new(&secret, root, tokens_per_block)))
    }

    /// Appends tokens; the keys of the blocks that they complete, 16 bytes each.
    fn extend<'py>(&mut self, py: Python<'py>, tokens: Vec<u32>) -> Bound<'py, PyBytes> {
        let mut keys = Vec::new();
        self.0.extend(&tokens, &mut keys);
        let bytes: Vec<u8> = keys.into_iter().flat_map(BlockKey::to_bytes).collect();
        PyBytes::new(py, &bytes)
    }
}
