//! `flexkv bench serve` against servers of the test's own: what is sent where, what is timed and
//! counted, and what a user learns of an instance that fails.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::completions::{ANSWER_TOKEN, MODEL_LENGTH, Manner, Server};
use crate::harness::{Done, Home};
use crate::model::Trace;

/// Runs `bench serve` with `args` on `servers`.
async fn bench(home: &Home, servers: &[Server], args: &str) -> Done {
    let base = format!("http://127.0.0.1:{}", servers[0].port);
    let count = servers.len();
    let args = format!("bench serve --base-url {base} --instances {count} {args}");
    let command: Command = home.command(&args);
    run(command).await
}

/// Runs a command while servers of this process go on.
async fn run(mut command: Command) -> Done {
    let output = spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    Done {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn value(rows: &Value, name: &str) -> f64 {
    let row = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == name);
    let row = row.unwrap_or_else(|| panic!("no row {name:?} in {rows:#}"));
    row["value"].as_f64().unwrap()
}

#[tokio::test]
async fn chats_go_round_all_instances_and_go_on_with_the_answers() {
    let servers = Server::start_all([Manner::Well, Manner::Well]).await;
    let home = Home::new();
    let args = "--requests 40 --concurrency 3 --prefix-tokens 64 --answer-tokens 4 --json";
    let rows = bench(&home, &servers, args).await.json();
    let prompts: Vec<Vec<u32>> = servers.iter().flat_map(Server::prompts).collect();
    assert_eq!(prompts.len(), 40);
    for server in &servers {
        assert_eq!(value(&rows, &format!("port {}: share", server.port)), 50.0);
        for asked in server.asked() {
            assert_eq!(asked["model"], "tiny");
            assert_eq!(asked["stream"], true);
            assert_eq!(asked["max_tokens"], 4);
        }
    }
    let continued = prompts.iter().filter(|prompt| {
        let goes_on = |earlier: &Vec<u32>| {
            let said = [&earlier[..], &[ANSWER_TOKEN; 4]].concat();
            prompt.starts_with(&said)
        };
        prompts.iter().any(goes_on)
    });
    assert!(continued.count() > 10);
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let sources = ["engine memory", "connector", "computed"];
    let [memory, connector, computed] =
        sources.map(|source| value(&rows, &format!("prompt tokens, {source}")));
    let hits = memory + connector;
    assert_eq!(computed, tokens as f64 - hits);
    assert!(
        (hits - tokens as f64 / 2.0).abs() <= 4.0,
        "{hits} of {tokens}"
    );
    assert!((value(&rows, "hit rate") - 50.0).abs() < 1.0);
    assert_eq!(value(&rows, "failed"), 0.0);
    assert!(value(&rows, "answer tokens") > 0.0);
    let first = value(&rows, "time to first token, p50");
    assert!(first > 0.0 && first <= value(&rows, "end to end, p50"));
}

#[tokio::test]
async fn a_slow_instance_is_seen_as_slow() {
    let pause = Duration::from_millis(300);
    let servers = Server::start_all([Manner::Well, Manner::Slowly(pause)]).await;
    let home = Home::new();
    let args = "--requests 12 --workload prefix --prefix-tokens 64 --json";
    let rows = bench(&home, &servers, args).await.json();
    let first = |server: &Server, which: &str| {
        value(
            &rows,
            &format!("port {}: time to first token, {which}", server.port),
        )
    };
    assert!(first(&servers[1], "p50") >= 300.0);
    assert!(first(&servers[1], "p50") > first(&servers[0], "p50"));
    // It pauses before the last token again.
    assert!(value(&rows, "end to end, p99") >= 600.0);

    let args = "--requests 4 --workload prefix --answer-deadline 100ms";
    let done = bench(&home, &servers, args).await;
    let port = servers[1].port;
    done.assert_failed(
        1,
        &[
            "2 of 4 requests failed",
            &format!("port {port}: no answer within 100ms"),
        ],
    );
}

#[tokio::test]
async fn an_instance_that_fails_is_named_and_the_others_go_on() {
    for (manner, reason) in [
        (Manner::Refusing, "refused with status 503: come back later"),
        (Manner::BreakingOff, "the answer breaks off"),
        (Manner::Failing, "out of luck"),
    ] {
        let servers = Server::start_all([Manner::Well, manner]).await;
        let args = "--requests 10 --workload prefix --prefix-tokens 64";
        let done = bench(&Home::new(), &servers, args).await;
        let named = format!("5 x port {}: {reason}", servers[1].port);
        done.assert_failed(1, &["5 of 10 requests failed", &named]);
        assert!(
            done.out.contains("5 of 10 requests answered"),
            "{}",
            done.out
        );
    }
}

#[tokio::test]
async fn hash_routing_keeps_like_prompts_together() {
    let servers = Server::start_all([Manner::Well, Manner::Well]).await;
    let args = "--requests 40 --workload prefix --prefixes 8 --prefix-tokens 64 --routing hash";
    let done = bench(&Home::new(), &servers, args).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    let [first, second] = servers.each_ref().map(|server| {
        let prompts = server.prompts();
        assert!(!prompts.is_empty());
        prompts
            .into_iter()
            .map(|prompt| prompt[..64].to_vec())
            .collect::<Vec<_>>()
    });
    assert!(first.iter().all(|beginning| !second.contains(beginning)));
}

#[tokio::test]
async fn a_trace_becomes_tokens_and_fits_the_model() {
    let servers = Server::start_all([Manner::Well]).await;
    let home = Home::new();
    let trace = r#"{"timestamp":0,"input_length":1000,"output_length":500,"hash_ids":[1,2]}
{"timestamp":1,"input_length":700,"output_length":2,"hash_ids":[1,3]}
{"timestamp":2,"input_length":9000,"output_length":1,"hash_ids":[1,2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19]}
"#;
    home.write("trace.jsonl", trace);
    let args = "--workload trace --trace trace.jsonl --concurrency 1 --vocabulary 500";
    let done = bench(&home, &servers, args).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains("1 prompts were cut"), "{}", done.out);
    let prompts = servers[0].prompts();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1000, 700, MODEL_LENGTH - 1]);
    assert_eq!(prompts[0][..512], prompts[1][..512]);
    assert_eq!(prompts[0], prompts[2][..1000]);
    assert_ne!(prompts[0][512..600], prompts[1][512..600]);
    assert!(prompts.iter().flatten().all(|token| *token < 500));
    let answers: Vec<_> = servers[0]
        .asked()
        .iter()
        .map(|asked| asked["max_tokens"].clone())
        .collect();
    assert_eq!(answers, [16, 2, 1]);
}

