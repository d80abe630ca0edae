//! [`ClientOptions`].

use std::path::Path;
use std::time::Duration;

use dogsled_net::certs::{CertificateError, CertificateFiles, Certificates};
use dogsled_net::{CertificateSource, NetOptions};

/// How a [`Client`](super::Client) behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Who the client is and whom it trusts. They name the cluster: only nodes of that one are spoken
    /// to. Files are looked at again before each connection, so that renewed ones need no restart.
    pub certificates: CertificateSource,
    /// How long a call may take, with all its repetitions. Default 10 s. See also
    /// [`Client::with_deadline`](super::Client::with_deadline).
    pub deadline: Duration,
    /// How long the cluster remembers the answers of a client that it does not hear from. Must be
    /// longer than any call may take. Default 60 s.
    pub session_lease: Duration,
    /// Writes of one partition that may be under way at a time; more wait for their turn. At most
    /// 32,768; default 4,096.
    pub max_pipelined_writes: usize,
    /// The bytes of one page of one partition when ranges are read. A range takes about twice this
    /// for each partition. Default 64 KiB.
    pub page_bytes: u64,
    /// The zone that the client is in, as its nodes were told theirs: what is to be read
    /// [from the nearest](super::ReadFrom::Nearest) replica is read there. Default: none.
    pub zone: String,
    /// Limits and times of the connections.
    pub net: NetOptions,
}

impl ClientOptions {
    /// The defaults, with these certificates.
    pub fn new(certificates: Certificates) -> ClientOptions {
        ClientOptions::with(CertificateSource::Memory(certificates))
    }

    fn with(certificates: CertificateSource) -> ClientOptions {
        let Behaviour { deadline, session_lease, max_pipelined_writes, page_bytes, zone } =
            Behaviour::default();
        ClientOptions {
            certificates,
            deadline,
            session_lease,
            max_pipelined_writes,
            page_bytes,
            zone,
            net: NetOptions {
                // A dead node should not hold up whoever could ask another one.
                connect_timeout: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(3),
                keep_alive: Duration::from_millis(750),
                ..net_options()
            },
        }
    }

    /// With certificates from files, which are looked at again before each connection: a client that runs for years
    /// is one with those that `dogsled certs` has renewed meanwhile.
    ///
    /// # Errors
    /// They cannot be read, or are not what a node would accept.
    pub fn from_files(files: &CertificateFiles) -> Result<ClientOptions, CertificateError> {
        // Also when the client connects; what is wrong with them is better told at once.
        Certificates::load(files)?;
        Ok(ClientOptions::with(CertificateSource::Files(files.clone())))
    }

    /// With the certificates that a node has made for trying things out, in development mode: those
    /// of the client `dev` in `<directory>/dev-certs/`.
    ///
    /// # Errors
    /// As [`ClientOptions::from_files`].
    pub fn development(directory: impl AsRef<Path>) -> Result<ClientOptions, CertificateError> {
        let directory = directory.as_ref().join("dev-certs");
        ClientOptions::from_files(&CertificateFiles::of_client(&directory, "dev"))
    }
}

/// The default limits, wide enough for the largest command between nodes and for the largest page to
/// a client.
pub(super) fn net_options() -> NetOptions {
    NetOptions {
        // A page of 16 MiB and the value of 16 MiB that overstepped it, be it passed on or not; commands are smaller.
        max_peer_body: 34 << 20,
        max_client_body: 34 << 20,
        ..NetOptions::default()
    }
}

/// What a client has of its options that does not concern the network; a node's own has it, too.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    pub(super) deadline: Duration,
    pub(super) session_lease: Duration,
    pub(super) max_pipelined_writes: usize,
    pub(super) page_bytes: u64,
    pub(super) zone: String,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            deadline: Duration::from_secs(10),
            session_lease: Duration::from_secs(60),
            max_pipelined_writes: 4096,
            page_bytes: 64 << 10,
            zone: String::new(),
        }
    }
}

impl ClientOptions {
    pub(super) fn behaviour(&self) -> Behaviour {
        Behaviour {
            deadline: self.deadline,
            session_lease: self.session_lease,
            max_pipelined_writes: self.max_pipelined_writes,
            page_bytes: self.page_bytes,
            zone: self.zone.clone(),
        }
    }
}
