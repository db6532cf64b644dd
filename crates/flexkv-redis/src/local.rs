//! A private Redis server for tests, demos and benchmarks: one process, in memory, on loopback.
//!
//! Knows nothing of stores and what they keep. Not for production: it forgets everything.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// Names the server's program instead of `redis-server` on the `PATH`.
pub const SERVER_VARIABLE: &str = "FLEXKV_REDIS_SERVER";

/// How long a server may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often to try another port if a free one was taken meanwhile.
const PORT_ATTEMPTS: usize = 5;

/// Why there is no private server.
#[derive(Debug, Error)]
pub enum LocalRedisError {
    /// The program is not there.
    #[error(
        "`{program}` is not installed: install it, e.g. `apt-get install redis-server`, \
         or run `cargo xtask it`, which does"
    )]
    NotInstalled {
        /// What was looked for.
        program: String,
    },
    /// The password cannot be written into a URL and a configuration file as it is.
    #[error("password of the private redis server: expected characters A-Z a-z 0-9 _ -")]
    Password,
    /// It started and did not answer in time, or ended.
    #[error("the private redis server on port {port} {what}\n{log}")]
    NotAnswering {
        /// The port it was to use.
        port: u16,
        /// What it did instead.
        what: String,
        /// The last lines it logged.
        log: String,
    },
    /// The operating system refused a directory, a port or a process.
    #[error("cannot start a private redis server: {0}")]
    Io(#[from] io::Error),
}

/// A private server. Killed, reaped and its directory removed when dropped.
#[derive(Debug)]
pub struct LocalRedis {
    program: String,
    port: u16,
    password: Option<String>,
    /// More lines of its configuration.
    more: String,
    directory: TempDir,
    child: Option<Child>,
}

impl LocalRedis {
    /// Starts a server on a free port and waits until it answers.
    pub async fn start() -> Result<Self, LocalRedisError> {
        Self::start_on(None, None).await
    }

    /// Like [`start`](Self::start), with a password every client must give.
    pub async fn start_with_password(password: &str) -> Result<Self, LocalRedisError> {
        Self::start_on(None, Some(password)).await
    }

    /// Starts a server on `port`, or on a free one, with or without `password`, and waits until it
    /// answers.
    pub async fn start_on(
        port: Option<u16>,
        password: Option<&str>,
    ) -> Result<Self, LocalRedisError> {
        Self::start_program(program(), port, password, "").await
    }

    /// Starts a server on `port`, or on a free one, with `more` lines in its configuration, and waits
    /// until it answers.
    pub async fn start_configured(port: Option<u16>, more: &str) -> Result<Self, LocalRedisError> {
        Self::start_program(program(), port, None, more).await
    }

    async fn start_program(
        program: String,
        port: Option<u16>,
        password: Option<&str>,
        more: &str,
    ) -> Result<Self, LocalRedisError> {
        if !password.is_none_or(is_plain) {
            return Err(LocalRedisError::Password);
        }
        let mut server = Self {
            program,
            port: port.unwrap_or_default(),
            password: password.map(str::to_owned),
            more: more.to_owned(),
            directory: tempfile::Builder::new().prefix("flexkv-redis-").tempdir()?,
            child: None,
        };
        for _ in 1..PORT_ATTEMPTS {
            if port.is_none() {
                server.port = free_port()?;
            }
            match server.restart().await {
                Err(LocalRedisError::NotAnswering { .. }) if port.is_none() => {}
                outcome => return outcome.map(|()| server),
            }
        }
        server.restart().await.map(|()| server)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its URL, with the password if it has one.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// Kills the server as `kill -9` does. Nothing happens if it is not running.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Fails only if the process has ended already; it is reaped either way.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Kills the server if it runs and starts an empty one on the same port.
    pub async fn restart(&mut self) -> Result<(), LocalRedisError> {
        self.kill();
        self.spawn()?;
        let outcome = self.until_it_answers().await;
        if outcome.is_err() {
            self.kill();
        }
        outcome
    }

    /// Starts the process. The configuration goes through its standard input, where no other user
    /// of the host sees the password.
    fn spawn(&mut self) -> Result<(), LocalRedisError> {
        let spawned = Command::new(&self.program)
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LocalRedisError::NotInstalled {
                program: self.program.clone(),
            },
            _ => LocalRedisError::Io(error),
        })?;
        let stdin = child.stdin.take();
        self.child = Some(child);
        let configuration = self.configuration();
        match stdin.map(|mut stdin| stdin.write_all(configuration.as_bytes())) {
            // A process that ended already is reported with its status.
            Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn configuration(&self) -> String {
        let directory = self.directory.path().display();
        let mut lines = format!(
            "bind 127.0.0.1\nport {}\ndir \"{directory}\"\nlogfile \"{}\"\n\
             save \"\"\nappendonly no\ndaemonize no\n",
            self.port,
            self.log_file().display(),
        );
        if let Some(password) = &self.password {
            lines += &format!("requirepass {password}\n");
        }
        lines + &self.more
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("redis.log")
    }

    async fn until_it_answers(&mut self) -> Result<(), LocalRedisError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(ended) = self.ended()? {
                return Err(self.not_answering(&ended));
            }
            match timeout_at(deadline, self.answers()).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(_) => sleep(Duration::from_millis(5)).await,
                Err(_) => return Err(self.not_answering("does not answer")),
            }
            if Instant::now() >= deadline {
                return Err(self.not_answering("does not answer"));
            }
        }
    }

    fn ended(&mut self) -> io::Result<Option<String>> {
        let status = self.child.as_mut().map(Child::try_wait).transpose()?;
        Ok(status.flatten().map(|status| format!("ended: {status}")))
    }

    /// Whether a server answers on our port, and it is ours rather than one that was faster.
    async fn answers(&self) -> io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let auth = self.password.as_ref().map(|p| format!("AUTH {p}\r\n"));
        let commands = auth.unwrap_or_default() + "PING\r\nINFO server\r\nQUIT\r\n";
        stream.write_all(commands.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(64 << 10).read_to_string(&mut answer).await?;
        let process = self.child.as_ref().map_or(0, Child::id);
        let line = format!("process_id:{process}");
        Ok(answer.contains("+PONG\r\n") && answer.lines().any(|l| l == line))
    }

    fn not_answering(&self, what: &str) -> LocalRedisError {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        LocalRedisError::NotAnswering {
            port: self.port,
            what: what.to_owned(),
            log: lines[lines.len().saturating_sub(5)..].join("\n"),
        }
    }
}

impl Drop for LocalRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server's program.
pub fn program() -> String {
    std::env::var(SERVER_VARIABLE).unwrap_or_else(|_| "redis-server".to_owned())
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn is_plain(password: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    !password.is_empty() && password.bytes().all(plain)
}

#[cfg(test)]
mod tests;
