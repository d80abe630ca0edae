//! From certificates to what QUIC wants, and from TLS's alerts to words.

use std::sync::Arc;

use dogsled_replication::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, TransportErrorCode};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;

use crate::certs::{CertificateError, CertificateNames, Certificates};
use crate::options::NetOptions;
use crate::wire::{CLIENT_ALPN, PEER_ALPN};

/// The name that a node's certificate must carry for whoever dials the node.
pub(crate) fn node_name(node: NodeId) -> String {
    format!("node-{node}.dogsled")
}

/// The name that a client demands of every node of a cluster.
pub(crate) fn cluster_name(cluster: &str) -> String {
    format!("cluster-{cluster}.dogsled")
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    // AES-128 is as safe here as AES-256, and faster; both sides have the instructions for it.
    provider.cipher_suites.sort_by_key(|suite| {
        use rustls::CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
        match suite.suite() {
            TLS13_AES_128_GCM_SHA256 => 0,
            TLS13_AES_256_GCM_SHA384 => 1,
            _ => 2,
        }
    });
    Arc::new(provider)
}

fn unusable(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Unusable(error.to_string())
}

/// How connections that arrive are authenticated: both protocols, always with the other side's
/// certificate. No session is ever resumed, so that each is checked against today's authority and
/// clock, and no request can be replayed.
pub(crate) fn server_config(
    certificates: &Certificates,
    options: &NetOptions,
) -> Result<quinn::ServerConfig, CertificateError> {
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(certificates.roots()?), provider.clone())
            .build()
            .map_err(unusable)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates.chain.clone(), certificates.key.clone_key())
        .map_err(unusable)?;
    tls.alpn_protocols = vec![PEER_ALPN.to_vec(), CLIENT_ALPN.to_vec()];
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    let tls = QuicServerConfig::try_from(tls).map_err(unusable)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(options.serving());
    config.max_incoming(options.max_handshakes);
    Ok(config)
}

/// How clients are met that speak TLS over TCP: by the node's certificate, without one of theirs.
pub(crate) fn tcp_server_config(
    certificates: &Certificates,
) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(certificates.chain.clone(), certificates.key.clone_key())
        .map_err(unusable)?;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    Ok(Arc::new(tls))
}

/// How this side dials, as a node or as a client.
pub(crate) fn client_config(
    certificates: &Certificates,
    alpn: &[u8],
    options: &NetOptions,
) -> Result<quinn::ClientConfig, CertificateError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(certificates.roots()?)
        .with_client_auth_cert(certificates.chain.clone(), certificates.key.clone_key())
        .map_err(unusable)?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    let tls = QuicClientConfig::try_from(tls).map_err(unusable)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    let transport = if alpn == CLIENT_ALPN { options.dialling_as_client() } else { options.dialling() };
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What the verified certificate of a connection's other side names.
pub(crate) fn remote_names(connection: &quinn::Connection) -> CertificateNames {
    let Some(identity) = connection.peer_identity() else { return CertificateNames::default() };
    let Ok(chain) = identity.downcast::<Vec<CertificateDer<'static>>>() else {
        return CertificateNames::default();
    };
    chain.first().and_then(|leaf| CertificateNames::of(leaf).ok()).unwrap_or_default()
}

/// The protocol that a connection's sides have agreed upon.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// An error of QUIC in words that say what to look at.
pub(crate) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error) => match alert(error.code) {
            // The reason is rustls' own: names the certificate's fault.
            Some(_) if !error.reason.is_empty() => error.reason.clone(),
            Some(alert) => alert_in_words(alert),
            None => error.to_string(),
        },
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(alert) => format!("the other side refused: {}", alert_in_words(alert)),
            None => format!("closed by the other side: {close}"),
        },
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            if reason.is_empty() {
                "closed by the other side".to_owned()
            } else {
                format!("closed by the other side: {reason}")
            }
        }
        ConnectionError::TimedOut => "nothing was heard for too long".to_owned(),
        ConnectionError::Reset => "the other side has restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed here".to_owned(),
        other => other.to_string(),
    }
}

/// QUIC carries a TLS alert as 0x100 plus its number.
fn alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some((code & 0xff) as u8)
}

fn alert_in_words(alert: u8) -> String {
    match alert {
        42 | 43 | 46 => "it does not accept this side's certificate".to_owned(),
        44 => "this side's certificate is revoked".to_owned(),
        45 => "this side's certificate has expired, or its clock is ahead".to_owned(),
        48 => "this side's certificate is not signed by the authority it trusts".to_owned(),
        49 => "access is denied".to_owned(),
        51 => "this side's certificate has a bad signature".to_owned(),
        116 => "it demands a certificate".to_owned(),
        120 => "it speaks no protocol that this side speaks".to_owned(),
        other => format!("TLS alert {other}"),
    }
}