#[tokio::test]
async fn a_rate_spreads_requests() {
    let servers = Server::start_all([Manner::Well]).await;
    let args = "--workload prefix --prefix-tokens 8 --requests 20 --rate 40 --json";
    let rows = bench(&Home::new(), &servers, args).await.json();
    // 20 requests at 40 a second; without a rate they take some milliseconds.
    assert!(value(&rows, "answers") < 160.0);
}

#[tokio::test]
async fn mistakes_are_explained() {
    let home = Home::new();
    home.write("trace.jsonl", &Trace::generate(5, 1).text());
    for (args, parts) in [
        ("--workload trace", &["--workload trace needs --trace"][..]),
        ("--trace trace.jsonl", &["--trace is for --workload trace"]),
        ("--base-url https://host:1", &["`https://host:1` needs TLS"]),
        ("--rate 0", &["`0` is not a rate"]),
        ("--workload chats", &["chat", "prefix", "trace"]),
        ("--instances 0", &["--instances"]),
    ] {
        home.run(&format!("bench serve {args}"))
            .assert_failed(2, parts);
    }
    // Nothing listens on ports 1 and 2.
    home.run("bench serve --base-url http://127.0.0.1:1 --instances 2")
        .assert_failed(
            1,
            &[
                "no instance answers",
                "http://127.0.0.1:1: cannot connect",
                "http://127.0.0.1:2",
            ],
        );
    home.run("bench serve --base-url http://127.0.0.1:65535 --instances 2")
        .assert_failed(1, &["http://127.0.0.1:65535", "no port"]);
    let servers = Server::start_all([Manner::Well]).await;
    bench(&home, &servers, "--model large")
        .await
        .assert_failed(1, &["does not serve the model large", "it serves: tiny"]);
}
