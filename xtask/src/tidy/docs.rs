//! Rules for documents: links, decisions, the change log.
//!
//! Knows nothing of what they say.

use super::Finding;

/// Where decisions lie.
const DECISIONS: &str = "docs/decisions/";

/// The groups of every section of the change log.
const GROUPS: &[&str] = &["Correctness", "Speed", "Surface", "Inside"];

/// Relative links of a Markdown file lead to files or directories; `exists` tells of paths relative
/// to the workspace. Links inside of code are no links.
pub(super) fn links(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_code = false;
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in targets(line) {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let path = resolve(file, path);
            if !exists(&path) {
                let what = format!("links to {path}, which does not exist");
                findings.push(Finding::new(file, i + 1, what));
            }
        }
    }
    findings
}

/// The targets of `[text](target)` and `[name]: target` in one line.
fn targets(line: &str) -> Vec<&str> {
    let outside_code: Vec<_> = line.split('`').step_by(2).collect();
    let inline = outside_code.iter().flat_map(|part| {
        part.match_indices("](")
            .filter_map(|(at, open)| part[at + open.len()..].split([')', ' ']).next())
    });
    let reference = line.strip_prefix('[').and_then(|rest| {
        let (_, target) = rest.split_once("]: ")?;
        target.split_whitespace().next()
    });
    inline.chain(reference).collect()
}

/// `path` as seen from the directory of `file`, relative to the workspace.
pub(super) fn resolve(file: &str, path: &str) -> String {
    let dir = file.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts.join("/")
}

/// Decisions are called `NNNN-some-words.md`, numbered from 1 without gap.
pub(super) fn decisions<'a>(files: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut expected = 1;
    let mut names: Vec<_> = files
        .filter(|file| file.starts_with(DECISIONS) && *file != format!("{DECISIONS}README.md"))
        .collect();
    names.sort_unstable();
    for file in names {
        match number(&file[DECISIONS.len()..]) {
            None => findings.push(Finding::new(file, 0, "is not called `NNNN-some-words.md`")),
            Some(found) => {
                if found != expected {
                    let what = format!("is numbered {found:04}, expected {expected:04}");
                    findings.push(Finding::new(file, 0, what));
                }
                expected = found + 1;
            }
        }
    }
    findings
}

fn number(name: &str) -> Option<u32> {
    let (digits, words) = name.strip_suffix(".md")?.split_once('-')?;
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let named = !words.is_empty() && words.chars().all(fine);
    (digits.len() == 4 && named).then(|| digits.parse().ok())?
}

/// The change log has an Unreleased section, and in it the four groups.
pub(super) fn changelog(file: &str, text: &str) -> Vec<Finding> {
    let Some(at) = text.find("\n## Unreleased\n") else {
        return vec![Finding::new(file, 0, "has no section `## Unreleased`")];
    };
    let section = &text[at + 1..];
    let section = section
        .find("\n## ")
        .map_or(section, |end| &section[..=end]);
    GROUPS
        .iter()
        .filter(|group| !section.lines().any(|line| line == format!("### {group}")))
        .map(|group| {
            Finding::new(
                file,
                0,
                format!("has no group `### {group}` under Unreleased"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
