//! Makes certificates: an authority, and nodes' and clients' certificates signed by it.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dogsled_replication::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{CertificateError, CertificateFiles, Certificates, parse, read};

/// An authority lives ten years.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates are valid from a day before they are made: clocks differ.
const CLOCK_SLACK: Duration = Duration::from_secs(86_400);
/// Development certificates are renewed when they have less left.
const RENEW_BEFORE: Duration = Duration::from_secs(7 * 86_400);
const DEV_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// What the authority's common name begins with; the cluster's name follows.
const COMMON_NAME: &str = "dogsled cluster ";

/// Signs the certificates of one cluster.
pub struct Authority {
    cluster: String,
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A certificate with its key, in PEM.
pub struct IssuedCertificate {
    /// `node-<id>` or `client-<name>`: what its files are called.
    pub stem: String,
    /// The authority's certificate.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCertificate").field("stem", &self.stem).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority for a cluster, whose name is letters, digits and `-`, at most 40.
    pub fn generate(cluster: &str) -> Result<Authority, CertificateError> {
        check_label(cluster, 40, |c| c == '-', "1 to 40 small letters, digits and \"-\"")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{COMMON_NAME}{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_LIFE);
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = params.self_signed(&key).map_err(issue)?;
        Ok(Authority {
            cluster: cluster.to_owned(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads `ca.crt` and `ca.key` of a directory.
    pub fn load(directory: &Path) -> Result<Authority, CertificateError> {
        let text = |name: &str| {
            let path = directory.join(name);
            String::from_utf8(read(&path)?).map_err(|_| malformed(&path, "not PEM"))
        };
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let (certificate, key) = (text("ca.crt")?, text("ca.key")?);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| malformed(&certificate_path, &error.to_string()))?;
        let parsed = parse(&der)?;
        let cluster = parsed
            .subject()
            .iter_common_name()
            .find_map(|name| name.as_str().ok()?.strip_prefix(COMMON_NAME))
            .ok_or_else(|| malformed(&certificate_path, "not an authority that dogsled has made"))?
            .to_owned();
        let pair = KeyPair::from_pem(&key).map_err(|error| malformed(&key_path, &error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(malformed(&key_path, "is not the key of the certificate beside it"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(issue)?;
        Ok(Authority { cluster, certificate, key, issuer })
    }

    /// Writes `ca.crt` and `ca.key`, the latter readable by its owner only. Overwrites nothing.
    pub fn save(&self, directory: &Path) -> Result<(), CertificateError> {
        create_directory(directory)?;
        write_new(&directory.join("ca.key"), &self.key, true)?;
        write_new(&directory.join("ca.crt"), &self.certificate, false)
    }

    /// The cluster that it is for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its own certificate in PEM: what nodes and clients trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a node; `addresses` are host names and IP addresses, without port.
    pub fn node(
        &self,
        node: NodeId,
        addresses: &[String],
        life: Duration,
    ) -> Result<IssuedCertificate, CertificateError> {
        let stem = format!("node-{node}");
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(stem, &[], addresses, usages, life)
    }

    /// A certificate for a client, which may use the data; the name is letters, digits, `-`, `_` and
    /// `.`, at most 60.
    pub fn client(&self, name: &str, life: Duration) -> Result<IssuedCertificate, CertificateError> {
        self.issue_client(name, &[], life)
    }

    /// Like [`client`](Self::client), for one that may change the cluster as well: make it, change its
    /// members, move leadership.
    pub fn administrator(&self, name: &str, life: Duration) -> Result<IssuedCertificate, CertificateError> {
        self.issue_client(name, &["admin.dogsled"], life)
    }

    fn issue_client(
        &self,
        name: &str,
        more: &[&str],
        life: Duration,
    ) -> Result<IssuedCertificate, CertificateError> {
        let rule = "1 to 60 small letters, digits, \"-\", \"_\" and \".\", a letter or digit first and last";
        check_label(name, 60, |c| matches!(c, '-' | '_' | '.'), rule)?;
        self.issue(format!("client-{name}"), more, &[], vec![ExtendedKeyUsagePurpose::ClientAuth], life)
    }

    fn issue(
        &self,
        stem: String,
        more: &[&str],
        addresses: &[String],
        usages: Vec<ExtendedKeyUsagePurpose>,
        life: Duration,
    ) -> Result<IssuedCertificate, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, stem.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, life);
        let own = [format!("{stem}.dogsled"), format!("cluster-{}.dogsled", self.cluster)];
        for name in own.iter().map(String::as_str).chain(more.iter().copied()) {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(issue)?));
        }
        for address in addresses {
            // Such a name would be another identity.
            let bad =
                || CertificateError::BadName { name: address.clone(), rule: "a host name or an IP address" };
            // Names have no case, and may end with a dot.
            if address.to_ascii_lowercase().trim_end_matches('.').ends_with(".dogsled") {
                return Err(bad());
            }
            params.subject_alt_names.push(match address.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if rustls::pki_types::DnsName::try_from(address.as_str()).is_ok() => {
                    SanType::DnsName(address.as_str().try_into().map_err(|_| bad())?)
                }
                Err(_) => return Err(bad()),
            });
        }
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(IssuedCertificate {
            stem,
            ca: self.certificate.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl IssuedCertificate {
    /// Parsed, for use at once.
    pub fn certificates(&self) -> Result<Certificates, CertificateError> {
        Certificates::from_pem(&self.ca, &self.certificate, &self.key)
    }

    /// Writes certificate and key into a directory, and `ca.crt` unless it is there. Overwrites
    /// nothing.
    pub fn save(&self, directory: &Path) -> Result<CertificateFiles, CertificateError> {
        self.write(directory, write_new)
    }

    /// As [`save`](Self::save), but takes the place of what is there: each file at once, the key
    /// before the certificate.
    pub fn replace(&self, directory: &Path) -> Result<CertificateFiles, CertificateError> {
        self.write(directory, write_over)
    }

    fn write(
        &self,
        directory: &Path,
        write: fn(&Path, &str, bool) -> Result<(), CertificateError>,
    ) -> Result<CertificateFiles, CertificateError> {
        create_directory(directory)?;
        let files = CertificateFiles::named(directory, &self.stem);
        if !files.ca.exists() {
            write_new(&files.ca, &self.ca, false)?;
        }
        write(&files.key, &self.key, true)?;
        write(&files.certificate, &self.certificate, false)?;
        Ok(files)
    }
}

/// Certificates for trying things out: an authority of its own in `<data_dir>/dev-certs/`, a
/// certificate of the node and one of the administrator `dev`; made if missing or near their end. The
/// authority's key lies beside them, so whoever can read the directory can be anyone: says so in
/// the log.
pub fn dev_certificates(
    data_dir: &Path,
    node: NodeId,
    addresses: &[String],
) -> Result<CertificateFiles, CertificateError> {
    let directory = data_dir.join("dev-certs");
    tracing::warn!(
        directory = %directory.display(),
        "DEVELOPMENT CERTIFICATES: the authority's private key lies unprotected beside the data. \
         Whoever reads it can pose as any node and client. Make real ones with `dogsled certs`"
    );
    // The key is written first: without a certificate beside it, it was never used.
    let authority = if directory.join("ca.crt").exists() {
        Authority::load(&directory)?
    } else {
        let authority = Authority::generate("dev")?;
        create_directory(&directory)?;
        write_over(&directory.join("ca.key"), &authority.key, true)?;
        write_over(&directory.join("ca.crt"), &authority.certificate, false)?;
        authority
    };
    let usable = |files: &CertificateFiles| {
        let certificates = Certificates::load(files).ok()?;
        let left = certificates.not_after().ok()?.duration_since(SystemTime::now()).ok()?;
        (left > RENEW_BEFORE).then_some(certificates)
    };
    let may_all = |certificates: &Certificates| certificates.names().is_ok_and(|names| names.administrator);
    if !usable(&CertificateFiles::of_client(&directory, "dev")).as_ref().is_some_and(may_all) {
        authority.administrator("dev", DEV_LIFE)?.replace(&directory)?;
    }
    let files = CertificateFiles::of_node(&directory, node);
    if usable(&files).is_some_and(|certificates| certificates.check_node(node).is_ok()) {
        return Ok(files);
    }
    authority.node(node, addresses, DEV_LIFE)?.replace(&directory)
}

fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SLACK).into();
    params.not_after = now.checked_add(life).unwrap_or(now + AUTHORITY_LIFE).into();
}

fn check_label(
    name: &str,
    longest: usize,
    also: impl Fn(char) -> bool,
    rule: &'static str,
) -> Result<(), CertificateError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let sound = (1..=longest).contains(&name.len())
        && name.chars().all(|c| plain(c) || also(c))
        && name.starts_with(plain)
        && name.ends_with(plain)
        && !name.contains("..");
    if sound { Ok(()) } else { Err(CertificateError::BadName { name: name.to_owned(), rule }) }
}

fn issue(error: rcgen::Error) -> CertificateError {
    CertificateError::Issue(error.to_string())
}

fn malformed(path: &Path, why: &str) -> CertificateError {
    CertificateError::Malformed { what: path.display().to_string(), why: why.to_owned() }
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> CertificateError {
    move |source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CertificateError::Exists(path.to_owned()),
        _ => CertificateError::Io { path: path.to_owned(), source },
    }
}

fn create_directory(directory: &Path) -> Result<(), CertificateError> {
    fs::create_dir_all(directory).map_err(at(directory))
}

/// A new file, which a secret one's owner alone may ever have read.
fn write_new(path: &Path, text: &str, secret: bool) -> Result<(), CertificateError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path).map_err(at(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at(path))
}

/// Replaces a file by rename, so that a reader sees the old or the new.
fn write_over(path: &Path, text: &str, secret: bool) -> Result<(), CertificateError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&temporary)(error)),
        _ => {}
    }
    write_new(&temporary, text, secret)?;
    fs::rename(&temporary, path).map_err(at(path))
}
