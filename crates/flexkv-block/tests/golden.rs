//! Golden vectors: `golden/vectors.json` has inputs and outputs of everything that another language
//! must compute in the same way. This test compares the file with what this crate computes.

use flexkv_block::{
    BlockKey, BlockLayout, Checksum, ClusterSecret, FrameHeader, Generation, KeyChain, LayerShape,
    Location, Namespace, RequestScope, Shard, SlotId, Tier,
};
use serde_json::{Value, json};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/vectors.json");
const SECRET: &str = "golden secret";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn chains(secret: &ClusterSecret) -> Vec<Value> {
    let root = BlockKey::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    [(1, 3), (4, 9), (12, 24), (16, 40), (64, 128), (128, 256)]
        .map(|(per_block, count)| {
            let tokens: Vec<u32> = (0..count).map(|i| i * 2_654_435 + 1).collect();
            let keys = KeyChain::keys(secret, root, per_block, &tokens);
            json!({
                "root": root.to_string(),
                "tokens_per_block": per_block,
                "tokens": tokens,
                "keys": keys.iter().map(BlockKey::to_string).collect::<Vec<_>>(),
            })
        })
        .to_vec()
}

fn namespaces(secret: &ClusterSecret) -> Value {
    let kv = LayerShape::KeyValue {
        kv_heads: 8,
        head_dim: 128,
        element_bytes: 2,
    };
    let latent = LayerShape::Latent {
        dim: 576,
        element_bytes: 2,
    };
    let layers = vec![kv, latent, LayerShape::Opaque { block_bytes: 4096 }];
    let namespace = Namespace {
        model: "org/model".into(),
        revision: "main".into(),
        dtype: "bfloat16".into(),
        layout: BlockLayout::new(16, layers).expect("valid"),
        engine_layout: "engine 1.0, attention x, avx512".into(),
        tensor_parallel: 2,
        pipeline_parallel: 1,
    };
    let scope = RequestScope {
        lora: "adapter".into(),
        salt: "tenant".into(),
        multimodal: vec![vec![1, 2, 3], vec![]],
    };
    let shard = Shard {
        tensor_rank: 1,
        pipeline_stage: 0,
    };
    json!({
        "canonical": hex(&namespace.canonical()),
        "id": namespace.id(secret).to_string(),
        "block_bytes": namespace.layout.block_bytes(),
        "root": namespace.root(secret, Shard::default(), &RequestScope::default()).to_string(),
        "root_of_shard_1_scoped": namespace.root(secret, shard, &scope).to_string(),
    })
}

fn frame() -> Value {
    let payload = b"the payload of a block";
    let location = Location {
        tier: Tier::Host,
        slot: SlotId(77),
        generation: Generation::new(5).expect("in range"),
    };
    let header = FrameHeader {
        key: BlockKey::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        location,
        length: payload.len() as u32,
        checksum: Checksum::of(payload),
    };
    json!({
        "key": header.key.to_string(),
        "tier": 1,
        "slot": 77,
        "generation": 5,
        "location_word": format!("{:016x}", location.to_word()),
        "payload": hex(payload),
        "checksum": format!("{:016x}", header.checksum.0),
        "header": hex(&header.encode()),
    })
}

#[test]
fn the_file_has_what_this_crate_computes() {
    let secret = ClusterSecret::derive(SECRET.as_bytes());
    let computed = json!({
        "secret": SECRET,
        "chains": chains(&secret),
        "namespace": namespaces(&secret),
        "frame": frame(),
    });
    let file = std::fs::read_to_string(FILE).expect("golden/vectors.json");
    let file: Value = serde_json::from_str(&file).expect("JSON");
    let pretty = serde_json::to_string_pretty(&computed).expect("JSON");
    assert!(
        file == computed,
        "golden/vectors.json differs. If the format changed on purpose, raise its version and put \
         this into the file:\n{pretty}"
    );
}
