//! Nothing is left behind: threads and descriptors return to what they were.

use std::process::Command;
use std::time::Duration;

use flexkv_tcp::ServerConfig;

use crate::support::{
    DEADLINE, FileTier, Reader, Scripted, eventually, listen_silently, serve, server_config, store,
};

const ALONE: &str = "FLEXKV_TCP_LEAK_TEST_IS_ALONE";

fn entries(dir: &str) -> usize {
    std::fs::read_dir(dir).expect("a listing").count()
}

fn held() -> (usize, usize) {
    (entries("/proc/self/task"), entries("/proc/self/fd"))
}

/// Other tests have threads and descriptors of their own, so it runs again in a process alone.
#[test]
fn threads_and_descriptors_are_given_back() {
    if std::env::var_os(ALONE).is_some() {
        return use_and_drop_everything();
    }
    let alone = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "leaks::threads_and_descriptors_are_given_back"])
        .arg("--nocapture")
        .env(ALONE, "1")
        .status();
    assert!(alone.expect("it runs").success());
}

#[tokio::main(flavor = "current_thread")]
async fn use_and_drop_everything() {
    let bytes = 512 << 10;
    let tier = FileTier::new(8, bytes);
    let stored = store(&*tier, 8);
    let before = held();
    for _ in 0..5 {
        let reader = Reader::new(8, bytes);
        let config = ServerConfig {
            by_reference: Some(1),
            ..server_config()
        };
        let server = serve(tier.clone(), config);
        let mute = Scripted::new(listen_silently);
        reader.eventually_fetches(server.endpoint(), &stored).await;
        let short = Duration::from_millis(50);
        reader.outcomes(&mute.endpoint, &stored, short).await;
        assert!(held() > before, "threads and descriptors are in use");
        drop(server);
        reader.outcomes(&mute.endpoint, &stored, DEADLINE).await;
    }
    eventually("all is given back", || held() == before).await;
}
