//! Certificates: who may speak to a cluster, and as whom.
//!
//! Every connection is authenticated on both sides by a certificate of the cluster's own authority
//! (CA); there is no mode without. Who someone is stands in the certificate's DNS names:
//!
//! | name | whose |
//! |---|---|
//! | `node-<id>.dogsled` | the node with that id; may serve, and speak to other nodes |
//! | `client-<name>.dogsled` | a client; can not pose as a node: its extended key usage forbids to serve |
//! | `admin.dogsled` | beside the former: a client that may also change the cluster, its members above all |
//! | `cluster-<name>.dogsled` | on all, the cluster: what a client demands of the node it reaches |
//!
//! and on a node's certificate the addresses given, for tools that check them. Whoever holds the
//! authority's key can be anyone: keep `ca.key` away from the nodes.
//!
//! [`Authority`] issues; [`Certificates`] is what one node or client presents and trusts, loaded
//! from three PEM files ([`CertificateFiles`]). A cluster may also use an authority of its own
//! making, as long as the names above are there.

mod authority;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use authority::{Authority, IssuedCertificate, dev_certificates};
use dogsled_replication::NodeId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What can be wrong with certificates.
#[derive(Debug)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file could not be read or written.
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that must not be overwritten is there already.
    Exists(PathBuf),
    /// Not PEM, not a certificate, no private key.
    Malformed {
        /// Which file or part.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate was not signed by the authority that is trusted.
    WrongAuthority {
        /// Who the certificate says has signed it.
        issuer: String,
        /// Who is trusted.
        authority: String,
    },
    /// The certificate is no longer valid.
    Expired {
        /// When it ended.
        not_after: SystemTime,
    },
    /// The certificate is not valid yet: it, or this machine's clock, is wrong.
    NotYetValid {
        /// When it begins.
        not_before: SystemTime,
    },
    /// The certificate names another node, or none.
    OtherNode {
        /// Who it should name.
        expected: NodeId,
        /// Who it names.
        found: Vec<NodeId>,
    },
    /// The private key belongs to another certificate, or TLS cannot use it.
    Unusable(String),
    /// A name that cannot stand in a certificate.
    BadName {
        /// The name.
        name: String,
        /// What names look like.
        rule: &'static str,
    },
    /// A certificate could not be made.
    Issue(String),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateError::Io { path, source } => write!(f, "{}: {source}", path.display()),
            CertificateError::Exists(path) => {
                write!(f, "{} is there already and is not overwritten", path.display())
            }
            CertificateError::Malformed { what, why } => write!(f, "{what}: {why}"),
            CertificateError::WrongAuthority { issuer, authority } => write!(
                f,
                "the certificate was issued by \"{issuer}\" and not signed by the trusted \"{authority}\""
            ),
            CertificateError::Expired { not_after } => {
                write!(f, "the certificate expired at {}", Moment(*not_after))
            }
            CertificateError::NotYetValid { not_before } => write!(
                f,
                "the certificate is valid from {} only, and here it is {}",
                Moment(*not_before),
                Moment(SystemTime::now())
            ),
            CertificateError::OtherNode { expected, found } if found.is_empty() => {
                write!(f, "the certificate names no node, and should name node {expected}")
            }
            CertificateError::OtherNode { expected, found } => {
                let found: Vec<String> = found.iter().map(NodeId::to_string).collect();
                write!(f, "the certificate is that of node {}, not of node {expected}", found.join(", "))
            }
            CertificateError::Unusable(why) => write!(f, "the certificate cannot be used: {why}"),
            CertificateError::BadName { name, rule } => write!(f, "the name \"{name}\" is not {rule}"),
            CertificateError::Issue(why) => write!(f, "the certificate could not be made: {why}"),
        }
    }
}

impl std::error::Error for CertificateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CertificateError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A time for people, in UTC.
struct Moment(SystemTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = time::OffsetDateTime::from(self.0);
        let (year, month, day) = moment.to_calendar_date();
        let (hour, minute, second) = moment.to_hms();
        write!(f, "{year}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC", u8::from(month))
    }
}

