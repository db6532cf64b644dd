//! The `[ssd]` section: the directories that blocks are kept in besides memory. Knows nothing of how
//! they are used.

use std::path::PathBuf;

use flexkv_index::PolicyKind;
use flexkv_node::Admission;
use flexkv_ssd::{EngineChoice, SsdDir};

use super::fields::Fields;
use crate::units::parse_bytes;

/// Where blocks are kept besides memory.
#[derive(Clone, Debug)]
pub struct SsdSetting {
    /// Directories, each with the bytes it may take.
    pub dirs: Vec<SsdDir>,
    /// How transfers reach the kernel.
    pub engine: EngineChoice,
    /// Which blocks are written.
    pub admission: Admission,
    /// What is given up first.
    pub policy: PolicyKind,
}

impl SsdSetting {
    /// The defaults for these directories.
    pub fn new(dirs: Vec<SsdDir>) -> Self {
        Self {
            dirs,
            engine: EngineChoice::default(),
            admission: Admission::default(),
            policy: PolicyKind::default(),
        }
    }
}

/// Reads the section; `None` if there is none or something is wrong with it, which `fields` then
/// knows.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<SsdSetting> {
    let paths = fields.texts("ssd.directories").unwrap_or_default();
    let sizes = fields.texts("ssd.sizes").unwrap_or_default();
    let engine = fields.parsed("ssd.engine", str::parse).unwrap_or_default();
    let admission = fields
        .parsed("ssd.admission", parse_admission)
        .unwrap_or_default();
    let policy = fields.parsed("ssd.policy", str::parse).unwrap_or_default();
    let given = fields.has("ssd.directories");
    for key in ["ssd.sizes", "ssd.engine", "ssd.admission", "ssd.policy"] {
        if fields.has(key) && !given {
            let missing = format!("is missing beside `{key}`: where to keep blocks");
            fields.refuse("ssd.directories", missing);
            return None;
        }
    }
    if !given {
        return None;
    }
    let dirs = dirs(fields, &paths, &sizes)?;
    Some(SsdSetting {
        dirs,
        engine,
        admission,
        policy,
    })
}

/// Directories with their sizes: one size for each, or the same for all.
fn dirs(fields: &mut Fields<'_>, paths: &[&str], sizes: &[&str]) -> Option<Vec<SsdDir>> {
    if paths.is_empty() || paths.contains(&"") {
        fields.refuse("ssd.directories", "names no directory");
        return None;
    }
    let mut bytes = Vec::new();
    for size in sizes {
        match parse_bytes(size) {
            Ok(size) => bytes.push(size),
            Err(reason) => {
                fields.refuse("ssd.sizes", reason);
                return None;
            }
        }
    }
    if let [all] = bytes[..] {
        bytes = vec![all; paths.len()];
    }
    if bytes.len() != paths.len() {
        let (have, want) = (bytes.len(), paths.len());
        let problem = if have == 0 {
            "is missing: how much each directory may take, such as `100 GiB`".to_owned()
        } else {
            format!("has {have} sizes for {want} directories: give one for each, or one for all")
        };
        fields.refuse("ssd.sizes", problem);
        return None;
    }
    let dir = |(path, bytes): (&&str, u64)| SsdDir {
        path: PathBuf::from(path),
        bytes,
    };
    Some(paths.iter().zip(bytes).map(dir).collect())
}

const ADMISSIONS: [(&str, Admission); 3] = [
    ("computed", Admission::Computed),
    ("reused", Admission::Reused),
    ("all", Admission::All),
];

/// The rule called `text`.
pub fn parse_admission(text: &str) -> Result<Admission, String> {
    let known = ADMISSIONS.iter().find(|(name, _)| *name == text);
    known.map(|(_, admission)| *admission).ok_or_else(|| {
        format!("`{text}` is no rule for what is written: write `computed`, `reused` or `all`")
    })
}

/// What the rule is called.
pub fn admission_name(admission: Admission) -> &'static str {
    let known = ADMISSIONS.iter().find(|(_, it)| *it == admission);
    known.map_or("", |(name, _)| name)
}
