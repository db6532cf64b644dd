//! The certificates for connections between nodes, out of the section `network`.
//!
//! Knows nothing of connections.

use std::path::PathBuf;

use flexkv_tcp::{Tls, TlsError, TlsFiles};

use super::fields::Fields;

const CERTIFICATE: &str = "network.tls_certificate_file";
const KEY: &str = "network.tls_key_file";
const AUTHORITIES: &str = "network.tls_ca_file";
const NAME: &str = "network.tls_name";

/// Reads the files; none if no key of TLS is there, or something is wrong with one.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Tls> {
    let name = fields.text(NAME).map(str::to_owned);
    let [certificate, key, authorities] =
        [CERTIFICATE, KEY, AUTHORITIES].map(|key| fields.text(key).map(PathBuf::from));
    let keys = [CERTIFICATE, KEY, AUTHORITIES, NAME];
    let one = keys.into_iter().find(|key| fields.has(key))?;
    for key in [CERTIFICATE, KEY, AUTHORITIES] {
        if !fields.has(key) {
            fields.refuse(key, format!("is missing beside `{one}`"));
        }
    }
    let files = TlsFiles {
        certificate: certificate?,
        key: key?,
        authorities: authorities?,
        name,
    };
    let read = Tls::read(&files);
    read.map_err(|error| fields.refuse(blamed(&error, &files), error.to_string()))
        .ok()
}

/// The key whose value is wrong.
fn blamed(error: &TlsError, files: &TlsFiles) -> &'static str {
    match error {
        TlsError::File { path, .. } if *path == files.key => KEY,
        TlsError::File { path, .. } if *path == files.authorities => AUTHORITIES,
        TlsError::Name(_) => NAME,
        TlsError::File { .. } | TlsError::Library(_) => CERTIFICATE,
    }
}
