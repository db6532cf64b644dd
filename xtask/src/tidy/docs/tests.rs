//! Each rule with what it accepts and what it refuses.

use super::*;

fn linked(text: &str) -> Vec<String> {
    let findings = links("docs/guide.md", text, |path| {
        ["README.md", "docs/a.md"].contains(&path)
    });
    findings
        .iter()
        .map(|finding| format!("{}: {}", finding.line, finding.what))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    for text in [
        "[a](a.md), [top](../README.md#part) and [here](#part)",
        "[out](https://example.org/x) [mail](mailto:a@example.org)",
        "`[code](gone.md)`",
        "```\n[code](gone.md)\n```",
        "[a]: ./a.md",
    ] {
        assert_eq!(linked(text), [""; 0], "{text}");
    }
    assert_eq!(
        linked("x\n[a](gone.md)"),
        ["2: links to docs/gone.md, which does not exist"]
    );
    assert_eq!(
        linked("[b]: ../b.md"),
        ["1: links to b.md, which does not exist"]
    );
    assert_eq!(
        linked("[a](a.md) [b](../../a.md)"),
        ["1: links to ../a.md, which does not exist"]
    );
}

fn decided(files: &[&str]) -> Vec<String> {
    let paths: Vec<_> = files
        .iter()
        .map(|file| format!("{DECISIONS}{file}"))
        .collect();
    let findings = decisions(paths.iter().map(String::as_str));
    findings.into_iter().map(|finding| finding.what).collect()
}

#[test]
fn decisions_are_numbered() {
    assert_eq!(decided(&["0001-a.md", "README.md", "0002-b-2.md"]), [""; 0]);
    assert_eq!(
        decided(&["0001-a.md", "0003-b.md"]),
        ["is numbered 0003, expected 0002"]
    );
    assert_eq!(
        decided(&["0001-a.md", "0001-b.md"]),
        ["is numbered 0001, expected 0002"]
    );
    for bad in ["1-a.md", "0001.md", "0001-A b.md", "notes.txt"] {
        assert_eq!(
            decided(&[bad]),
            ["is not called `NNNN-some-words.md`"],
            "{bad}"
        );
    }
}

#[test]
fn changes_are_logged() {
    let good = "# Changes\n\n## Unreleased\n### Correctness\n### Speed\n### Surface\n### Inside\n";
    let found = |text: &str| {
        let findings = changelog("CHANGELOG.md", text);
        findings
            .into_iter()
            .map(|finding| finding.what)
            .collect::<Vec<_>>()
    };
    assert_eq!(found(good), [""; 0]);
    assert_eq!(
        found(&good.replace("Unreleased", "0.1.0")),
        ["has no section `## Unreleased`"]
    );
    assert_eq!(
        found(&good.replace("### Speed\n", "")),
        ["has no group `### Speed` under Unreleased"]
    );
    assert_eq!(
        found(&good.replace("### Speed", "## 0.1.0\n### Speed")),
        [
            "has no group `### Speed` under Unreleased",
            "has no group `### Surface` under Unreleased",
            "has no group `### Inside` under Unreleased",
        ]
    );
}
