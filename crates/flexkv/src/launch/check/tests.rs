//! Tests of what is found wrong before anything starts.

use std::fs::Permissions;

use super::*;

#[test]
fn programs_are_found_on_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vllm");
    let name = Path::new("vllm");
    let path = std::env::join_paths([Path::new("/nowhere"), folder.path()]).unwrap();
    let find = |name| program(name, Some(&path)).map_err(|error| error.to_string());
    assert!(
        find(name)
            .unwrap_err()
            .contains("`vllm` is not found in the folders of PATH")
    );
    std::fs::write(&file, "").unwrap();
    assert!(find(name).is_err(), "it cannot be started");
    assert!(find(&file).unwrap_err().contains("is no program"));
    std::fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(find(name), Ok(file.clone()));
    assert_eq!(find(&file), Ok(file));
    assert!(program(name, None).is_err());
}

#[test]
fn only_paths_must_exist() {
    assert!(model("Qwen/Qwen3-8B").is_ok());
    assert!(model("/").is_ok());
    for missing in ["/no/such/model", "./no-such-model", "../no-such-model"] {
        let error = model(missing).unwrap_err().to_string();
        assert_eq!(error, format!("the model folder {missing} does not exist"));
    }
}

#[tokio::test]
async fn an_absent_redis_is_a_warning() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let at = |port| RedisAddress {
        host: "127.0.0.1".to_owned(),
        port,
        password: None,
    };
    assert_eq!(redis(&at(port)).await, None);
    // Nothing listens on port 1.
    let warning = redis(&at(1)).await.unwrap();
    assert!(
        warning.contains("nobody answers at Redis 127.0.0.1:1"),
        "{warning}"
    );
}
