//! Tests of what instances are started with.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::launch::RedisChoice;

fn spec() -> LaunchSpec {
    LaunchSpec {
        instances: 2,
        base_port: 30001,
        host: "127.0.0.1".to_owned(),
        model: "m".to_owned(),
        vllm: PathBuf::from("vllm"),
        arguments: Vec::new(),
        connector: true,
        node_per_instance: false,
        cpu_cache_gb: None,
        gpus_per_instance: None,
        redis: RedisChoice::AsIs,
        start_within: Duration::ZERO,
        stop_within: Duration::ZERO,
    }
}

fn around() -> Surroundings<'static> {
    Surroundings {
        host_name: "big host.example".to_owned(),
        folder: Some(Path::new("/run/x")),
        gpus: None,
        redis: None,
        reserved: false,
    }
}

fn plan(spec: &LaunchSpec, around: &Surroundings<'_>, number: usize) -> (String, String) {
    let plan = instance(spec, around, number).unwrap();
    let variables = plan.environment.iter();
    let variables: Vec<String> = variables
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    (plan.arguments.join(" "), variables.join(" "))
}

#[test]
fn instances_of_a_host_share_a_node() {
    let expect = "serve m --host 127.0.0.1 --port 30002 --kv-transfer-config \
                  {\"kv_connector\":\"FlexKVConnectorV1\",\"kv_role\":\"kv_both\"}";
    let (arguments, variables) = plan(&spec(), &around(), 1);
    assert_eq!(arguments, expect);
    assert_eq!(
        variables,
        "VLLM_CPU_NUM_OF_RESERVED_CPU=1 FLEXKV_RUNTIME_DIR=/run/x"
    );
    assert_eq!(plan(&spec(), &around(), 0).1, variables);
}

#[test]
fn nodes_of_their_own_have_names_and_labels() {
    let spec = LaunchSpec {
        node_per_instance: true,
        cpu_cache_gb: Some(0.5),
        ..spec()
    };
    let around = Surroundings {
        redis: Some(RedisAddress::parse("redis://:a%40b@r:7000").unwrap()),
        ..around()
    };
    let (_, variables) = plan(&spec, &around, 1);
    assert_eq!(
        variables,
        "VLLM_CPU_NUM_OF_RESERVED_CPU=1 FLEXKV_RUNTIME_DIR=/run/x \
         FLEXKV_NODE_NAME=big-host-example-30002 \
         FLEXKV_CPU_CACHE_GB=0.5 FLEXKV_REDIS_HOST=r FLEXKV_REDIS_PORT=7000 \
         FLEXKV_REDIS_PASSWORD=a@b"
    );
    let plans: Vec<_> = (0..2).filter_map(|n| instance(&spec, &around, n)).collect();
    assert_eq!(node_label("0123-big-host-example-30002", &plans), "n1");
    assert_eq!(node_label("0123", &plans), "node");
}

#[test]
fn what_the_user_says_stands() {
    let given = ["--kv-transfer-config={}", "--tensor-parallel-size", "4"];
    let spec = LaunchSpec {
        arguments: given.map(str::to_owned).into(),
        gpus_per_instance: Some(8),
        ..spec()
    };
    let around = Surroundings {
        folder: None,
        ..around()
    };
    let (arguments, variables) = plan(&spec, &around, 0);
    let expect = "serve m --host 127.0.0.1 --port 30001 --kv-transfer-config={} \
                  --tensor-parallel-size 4";
    assert_eq!(arguments, expect);
    assert_eq!(variables, "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7");
}

#[test]
fn a_connector_takes_no_core_from_compute_threads() {
    let reserved = |words: &[&str], spec: LaunchSpec, around: Surroundings<'_>| {
        let arguments = words.iter().map(|&word| word.to_owned()).collect();
        let plan = instance(&LaunchSpec { arguments, ..spec }, &around, 0).unwrap();
        let mut variables = plan.environment.into_iter();
        let found = variables.find(|(name, _)| *name == "VLLM_CPU_NUM_OF_RESERVED_CPU");
        found.map(|(_, value)| value)
    };
    let here = |words| reserved(words, spec(), around());
    assert_eq!(here(&["-tp", "2"]).unwrap(), "2");
    let both = ["--tensor-parallel-size=2", "--pipeline-parallel-size", "3"];
    assert_eq!(here(&both).unwrap(), "6");
    assert_eq!(here(&["--kv-transfer-config", "{}"]), None, "not ours");
    let said = Surroundings {
        reserved: true,
        ..around()
    };
    assert_eq!(reserved(&[], spec(), said), None, "the user has said it");
    let plain = LaunchSpec {
        connector: false,
        ..spec()
    };
    assert_eq!(reserved(&[], plain, around()), None, "vLLM alone knows");
    let gpus = LaunchSpec {
        gpus_per_instance: Some(1),
        ..spec()
    };
    assert_eq!(reserved(&[], gpus, around()), None, "it runs on GPUs");
}

#[test]
fn gpus_are_dealt_in_order() {
    let spec = LaunchSpec {
        gpus_per_instance: Some(2),
        connector: false,
        ..spec()
    };
    let (arguments, variables) = plan(&spec, &around(), 1);
    assert_eq!(variables, "CUDA_VISIBLE_DEVICES=2,3");
    assert!(arguments.ends_with("--port 30002 --tensor-parallel-size 2"));
    let around = Surroundings {
        gpus: Some(["7", "5", "GPU-a", "1"].map(str::to_owned).into()),
        ..around()
    };
    assert_eq!(plan(&spec, &around, 1).1, "CUDA_VISIBLE_DEVICES=GPU-a,1");
}

#[test]
fn those_who_listen_everywhere_are_asked_here() {
    for (host, url) in [
        ("0.0.0.0", "http://127.0.0.1:30001"),
        ("::", "http://[::1]:30001"),
        ("10.0.0.1", "http://10.0.0.1:30001"),
    ] {
        let spec = LaunchSpec {
            host: host.to_owned(),
            ..spec()
        };
        let plan = instance(&spec, &around(), 0).unwrap();
        assert_eq!(plan.url.to_string(), url);
        assert!(plan.arguments.contains(&host.to_owned()));
    }
    let spec = LaunchSpec {
        base_port: 65535,
        ..spec()
    };
    assert!(instance(&spec, &around(), 0).is_some());
    assert_eq!(instance(&spec, &around(), 1), None);
}

#[test]
fn redis_urls() {
    let address = |host: &str, port, password: Option<&str>| RedisAddress {
        host: host.to_owned(),
        port,
        password: password.map(str::to_owned),
    };
    for (url, expect) in [
        ("redis://r", address("r", 6379, None)),
        ("redis://r:80/", address("r", 80, None)),
        ("redis://default:p@r:1/0", address("r", 1, Some("p"))),
        ("redis://:a:b@[::1]:2", address("::1", 2, Some("a:b"))),
    ] {
        assert_eq!(RedisAddress::parse(url), Ok(expect), "{url}");
    }
    for (url, part) in [
        ("r:6379", "does not begin with redis://"),
        ("redis://r/3", "only database 0"),
        ("redis://bob:p@r", "only the default user"),
        ("redis://:%zz@r", "the password has a %"),
        ("redis://r:x", "`r:x` is no host and port"),
    ] {
        let error = RedisAddress::parse(url).unwrap_err();
        assert!(error.contains(part), "{url}: {error}");
    }
}
