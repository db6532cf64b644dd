//! What the user sees meanwhile, on standard error: a live line for each instance, and above them
//! the lines of all logs, each with the name of its process. Knows nothing of processes.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// How often live lines move.
const TICK: Duration = Duration::from_millis(200);
/// Longest line that is shown as one.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// The screen; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Console {
    bars: MultiProgress,
}

impl Console {
    /// Shows a line of `who`.
    pub(super) fn say(&self, who: &str, line: &str) {
        self.bars.suspend(|| {
            // Standard error may be gone; the instances go on.
            let _ = writeln!(std::io::stderr(), "[{who}] {line}");
        });
    }

    /// A live line for `who`, where there is a terminal.
    pub(super) fn live(&self, who: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("{spinner} [{prefix}] {wide_msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style);
        bar.set_prefix(who.to_owned());
        bar.enable_steady_tick(TICK);
        bar
    }

    /// Shows all lines of `log` as those of `who`, until it ends.
    pub(super) async fn relay(self, who: String, log: impl AsyncRead + Unpin) {
        let mut log = BufReader::new(log);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut log)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line)
                .await
            {
                Ok(1..) => self.say_bytes(&who, &line),
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn say_bytes(&self, who: &str, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        // A bar that draws itself over and over is shown as it was last.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        if !line.is_empty() {
            self.say(who, line);
        }
    }
}

/// The logs of a folder, as far as they have been shown.
#[derive(Debug)]
pub(super) struct Logs {
    folder: PathBuf,
    shown: HashMap<PathBuf, usize>,
}

impl Logs {
    /// Those of `folder`, from their beginning.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            shown: HashMap::new(),
        }
    }

    /// Shows the lines that have come since the last call, with the name that `label` gives the
    /// log of this stem.
    pub(super) fn show(&mut self, console: &Console, label: impl Fn(&str) -> String) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let Ok(text) = std::fs::read(&path) else {
                continue;
            };
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let shown = self.shown.entry(path).or_default();
            let new = text.get(*shown..).unwrap_or_default();
            let whole = new
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in new[..whole].split(|&byte| byte == b'\n') {
                console.say_bytes(&label(&stem), line);
            }
            *shown += whole;
        }
    }
}
