//! TLS, with certificates made here.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use flexkv_block::NamespaceId;
use flexkv_ports::{MetadataStore, StoreError};
use flexkv_redis::local::LocalRedis;
use flexkv_redis::{Identity, RedisConfig, RedisStore, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use tempfile::TempDir;

use crate::server::{LONG, entries, names, sequences};

/// A server with TLS, and files in `folder`: `ca.pem`, and of both sides `NAME.pem` and `NAME.key`.
struct Secured {
    folder: TempDir,
    _server: LocalRedis,
    port: u16,
}

impl Secured {
    async fn start(ask_clients: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        let mut authority = CertificateParams::new([]).expect("good names");
        let called = format!("authority {:016x}", fastrand::Rng::new().u64(..));
        authority.distinguished_name = named(&called);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(authority, key).expect("signed");
        write("ca.pem", &authority.pem());
        for name in ["server", "client"] {
            let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
            let mut params = CertificateParams::new(names).expect("good names");
            params.distinguished_name = named(name);
            let key = KeyPair::generate().expect("a key");
            let signed = params.signed_by(&key, &authority).expect("signed");
            write(&format!("{name}.pem"), &signed.pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let at = folder.path().display();
        let clients = if ask_clients { "yes" } else { "no" };
        let lines = format!(
            "tls-port {port}\ntls-cert-file {at}/server.pem\ntls-key-file {at}/server.key\n\
             tls-ca-cert-file {at}/ca.pem\ntls-auth-clients {clients}\n"
        );
        let server = LocalRedis::start_configured(None, &lines).await;
        Self {
            folder,
            _server: server.unwrap_or_else(|e| panic!("{e}")),
            port,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, host: &str, files: &TlsFiles) -> RedisConfig {
        let url = format!("rediss://{host}:{}", self.port);
        let namespace = NamespaceId::from_u128(1);
        RedisConfig::with_tls(&url, "it", namespace, files).expect("config")
    }

    fn authority(&self) -> TlsFiles {
        TlsFiles {
            authorities: Some(self.file("ca.pem")),
            identity: None,
        }
    }
}

/// A name as certificates have them.
fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

async fn works(config: RedisConfig) {
    let store = RedisStore::connect(config).await.expect("connect");
    let made = store.append("l", &entries(1..3, 100), true, LONG).await;
    made.expect("append");
    store
        .renew("n", "r".into(), "l", LONG)
        .await
        .expect("renew");
    assert_eq!(names(&store).await, ["n"]);
    assert_eq!(sequences(&store, "l", 0).await, [1, 2]);
}

#[tokio::test]
async fn a_server_whose_authority_we_are_told_of_is_trusted() {
    let secured = Secured::start(false).await;
    for host in ["127.0.0.1", "localhost"] {
        works(secured.config(host, &secured.authority())).await;
    }
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_not_trusted() {
    let (secured, other) = (Secured::start(false).await, Secured::start(false).await);
    let strangers = secured.config("127.0.0.1", &other.authority());
    let error = RedisStore::connect(strangers).await.expect_err("refused");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .ends_with(": InvalidCertificate(UnknownIssuer)"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_asks_who_we_are_is_told() {
    let secured = Secured::start(true).await;
    let ours = TlsFiles {
        identity: Some(Identity {
            certificate: secured.file("client.pem"),
            key: secured.file("client.key"),
        }),
        ..secured.authority()
    };
    works(secured.config("127.0.0.1", &ours)).await;
    let nobody = secured.config("127.0.0.1", &secured.authority());
    let error = RedisStore::connect(nobody).await.expect_err("refused");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
}
