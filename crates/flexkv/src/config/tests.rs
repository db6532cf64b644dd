//! Node configuration: the example is valid, and whatever is wrong is named with file and key.

use super::*;

const MINIMAL: &str = "
name = 'a'
cluster = 'c'
secret = 's'
network.listen = '127.0.0.1:0'
engine.socket = '/tmp/a.sock'
memory.slots = 10
[namespace]
id = '000102030405060708090a0b0c0d0e0f'
block_bytes = 4096
";

fn parse(text: &str) -> Result<NodeFile, String> {
    NodeFile::parse(text, "n.toml", None).map_err(|error| error.to_string())
}

/// `MINIMAL` with `from` replaced by `to` must be refused with the line `expect`.
fn refuse(from: &str, to: &str, expect: &str) {
    assert!(MINIMAL.contains(from), "{from:?}");
    match parse(&MINIMAL.replace(from, to)) {
        Ok(_) => panic!("{to:?} in place of {from:?} was accepted"),
        Err(error) => assert!(error.lines().any(|line| line.contains(expect)), "{error}"),
    }
}

#[test]
fn a_minimal_file_has_defaults() {
    let node = parse(MINIMAL).unwrap();
    assert_eq!((node.name.as_str(), node.memory.slots), ("a", 10));
    assert_eq!(
        node.namespace.id.to_string(),
        "000102030405060708090a0b0c0d0e0f"
    );
    assert_eq!(node.namespace.block_bytes, 4096);
    assert!(node.redis.is_none() && node.metrics.is_none() && node.advertise.is_none());
    assert_eq!(node.timing, Timing::default());
}

#[test]
fn the_example_is_valid_and_shows_every_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "tell nobody\n").unwrap();
    let text = EXAMPLE.replace("/etc/flexkv/secret", file.to_str().unwrap());
    let node = parse(&text).unwrap();
    assert_eq!(node.secret, b"tell nobody");
    assert_eq!(node.namespace.block_bytes, 16 * 2 * 8 * 128 * 2 * 32);
    assert_eq!(u64::from(node.memory.slots), (8 << 30) / (2 << 20));
    assert_eq!(node.timing.lease, Some(Duration::from_secs(10)));
    assert_eq!(node.timing.batch_interval_max, Some(Duration::from_secs(5)));
    assert_eq!(node.timing.redis_bytes_per_second, Some(100_000_000));
    let advertise = node.advertise.unwrap();
    assert_eq!(
        (advertise.ip.to_string().as_str(), advertise.port),
        ("10.0.0.1", None)
    );

    let document: Table = "".parse().unwrap();
    let mut fields = Fields::new(&document);
    read(&mut fields, None);
    for key in &fields.known {
        let last = key.rsplit('.').next().unwrap();
        assert!(
            EXAMPLE.contains(&format!("{last} = ")),
            "{key} is not in the example"
        );
    }
}

#[test]
fn the_password_comes_from_file_or_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "from file\n").unwrap();
    let environment = Some("from environment".to_owned());
    let url = format!("redis.url = 'redis://h:1'\n{MINIMAL}");
    let both = format!("redis.password_file = '{}'\n{url}", file.display());
    for (text, password) in [(url, "from environment"), (both, "from file")] {
        let node = NodeFile::parse(&text, "n.toml", environment.clone()).unwrap();
        assert_eq!(node.redis.unwrap().password.as_deref(), Some(password));
    }
}

#[test]
fn what_is_wrong_is_named() {
    refuse("name = 'a'", "", "n.toml: `name` is missing");
    refuse(
        "cluster = 'c'",
        "cluster = ''",
        "n.toml: `cluster` is empty",
    );
    refuse("secret = 's'", "", "`secret_file` is missing");
    refuse(
        "secret = 's'",
        "secret_file = '/no/such'",
        "`secret_file` cannot read /no/such",
    );
    refuse(
        "'127.0.0.1:0'",
        "'localhost'",
        "`network.listen` `localhost` is not an address",
    );
    refuse(
        "network.listen = '127.0.0.1:0'",
        "",
        "`network.listen` is missing",
    );
    refuse(
        "engine.socket",
        "engine.sockt",
        "`engine.sockt` unknown key, did you mean `engine.socket`?",
    );
    refuse(
        "memory.slots = 10",
        "redis_ur = 'x'",
        "`redis_ur` unknown key, did you mean `redis.url`?",
    );
    refuse(
        "memory.slots = 10",
        "memory.slots = 0",
        "`memory.slots` must be a whole number from 1",
    );
    refuse(
        "memory.slots = 10",
        "memory.size = '1 KiB'",
        "`memory.size` holds no block of 4096 bytes",
    );
    refuse(
        "memory.slots = 10",
        "memory.size = '9000 TiB'",
        "`memory.size` holds 2415919104000 blocks, and a node at most 4294967295",
    );
    refuse(
        "memory.slots = 10",
        "memory.size = '2 G'",
        "`memory.size` `2 G` is not a size",
    );
    refuse("memory.slots = 10", "", "`memory.size` is missing");
    refuse("id = '0", "id = 'x", "is not a namespace id");
    refuse(
        "block_bytes = 4096",
        "",
        "`namespace.block_bytes` is needed",
    );
    refuse(
        "block_bytes = 4096",
        "model = 'm'",
        "`namespace.id` cannot stand beside `namespace.model`",
    );
    refuse(
        "name = 'a'",
        "name = a",
        "n.toml: TOML parse error at line 2, column 8",
    );
}

