//! Deterministic: the same seed gives the same events, line by line.

/// Compares the events of two runs of one seed.
pub(crate) fn check(first: &[String], second: &[String]) -> Result<(), String> {
    let same = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let end = || "the end".to_owned();
    match (first.get(same), second.get(same)) {
        (None, None) => Ok(()),
        (a, b) => {
            let (a, b) = (
                a.cloned().unwrap_or_else(end),
                b.cloned().unwrap_or_else(end),
            );
            Err(format!(
                "two runs differ from line {} on: `{a}` and `{b}`",
                same + 1
            ))
        }
    }
}
