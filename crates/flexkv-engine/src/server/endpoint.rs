//! The socket's place in the file system: a private folder, a lock that says who serves, the file.
//!
//! The lock file stays when the node goes: removing it would let two nodes hold "the" lock. Knows
//! nothing of sessions.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::StartError;

/// A bound socket. Dropping it removes the file and then lets go of the lock.
pub(super) struct Endpoint {
    path: PathBuf,
    lock: File,
}

impl Endpoint {
    /// Makes the folder if need be, takes the lock, replaces a socket that nobody listens on.
    /// `shared` opens the socket to other users; whom to serve is then decided per connection.
    pub(super) fn open(path: &Path, shared: bool) -> Result<(Self, UnixListener), StartError> {
        private_folder(path, shared)?;
        let lock = lock(path)?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
        let endpoint = Self {
            path: path.to_owned(),
            lock,
        };
        let mode = if shared { 0o666 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(failed("set the mode of", path))?;
        Ok((endpoint, listener))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket was not removed");
        }
        // Said aloud, as a child process that is just being started may share the open file.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!(socket = %self.path.display(), %error, "the lock was not let go");
        }
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

/// Makes the socket's folder with mode 700, or checks that the one there is as good.
fn private_folder(socket: &Path, shared: bool) -> Result<(), StartError> {
    let folder = match socket.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the folder", folder))?;
    let found = fs::metadata(folder).map_err(failed("look at the folder", folder))?;
    if !found.is_dir() {
        return Err(StartError::NotA {
            path: folder.to_owned(),
            expected: "folder",
        });
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        return Err(StartError::FolderOwner {
            path: folder.to_owned(),
            owner: found.uid(),
            own,
        });
    }
    let mode = found.mode() & 0o777;
    let forbidden = if shared { 0o022 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(StartError::FolderMode {
            path: folder.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Takes the lock beside the socket, which the kernel frees however its holder ends.
fn lock(socket: &Path) -> Result<File, StartError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed("open the lock", &path)(error.into()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.into()),
        Err(Errno::WOULDBLOCK) => Err(StartError::Taken {
            path: socket.to_owned(),
        }),
        Err(error) => Err(failed("take the lock", &path)(error.into())),
    }
}

/// Removes a socket file without listener; anything else in its place is an error.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !found.file_type().is_socket() {
        return Err(StartError::NotA {
            path: path.to_owned(),
            expected: "socket",
        });
    }
    match probe(path) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(socket = %path.display(), "a socket without listener is replaced");
            fs::remove_file(path).map_err(failed("remove the stale socket", path))
        }
        Ok(()) | Err(Errno::AGAIN) => Err(StartError::Taken {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed("probe", path)(error.into())),
    }
}

/// Whether someone listens there, without waiting: a full queue of connections is `AGAIN`.
fn probe(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}
