//! Certificates of a node: how it shows who it is, and whom it believes. Both sides of a connection
//! show theirs.
//!
//! Knows nothing of sockets. That a peer belongs to the cluster is proved later, by the greeting.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
use thiserror::Error;

/// Files in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Certificates of the authorities whose nodes are believed.
    pub authorities: PathBuf,
    /// The name that certificates of all nodes bear. Without one, an owner's must bear its address.
    pub name: Option<String>,
}

/// What a node shows and believes, read from its files.
#[derive(Clone)]
pub struct Tls {
    reader: Arc<ClientConfig>,
    owner: Arc<ServerConfig>,
    name: Option<ServerName<'static>>,
}

/// What is wrong with certificates.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TlsError {
    /// A file cannot be read, or has not in it what it should.
    #[error("{what} {}: {reason}", path.display())]
    File {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The name is none.
    #[error("`{0}` is no name that a certificate could bear")]
    Name(String),
    /// The cryptographic library does not take it.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}

/// What each of the files should be.
const CERTIFICATE: &str = "the certificate";
const KEY: &str = "the private key";
const AUTHORITIES: &str = "the authorities' certificates";

impl Tls {
    /// Reads the files.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authorities(&files.authorities)?);
        let chain = certificates(CERTIFICATE, &files.certificate)?;
        let key = || {
            let read = PrivateKeyDer::from_pem_file(&files.key);
            read.map_err(|error| refuse(KEY, &files.key, error))
        };
        let unfit = |error: rustls::Error| refuse(KEY, &files.key, error);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier = verifier
            .build()
            .map_err(|error| refuse(AUTHORITIES, &files.authorities, error))?;
        let reader = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(library)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key()?)
            .map_err(unfit)?;
        let mut owner = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(library)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key()?)
            .map_err(unfit)?;
        // Nothing but answers may come to a reader: it takes anything else on an idle connection
        // for its end.
        owner.send_tls13_tickets = 0;
        let name = files.name.as_ref().map(|name| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|_| TlsError::Name(name.clone()))
        });
        Ok(Self {
            reader: Arc::new(reader),
            owner: Arc::new(owner),
            name: name.transpose()?,
        })
    }

    /// A reader's end of a connection to the owner at `address`.
    pub(crate) fn to_owner(&self, address: IpAddr) -> Result<Connection, rustls::Error> {
        let name = self.name.clone();
        let name = name.unwrap_or_else(|| ServerName::from(address));
        ClientConnection::new(self.reader.clone(), name).map(Connection::from)
    }

    /// An owner's end of a connection.
    pub(crate) fn to_reader(&self) -> Result<Connection, rustls::Error> {
        ServerConnection::new(self.owner.clone()).map(Connection::from)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(AUTHORITIES, file)? {
        let added = roots.add(certificate);
        added.map_err(|error| refuse(AUTHORITIES, file, error))?;
    }
    Ok(roots)
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| refuse(what, file, error))?;
    if all.is_empty() {
        return Err(refuse(what, file, "there is no certificate in it"));
    }
    Ok(all)
}

fn refuse(what: &'static str, path: &Path, reason: impl fmt::Display) -> TlsError {
    TlsError::File {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn library(error: rustls::Error) -> TlsError {
    TlsError::Library(error.to_string())
}