#[test]
fn a_node_that_listens_everywhere_must_say_where_it_is() {
    let everywhere = MINIMAL.replace("127.0.0.1", "0.0.0.0");
    assert!(parse(&everywhere).is_ok(), "a node alone needs no address");
    let error = parse(&format!("redis.url = 'redis://h:1'\n{everywhere}")).unwrap_err();
    assert!(error.contains("`network.advertise` is missing"), "{error}");
}

/// A file with the section `[namespace]` of the given lines.
fn with_namespace(lines: &str) -> Result<NamespaceSetting, String> {
    let head = MINIMAL.split("[namespace]").next().unwrap();
    parse(&format!("{head}[namespace]\n{lines}")).map(|node| node.namespace)
}

#[test]
fn a_deployment_is_described_by_its_geometry() {
    let model = "model = 'm'\ndtype = 'bfloat16'\ntokens_per_block = 16\n";
    let heads = format!("{model}layers = 2\nelement_bytes = 2\nkv_heads = 4\nhead_dim = 8\n");
    let setting = with_namespace(&heads).unwrap();
    assert_eq!(setting.block_bytes, 16 * 2 * 4 * 8 * 2 * 2);
    let latent = format!("{model}layers = 2\nelement_bytes = 2\nlatent_dim = 10\n");
    assert_eq!(
        with_namespace(&latent).unwrap().block_bytes,
        16 * 10 * 2 * 2
    );
    let opaque = format!("{model}block_bytes = 777\n");
    assert_eq!(with_namespace(&opaque).unwrap().block_bytes, 777);

    let other = with_namespace(&heads.replace("'m'", "'m2'")).unwrap();
    assert_ne!(other.id, setting.id, "another model is another namespace");

    for (text, expect) in [
        (model.to_owned(), "has no geometry"),
        (format!("{heads}latent_dim = 3"), "has no geometry"),
        (
            format!("{heads}tensor_parallel_size = 0"),
            "`namespace.tensor_parallel_size` must be a whole number from 1",
        ),
        (
            heads.replace("'bfloat16'", "''"),
            "namespace field `dtype` is empty",
        ),
        (
            heads.replace("head_dim = 8", "head_dim = 0"),
            "`namespace.head_dim` must be a whole number from 1",
        ),
        (
            heads.replace("head_dim = 8", "head_dim = 4000000000"),
            "exceeds",
        ),
        (String::new(), "`namespace.model` is missing"),
    ] {
        let error = with_namespace(&text).unwrap_err();
        assert!(error.contains(expect), "{text}\n{error}");
    }
}

#[test]
fn a_password_finds_its_place_in_the_url() {
    for (url, whole) in [
        ("redis://h:1/0", "redis://:p%40%2Fw@h:1/0"),
        ("redis://user@h", "redis://user:p%40%2Fw@h"),
        ("redis://user:old@h", "redis://user:p%40%2Fw@h"),
    ] {
        assert_eq!(with_password(url, "p@/w"), whole);
    }
}

#[test]
fn passwords_are_not_shown() {
    for (url, shown) in [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:pw@h:1", "redis://:***@h:1"),
        ("redis://user:p@w@h:1", "redis://user:***@h:1"),
        ("nonsense", "nonsense"),
    ] {
        assert_eq!(without_password(url), shown);
    }
}

#[test]
fn certificates_go_together_and_with_tls() {
    let with = |lines: &str| parse(&format!("{lines}\n{MINIMAL}")).map(drop);
    let plain = "redis.url = 'redis://h:1'";
    for (lines, expect) in [
        (
            "redis.certificate_file = 'c'".to_owned(),
            "`redis.key_file` is missing beside `redis.certificate_file`",
        ),
        (
            "redis.key_file = 'k'".to_owned(),
            "`redis.certificate_file` is missing beside `redis.key_file`",
        ),
        (
            "redis.ca_file = 'a'".to_owned(),
            "`redis.url` is missing beside `redis.ca_file`",
        ),
        (
            format!("{plain}\nredis.ca_file = 'a'"),
            "the url's scheme is not one with TLS",
        ),
        (
            "redis.url = 'rediss://h:1'\nredis.ca_file = '/no/such'".to_owned(),
            "`redis.ca_file` redis tls: /no/such: ",
        ),
    ] {
        let error = with(&lines).unwrap_err();
        assert!(error.contains(expect), "{lines}\n{error}");
    }
}

