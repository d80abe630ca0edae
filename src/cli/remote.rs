//! [`Remote`]: a cluster's client for commands, which wait for each answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dogsled::cluster::{CertificateFiles, Client, ClientOptions, Error};
use tokio::runtime::Runtime;

use super::args::Global;
use super::exit::{Code, Failure, Result};
use super::serve::settings::{DEFAULT_ADDRESS, DEFAULT_DATA};

/// How long a command's requests may take if nothing is said.
const DEFAULT_TIMEOUT: u64 = 10;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Unavailable(why) => Failure::new(
                Code::Unavailable,
                format!("the cluster is not available, nothing was done: {why}"),
            ),
            Error::Invalid(what) => Failure::usage(what),
            Error::Denied(_) => Failure::new(Code::Certificates, error.to_string())
                .adding("`dogsled certs client --admin` makes such a certificate"),
            Error::OutcomeUnknown(why) => Failure::new(
                Code::OutcomeUnknown,
                format!("the outcome is not known, the write may have happened or happen yet: {why}"),
            ),
            Error::Conflict(what) => {
                Failure::refused(format!("nothing was done, somebody else was quicker: {what}"))
            }
            Error::NoSpace(what) => {
                Failure::new(Code::Io, format!("nothing was done, no space for writes: {what}"))
            }
            Error::LockNotHeld { .. } => Failure::refused(error.to_string()),
            Error::QuotaExceeded(_) => {
                Failure::new(Code::QuotaExceeded, format!("nothing was done: {error}"))
            }
            Error::Closed => Failure::new(Code::Unavailable, error.to_string()),
            // A newer or older dogsled.
            other => Failure::new(Code::NotADatabase, other.to_string()),
        }
    }
}

/// A client, and the threads that it lives on: it keeps its connections while the command does
/// something else.
pub(crate) struct Remote {
    /// `None` once it is being dropped.
    runtime: Option<Runtime>,
    client: Client,
}

impl Remote {
    /// Connects to the nodes given with `--connect`.
    pub(crate) fn connect(global: &Global) -> Result<Remote> {
        Remote::connect_in(global, String::new())
    }

    /// The same, from within a zone.
    pub(crate) fn connect_in(global: &Global, zone: String) -> Result<Remote> {
        let addresses = match global.connect.is_empty() {
            true => vec![DEFAULT_ADDRESS.to_owned()],
            false => global.connect.clone(),
        };
        let mut options = ClientOptions::from_files(&client_files(global)?)?;
        options.deadline = global.timeout_or(DEFAULT_TIMEOUT);
        options.zone = zone;
        // An answer that was heard of late is worth nothing if it was forgotten before.
        options.session_lease = options.session_lease.max(options.deadline * 2);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Failure::io("starting threads", &error))?;
        let client = runtime.block_on(Client::connect(addresses, options))?;
        Ok(Remote { runtime: Some(runtime), client })
    }

    /// Its client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The same, whose calls may take longer.
    pub(crate) fn patient_client(&self, global: &Global, seconds: u64) -> Client {
        self.client.with_deadline(global.timeout_or(seconds))
    }

    /// Waits for an answer.
    pub(crate) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it is there until the drop").block_on(answer)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The cluster need not remember this client's answers for the rest of its lease.
        self.wait(self.client.close());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
    }
}

/// The files of the certificate that a client shows: of `--client`, or the only one there is.
fn client_files(global: &Global) -> Result<CertificateFiles> {
    let directory = match &global.certs {
        Some(directory) => directory.clone(),
        None => {
            let data =
                std::env::var_os("DOGSLED_DATA").map_or_else(|| PathBuf::from(DEFAULT_DATA), PathBuf::from);
            data.join("dev-certs")
        }
    };
    if let Some(name) = &global.client {
        return Ok(CertificateFiles::of_client(&directory, name));
    }
    let mut names = client_names(&directory).map_err(|error| {
        let failure = Failure::new(Code::Certificates, format!("{}: {error}", directory.display()));
        match &global.certs {
            Some(_) => failure,
            None => failure.adding("give the directory of your certificates with --certs"),
        }
    })?;
    names.sort();
    match names.as_slice() {
        [name] => Ok(CertificateFiles::of_client(&directory, name)),
        [] => Err(Failure::new(
            Code::Certificates,
            format!(
                "{} holds no client's certificate; `dogsled certs client --certs {}` makes one",
                directory.display(),
                directory.display()
            ),
        )),
        several => Err(Failure::usage(format!(
            "{} holds certificates of several clients ({}); say with --client which one to show",
            directory.display(),
            several.join(", ")
        ))),
    }
}

fn client_names(directory: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|file| file.strip_prefix("client-")?.strip_suffix(".crt"));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}
