//! Connections inside TLS, with certificates made for the test.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flexkv_handshake::{Refusal, Refusals};
use flexkv_ports::conformance::transport;
use flexkv_ports::{FetchOutcome, Transport as _};
use flexkv_tcp::{ServerConfig, Tls, TlsFiles, TransportConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::conformance::Harness;
use crate::support::{
    DEADLINE, FileTier, Only, Reader, config, dial, heap, opening, serve, server_config, store,
};

const BYTES: usize = 100_000;
const UNREACHABLE: FetchOutcome = FetchOutcome::Unreachable;

/// An authority, and files of it and of nodes.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");
        Self { folder, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Files of a node whose certificate bears `name`, an address or a host's.
    fn files(&self, name: &str) -> TlsFiles {
        let params = CertificateParams::new([name.to_owned()]).expect("good names");
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let (certificate, private) = (format!("{name}.pem"), format!("{name}.key"));
        std::fs::write(self.path(&certificate), signed.pem()).expect("written");
        std::fs::write(self.path(&private), key.serialize_pem()).expect("written");
        TlsFiles {
            certificate: self.path(&certificate),
            key: self.path(&private),
            authorities: self.path("ca.pem"),
            name: None,
        }
    }

    fn tls(&self, name: &str) -> Tls {
        Tls::read(&self.files(name)).expect("good files")
    }
}

/// A server with these certificates, and how often it refuses for those of others.
fn counting(tls: Tls) -> (ServerConfig, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let config = ServerConfig {
        tls: Some(tls),
        refusals: Refusals::register(&Only(Refusal::Tls, count.clone()), "a-node", "tcp"),
        ..server_config()
    };
    (config, count)
}

fn reader(tls: Tls) -> Reader {
    let config = TransportConfig {
        tls: Some(tls),
        connections: 1,
        ..config(BYTES)
    };
    Reader::with(config, 4)
}

#[tokio::test]
async fn conforms_inside_tls() {
    let authority = Authority::new();
    let tls = authority.tls("127.0.0.1");
    transport(async |slots, bytes| Harness::secured(heap(slots, bytes), tls.clone())).await;
}

#[tokio::test]
async fn blocks_of_files_pass_through_tls_like_others() {
    let authority = Authority::new();
    let tls = authority.tls("127.0.0.1");
    let tier = FileTier::new(4, BYTES);
    let stored = store(&*tier, 4);
    let config = ServerConfig {
        by_reference: Some(1),
        ..counting(tls.clone()).0
    };
    let server = serve(tier, config);
    assert!(server.endpoint().starts_with("tls://127.0.0.1:"));
    let reader = reader(tls);
    reader.eventually_fetches(server.endpoint(), &stored).await;
}

#[tokio::test]
async fn certificates_may_bear_one_name_for_all_nodes() {
    let authority = Authority::new();
    let named = |name: &str| {
        let files = TlsFiles {
            name: Some(name.to_owned()),
            ..authority.files("node.flexkv")
        };
        Tls::read(&files).expect("good files")
    };
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 2);
    let server = serve(tier, counting(named("node.flexkv")).0);
    let ours = reader(named("node.flexkv"));
    ours.eventually_fetches(server.endpoint(), &stored).await;
    for other in [named("other.flexkv"), authority.tls("node.flexkv")] {
        let other = reader(other);
        let outcomes = other.outcomes(server.endpoint(), &stored, DEADLINE).await;
        assert_eq!(outcomes, [UNREACHABLE; 2]);
        let reason = other.transport.last_refusal(server.endpoint());
        let reason = reason.expect("a reason");
        assert!(reason.contains("not valid for name"), "{reason}");
    }
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused_on_both_sides_and_counted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 2);
    let (config, count) = counting(ours.tls("127.0.0.1"));
    let server = serve(tier, config);
    // It does not believe the owner.
    let stranger = reader(theirs.tls("127.0.0.1"));
    // It does, but the owner does not believe it.
    let mixed = TlsFiles {
        authorities: ours.path("ca.pem"),
        ..theirs.files("127.0.0.1")
    };
    let impostor = reader(Tls::read(&mixed).expect("good files"));
    for (number, (reader, words)) in
        (1..).zip([(stranger, "invalid peer certificate"), (impostor, "alert")])
    {
        let outcomes = reader.outcomes(server.endpoint(), &stored, DEADLINE).await;
        assert_eq!(outcomes, [UNREACHABLE; 2]);
        let reason = reader.transport.last_refusal(server.endpoint());
        let reason = reason.expect("a reason");
        assert!(reason.contains(words), "`{reason}` does not say `{words}`");
        crate::support::eventually("it is counted", || count.load(Ordering::Relaxed) == number)
            .await;
        reader.all_buffers_return().await;
    }
    let friend = reader(ours.tls("127.0.0.1"));
    friend.eventually_fetches(server.endpoint(), &stored).await;
}

#[tokio::test]
async fn who_speaks_without_tls_is_refused_and_does_not_ask() {
    let authority = Authority::new();
    let tier = heap(4, BYTES);
    let stored = store(&*tier, 1);
    let (config, count) = counting(authority.tls("127.0.0.1"));
    let server = serve(tier, config);
    let mut plain = dial(&server);
    plain.write_all(&opening(BYTES)).expect("room to send");
    let mut answer = Vec::new();
    // The owner sends an alert, and closes before it has read everything.
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.len() < 100, "{} bytes", answer.len());
    crate::support::eventually("it is counted", || count.load(Ordering::Relaxed) == 1).await;
    let without = Reader::new(1, BYTES);
    assert!(!without.transport.reaches(server.endpoint()));
    let outcomes = without.outcomes(server.endpoint(), &stored, DEADLINE).await;
    assert_eq!(outcomes, [UNREACHABLE]);
}

#[test]
fn files_that_are_wrong_are_named() {
    let authority = Authority::new();
    let good = authority.files("127.0.0.1");
    let nothing = authority.path("nothing.pem");
    std::fs::write(&nothing, "no certificate\n").expect("written");
    let said = |files: TlsFiles| Tls::read(&files).expect_err("refused").to_string();
    let check = |files: TlsFiles, path: &Path, what: &str, reason: &str| {
        let said = said(files);
        let begins = format!("{what} {}: ", path.display());
        assert!(said.starts_with(&begins), "`{said}` does not name {begins}");
        assert!(said.contains(reason), "`{said}` does not say `{reason}`");
    };
    let missing = authority.path("missing.pem");
    let certificate = |path: &Path| TlsFiles {
        certificate: path.to_owned(),
        ..good.clone()
    };
    let gone = "No such file";
    check(certificate(&missing), &missing, "the certificate", gone);
    let empty = "there is no certificate in it";
    check(certificate(&nothing), &nothing, "the certificate", empty);
    let key = |path: &Path| TlsFiles {
        key: path.to_owned(),
        ..good.clone()
    };
    check(key(&missing), &missing, "the private key", gone);
    check(key(&nothing), &nothing, "the private key", "no items found");
    let other = authority.files("other").key;
    check(key(&other), &other, "the private key", "KeyMismatch");
    let authorities = |path: &Path| TlsFiles {
        authorities: path.to_owned(),
        ..good.clone()
    };
    let what = "the authorities' certificates";
    check(authorities(&missing), &missing, what, gone);
    check(authorities(&nothing), &nothing, what, empty);
    let name = TlsFiles {
        name: Some("not a name".to_owned()),
        ..good.clone()
    };
    assert!(said(name).contains("`not a name`"));
}
