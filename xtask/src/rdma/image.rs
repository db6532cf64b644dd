//! The file system that a machine starts with: programs with their libraries, kernel modules, and
//! `/init`, as one archive of the form that the kernel unpacks (cpio, "newc").

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::packages::Kit;
use crate::shell::Run;

/// Modules that `/init` loads, besides what they need.
const MODULES: &[&str] = &[
    "crc32_generic",
    "virtio_pci",
    "virtio_net",
    "dummy",
    "rdma_rxe",
];
/// What the shell of `/init` calls.
const COMMANDS: &[&str] = &[
    "sh", "cat", "echo", "grep", "insmod", "mount", "poweroff", "sleep",
];
/// Where libibverbs looks for what it needs of a device.
const PROVIDERS: &str = "usr/lib/x86_64-linux-gnu/libibverbs";

/// An archive that grows.
pub(super) struct Image {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Image {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            known: BTreeSet::new(),
        }
    }

    /// All but the program under test.
    pub(super) fn system(&mut self, kit: &Kit) -> Result<()> {
        for dir in ["dev", "proc", "sys", "tmp"] {
            self.entry(dir, 0o040_755, &[]);
        }
        self.program(kit, &kit.file("bin/busybox")?, "bin/busybox")?;
        for command in COMMANDS {
            self.entry(&format!("bin/{command}"), 0o120_777, b"busybox");
        }
        self.program(kit, &ip(kit)?, "bin/ip")?;
        self.program(kit, &ip(kit)?.with_file_name("rdma"), "bin/rdma")
            .or_else(|_| self.program(kit, &kit.file("usr/bin/rdma")?, "bin/rdma"))?;
        let provider = kit.only(PROVIDERS, "librxe-")?;
        let name = provider.file_name().unwrap_or_default().to_string_lossy();
        self.program(kit, &provider, &format!("{PROVIDERS}/{name}"))?;
        self.copy(
            &kit.file("etc/libibverbs.d/rxe.driver")?,
            "etc/libibverbs.d/rxe.driver",
            0o644,
        )?;
        let verbs = kit.file("usr/lib/x86_64-linux-gnu/libibverbs.so.1")?;
        self.program(kit, &verbs, "lib/x86_64-linux-gnu/libibverbs.so.1")?;
        self.modules(kit)
    }

    /// A program or library, with the libraries it needs.
    pub(super) fn program(&mut self, kit: &Kit, program: &Path, to: &str) -> Result<()> {
        self.copy(program, to, 0o755)?;
        let ldd = Run::new("ldd").args([program.to_string_lossy()]);
        let (_, told) = ldd.env("LD_LIBRARY_PATH", &kit.libraries()).capture()?;
        if told.contains("not found") {
            bail!("{} lacks a library: {told}", program.display());
        }
        for library in libraries(&told) {
            let name = library.file_name().unwrap_or_default().to_string_lossy();
            let dir = if name.starts_with("ld-linux") {
                "lib64"
            } else {
                "lib/x86_64-linux-gnu"
            };
            self.copy(&library, &format!("{dir}/{name}"), 0o755)?;
        }
        Ok(())
    }

    /// The modules, and in which order they are loaded.
    fn modules(&mut self, kit: &Kit) -> Result<()> {
        let files = module_files(&kit.only("lib/modules", "")?)?;
        let needs = |name: &str| -> Result<Vec<String>> {
            let Some(path) = files.get(name) else {
                return Ok(Vec::new());
            };
            let bytes =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(depends(&bytes))
        };
        let mut order = Vec::new();
        for module in MODULES {
            if !files.contains_key(*module) {
                bail!("the kernel has no module {module}");
            }
            load_order(module, &needs, &mut order)?;
        }
        let mut list = String::new();
        for name in order {
            // What is no file is part of the kernel.
            if let Some(path) = files.get(&name) {
                self.copy(path, &format!("modules/{name}.ko"), 0o644)?;
                list.push_str(&format!("/modules/{name}.ko\n"));
            }
        }
        self.file("modules/order", 0o644, list.into_bytes());
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let bytes =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, mode, bytes);
        Ok(())
    }

    /// A regular file. One that is there already stays.
    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.entry(path, 0o100_000 | mode, &bytes);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        if let Some((dir, _)) = path.rsplit_once('/')
            && !self.known.contains(dir)
        {
            self.entry(dir, 0o040_755, &[]);
        }
        if self.known.insert(path.to_owned()) {
            let number = self.known.len() as u32;
            write_entry(&mut self.bytes, number, path, mode, content);
        }
    }

    /// The archive.
    pub(super) fn bytes(mut self) -> Vec<u8> {
        write_entry(&mut self.bytes, 0, "TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// `ip` is in one of two folders, by the age of the package.
fn ip(kit: &Kit) -> Result<PathBuf> {
    kit.file("bin/ip").or_else(|_| kit.file("usr/bin/ip"))
}

/// A header of 14 fields of 8 hexadecimal digits, the name, the content; both padded to 4 bytes.
fn write_entry(out: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8]) {
    let links = 1;
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        content.len() as u32,
        0,
        0,
        0,
        0,
        path.len() as u32 + 1,
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The paths in what `ldd` says.
fn libraries(told: &str) -> Vec<PathBuf> {
    let word = |line: &str| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    told.lines().filter_map(word).collect()
}

/// All modules below `dir`, by name.
fn module_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                open.push(path);
            } else if let Some(name) = name.strip_suffix(".ko") {
                found.insert(name.replace('-', "_"), path.clone());
            }
        }
    }
    Ok(found)
}

