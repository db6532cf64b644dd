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

/// Compiles libFuzzer, which is C++.
pub(crate) const CXX: Tool = Tool {
    program: "g++",
    package: "g++",
    needed_by: "the fuzz targets",
};

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
        for run in self.installation(installer()?)? {
            run.run().with_context(|| self.missing())?;
        }
        if find(self.program).is_none() {
            bail!("{}", self.missing());
        }
        Ok(())
    }

    fn installation(&self, installer: Installer) -> Result<[Run; 2]> {
        let apt = match installer {
            Installer::Apt => Run::new("apt-get"),
            Installer::SudoApt => Run::new("sudo").args(["-n", "apt-get"]),
            Installer::None => bail!("{}", self.missing()),
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
