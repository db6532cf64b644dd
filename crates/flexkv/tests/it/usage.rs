//! What a user gets for a question, and for a mistake.

use flexkv_redis::local::LocalRedis;

use crate::harness::Home;
use crate::model::Trace;

fn home_with_trace() -> Home {
    let home = Home::new();
    home.write("trace.jsonl", &Trace::generate(5, 1).text());
    home
}

#[test]
fn every_command_explains_itself_with_examples() {
    let home = Home::new();
    for (args, parts) in [
        (
            "--help",
            &[
                "flexkv demo",
                "flexkv node --config",
                "flexkv replay",
                "FLEXKV_LOG",
            ][..],
        ),
        (
            "demo --help",
            &["every byte", "--redis", "--seed", "default: 4"],
        ),
        (
            "node --help",
            &["--example-config", "--check", "FLEXKV_REDIS_PASSWORD"],
        ),
        (
            "replay --help",
            &["hash_ids", "--alone", "--processes", "default: 3000000"],
        ),
        (
            "bench --help",
            &["{name, value, unit, better, target, peer, peer_value}"],
        ),
        ("bench index --help", &["--blocks", "default: 1000000"]),
        ("--version", &["flexkv 0."]),
    ] {
        let done = home.run(args);
        assert_eq!(done.code, Some(0), "{args}: {}", done.err);
        for part in parts {
            assert!(
                done.out.contains(part),
                "{args}: {part:?} is not in:\n{}",
                done.out
            );
        }
    }
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let home = home_with_trace();
    let replay = "replay --trace trace.jsonl";
    for (args, parts) in [
        ("".to_owned(), &["Usage"][..]),
        ("dmo".to_owned(), &["dmo", "demo"]),
        ("demo --nods 3".to_owned(), &["--nods", "--nodes"]),
        ("demo --nodes 0".to_owned(), &["--nodes", "1..=64"]),
        (
            "demo --block-bytes 1.5GiB".to_owned(),
            &["`1.5GiB` is not a size"],
        ),
        (
            "demo --node-memory 1KiB".to_owned(),
            &["--node-memory", "at least one block"],
        ),
        ("replay".to_owned(), &["--trace"]),
        (
            format!("{replay} --processes"),
            &["--processes needs --redis"],
        ),
        (
            format!("{replay} --node-tokens 100"),
            &["--node-tokens", "no block"],
        ),
        (format!("{replay} --block-tokens 0"), &["--block-tokens"]),
        (
            format!("{replay} --load-deadline 10"),
            &["`10` is not a duration"],
        ),
        ("node".to_owned(), &["--config"]),
        ("bench index --blocks 0".to_owned(), &["--blocks"]),
    ] {
        home.run(&args).assert_failed(2, parts);
    }
}

#[test]
fn a_bad_trace_is_named_with_its_line() {
    let home = home_with_trace();
    home.run("replay --trace none.jsonl")
        .assert_failed(1, &["cannot read the trace none.jsonl"]);
    home.write("empty.jsonl", "");
    home.run("replay --trace empty.jsonl")
        .assert_failed(1, &["empty.jsonl has no requests"]);
    let text = Trace::generate(5, 1).text() + "{\"timestamp\": \"soon\"}\n";
    home.write("bad.jsonl", &text);
    home.run("replay --trace bad.jsonl")
        .assert_failed(1, &["bad.jsonl:6: column 20", "\"soon\", expected u64"]);
    home.assert_clean();
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_is_named() {
    let home = home_with_trace();
    // Nothing listens on port 1.
    let nobody = "--redis redis://127.0.0.1:1";
    for args in [
        format!("replay --trace trace.jsonl {nobody}"),
        format!("replay --trace trace.jsonl --processes {nobody}"),
        format!("demo --requests 5 --block-bytes 64 {nobody}"),
    ] {
        home.run(&args)
            .assert_failed(1, &["cannot use Redis at 127.0.0.1:1", "cannot be reached"]);
    }
    home.run("replay --trace trace.jsonl --redis http://x")
        .assert_failed(1, &["redis url", "`http`"]);

    let redis = LocalRedis::start_with_password("sesame").await.unwrap();
    let url = format!("redis://127.0.0.1:{}", redis.port());
    let args = format!("replay --trace trace.jsonl --redis {url}");
    for password in ["", "wrong"] {
        let mut command = home.command(&args);
        let output = command
            .env("FLEXKV_REDIS_PASSWORD", password)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("refuses us"), "{err}");
    }
    let mut command = home.command(&format!("{args} --processes --nodes 2"));
    let output = command
        .env("FLEXKV_REDIS_PASSWORD", "sesame")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    home.assert_clean();
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let mut command = home.command("node --example-config");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert!(output.status.success());
}
