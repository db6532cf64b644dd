//! Virtual machines: booted, watched, ended. Knows their consoles, and nothing of what they do.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::packages::Kit;
use super::verdict;
use crate::shell::say;

/// How often a machine is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// First bytes of what kernels are compressed into.
const XZ: &[u8] = b"\xfd7zXZ\0";
/// Where the reader's machine says that its owner may be killed now.
const KILL: &str = "flexkv: kill the owner";

/// What machines are made of.
pub(super) struct Machine<'a> {
    kit: &'a Kit,
    kernel: PathBuf,
    image: &'a Path,
    work: &'a Path,
}

/// A machine that has ended.
pub(super) struct Ended {
    pub(super) log: PathBuf,
    console: String,
    /// After how many seconds it was ended from outside, if it was.
    late: Option<u64>,
}

impl Ended {
    /// How many tests passed, or why the run failed.
    pub(super) fn verdict(&self) -> Result<usize, String> {
        verdict::verdict(&self.console, self.late)
    }

    pub(super) fn failed_tests(&self) -> Vec<&str> {
        verdict::failed_tests(&self.console)
    }

    /// The rest of each line of the console that begins with `start`.
    pub(super) fn lines<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        verdict::lines(&self.console, start)
    }

    /// Prints what the tests said.
    pub(super) fn show_tests(&self) {
        self.lines("test ")
            .for_each(|line| say(&format!("test {line}")));
    }

    /// Prints the whole console.
    pub(super) fn show(&self) {
        say(&format!("--- console {}", self.log.display()));
        say(&self.console);
        say("--- end of the console");
    }
}

/// A machine that runs. Dropping it ends it.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn console(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn ended(self, late: Option<u64>) -> Ended {
        Ended {
            log: self.log.clone(),
            console: self.console(),
            late,
        }
    }
}

impl<'a> Machine<'a> {
    pub(super) fn new(kit: &'a Kit, image: &'a Path, work: &'a Path) -> Result<Self> {
        let kernel = kernel(&kit.only("boot", "vmlinuz-")?, work)?;
        Ok(Self {
            kit,
            kernel,
            image,
            work,
        })
    }

    /// Boots a machine that does what `words` say, until it ends or `patience` has.
    pub(super) fn run(&self, name: &str, words: &str, patience: Duration) -> Result<Ended> {
        let mut running = self.boot(name, words, &[])?;
        let late = watch(patience, || running.has_ended())?;
        Ok(running.ended(late))
    }

    /// Boots an owner and a reader that are joined by a wire; kills the owner's machine when the
    /// reader says so.
    pub(super) fn run_two(&self, patience: Duration) -> Result<[Ended; 2]> {
        let wire = self.work.join("wire");
        let end = |role: &str, number: u8| {
            let (own, other) = (
                format!("{}.{role}", wire.display()),
                match role {
                    "owner" => format!("{}.reader", wire.display()),
                    _ => format!("{}.owner", wire.display()),
                },
            );
            let net = format!(
                "dgram,id=wire,local.type=unix,local.path={own},remote.type=unix,remote.path={other}"
            );
            let card = format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{number},romfile=");
            ["-netdev".to_owned(), net, "-device".to_owned(), card]
        };
        let mut owner = self.boot("owner", "flexkv=owner", &end("owner", 1))?;
        let mut reader = self.boot("reader", "flexkv=reader", &end("reader", 2))?;
        let mut killed = false;
        let late = watch(patience, || {
            if !killed && reader.console().contains(KILL) {
                owner
                    .child
                    .kill()
                    .context("cannot kill the owner's machine")?;
                killed = true;
            }
            if !killed && owner.has_ended()? {
                return Ok(true);
            }
            reader.has_ended()
        })?;
        Ok([owner.ended(None), reader.ended(late)])
    }

    fn boot(&self, name: &str, words: &str, more: &[String]) -> Result<Running> {
        let program = self.kit.file("usr/bin/qemu-system-x86_64")?;
        let log = self.work.join(format!("{name}.log"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.kit.libraries());
        for dir in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            if let Ok(dir) = self.kit.file(dir) {
                command.args(["-L", &text(&dir)]);
            }
        }
        command
            .args("-M pc -accel tcg -cpu max -m 768 -smp 2".split(' '))
            .args("-display none -monitor none -no-reboot -nodefaults".split(' '))
            .args(["-serial", &format!("file:{}", log.display())])
            .args(["-kernel", &text(&self.kernel)])
            .args(["-initrd", &text(self.image)])
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 {words}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().context("cannot start qemu")?;
        Ok(Running { child, log })
    }
}

/// Looks until `ended`; after how many seconds it gave up, if it did.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver waits for programs in real time"
)]
fn watch(patience: Duration, mut ended: impl FnMut() -> Result<bool>) -> Result<Option<u64>> {
    let start = Instant::now();
    while !ended()? {
        if start.elapsed() > patience {
            return Ok(Some(patience.as_secs()));
        }
        std::thread::sleep(GLANCE);
    }
    Ok(None)
}

/// The kernel as it is in memory, which boots in a third of the time that the compressed one takes:
/// an emulated processor is slow to unpack it.
fn kernel(compressed: &Path, work: &Path) -> Result<PathBuf> {
    let bytes = std::fs::read(compressed)
        .with_context(|| format!("cannot read {}", compressed.display()))?;
    let start = bytes.windows(XZ.len()).position(|window| window == XZ);
    let start =
        start.with_context(|| format!("{} is not compressed by xz", compressed.display()))?;
    let (inner, kernel) = (work.join("kernel.xz"), work.join("kernel"));
    std::fs::write(&inner, &bytes[start..])
        .with_context(|| format!("cannot write {}", inner.display()))?;
    let out = std::fs::File::create(&kernel)
        .with_context(|| format!("cannot write {}", kernel.display()))?;
    let status = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .arg(&inner)
        .stdout(out)
        .status()
        .context("cannot start xz")?;
    if !status.success() {
        bail!("xz cannot unpack the kernel ({status})");
    }
    Ok(kernel)
}
