//! Which files are taken, and that an error names the file.

use std::path::{Path, PathBuf};

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::{Identity, TlsFiles, connector};

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn takes_certificates_and_names_the_file_that_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["localhost".to_owned()];
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(names).expect("a certificate");
    let certificate = write(folder.path(), "cert.pem", &cert.pem());
    let key = write(folder.path(), "key.pem", &signing_key.serialize_pem());
    let empty = write(folder.path(), "empty.pem", "nothing");
    let identity = |certificate: &PathBuf, key: &PathBuf| {
        Some(Identity {
            certificate: certificate.clone(),
            key: key.clone(),
        })
    };
    let good = TlsFiles {
        authorities: Some(certificate.clone()),
        identity: identity(&certificate, &key),
    };
    assert!(connector(&good).is_ok());
    let missing = folder.path().join("missing.pem");
    for (authorities, identity, file) in [
        (&empty, None, "empty.pem: holds no certificate"),
        (&missing, None, "missing.pem: "),
        (&key, None, "key.pem: holds no certificate"),
        (&certificate, identity(&empty, &key), "empty.pem: holds no"),
        (&certificate, identity(&certificate, &empty), "empty.pem: "),
        (
            &certificate,
            identity(&certificate, &missing),
            "missing.pem: ",
        ),
    ] {
        let authorities = Some(authorities.clone());
        let files = TlsFiles {
            authorities,
            identity,
        };
        let error = connector(&files).expect_err(file).to_string();
        assert!(error.starts_with("redis tls: "), "{error}");
        assert!(error.contains(file), "{file}: {error}");
    }
}