#[test]
fn ssd_directories_have_a_size_each() {
    let with = |section: &str| parse(&format!("{MINIMAL}[ssd]\n{section}"));
    let dirs = |node: NodeFile| -> Vec<(String, u64)> {
        let dirs = node.ssd.map(|ssd| ssd.dirs).unwrap_or_default();
        let dirs = dirs.into_iter();
        dirs.map(|dir| (dir.path.display().to_string(), dir.bytes))
            .collect()
    };
    assert!(parse(MINIMAL).unwrap().ssd.is_none());
    let one = with("directories = '/a'\nsizes = '1 GiB'").unwrap();
    assert_eq!(dirs(one), [("/a".to_owned(), 1 << 30)]);
    let two = with("directories = ['/a', '/b']\nsizes = ['1 GiB', '2 GiB']").unwrap();
    assert_eq!(
        dirs(two),
        [("/a".to_owned(), 1 << 30), ("/b".to_owned(), 2 << 30)]
    );
    let same =
        with("directories = ['/a', '/b']\nsizes = '1 GiB'\nengine = 'threads'\nadmission = 'all'");
    let ssd = same.unwrap().ssd.unwrap();
    assert_eq!(ssd.dirs[1].bytes, 1 << 30);
    assert_eq!(ssd.engine, flexkv_ssd::EngineChoice::Threads);
    assert_eq!(ssd.admission, flexkv_node::Admission::All);
    for (section, expect) in [
        ("directories = '/a'", "`ssd.sizes` is missing"),
        (
            "sizes = '1 GiB'",
            "`ssd.directories` is missing beside `ssd.sizes`",
        ),
        (
            "directories = []\nsizes = '1 GiB'",
            "`ssd.directories` names no directory",
        ),
        (
            "directories = [1]\nsizes = '1 GiB'",
            "`ssd.directories` must be a list of texts",
        ),
        (
            "directories = ['/a', '/b', '/c']\nsizes = ['1 GiB', '2 GiB']",
            "`ssd.sizes` has 2 sizes for 3 directories",
        ),
        (
            "directories = '/a'\nsizes = 'much'",
            "`ssd.sizes` `much` is not a size",
        ),
        (
            "directories = '/a'\nsizes = '1 GiB'\nengine = 'x'",
            "`ssd.engine` `x` is no engine",
        ),
        (
            "directories = '/a'\nsizes = '1 GiB'\nadmission = 'x'",
            "`ssd.admission` `x` is no rule",
        ),
    ] {
        let error = with(section).unwrap_err();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn certificates_of_nodes_go_together_and_wrong_files_are_named() {
    let files = "network.tls_certificate_file = '/no/such.pem'
        network.tls_key_file = '/no/such.key'
        network.tls_ca_file = '/no/such.ca'";
    let error = parse(&format!("{files}\n{MINIMAL}")).unwrap_err();
    assert!(error.contains("`network.tls_ca_file` the authorities' certificates /no/such.ca: "));
    for lone in ["certificate_file", "key_file", "ca_file", "name"] {
        let error = parse(&format!("network.tls_{lone} = 'a'\n{MINIMAL}")).unwrap_err();
        for other in ["certificate_file", "key_file", "ca_file"] {
            let missing = format!("`network.tls_{other}` is missing beside `network.tls_{lone}`");
            assert_eq!(error.contains(&missing), other != lone, "{error}");
        }
    }
}

#[test]
fn rdma_needs_a_port_and_a_build_that_has_it() {
    let with = |line: &str| parse(&format!("{line}\n{MINIMAL}"));
    let lonely = with("network.rdma_device = 'mlx5_0'").unwrap_err();
    let reason = "`network.rdma_device` is of no use without `network.rdma_port`";
    assert!(lonely.contains(reason), "{lonely}");
    let both = with("network.rdma_port = 7401\nnetwork.rdma_device = 'mlx5_0'");
    if cfg!(feature = "rdma") {
        let setting = both.unwrap().rdma.unwrap();
        let device = setting.device.as_deref();
        assert_eq!((setting.port, device), (7401, Some("mlx5_0")));
    } else {
        let error = both.unwrap_err();
        assert!(error.contains("is built without RDMA"), "{error}");
    }
    assert_eq!(parse(MINIMAL).unwrap().rdma, None);
}
