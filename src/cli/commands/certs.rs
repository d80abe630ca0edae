//! `certs`: an authority, and certificates that it signs.

use std::path::PathBuf;
use std::time::Duration;

use dogsled::cluster::NodeId;
use dogsled::cluster::certs::{Authority, CertificateError, CertificateFiles, IssuedCertificate};
use serde_json::json;

use crate::cli::args::{CertsCommand, Global};
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::output::Output;

const DAY: Duration = Duration::from_secs(86_400);
/// Where they are written if nothing is said.
const DEFAULT_DIRECTORY: &str = "certs";

impl From<CertificateError> for Failure {
    fn from(error: CertificateError) -> Failure {
        let code = match &error {
            CertificateError::Exists(_) => Code::Refused,
            CertificateError::BadName { .. } => Code::Usage,
            CertificateError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound => Code::Io,
            _ => Code::Certificates,
        };
        Failure::new(code, error.to_string())
    }
}

pub(crate) fn certs(global: &Global, out: &mut Output, command: &CertsCommand) -> Result<()> {
    let directory = global.certs.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIRECTORY));
    let authority = || {
        Authority::load(&directory).map_err(|error| {
            Failure::from(error)
                .adding(format!("`dogsled certs ca --certs {}` makes an authority", directory.display()))
        })
    };
    let save = |issued: IssuedCertificate, replace: bool| {
        let saved = if replace { issued.replace(&directory) } else { issued.save(&directory) };
        saved.map_err(|error| match error {
            CertificateError::Exists(_) => Failure::from(error).adding("--replace overwrites it"),
            other => other.into(),
        })
    };
    match command {
        CertsCommand::Ca { cluster } => {
            Authority::generate(cluster)?.save(&directory)?;
            let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
            out.summary(
                format!(
                    "{}: what nodes and clients of the cluster {cluster:?} trust\n\
                     {}: makes their certificates; keep it secret, and away from the nodes",
                    certificate.display(),
                    key.display()
                ),
                json!({
                    "cluster": cluster,
                    "certificate": certificate.display().to_string(),
                    "key": key.display().to_string(),
                }),
            )
        }
        CertsCommand::Node { id, host, days, replace } => {
            if *id == 0 {
                return Err(Failure::usage("0 is no node id; ids begin with 1"));
            }
            let issued = authority()?.node(NodeId(*id), host, DAY * days_of(*days))?;
            say(out, &save(issued, *replace)?, &format!("node {id}"), *days)
        }
        CertsCommand::Client { name, admin, days, replace } => {
            let (life, unnamed) = (DAY * days_of(*days), name.is_none());
            let name = name.as_deref().unwrap_or("admin");
            let (issued, whose) = if *admin || unnamed {
                (authority()?.administrator(name, life)?, format!("the administrator {name:?}"))
            } else {
                (authority()?.client(name, life)?, format!("the client {name:?}"))
            };
            say(out, &save(issued, *replace)?, &whose, *days)
        }
    }
}

fn days_of(days: u64) -> u32 {
    u32::try_from(days).expect("checked with the arguments")
}

fn say(out: &mut Output, files: &CertificateFiles, whose: &str, days: u64) -> Result<()> {
    out.summary(
        format!(
            "{} and {}: {whose}, for {days} days; to be used with {}",
            files.certificate.display(),
            files.key.display(),
            files.ca.display()
        ),
        json!({
            "certificate": files.certificate.display().to_string(),
            "key": files.key.display().to_string(),
            "ca": files.ca.display().to_string(),
            "days": days,
        }),
    )
}
