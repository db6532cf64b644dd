//! What a user sees who has no Redis server. The rest needs one and is in `tests/it`.

use super::LocalRedis;

#[tokio::test]
async fn says_how_to_install_what_is_missing() {
    let program = "/nowhere/redis-server".to_owned();
    let error = LocalRedis::start_program(program, None, None, "").await;
    let error = error.expect_err("there is no such program").to_string();
    let expected = "`/nowhere/redis-server` is not installed: install it, \
                    e.g. `apt-get install redis-server`, or run `cargo xtask it`, which does";
    assert_eq!(error, expected);
}

#[tokio::test]
async fn says_that_the_program_ended() {
    let error = LocalRedis::start_program("false".to_owned(), None, None, "").await;
    let error = error.expect_err("false is no server").to_string();
    assert!(error.contains("ended: exit status: 1"), "{error}");
}
