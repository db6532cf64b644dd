//! `cargo xtask python`: installs the Python package from the checkout and runs its tests.
//!
//! Virtual environments lie outside of the checkout and hold what others wrote. The package itself
//! is installed below cargo's target directory and added by `PYTHONPATH`, so that checkouts share
//! environments and yet test their own package, side by side. Of vLLM it knows only the names of
//! the test files that need it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, Run, fresh, root, say};
use crate::tools;

/// Installs the Python package from the checkout and runs those of its tests that need no vLLM.
///
/// The package is built by `pip install .` with cargo's profile `dev`, which has all its checks.
/// maturin, pytest and what else the tests need are in a virtual environment of their own, made on
/// the first run in the cache directory ($XDG_CACHE_HOME/flexkv or ~/.cache/flexkv).
///
///   cargo xtask python                     all tests that need no vLLM
///
///   cargo xtask python -- -k config        with arguments for pytest
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Arguments for pytest
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Where the tests lie.
const TESTS: &str = "python/tests";
/// So the files of tests begin that need vLLM.
const NEEDS_VLLM: &str = "test_vllm";
/// What the tests need besides the package.
pub(crate) const TEST_TOOLS: &[&str] = &["pytest>=8,<10", "pyyaml>=6,<7"];
/// The environment for building the package and for tests without vLLM.
const ENVIRONMENT: &str = "python-tests";

/// Runs the tests that need no vLLM.
pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = environment()?;
    let package = Package::install(&tools, Profile::Dev)?;
    package.check(&tools)?;
    package.test(&tools, &files(false)?, &args.rest)
}

/// The same without arguments, as CI runs it.
pub(crate) fn short() -> Result<()> {
    run(&Args { rest: Vec::new() })
}

/// The files of tests, with or without those that need vLLM.
pub(crate) fn files(with_vllm: bool) -> Result<Vec<String>> {
    let dir = root().join(TESTS);
    let entries =
        std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names
        .iter()
        .filter(|name| is_test(name) && (with_vllm || !needs_vllm(name)))
        .map(|name| format!("{TESTS}/{name}"))
        .collect())
}

fn is_test(name: &str) -> bool {
    name.starts_with("test_") && name.ends_with(".py")
}

fn needs_vllm(name: &str) -> bool {
    name.starts_with(NEEDS_VLLM)
}

/// The environment for building the package and for tests without vLLM, made if need be.
pub(crate) fn environment() -> Result<Venv> {
    let mut wanted = build_requirements(&read("pyproject.toml")?)?;
    wanted.extend(TEST_TOOLS.iter().map(|tool| (*tool).to_owned()));
    let venv = Venv::new(ENVIRONMENT)?;
    venv.ensure(&wanted.join("\n"), || {
        venv.create()?;
        venv.pip(&wanted).run()
    })?;
    Ok(venv)
}

/// What the package's `pyproject.toml` asks for to be built.
fn build_requirements(text: &str) -> Result<Vec<String>> {
    let project: toml::Table = text.parse().context("pyproject.toml")?;
    let requires = project
        .get("build-system")
        .and_then(|table| table.get("requires"))
        .and_then(toml::Value::as_array)
        .context("pyproject.toml has no build-system.requires")?;
    let words = requires.iter().filter_map(toml::Value::as_str);
    Ok(words.map(str::to_owned).collect())
}