/// Where one node's or client's certificate lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    /// The authority that is trusted: one or several certificates, so that it can be replaced.
    pub ca: PathBuf,
    /// The own certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// The own private key.
    pub key: PathBuf,
}

/// How files looked: when each was written last, and how long it was.
pub(crate) type Fingerprint = [Option<(SystemTime, u64)>; 3];

impl CertificateFiles {
    /// A node's files in a directory that [`IssuedCertificate::save`] has written.
    pub fn of_node(directory: &Path, node: NodeId) -> CertificateFiles {
        CertificateFiles::named(directory, &format!("node-{node}"))
    }

    /// A client's files in a directory that [`IssuedCertificate::save`] has written.
    pub fn of_client(directory: &Path, name: &str) -> CertificateFiles {
        CertificateFiles::named(directory, &format!("client-{name}"))
    }

    fn named(directory: &Path, stem: &str) -> CertificateFiles {
        CertificateFiles {
            ca: directory.join("ca.crt"),
            certificate: directory.join(format!("{stem}.crt")),
            key: directory.join(format!("{stem}.key")),
        }
    }

    /// The same files whatever directory the process works in later. What the system cannot tell stays as it is.
    pub(crate) fn absolute(&self) -> CertificateFiles {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        CertificateFiles {
            ca: absolute(&self.ca),
            certificate: absolute(&self.certificate),
            key: absolute(&self.key),
        }
    }

    /// Changes whenever one of the files does. Cheap; `None` for a file that cannot be looked at.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        [&self.ca, &self.certificate, &self.key].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// What a certificate says of its holder.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CertificateNames {
    /// Nodes that it names; a sound one names one at most.
    pub nodes: Vec<NodeId>,
    /// The client that it names.
    pub client: Option<String>,
    /// Whether it says that this client may change the cluster.
    pub administrator: bool,
    /// The cluster that it names.
    pub cluster: Option<String>,
}

impl CertificateNames {
    /// Reads the names of a certificate, which must have been verified before they are believed.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<CertificateNames, CertificateError> {
        Ok(CertificateNames::of_parsed(&parse(certificate)?))
    }

    fn of_parsed(certificate: &X509Certificate<'_>) -> CertificateNames {
        let mut names = CertificateNames::default();
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return names };
        for name in &alternatives.value.general_names {
            let GeneralName::DNSName(name) = name else { continue };
            let Some(stem) = name.strip_suffix(".dogsled") else { continue };
            names.administrator |= stem == "admin";
            if let Some(id) = stem.strip_prefix("node-") {
                // Only the canonical form, so that two spellings are not two identities.
                if let Some(id) = id.parse::<u64>().ok().filter(|number| number.to_string() == id) {
                    names.nodes.push(NodeId(id));
                }
            } else if let Some(client) = stem.strip_prefix("client-") {
                names.client.get_or_insert_with(|| client.to_owned());
            } else if let Some(cluster) = stem.strip_prefix("cluster-") {
                names.cluster.get_or_insert_with(|| cluster.to_owned());
            }
        }
        names
    }
}

