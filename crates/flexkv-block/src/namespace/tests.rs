//! Any differing field separates; equal fields agree.

use super::*;
use crate::LayerShape;

fn namespace() -> Namespace {
    Namespace {
        model: "tiny".into(),
        revision: "r1".into(),
        dtype: "bfloat16".into(),
        layout: BlockLayout::uniform(
            16,
            2,
            LayerShape::KeyValue {
                kv_heads: 2,
                head_dim: 64,
                element_bytes: 2,
            },
        )
        .expect("valid"),
        engine_layout: "vllm-0.32/cpu/avx512".into(),
        tensor_parallel: 2,
        pipeline_parallel: 1,
    }
}

#[test]
fn every_field_separates() {
    let secret = ClusterSecret::derive(b"s");
    let base = namespace();
    let changes: [fn(&mut Namespace); 7] = [
        |n| n.model = "other".into(),
        |n| n.revision = String::new(),
        |n| n.dtype = "float16".into(),
        |n| {
            let shape = LayerShape::KeyValue {
                kv_heads: 1,
                head_dim: 128,
                element_bytes: 2,
            };
            n.layout = BlockLayout::uniform(16, 2, shape).expect("valid");
        },
        |n| n.engine_layout.push('x'),
        |n| n.tensor_parallel = 4,
        |n| n.pipeline_parallel = 2,
    ];
    let mut ids = vec![base.id(&secret)];
    let mut roots = vec![base.root(&secret, Shard::default(), &RequestScope::default())];
    for change in changes {
        let mut other = base.clone();
        change(&mut other);
        ids.push(other.id(&secret));
        roots.push(other.root(&secret, Shard::default(), &RequestScope::default()));
    }
    for scope in [
        RequestScope {
            lora: "a".into(),
            ..Default::default()
        },
        RequestScope {
            salt: "a".into(),
            ..Default::default()
        },
        RequestScope {
            multimodal: vec![b"a".to_vec()],
            ..Default::default()
        },
        RequestScope {
            multimodal: vec![b"".to_vec(), b"a".to_vec()],
            ..Default::default()
        },
    ] {
        roots.push(base.root(&secret, Shard::default(), &scope));
    }
    for list in [
        ids.iter().map(|i| i.as_u128()).collect::<Vec<_>>(),
        roots.iter().map(|r| r.as_u128()).collect(),
    ] {
        let mut unique = list.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), list.len());
    }
}

#[test]
fn moving_bytes_between_fields_separates() {
    let secret = ClusterSecret::derive(b"s");
    let (mut a, mut b) = (namespace(), namespace());
    (a.model, a.revision) = ("ab".into(), "c".into());
    (b.model, b.revision) = ("a".into(), "bc".into());
    assert_ne!(a.id(&secret), b.id(&secret));
}

#[test]
fn shards_share_the_namespace_and_no_key() {
    let secret = ClusterSecret::derive(b"s");
    let base = namespace();
    let shard = Shard {
        tensor_rank: 1,
        ..Shard::default()
    };
    let scope = RequestScope::default();
    assert_eq!(base.check_shard(shard), Ok(()));
    assert_ne!(
        base.root(&secret, shard, &scope),
        base.root(&secret, Shard::default(), &scope)
    );
}

#[test]
fn bad_fields_are_named() {
    let mut bad = namespace();
    let shard = Shard {
        tensor_rank: 2,
        pipeline_stage: 0,
    };
    assert_eq!(
        bad.check_shard(shard).expect_err("rank 2 of 2").to_string(),
        "tensor-parallel rank 2 is not below its size 2"
    );
    bad.model.clear();
    assert_eq!(
        bad.check().expect_err("no model").to_string(),
        "namespace field `model` is empty"
    );
}

#[test]
fn ids_read_back() {
    let id = namespace().id(&ClusterSecret::derive(b"s"));
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!("xyz".parse::<NamespaceId>().is_err());
    assert!(
        format!("+{}", "0".repeat(31))
            .parse::<NamespaceId>()
            .is_err()
    );
}
