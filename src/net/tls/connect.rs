//! Whom we believe upstream: who was signed by an authority, or (if so configured) anyone.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::super::stream::Stream;
use super::session::Session;

/// One way of believing; shared by all connections that do.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// The system's authorities, and those of `file` (PEM).
    pub fn authorities(file: Option<&Path>) -> io::Result<Trust> {
        let mut roots = RootCertStore::empty();
        match file {
            Some(file) => {
                let wrong = |why: &dyn std::fmt::Display| {
                    io::Error::other(format!("{}: {why}", file.display()))
                };
                let found = CertificateDer::pem_file_iter(file).map_err(|why| wrong(&why))?;
                for one in found {
                    let one = one.map_err(|why| wrong(&why))?;
                    roots.add(one).map_err(|why| wrong(&why))?;
                }
                if roots.is_empty() {
                    return Err(wrong(&"there is no certificate in it"));
                }
            }
            // A machine without any is told so at the first connection, in the certificate's name.
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let config = builder()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }

    /// Anyone, whatever certificate it shows.
    pub fn anyone() -> io::Result<Trust> {
        let provider = ring::default_provider();
        let config = builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }

    /// A connected stream becomes a session with `host`.
    pub async fn connect(&self, raw: Stream, host: &str) -> io::Result<Stream> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let rustls = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        let session = Box::new(Session::client(raw, rustls));
        session.handshake().await?;
        Ok(Stream::from_tls(session))
    }
}

fn builder() -> io::Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)
}

#[derive(Debug)]
struct Anyone(CryptoProvider);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
