//! Programs that cargo does not bring along: found in `PATH`, or installed with apt.
//!
//! Knows nothing of what they are for.

use anyhow::{Context as _, Result, bail};

use crate::shell::{Run, find, say};

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    /// The program's name.
    pub(crate) program: &'static str,
    /// The package's name.
    pub(crate) package: &'static str,
    /// What needs it.
    pub(crate) needed_by: &'static str,
}

/// The metadata store of the integration suites, which start it themselves.
pub(crate) const REDIS: Tool = Tool {
    program: "redis-server",
    package: "redis-server",
    needed_by: "the integration suites",
};

/// Gives nodes of the integration suites another wall clock.
pub(crate) const FAKETIME: Tool = Tool {
    program: "faketime",
    package: "faketime",
    needed_by: "the integration suites",
};

/// Joins the network namespaces of the integration suites, and parts them.
pub(crate) const IPROUTE: Tool = Tool {
    program: "tc",
    package: "iproute2",
    needed_by: "the integration suites",
};

/// What one stream of TCP can carry.
pub(crate) const IPERF3: Tool = Tool {
    program: "iperf3",
    package: "iperf3",
    needed_by: "the comparison of transports",
};

/// Compiles libFuzzer, which is C++.
pub(crate) const CXX: Tool = Tool {
    program: "g++",
    package: "g++",
    needed_by: "the fuzz targets",
};

/// Builds the stand-in for libibverbs that the RDMA transport is linked with.
pub(crate) const CMAKE: Tool = Tool {
    program: "cmake",
    package: "cmake",
    needed_by: "the RDMA transport",
};

/// Unpacks the kernel of the machine that the RDMA transport is tested in.
pub(crate) const XZ: Tool = Tool {
    program: "xz",
    package: "xz-utils",
    needed_by: "the tests of the RDMA transport",
};

/// Reads the declarations of libibverbs: a library, not a program.
const LIBCLANG: Tool = Tool {
    program: "libclang",
    package: "libclang-dev",
    needed_by: "the bindings of the RDMA transport",
};

/// Python with virtual environments, which Debian keeps in a package of its own.
const PYTHON: Tool = Tool {
    program: "python3",
    package: "python3-venv",
    needed_by: "the tests of the Python package",
};

/// Prints the version if this Python has all that a virtual environment needs, with pip.
const PYTHON_PROBE: &str =
    "import ensurepip, sys, venv; print(sys.version_info[0] * 100 + sys.version_info[1])";

/// The oldest Python that the package is for: 3.11.
const PYTHON_OLDEST: u32 = 311;

/// How packages can be installed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installer {
    /// `apt-get`, as root.
    Apt,
    /// `sudo -n apt-get`.
    SudoApt,
    /// Not at all.
    None,
}

impl Tool {
    /// Sees to it that the tool is there: found, or else installed.
    pub(crate) fn ensure(&self) -> Result<()> {
        if let Some(path) = find(self.program) {
            say(&format!("{} is {}", self.program, path.display()));
            return Ok(());
        }
        self.install()?;
        if find(self.program).is_none() {
            bail!("{}", self.missing());
        }
        Ok(())
    }

    fn install(&self) -> Result<()> {
        for run in self.installation(installer()?)? {
            run.run().with_context(|| self.missing())?;
        }
        Ok(())
    }

    fn installation(&self, installer: Installer) -> Result<[Run; 2]> {
        let Some(apt) = apt(installer) else {
            bail!("{}", self.missing())
        };
        let quiet = |run: Run| run.env("DEBIAN_FRONTEND", "noninteractive");
        Ok([
            quiet(apt.clone().args(["-qq", "update"])),
            quiet(apt.args([
                "-qq",
                "install",
                "-y",
                "--no-install-recommends",
                self.package,
            ])),
        ])
    }

    fn missing(&self) -> String {
        let Self {
            program,
            package,
            needed_by,
        } = self;
        format!(
            "`{program}` is not in PATH, and {needed_by} cannot run without it. Install it first, \
             on Debian and Ubuntu by `apt-get install {package}`"
        )
    }
}

/// Sees to it that there is a Python with virtual environments, and says which.
pub(crate) fn python() -> Result<()> {
    if probe()?.is_none() {
        PYTHON.install()?;
    }
    let found = probe()?.with_context(|| PYTHON.missing())?;
    new_enough(found)?;
    say(&format!("{} is Python {}", PYTHON.program, dotted(found)));
    Ok(())
}

/// Sees to it that there is a libclang, where it is looked for by default or `LIBCLANG_PATH` says.
pub(crate) fn libclang() -> Result<()> {
    let known = || -> Result<bool> {
        let told = Run::new("/sbin/ldconfig").args(["-p"]).read()?;
        Ok(told.lines().any(|line| is_libclang(line.trim())))
    };
    if std::env::var_os("LIBCLANG_PATH").is_some() || known()? {
        return Ok(());
    }
    LIBCLANG.install()
}

/// Whether a line of the loader's cache is of libclang; libclang-cpp is another library.
fn is_libclang(line: &str) -> bool {
    let rest = line.strip_prefix("libclang");
    rest.is_some_and(|rest| {
        rest.starts_with(".so") || rest.starts_with("-") && !rest.starts_with("-cpp")
    })
}

/// The version of the Python in `PATH`, 311 for 3.11; none if it lacks a part or is not there.
fn probe() -> Result<Option<u32>> {
    if find(PYTHON.program).is_none() {
        return Ok(None);
    }
    let (success, text) = Run::new(PYTHON.program)
        .args(["-c", PYTHON_PROBE])
        .capture()?;
    Ok(text.trim().parse().ok().filter(|_| success))
}

fn new_enough(version: u32) -> Result<()> {
    if version < PYTHON_OLDEST {
        bail!(
            "`{}` is Python {}, and {} need {} or later",
            PYTHON.program,
            dotted(version),
            PYTHON.needed_by,
            dotted(PYTHON_OLDEST)
        );
    }
    Ok(())
}

fn dotted(version: u32) -> String {
    format!("{}.{}", version / 100, version % 100)
}

/// Brings the lists of packages up to date, if that is allowed here.
pub(crate) fn update() -> Result<()> {
    match apt(installer()?) {
        Some(apt) => apt.args(["-qq", "update"]).run(),
        None => Ok(()),
    }
}

fn apt(installer: Installer) -> Option<Run> {
    match installer {
        Installer::Apt => Some(Run::new("apt-get")),
        Installer::SudoApt => Some(Run::new("sudo").args(["-n", "apt-get"])),
        Installer::None => None,
    }
}

fn installer() -> Result<Installer> {
    if find("apt-get").is_none() {
        return Ok(Installer::None);
    }
    if Run::new("id").args(["-u"]).read()?.trim() == "0" {
        return Ok(Installer::Apt);
    }
    let sudo = find("sudo").is_some() && Run::new("sudo").args(["-n", "true"]).capture()?.0;
    Ok(if sudo {
        Installer::SudoApt
    } else {
        Installer::None
    })
}

#[cfg(test)]
mod tests;