/// The modules that a module names as needed, for certain or by preference.
fn depends(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for field in module.split(|byte| *byte == 0) {
        for start in ["depends=", "softdep=pre: "] {
            let Some(list) = field.strip_prefix(start.as_bytes()) else {
                continue;
            };
            let list = String::from_utf8_lossy(list);
            let words = list.split([',', ' ']).filter(|word| !word.is_empty());
            names.extend(words.map(|word| word.replace('-', "_")));
        }
    }
    names
}

/// Puts `module` into `order`, after all that it needs.
fn load_order(
    module: &str,
    needs: &impl Fn(&str) -> Result<Vec<String>>,
    order: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|known| known == module) {
        return Ok(());
    }
    for needed in needs(module)? {
        load_order(&needed, needs, order)?;
    }
    order.push(module.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_form_that_the_kernel_unpacks() {
        let mut image = Image::new();
        image.file("etc/name", 0o644, b"hello".to_vec());
        image.file("etc/name", 0o644, b"again".to_vec());
        let bytes = image.bytes();
        let text = String::from_utf8(bytes.clone()).expect("all of it is text here");
        assert_eq!(
            text.matches("070701").count(),
            3,
            "a folder, a file, the end"
        );
        assert_eq!(bytes.len() % 4, 0);
        let at = text.find("etc/name").expect("the file");
        assert_eq!(&text[at - 110..at - 96], "07070100000002");
        assert_eq!(&text[at - 96..at - 88], "000081a4", "a regular file, 0644");
        assert_eq!(&text[at - 56..at - 48], "00000005", "its bytes");
        assert_eq!(
            (at + "etc/name".len() + 1).next_multiple_of(4),
            text.find("hello").expect("content")
        );
    }

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let module =
            b"\0license=GPL\0depends=ib_core,udp-tunnel\0softdep=pre: crc32c\0name=rdma_rxe\0";
        assert_eq!(depends(module), ["ib_core", "udp_tunnel", "crc32c"]);
        let needs = |name: &str| {
            let needs: &[&str] = match name {
                "a" => &["b", "c"],
                "b" => &["c"],
                _ => &[],
            };
            Ok(needs.iter().map(|&name| name.to_owned()).collect())
        };
        let mut order = Vec::new();
        load_order("a", &needs, &mut order).expect("an order");
        load_order("b", &needs, &mut order).expect("the same");
        assert_eq!(order, ["c", "b", "a"]);
    }

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let told = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibmnl.so.0 => /lib/libmnl.so.0 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<_> = libraries(told);
        assert_eq!(
            found,
            [
                PathBuf::from("/lib/libmnl.so.0"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
