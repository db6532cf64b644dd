//! What a machine's console says of a run. Whatever does not plainly say that all passed is a
//! failure.

/// The line that a machine ends its run with; its status follows.
const RESULT: &str = "FLEXKV-RESULT ";

/// How many tests passed, or why the run failed. `late` tells that the machine was ended from outside.
pub(super) fn verdict(console: &str, late: Option<u64>) -> Result<usize, String> {
    let results: Vec<&str> = lines(console, RESULT).collect();
    if let Some(seconds) = late {
        return Err(format!("no result within {seconds} s"));
    }
    let [result] = results[..] else {
        return Err(match results.len() {
            0 => "the machine ended without a result".to_owned(),
            many => format!("the machine has {many} results"),
        });
    };
    let failed = failed_tests(console);
    if result != "0" || !failed.is_empty() {
        return Err(format!(
            "tests failed (status {result}): {}",
            failed.join(", ")
        ));
    }
    if let Some(problem) = lines(console, "flexkv: PROBLEM ").next() {
        return Err(problem.to_owned());
    }
    match tests(console, "ok").len() {
        0 => Err("no test ran".to_owned()),
        passed => Ok(passed),
    }
}

/// Names of tests that failed.
pub(super) fn failed_tests(console: &str) -> Vec<&str> {
    tests(console, "FAILED")
}

/// The rest of each line that begins so.
pub(super) fn lines<'a>(console: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = console.lines().map(|line| line.trim_end_matches('\r'));
    lines.filter_map(move |line| line.strip_prefix(start))
}

fn tests<'a>(console: &'a str, outcome: &str) -> Vec<&'a str> {
    let named = lines(console, "test ").filter_map(|line| line.split_once(" ... "));
    let ended = named.filter(|(_, said)| said.split_whitespace().last() == Some(outcome));
    ended.map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;