/// What one side of a connection presents and trusts.
pub struct Certificates {
    /// The authorities that are trusted.
    pub ca: Vec<CertificateDer<'static>>,
    /// The own certificate, then intermediate ones.
    pub chain: Vec<CertificateDer<'static>>,
    /// The own private key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Certificates {
    fn clone(&self) -> Self {
        Certificates { ca: self.ca.clone(), chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Certificates").field("names", &self.names().ok()).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the three files and [checks](Self::check) what they hold.
    pub fn load(files: &CertificateFiles) -> Result<Certificates, CertificateError> {
        let certificates = Certificates::parse([
            (&read(&files.ca)?, &files.ca.display()),
            (&read(&files.certificate)?, &files.certificate.display()),
            (&read(&files.key)?, &files.key.display()),
        ])?;
        certificates.check()?;
        Ok(certificates)
    }

    /// From PEM texts; [checks](Self::check) them.
    pub fn from_pem(ca: &str, chain: &str, key: &str) -> Result<Certificates, CertificateError> {
        let certificates = Certificates::parse([
            (ca.as_bytes(), &"the authority's certificate"),
            (chain.as_bytes(), &"the certificate"),
            (key.as_bytes(), &"the private key"),
        ])?;
        certificates.check()?;
        Ok(certificates)
    }

    fn parse([ca, chain, key]: [(&[u8], &dyn fmt::Display); 3]) -> Result<Certificates, CertificateError> {
        let many = |(pem, what): (&[u8], &dyn fmt::Display)| {
            let malformed = |why: String| CertificateError::Malformed { what: what.to_string(), why };
            let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| malformed(error.to_string()))?;
            if list.is_empty() {
                return Err(malformed("holds no certificate in PEM".to_owned()));
            }
            Ok(list)
        };
        let key = PrivateKeyDer::from_pem_slice(key.0).map_err(|error| CertificateError::Malformed {
            what: key.1.to_string(),
            why: format!("holds no private key in PEM: {error}"),
        })?;
        Ok(Certificates { ca: many(ca)?, chain: many(chain)?, key })
    }

    /// What the own certificate names.
    pub fn names(&self) -> Result<CertificateNames, CertificateError> {
        CertificateNames::of(self.leaf()?)
    }

    /// When the own certificate ends.
    pub fn not_after(&self) -> Result<SystemTime, CertificateError> {
        Ok(moment(parse(self.leaf()?)?.validity().not_after.timestamp()))
    }

    /// Whether others would accept it: signed by the authority, valid now, key and certificate
    /// belong together.
    pub fn check(&self) -> Result<(), CertificateError> {
        let leaf = parse(self.leaf()?)?;
        let now = SystemTime::now();
        // Before the signature: the clearest message for the most frequent fault.
        let (not_before, not_after) =
            (moment(leaf.validity().not_before.timestamp()), moment(leaf.validity().not_after.timestamp()));
        if now > not_after {
            return Err(CertificateError::Expired { not_after });
        }
        if now < not_before {
            return Err(CertificateError::NotYetValid { not_before });
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .map_err(|error| CertificateError::Unusable(error.to_string()))?;
        verifier.verify_client_cert(self.leaf()?, &self.chain[1..], UnixTime::now()).map_err(|error| {
            use rustls::CertificateError::{BadSignature, UnknownIssuer};
            match error {
                rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
                    let authority = self.ca.first().map(|ca| parse(ca).map(|ca| ca.subject().to_string()));
                    CertificateError::WrongAuthority {
                        issuer: leaf.issuer().to_string(),
                        authority: authority.and_then(Result::ok).unwrap_or_default(),
                    }
                }
                other => CertificateError::Unusable(other.to_string()),
            }
        })?;
        let key = rustls::crypto::ring::sign::any_supported_type(&self.key)
            .map_err(|error| CertificateError::Unusable(error.to_string()))?;
        match rustls::sign::CertifiedKey::new(self.chain.clone(), key).keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
            Err(_) => Err(CertificateError::Unusable(
                "certificate and private key do not belong together".to_owned(),
            )),
        }
    }

    /// Whether it is that of the node, and of no other.
    pub fn check_node(&self, node: NodeId) -> Result<(), CertificateError> {
        let found = self.names()?.nodes;
        if found == [node] { Ok(()) } else { Err(CertificateError::OtherNode { expected: node, found }) }
    }

    fn leaf(&self) -> Result<&CertificateDer<'static>, CertificateError> {
        self.chain.first().ok_or_else(|| CertificateError::Malformed {
            what: "the certificate".to_owned(),
            why: "there is none".to_owned(),
        })
    }

    pub(crate) fn roots(&self) -> Result<rustls::RootCertStore, CertificateError> {
        let mut roots = rustls::RootCertStore::empty();
        for ca in &self.ca {
            roots.add(ca.clone()).map_err(|error| CertificateError::Malformed {
                what: "the authority's certificate".to_owned(),
                why: error.to_string(),
            })?;
        }
        Ok(roots)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| CertificateError::Io { path: path.to_owned(), source })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(CertificateError::Malformed {
            what: "a certificate".to_owned(),
            why: format!("not X.509: {error}"),
        }),
    }
}

fn moment(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    let moment =
        if unix_seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}
