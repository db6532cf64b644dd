//! Certificates: whom we trust, and how we prove who we are. Knows nothing of connections.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fred::types::config::TlsConnector;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::ConfigError;

/// Files in PEM form for connections with TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities whose servers we trust; those of the system if not given.
    pub authorities: Option<PathBuf>,
    /// Our own certificate and its key, for servers that ask for one.
    pub identity: Option<Identity>,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.authorities.is_none() && self.identity.is_none()
    }
}

/// What connects with the certificates of `files`.
pub(crate) fn connector(files: &TlsFiles) -> Result<TlsConnector, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse("the library", &error))?
        .with_root_certificates(authorities(files.authorities.as_deref())?);
    let config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            let read = PrivateKeyDer::from_pem_file(key);
            let private = read.map_err(|error| refuse(&shown(key), &error))?;
            builder
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(|error| refuse(&shown(certificate), &error))?
        }
    };
    Ok(config.into())
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates(file)? {
                let added = roots.add(certificate);
                added.map_err(|error| refuse(&shown(file), &error))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let reason = "there are none; give a file with the authority's certificate";
                return Err(refuse("certificates that this system trusts", &reason));
            }
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(refuse(&shown(file), &"holds no certificate")),
        Ok(all) => Ok(all),
        Err(error) => Err(refuse(&shown(file), &error)),
    }
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}

fn refuse(file: &str, reason: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Tls {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
