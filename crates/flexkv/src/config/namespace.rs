//! The `[namespace]` section: an id, or the deployment that the id stands for. Knows nothing of the
//! other sections but the cluster secret that turns the one into the other.

use flexkv_block::{BlockLayout, ClusterSecret, LayerShape, Namespace, NamespaceId};

use super::fields::Fields;

/// Which blocks a node keeps, and how large one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceSetting {
    /// The namespace.
    pub id: NamespaceId,
    /// Bytes of every block.
    pub block_bytes: usize,
}

const MAX: u64 = u32::MAX as u64;

/// Reads the section; `None` if something is wrong with it, which `fields` then knows.
pub(super) fn read(fields: &mut Fields<'_>, secret: &ClusterSecret) -> Option<NamespaceSetting> {
    let id = fields.parsed("namespace.id", |text| {
        text.parse::<NamespaceId>()
            .map_err(|error| error.to_string())
    });
    let block_bytes = fields.number("namespace.block_bytes", 1..=BlockLayout::MAX_BLOCK_BYTES);
    let described = fields.has("namespace.model");
    let layout = layout(fields, block_bytes);
    let namespace = deployment(fields, described, layout.clone());
    match (fields.has("namespace.id"), described) {
        (true, false) => {
            if block_bytes.is_none() {
                fields.refuse("namespace.block_bytes", "is needed beside `namespace.id`");
            }
            Some(NamespaceSetting {
                id: id?,
                block_bytes: block_bytes? as usize,
            })
        }
        (false, true) => {
            let namespace = namespace?;
            if let Err(error) = namespace.check() {
                fields.refuse("namespace", error.to_string());
                return None;
            }
            Some(NamespaceSetting {
                id: namespace.id(secret),
                block_bytes: namespace.layout.block_bytes(),
            })
        }
        (true, true) => {
            fields.refuse(
                "namespace.id",
                "cannot stand beside `namespace.model`: give one of them",
            );
            None
        }
        (false, false) => {
            fields.refuse(
                "namespace.model",
                "is missing: give the model and its geometry, or `namespace.id` and `namespace.block_bytes`",
            );
            None
        }
    }
}

fn deployment(
    fields: &mut Fields<'_>,
    described: bool,
    layout: Option<Result<BlockLayout, String>>,
) -> Option<Namespace> {
    let text = |fields: &mut Fields<'_>, key| fields.text(key).unwrap_or_default().to_owned();
    let model = text(fields, "namespace.model");
    let revision = text(fields, "namespace.revision");
    let dtype = text(fields, "namespace.dtype");
    let engine_layout = text(fields, "namespace.engine_layout");
    let mut size = |key| fields.number(key, 1..=MAX).unwrap_or(1) as u32;
    let tensor_parallel = size("namespace.tensor_parallel_size");
    let pipeline_parallel = size("namespace.pipeline_parallel_size");
    if !described {
        return None;
    }
    let layout = match layout {
        Some(Ok(layout)) => layout,
        Some(Err(reason)) => {
            fields.refuse("namespace", reason);
            return None;
        }
        None => {
            fields.refuse(
                "namespace",
                "has no geometry: give `layers`, `tokens_per_block`, `element_bytes` and either \
                 `kv_heads` and `head_dim` or `latent_dim`; or `tokens_per_block` and `block_bytes`",
            );
            return None;
        }
    };
    Some(Namespace {
        model,
        revision,
        dtype,
        layout,
        engine_layout,
        tensor_parallel,
        pipeline_parallel,
    })
}

/// The geometry, if one is given completely.
fn layout(fields: &mut Fields<'_>, opaque: Option<u64>) -> Option<Result<BlockLayout, String>> {
    let mut number = |key| fields.number(key, 1..=MAX).map(|n| n as u32);
    let tokens = number("namespace.tokens_per_block");
    let layers = number("namespace.layers");
    let element_bytes = number("namespace.element_bytes");
    let kv_heads = number("namespace.kv_heads");
    let head_dim = number("namespace.head_dim");
    let latent_dim = number("namespace.latent_dim");
    let (shape, layers) = match (opaque, kv_heads, head_dim, latent_dim) {
        (Some(block_bytes), None, None, None) => (LayerShape::Opaque { block_bytes }, 1),
        (None, Some(kv_heads), Some(head_dim), None) => (
            LayerShape::KeyValue {
                kv_heads,
                head_dim,
                element_bytes: element_bytes?,
            },
            layers?,
        ),
        (None, None, None, Some(dim)) => (
            LayerShape::Latent {
                dim,
                element_bytes: element_bytes?,
            },
            layers?,
        ),
        _ => return None,
    };
    let layers = layers.min(1 << 16) as usize;
    Some(BlockLayout::uniform(tokens?, layers, shape).map_err(|error| error.to_string()))
}
