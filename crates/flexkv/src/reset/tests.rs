//! Who is waited for, and what is said of those who do not answer.

use bytes::Bytes;
use flexkv_ports::HeapStore;

use super::*;

const LONG: Duration = Duration::from_secs(600);

async fn join(store: &HeapStore, name: &str) {
    let joined = store.renew(name, Bytes::new(), "l", LONG).await;
    joined.expect("joined");
}

/// Answers as `node` once it is asked.
async fn answer(store: &HeapStore, node: &str) {
    let node: NodeId = node.parse().expect("a node");
    loop {
        for member in store.members().await.expect("members") {
            if let Some(request) = ResetRequest::decode(&member.name, &member.record) {
                assert!(request.is_for(&node));
                return join(store, &request.answer(&node)).await;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

const A: &str = "a.0000000000000001";
const B: &str = "b.0000000000000002";

#[tokio::test(start_paused = true)]
async fn all_that_answer_are_named_and_the_request_is_withdrawn() {
    let store = HeapStore::new();
    join(&store, A).await;
    join(&store, B).await;
    let (report, (), ()) = tokio::join!(
        reset(&store, None, LONG),
        answer(&store, A),
        answer(&store, B)
    );
    let report = report.expect("done");
    assert_eq!(report.done, [A, B]);
    assert_eq!(
        report,
        ResetReport {
            done: report.done.clone(),
            ..ResetReport::default()
        }
    );
    let members = store.members().await.expect("members");
    let requests = members
        .iter()
        .filter(|m| ResetRequest::decode(&m.name, &m.record).is_some());
    assert_eq!(requests.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_the_named_node_is_waited_for() {
    let store = HeapStore::new();
    join(&store, A).await;
    join(&store, B).await;
    let name = Some("b".parse().expect("a name"));
    let (report, ()) = tokio::join!(reset(&store, name, LONG), answer(&store, B));
    assert_eq!(report.expect("done").done, [B]);
    let nobody = Some("c".parse().expect("a name"));
    let report = reset(&store, nobody, LONG).await.expect("done");
    assert_eq!(report, ResetReport::default());
}

#[tokio::test(start_paused = true)]
async fn silent_and_gone_nodes_are_told_apart() {
    let store = HeapStore::new();
    join(&store, A).await;
    join(&store, B).await;
    let leaving = async {
        sleep(Duration::from_secs(1)).await;
        store.leave(A, "l").await
    };
    let within = Duration::from_secs(5);
    let (report, left) = tokio::join!(reset(&store, None, within), leaving);
    left.expect("left");
    let report = report.expect("done");
    assert_eq!(
        (report.silent, report.gone),
        (vec![B.to_owned()], vec![A.to_owned()])
    );
}
