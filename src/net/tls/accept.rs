//! Who we are to clients: a certificate from a folder, read again when it changes, or one of our own making.

use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};

use super::super::stream::Stream;
use super::session::Session;
use crate::log;
use crate::shared::Published;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A certificate of our own is good for ten years.
const OWN_DAYS: u64 = 3650;
/// The first byte of a TLS connection: a handshake record. No HTTP method begins so.
pub const FIRST_BYTE: u8 = 0x16;

/// Makes sessions of client connections.
pub struct Acceptor {
    rustls: Arc<ServerConfig>,
    /// Plain HTTP is not answered.
    pub strict: bool,
}

#[derive(Debug)]
struct Certificate(Published<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

impl std::fmt::Debug for Published<CertifiedKey> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Published")
    }
}

impl Acceptor {
    /// `folder` holds `tls.crt` and `tls.key`; without one the certificate is our own, for `names`.
    pub fn new(folder: Option<&Path>, names: &[String], strict: bool) -> io::Result<Acceptor> {
        let first = match folder {
            Some(folder) => read(folder)?,
            None => own(names)?,
        };
        let certificate = Arc::new(Certificate(Published::new(first)));
        if let Some(folder) = folder {
            watch(folder.to_owned(), &certificate)?;
        }
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut rustls = builder
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        // We speak no other; a client that asks for h2 alone is told so in the handshake.
        rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Acceptor {
            rustls: Arc::new(rustls),
            strict,
        })
    }

    /// `early`: what has been read from the client already.
    pub async fn accept(&self, raw: Stream, early: Vec<u8>) -> io::Result<Stream> {
        let rustls = ServerConnection::new(self.rustls.clone()).map_err(io::Error::other)?;
        let session = Box::new(Session::server(raw, rustls, early));
        session.handshake().await?;
        Ok(Stream::from_tls(session))
    }
}

fn read(folder: &Path) -> io::Result<CertifiedKey> {
    let (chain, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let wrong = |path: &Path, why: &dyn std::fmt::Display| {
        io::Error::other(format!("{}: {why}", path.display()))
    };
    let bytes = small_file(&chain).map_err(|why| wrong(&chain, &why))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|why| wrong(&chain, &why))?;
    if certificates.is_empty() {
        return Err(wrong(&chain, &"there is no certificate in it"));
    }
    let bytes = small_file(&key).map_err(|why| wrong(&key, &why))?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes).map_err(|why| wrong(&key, &why))?;
    let certified = CertifiedKey::from_der(certificates, secret, &ring::default_provider());
    certified.map_err(|why| wrong(&key, &why))
}

/// A chain of certificates is a few KiB.
const FILE_MAX: u64 = 1 << 20;

/// What may stand there while the files are being replaced must neither block the watcher nor fill the memory.
fn small_file(path: &Path) -> io::Result<Vec<u8>> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    let mut options = std::fs::OpenOptions::new();
    // (It may have become something else in between.)
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.take(FILE_MAX + 1).read_to_end(&mut bytes)? as u64 > FILE_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// ECDSA on P-256: made in a moment, where RSA of 4096 bits takes seconds. Clients of a certificate that nobody
/// signed do not look at its kind.
fn own(names: &[String]) -> io::Result<CertifiedKey> {
    let mut params = rcgen::CertificateParams::new(names.to_vec()).map_err(io::Error::other)?;
    let mut subject = rcgen::DistinguishedName::new();
    subject.push(rcgen::DnType::OrganizationName, "llm-d Routing Sidecar");
    params.distinguished_name = subject;
    let now = SystemTime::now();
    params.not_before = now.into();
    params.not_after = (now + Duration::from_secs(OWN_DAYS * 24 * 3600)).into();
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    let secret = PrivatePkcs8KeyDer::from(key.serialize_der());
    let chain = vec![certificate.der().clone()];
    CertifiedKey::from_der(chain, secret.into(), &ring::default_provider())
        .map_err(io::Error::other)
}

/// Looks at the files for as long as somebody uses them. What cannot be read changes nothing.
fn watch(folder: PathBuf, certificate: &Arc<Certificate>) -> io::Result<()> {
    let weak = Arc::downgrade(certificate);
    let stamp = move |folder: &Path| {
        // Through links: a mounted secret is replaced by turning one of them.
        ["tls.crt", "tls.key"].map(|name| {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(folder.join(name)).ok();
            found.map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
        })
    };
    let mut seen = stamp(&folder);
    let look = move || {
        while weak.strong_count() > 0 {
            std::thread::sleep(LOOK_EVERY);
            let Some(certificate) = weak.upgrade() else {
                return;
            };
            let now = stamp(&folder);
            if now == seen {
                continue;
            }
            match read(&folder) {
                Ok(new) => {
                    seen = now;
                    certificate.0.publish(new);
                    log::info(|| format!("{}: the certificate was read again", folder.display()));
                }
                // The two files are replaced one after the other: the next look finds both.
                Err(why) => log::limited("certificate", log::Level::Warning, || {
                    format!("the certificate stays as it was: {why}")
                }),
            }
        }
    };
    std::thread::Builder::new()
        .name("certificate".into())
        .spawn(look)
        .map(|_| ())
}
