//! Rules for Rust source files.
//!
//! They see text, not syntax: a word in a comment counts as much as one in code.

use super::Finding;

/// No file is longer than this.
const MAX_LINES: usize = 600;

/// Words that leave something for later, or leave it out. In pieces, so that this file passes.
const LATER: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[ig", "nore"),
    concat!("dbg", "!("),
];

/// First directories of paths that exist on some machine only.
const MACHINES: &[&str] = &["work", "root", "home", "tmp"];

/// All rules for the file `file`; `exists` tells of paths relative to the workspace.
pub(super) fn check(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(opens_with_doc(file, text));
    findings.extend(length(file, text));
    findings.extend(later(file, text));
    findings.extend(allows(file, text));
    if !is_test(file) {
        findings.extend(machine_paths(file, text));
    }
    findings.extend(includes(file, text, exists));
    findings
}

/// Tests lie beside their module as `tests.rs`, below `tests/`, or are files of such modules.
fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

fn opens_with_doc(file: &str, text: &str) -> Option<Finding> {
    (!text.starts_with("//!")).then(|| Finding::new(file, 1, "does not open with `//!`"))
}

fn length(file: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    (lines > MAX_LINES).then(|| {
        Finding::new(
            file,
            0,
            format!("has {lines} lines, the limit is {MAX_LINES}"),
        )
    })
}

fn later<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Finding> + 'a {
    lines(text).flat_map(move |(number, line)| {
        let hits = LATER.iter().filter(move |word| has_word(line, word));
        hits.map(move |word| Finding::new(file, number, format!("has `{word}`")))
    })
}

/// Whether `line` has `word`, not as the middle of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open_end = word.ends_with(inner) && after.is_some_and(inner);
        let open_start = word.starts_with(inner) && before.is_some_and(inner);
        !open_start && !open_end
    })
}

/// An allowed lint needs a reason; better than `allow` is `expect`, which ends when it is no longer needed.
fn allows<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Finding> + 'a {
    let starts = [concat!("#[al", "low("), concat!("#![al", "low(")];
    starts.into_iter().flat_map(move |start| {
        text.match_indices(start).filter_map(move |(at, _)| {
            let attribute = text[at..].split(']').next().unwrap_or_default();
            let number = 1 + text[..at].matches('\n').count();
            (!attribute.contains("reason"))
                .then(|| Finding::new(file, number, "allows a lint without a reason"))
        })
    })
}

fn machine_paths<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Finding> + 'a {
    lines(text).flat_map(move |(number, line)| {
        MACHINES.iter().filter_map(move |dir| {
            let path = format!("/{dir}/");
            let absolute = line.match_indices(&path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "._-}/".contains(c))
            });
            absolute.then(|| {
                Finding::new(
                    file,
                    number,
                    format!("has the path {path}.. of a certain machine"),
                )
            })
        })
    })
}

/// Golden files and corpora named by `include_bytes!` and `include_str!` exist.
fn includes<'a>(
    file: &'a str,
    text: &'a str,
    exists: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = Finding> + 'a {
    let macros = ["include_bytes!(\"", "include_str!(\""];
    lines(text).filter_map(move |(number, line)| {
        let start = macros
            .iter()
            .find_map(|name| Some(line.find(name)? + name.len()))?;
        let path = line[start..].split('"').next()?;
        let target = super::docs::resolve(file, path);
        (!exists(&target)).then(|| {
            Finding::new(
                file,
                number,
                format!("includes {target}, which does not exist"),
            )
        })
    })
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line))
}

#[cfg(test)]
mod tests;