fn read(file: &str) -> Result<String> {
    let path = root().join(file);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where environments are kept.
pub(crate) fn cache() -> Result<PathBuf> {
    cache_in(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

/// `flexkv` below the caches of the user; a relative `XDG_CACHE_HOME` counts as none, as its
/// specification says.
fn cache_in(xdg: Option<OsString>, home: Option<OsString>) -> Result<PathBuf> {
    let xdg = xdg.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = xdg.or_else(|| home.map(|home| home.join(".cache")));
    let caches = caches.context("neither XDG_CACHE_HOME nor HOME names a directory")?;
    Ok(caches.join("flexkv"))
}

/// A file that one process at a time has, until it is dropped.
fn lock(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!(
            "waiting for the process that has {}",
            path.display()
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// A virtual environment in the cache. A stamp in it says what it was made of; it is written last.
pub(crate) struct Venv {
    pub(crate) dir: PathBuf,
}

impl Venv {
    pub(crate) fn new(name: &str) -> Result<Self> {
        Ok(Self {
            dir: cache()?.join(name),
        })
    }

    /// Calls `make` unless the stamp is `wanted`, then writes the stamp. Processes take turns.
    pub(crate) fn ensure(&self, wanted: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let _turn = lock(&self.dir.with_extension("lock"))?;
        let stamp = self.dir.join("flexkv-stamp.txt");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(());
        }
        make()?;
        std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
    }

    /// An empty environment; what was there is gone.
    pub(crate) fn create(&self) -> Result<()> {
        tools::python()?;
        Run::new("python3")
            .args(["-m", "venv", "--clear", &self.dir.to_string_lossy()])
            .run()
    }

    /// A program of the environment.
    pub(crate) fn program(&self, name: &str) -> Run {
        Run::new(&self.dir.join("bin").join(name).to_string_lossy())
    }

    /// Installs what `wanted` names.
    pub(crate) fn pip<S: AsRef<str>>(&self, wanted: &[S]) -> Run {
        self.program("python")
            .args(["-m", "pip", "install", "--quiet"])
            .args(wanted)
    }
}

/// How the package is compiled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// With all checks, quickly built.
    Dev,
    /// As a user gets it.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// The installed package; other runs of this checkout wait while it is in use.
pub(crate) struct Package {
    site: PathBuf,
    _turn: File,
}

impl Package {
    /// Installs the package from the checkout with the tools of `tools`.
    pub(crate) fn install(tools: &Venv, profile: Profile) -> Result<Self> {
        let site = shell::target()?.join("python").join(profile.name());
        let turn = lock(&site.with_extension("lock"))?;
        let site = fresh(&site)?;
        let words = [
            "--no-deps",
            "--no-build-isolation",
            &format!("--config-settings=build-args=--profile={}", profile.name()),
            "--target",
            &site.to_string_lossy(),
            ".",
        ];
        // maturin and cargo are found through PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(tools.dir.join("bin")).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(dirs)?;
        tools
            .pip(&words)
            .env("PATH", &path.to_string_lossy())
            .run()?;
        Ok(Self { site, _turn: turn })
    }

    /// `run` with the package to import.
    fn with(&self, run: Run) -> Result<Run> {
        Ok(run
            .env("PYTHONPATH", &self.site.to_string_lossy())
            .env("FLEXKV_TEST_CACHE", &cache()?.to_string_lossy()))
    }

    /// Fails unless `venv` imports this package, so that no test runs on another or is skipped.
    pub(crate) fn check(&self, venv: &Venv) -> Result<()> {
        let ask = "import flexkv._native as it; print(it.__file__)";
        let found = self
            .with(venv.program("python").args(["-c", ask]))?
            .read()?;
        if !Path::new(found.trim()).starts_with(&self.site) {
            bail!(
                "the package is imported from {} instead of {}",
                found.trim(),
                self.site.display()
            );
        }
        Ok(())
    }

    /// Runs tests with the Python of `venv`; tells which were skipped, and why.
    pub(crate) fn test(&self, venv: &Venv, files: &[String], rest: &[String]) -> Result<()> {
        let run = venv
            .program("python")
            .args(["-m", "pytest", "-p", "no:cacheprovider", "-rs"]);
        self.with(run.args(files).args(rest))?.run()
    }

    /// Runs a program beside the tests with the Python of `venv`.
    pub(crate) fn program(&self, venv: &Venv, file: &str, rest: &[String]) -> Result<()> {
        let run = venv.program("python").args([&format!("{TESTS}/{file}")]);
        self.with(run.args(rest))?.run()
    }
}

#[cfg(test)]
mod tests;
