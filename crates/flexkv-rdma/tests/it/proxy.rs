//! A middleman between reader and owner who changes what they say after the greeting.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
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
    garble: Arc<AtomicBool>,
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
        let garble = Arc::new(AtomicBool::new(false));
        let garbles = garble.clone();
        let task = tokio::spawn(async move {
            loop {
                let (reader, _) = listener.accept().await.expect("a reader");
                let change = *changes.lock().expect("no panic");
                tokio::spawn(pass(reader, owner, change, garbles.clone()));
            }
        });
        Self {
            endpoint: format!("rdma://{address}"),
            change,
            garble,
            task,
        }
    }

    /// What happens to answers from now on.
    pub(crate) fn set(&self, change: Change) {
        *self.change.lock().expect("no panic") = change;
    }

    /// The first byte of what a reader says next is another one.
    pub(crate) fn garble(&self) {
        self.garble.store(true, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(reader: TcpStream, owner: SocketAddr, change: Change, garble: Arc<AtomicBool>) {
    let Ok(owner) = TcpStream::connect(owner).await else {
        return;
    };
    let (mut from_reader, mut to_reader) = reader.into_split();
    let (mut from_owner, mut to_owner) = owner.into_split();
    let there = async {
        let mut bytes = [0; 512];
        while let Ok(read @ 1..) = from_reader.read(&mut bytes).await {
            if garble.swap(false, Ordering::SeqCst) {
                bytes[0] ^= 0xff;
            }
            if to_owner.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
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
        () = there => {}
        () = back => {}
    }
}
