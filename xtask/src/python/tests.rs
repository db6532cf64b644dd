//! Environments lie in the user's cache, and no test is left out by the name of its file.

use super::*;

fn cache_of(xdg: Option<&str>, home: Option<&str>) -> Option<String> {
    let path = cache_in(xdg.map(OsString::from), home.map(OsString::from)).ok()?;
    Some(path.to_string_lossy().into_owned())
}

#[test]
fn the_cache_is_the_users() {
    assert_eq!(
        cache_of(Some("/c"), Some("/u")).as_deref(),
        Some("/c/flexkv")
    );
    assert_eq!(
        cache_of(None, Some("/u")).as_deref(),
        Some("/u/.cache/flexkv")
    );
    assert_eq!(
        cache_of(Some("c"), Some("/u")).as_deref(),
        Some("/u/.cache/flexkv")
    );
    assert_eq!(cache_of(Some(""), None), None);
}

#[test]
fn files_that_need_vllm_are_named_so() {
    let all = files(true).expect("tests");
    let without = files(false).expect("tests");
    assert!(without.len() >= 2, "{without:?}");
    let mut left_out = 0;
    for file in &all {
        let text = read(file).expect("readable");
        let needs = ["needs_vllm", "find_spec(\"vllm\")", "import vllm"]
            .iter()
            .any(|sign| text.contains(sign));
        assert_eq!(needs, !without.contains(file), "{file}");
        left_out += usize::from(needs);
    }
    assert!(left_out >= 1, "{all:?}");
}

#[test]
fn what_the_build_needs_is_read_from_the_project() {
    let text = "[build-system]\nrequires = [\"maturin>=1,<2\"]\n";
    assert_eq!(build_requirements(text).expect("valid"), ["maturin>=1,<2"]);
    let error = build_requirements("[project]\n").expect_err("nothing");
    assert!(
        error.to_string().contains("build-system.requires"),
        "{error}"
    );
}

#[test]
fn an_environment_is_made_once_for_what_is_wanted() {
    let dir = tempfile::tempdir().expect("a directory");
    let venv = Venv {
        dir: dir.path().join("venv"),
    };
    let made = |wanted: &str| {
        let mut made = false;
        let done = venv.ensure(wanted, || {
            made = true;
            Ok(std::fs::create_dir_all(&venv.dir)?)
        });
        done.expect("made");
        made
    };
    assert!(made("pytest 8"));
    assert!(!made("pytest 8"));
    assert!(made("pytest 9"));
    assert!(venv.ensure("pytest 10", || bail!("no network")).is_err());
    assert!(made("pytest 10"), "a failure leaves no stamp");
}
