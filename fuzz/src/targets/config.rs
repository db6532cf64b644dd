//! A node's configuration file: every refusal says why, and what is accepted makes sense.
//!
//! Leaves out the keys that name files to read, so that no input makes the fuzzer wait on one.

use flexkv::config::{EXAMPLE, NodeFile};
use flexkv::units::{parse_bytes, parse_duration};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "config",
    run,
    seeds,
};

fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for error in [parse_bytes(text).err(), parse_duration(text).err()] {
        assert!(error.is_none_or(|error| error.contains(text)));
    }
    if text.contains("_file") || text.contains('\\') {
        return;
    }
    match NodeFile::parse(text, "node.toml", None) {
        Ok(settings) => assert!(!settings.secret.is_empty()),
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("node.toml: "), "{text:?}");
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let whole: Vec<_> = EXAMPLE
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim_end())
        .map(|line| line.replace("secret_file", "secret"))
        .collect();
    let texts = [whole.join("\n"), "8 GiB".to_owned(), "250 ms".to_owned()];
    texts.map(String::into_bytes).to_vec()
}
