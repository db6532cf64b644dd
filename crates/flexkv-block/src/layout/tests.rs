//! Sizes, ranges and refusals.

use super::*;

const KV: LayerShape = LayerShape::KeyValue {
    kv_heads: 8,
    head_dim: 128,
    element_bytes: 2,
};

#[test]
fn a_llama_8b_block_of_16_tokens_has_2_mib() {
    let layout = BlockLayout::uniform(16, 32, KV).expect("valid");
    assert_eq!(layout.block_bytes(), 2 << 20);
    assert_eq!(layout.layer_range(31), (31 << 16)..(32 << 16));
    assert_eq!(layout.full_blocks(47), 2);
}

#[test]
fn layers_of_several_shapes_lie_side_by_side() {
    let latent = LayerShape::Latent {
        dim: 576,
        element_bytes: 2,
    };
    let layout = BlockLayout::new(4, vec![KV, latent, LayerShape::Opaque { block_bytes: 10 }])
        .expect("valid");
    assert_eq!(layout.layer_range(0), 0..16384);
    assert_eq!(layout.layer_range(1), 16384..20992);
    assert_eq!(layout.layer_range(2), 20992..21002);
    assert_eq!(layout.block_bytes(), 21002);
}

#[test]
fn bad_layouts_are_refused() {
    assert_eq!(BlockLayout::uniform(0, 1, KV), Err(LayoutError::NoTokens));
    assert_eq!(BlockLayout::uniform(1, 0, KV), Err(LayoutError::NoLayers));
    let empty = LayerShape::Latent {
        dim: 0,
        element_bytes: 2,
    };
    assert_eq!(
        BlockLayout::new(1, vec![KV, empty]),
        Err(LayoutError::EmptyLayer { layer: 1 })
    );
    let huge = LayerShape::KeyValue {
        kv_heads: u32::MAX,
        head_dim: u32::MAX,
        element_bytes: 4,
    };
    assert_eq!(
        BlockLayout::uniform(u32::MAX, 1, huge),
        Err(LayoutError::TooLarge)
    );
    assert_eq!(
        BlockLayout::uniform(1 << 16, 64, KV),
        Err(LayoutError::TooLarge)
    );
}
