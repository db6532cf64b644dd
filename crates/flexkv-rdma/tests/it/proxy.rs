//! A middleman between reader and owner who changes what the owner says after the greeting.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes that the owner says in an accepting greeting: a welcome, a proof, a verdict.
const GREETING_BYTES: usize = 24 + 144 + 296;

/// What happens to the owner's answer.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    Nothing,
    /// A byte of it is another one.
    Flip(usize),
    /// It ends after so many bytes.
    Cut(usize),
}

/// Ends with its value.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    change: Arc<Mutex<Change>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn before(owner: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("its address");
        let change = Arc::new(Mutex::new(Change::Nothing));
        let changes = change.clone();
        let task = tokio::spawn(async move {
            loop {
                let (reader, _) = listener.accept().await.expect("a reader");
                let change = *changes.lock().expect("no panic");
                tokio::spawn(pass(reader, owner, change));
            }
        });
        Self {
            endpoint: format!("rdma://{address}"),
            change,
            task,
        }
    }

    /// What happens to answers from now on.
    pub(crate) fn set(&self, change: Change) {
        *self.change.lock().expect("no panic") = change;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(reader: TcpStream, owner: SocketAddr, change: Change) {
    let Ok(owner) = TcpStream::connect(owner).await else {
        return;
    };
    let (mut from_reader, mut to_reader) = reader.into_split();
    let (mut from_owner, mut to_owner) = owner.into_split();
    let there = tokio::io::copy(&mut from_reader, &mut to_owner);
    let back = async {
        let mut at = 0usize;
        let mut bytes = [0; 512];
        loop {
            let read = from_owner.read(&mut bytes).await.unwrap_or(0);
            let mut pass = &mut bytes[..read];
            match change {
                Change::Flip(byte) if (at..at + read).contains(&(GREETING_BYTES + byte)) => {
                    pass[GREETING_BYTES + byte - at] ^= 0xff;
                }
                Change::Cut(byte) if at + read > GREETING_BYTES + byte => {
                    pass = &mut pass[..(GREETING_BYTES + byte).saturating_sub(at)];
                }
                _ => {}
            }
            at += read;
            if to_reader.write_all(pass).await.is_err() || pass.len() < read || read == 0 {
                return;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = back => {}
    }
}
