//! Kernel, emulator and tools for the machine: Debian packages, fetched and unpacked into a folder.
//!
//! `apt-get download` checks them against the signed lists; their sums are kept, and checked again
//! before each use. Knows nothing of what is done with them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{Run, fresh, say};
use crate::tools;

/// Names the newest kernel.
const KERNEL: &str = "linux-image-amd64";
/// The emulator, and what the machine has in it.
const TOOLS: &[&str] = &[
    "busybox-static",
    "ibverbs-providers",
    "iproute2",
    "libibverbs1",
    "libnl-3-200",
    "libnl-route-3-200",
    "qemu-system-x86",
];
/// Of the kernel's package, what is unpacked; it has 4000 modules.
const KERNEL_PARTS: &[&str] = &[
    "./boot/vmlinuz-*",
    "./lib/modules/*/kernel/arch/x86/crypto/*",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/drivers/infiniband/core/*",
    "./lib/modules/*/kernel/drivers/infiniband/sw/*",
    "./lib/modules/*/kernel/drivers/net/dummy.ko*",
    "./lib/modules/*/kernel/drivers/net/net_failover.ko*",
    "./lib/modules/*/kernel/drivers/net/virtio_net.ko*",
    "./lib/modules/*/kernel/drivers/virtio/*",
    "./lib/modules/*/kernel/lib/*",
    "./lib/modules/*/kernel/net/core/*",
    "./lib/modules/*/kernel/net/ipv4/*",
    "./lib/modules/*/kernel/net/ipv6/*",
];
/// Sums of the packages that are unpacked; written last.
const SUMS: &str = "SHA256SUMS";

/// The unpacked packages.
pub(super) struct Kit {
    root: PathBuf,
}

impl Kit {
    /// The packages in `cache`; fetched if they are not there, are not what they were, or `anew`.
    pub(super) fn find_or_fetch(cache: &Path, anew: bool) -> Result<Self> {
        let root = cache.join("root");
        let packages = cache.join("packages");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let here = |program: &str| Run::new("env").args(["-C", &text(&packages), program]);
        let sums = packages.join(SUMS);
        let whole = !anew
            && sums.is_file()
            && here("sha256sum")
                .args(["--check", "--quiet", SUMS])
                .capture()?
                .0;
        if !whole {
            fresh(&packages)?;
            fresh(&root)?;
            let names = names()?;
            say(&format!(
                "fetching {} packages into {}",
                names.len(),
                packages.display()
            ));
            here("apt-get")
                .args(["-qq", "download"])
                .args(&names)
                .run()?;
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&packages)? {
                files.push(entry?.file_name().to_string_lossy().into_owned());
            }
            for file in &files {
                unpack(&packages.join(file), &root)?;
            }
            let told = here("sha256sum").args(&files).read()?;
            std::fs::write(&sums, told)
                .with_context(|| format!("cannot write {}", sums.display()))?;
        }
        Ok(Self { root })
    }

    /// A file of a package, which must be there.
    pub(super) fn file(&self, path: &str) -> Result<PathBuf> {
        let file = self.root.join(path);
        if !file.exists() {
            bail!("no package has {path}; fetch them again with --fresh");
        }
        Ok(file)
    }

    /// The only entry of `dir` that begins with `start`.
    pub(super) fn only(&self, dir: &str, start: &str) -> Result<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.file(dir)?)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(start) {
                found.push(entry.path());
            }
        }
        match <[PathBuf; 1]>::try_from(found) {
            Ok([one]) => Ok(one),
            Err(found) => bail!("{} entries of {dir} begin with `{start}`", found.len()),
        }
    }

    /// Where programs of the packages look for libraries, as `LD_LIBRARY_PATH` has it.
    pub(super) fn libraries(&self) -> String {
        let dirs = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        dirs.map(|dir| self.root.join(dir).to_string_lossy().into_owned())
            .join(":")
    }
}

/// Why there can be no such machine here.
pub(super) fn unavailable() -> Option<String> {
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = system.lines().any(|line| line == "ID=debian");
    (!debian || !cfg!(target_arch = "x86_64")).then(|| {
        "the machine that RDMA is tested in is made of packages of Debian for x86-64, and this is \
         none; the transport was tested over a device of memory only"
            .to_owned()
    })
}

/// The packages to fetch: what is named here, and what that needs and this machine does not have.
fn names() -> Result<Vec<String>> {
    let ask = Run::new("apt-cache").args(["depends", KERNEL]);
    let depends = ask.read().or_else(|_| {
        tools::update()?;
        ask.read()
    });
    let depends = depends.context(
        "the machine is made of Debian packages, so this runs on Debian, after `apt-get update`",
    )?;
    let kernel = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{KERNEL} depends on no kernel"))?;
    let simulated = Run::new("apt-get")
        .args(["-s", "install", "--no-install-recommends"])
        .args(TOOLS)
        .read()?;
    let mut names = vec![kernel.to_owned()];
    names.extend(TOOLS.iter().map(|&name| name.to_owned()));
    names.extend(needed(&simulated));
    names.sort();
    names.dedup();
    Ok(names)
}

/// The packages that a simulated installation would install.
fn needed(simulated: &str) -> impl Iterator<Item = String> + '_ {
    let installed = simulated
        .lines()
        .filter_map(|line| line.strip_prefix("Inst "));
    installed.filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
}

fn unpack(package: &Path, root: &Path) -> Result<()> {
    let (package, root) = (package.to_string_lossy(), root.to_string_lossy());
    if !package.contains("/linux-image-") {
        return Run::new("dpkg-deb").args(["-x", &package, &root]).run();
    }
    let parts: Vec<_> = KERNEL_PARTS
        .iter()
        .map(|part| format!("'{part}'"))
        .collect();
    let take = format!(
        "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --wildcards {}",
        parts.join(" ")
    );
    // tar complains of a pattern that this kernel has nothing for; what is needed is looked up later.
    let _ = Run::new("sh")
        .args(["-c", &take, "sh", &package, &root])
        .capture()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_installation_would_bring_is_fetched_too() {
        let simulated = "Reading package lists...\nRemv qemu-utils [1:10.0]\n\
                         Inst libfdt1 (1.6.1 Debian:12 [amd64])\nConf libfdt1 (1.6.1)\n\
                         Inst qemu-system-x86 (1:7.2 Debian:12 [amd64]) []\n";
        let names: Vec<_> = needed(simulated).collect();
        assert_eq!(names, ["libfdt1", "qemu-system-x86"]);
    }
}
