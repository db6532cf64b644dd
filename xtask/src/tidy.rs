//! `cargo xtask tidy`: the rules of this workspace that the compiler and clippy do not know.
//!
//! Each rule is a function from text to findings, with tests for what it accepts and refuses.
//! Here files are found and read; the rules themselves see no file system.

mod arrows;
mod docs;
mod manifests;
mod sources;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::shell::{Run, root, say};

/// Checks the rules that the compiler and clippy do not know.
///
/// Which crate may depend on which (the arrows of the design); that every source file says what it
/// is, is no longer than 600 lines and leaves nothing for later; that every crate inherits lints,
/// edition and version; that links in documents lead somewhere, decisions are numbered and the
/// change log is kept. All findings are listed, one a line, as FILE:LINE: what is wrong.
///
///   cargo xtask tidy
///
///   cargo xtask tidy --rules      the rules in words
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// List the rules, check nothing
    #[arg(long)]
    rules: bool,
}

/// The rules in words, each with the module that holds it.
const RULES: &[(&str, &str)] = &[
    (
        "arrows",
        "a crate depends only on the crates the design lists for it",
    ),
    ("arrows", "crates that do no I/O use no crate that does"),
    (
        "arrows",
        "the default build has no crate whose licence binds those who pass it on",
    ),
    ("sources", "every file opens with `//!`"),
    ("sources", "no file is over 600 lines"),
    (
        "sources",
        "nothing is left for later, ignored or printed for debugging",
    ),
    ("sources", "no lint is allowed without a reason"),
    ("sources", "no path of a certain machine outside of tests"),
    ("sources", "files that tests and code include exist"),
    (
        "manifests",
        "every crate inherits version, edition, licence and lints",
    ),
    (
        "manifests",
        "versions of dependencies are written in the root manifest alone",
    ),
    ("docs", "relative links lead to files"),
    ("docs", "decisions are numbered without gap and titled"),
    (
        "docs",
        "the change log has an Unreleased section with its four groups",
    ),
];

/// Something that a rule refuses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// The file, relative to the root.
    file: String,
    /// The line, counted from 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.what)
        } else {
            write!(f, "{}:{}: {}", self.file, self.line, self.what)
        }
    }
}

/// Lists the rules or checks them.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rules {
        RULES
            .iter()
            .for_each(|(module, rule)| say(&format!("{module:10} {rule}")));
        return Ok(());
    }
    check()
}

/// Checks all rules on the whole workspace.
pub(crate) fn check() -> Result<()> {
    let files = files(root())?;
    let metadata = Run::cargo("metadata --no-deps --format-version 1").read()?;
    let mut findings = arrows::check(&metadata)?;
    let tree = Run::cargo("tree --workspace --edges normal,build --prefix none").read()?;
    findings.extend(arrows::check_default(&tree));
    for file in &files {
        if is_text(file) {
            let path = root().join(file);
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            findings.extend(check_file(file, &text, &files));
        }
    }
    findings.extend(docs::decisions(files.iter().map(String::as_str)));
    findings.sort();
    findings
        .iter()
        .for_each(|finding| say(&finding.to_string()));
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    say(&format!(
        "{} files, {} rules, nothing found",
        files.len(),
        RULES.len()
    ));
    Ok(())
}

/// The rules for one file, by its name.
fn check_file(file: &str, text: &str, files: &BTreeSet<String>) -> Vec<Finding> {
    let exists = |path: &str| {
        let dir = format!("{path}/");
        path.is_empty()
            || files.contains(path)
            || files
                .range(dir.clone()..)
                .next()
                .is_some_and(|f| f.starts_with(&dir))
    };
    let mut findings = Vec::new();
    match Path::new(file).extension().and_then(|e| e.to_str()) {
        Some("rs") => findings.extend(sources::check(file, text, exists)),
        Some("md") => findings.extend(docs::links(file, text, exists)),
        _ => {}
    }
    if file.ends_with("Cargo.toml") && file != "Cargo.toml" {
        findings.extend(manifests::check(file, text));
    }
    if file == "CHANGELOG.md" {
        findings.extend(docs::changelog(file, text));
    }
    findings
}

/// All files of the workspace, relative to `root`, without what is built or hidden.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries =
            std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            let path = entry.path();
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() && !is_foreign(&name) {
                open.push(path);
            } else if kind.is_file() {
                found.insert(name);
            }
        }
    }
    Ok(found)
}

/// Directories that hold nothing written by hand.
fn is_foreign(dir: &str) -> bool {
    let name = dir.rsplit('/').next().unwrap_or(dir);
    let hidden = name.starts_with('.') && ![".ci", ".github", ".cargo"].contains(&name);
    hidden || name == "target" || ["fuzz/artifacts", "fuzz/coverage", "shared"].contains(&dir)
}

fn is_text(file: &str) -> bool {
    let extension = Path::new(file).extension().and_then(|e| e.to_str());
    matches!(extension, Some("rs" | "md" | "toml"))
}

#[cfg(test)]
mod tests;
