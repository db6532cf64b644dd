//! Which error becomes what; the texts are those of Redis 6 and 7.

use flexkv_ports::StoreError;
use fred::error::{Error, ErrorKind};

use super::{costs_the_connection, sort};

fn sorted(kind: ErrorKind, details: &'static str) -> &'static str {
    match sort("cache:6379", &Error::new(kind, details)) {
        StoreError::Denied { .. } => "denied",
        StoreError::Full { .. } => "full",
        StoreError::LogLost { .. } => "lost",
        StoreError::Unavailable { .. } => "unavailable",
    }
}

#[test]
fn errors_are_sorted_by_their_code() {
    for (expected, details) in [
        ("denied", "NOAUTH Authentication required."),
        (
            "denied",
            "WRONGPASS invalid username-password pair or user is disabled.",
        ),
        (
            "denied",
            "NOPERM this user has no permissions to run the 'eval' command",
        ),
        (
            "full",
            "OOM command not allowed when used memory > 'maxmemory'. script: 1, on @user_script:2.",
        ),
        (
            "full",
            "ERR Error running script: @user_script: 4: -OOM command not allowed when used memory > 'maxmemory'.",
        ),
        (
            "full",
            "@user_script: 14: -OOM command not allowed when used memory > 'maxmemory'.",
        ),
        (
            "full",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        ),
        (
            "unavailable",
            "READONLY You can't write against a read only replica.",
        ),
        (
            "unavailable",
            "LOADING Redis is loading the dataset in memory",
        ),
        (
            "unavailable",
            "WRONGTYPE Operation against a key holding OOM",
        ),
        ("unavailable", ""),
    ] {
        assert_eq!(sorted(ErrorKind::Unknown, details), expected, "{details}");
    }
    assert_eq!(sorted(ErrorKind::Auth, "AUTH failed"), "denied");
    assert_eq!(sorted(ErrorKind::IO, "Connection refused"), "unavailable");
}

#[test]
fn the_message_names_the_server() {
    for details in [
        "Connection refused",
        r#"Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }"#,
        "Custom { kind: Other, error: Connection refused }",
    ] {
        let error = sort("cache:6379", &Error::new(ErrorKind::IO, details));
        let expected =
            "the metadata store cannot be reached: redis at cache:6379: Connection refused";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn only_a_replica_costs_the_connection() {
    let error = |details| Error::new(ErrorKind::Unknown, details);
    assert!(costs_the_connection(&error(
        "READONLY You can't write against a read only replica."
    )));
    assert!(!costs_the_connection(&error("OOM command not allowed")));
}
