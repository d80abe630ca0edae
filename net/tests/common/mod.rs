//! Endpoints on loopback with a service that does what bodies tell it.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogsled_net::certs::{Authority, Certificates};
use dogsled_net::wire::{self, Verdict};
use dogsled_net::{CertificateSource, Endpoint, EndpointConfig, NetOptions};
use dogsled_replication::{ClientIdentity, Lane, NodeId, Service, Transport};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending, ready};
use futures_util::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;

pub const CLUSTER: u128 = 0xd065_1ed0;
pub const YEAR: Duration = Duration::from_secs(365 * 86_400);
pub const SECOND: Duration = Duration::from_secs(1);
/// How long what must succeed may take, on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::generate("test").expect("an authority"))
}

pub fn certificate(node: u64) -> CertificateSource {
    let issued = authority().node(NodeId(node), &["localhost".to_owned()], YEAR).expect("a certificate");
    CertificateSource::Memory(issued.certificates().expect("a sound one"))
}

pub fn client_certificates(name: &str) -> dogsled_net::certs::Certificates {
    authority().client(name, YEAR).expect("a certificate").certificates().expect("a sound one")
}

/// Nothing ends because this process was not scheduled for a while.
pub fn options() -> NetOptions {
    NetOptions {
        connect_timeout: 10 * SECOND,
        idle_timeout: 30 * SECOND,
        keep_alive: Duration::from_millis(500),
        max_back_off: Duration::from_millis(200),
        ..NetOptions::default()
    }
}

pub fn config(node: u64) -> EndpointConfig {
    EndpointConfig {
        node: NodeId(node),
        cluster: CLUSTER,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        certificates: certificate(node),
        options: options(),
    }
}

pub fn config_at(node: u64, listen: SocketAddr) -> EndpointConfig {
    EndpointConfig { listen, ..config(node) }
}

/// Echoes, unless a body begins with one of these words:
///
/// - `hang`: is never answered; `late`: is answered after 100 ms; `later <ms>`: after so many
/// - `size <n>`: is answered with that many bytes; `made <n>`: too, made after a while as it is polled for;
///   `elsewhere <n>`: too, made after a while by another task, and said to be long
/// - `long hang`: is said to be as long as may be, and never answered
/// - as a stream, `count <n>`: that many numbers; `drip <n>`: as many, 10 ms apart; `endless`
#[derive(Default)]
pub struct Fake {
    pub seen: Mutex<Vec<(NodeId, Lane, Bytes)>>,
    pub clients: Mutex<Vec<String>>,
    pub streams: Arc<Mutex<i64>>,
    pub items: Arc<Mutex<u64>>,
    pub held: Held,
}

/// The bytes of long replies that are in memory, wherever.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<(usize, usize)>>);

impl Held {
    pub fn now(&self) -> usize {
        self.0.lock().0
    }

    /// The most that there ever were.
    pub fn peak(&self) -> usize {
        self.0.lock().1
    }

    fn reply(&self, size: usize) -> Bytes {
        struct Counted(Vec<u8>, Held);
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                self.1.0.lock().0 -= self.0.len();
            }
        }
        let (now, peak) = &mut *self.0.lock();
        *now += size;
        *peak = (*peak).max(*now);
        Bytes::from_owner(Counted(vec![b'h'; size], self.clone()))
    }
}

/// What a read takes that asks others first.
const A_WHILE: Duration = Duration::from_millis(5);

fn number(body: &[u8], word: &str) -> Option<usize> {
    std::str::from_utf8(body).ok()?.strip_prefix(word)?.trim().parse().ok()
}

fn answer(body: Bytes, held: &Held) -> BoxFuture<'static, Bytes> {
    let held = held.clone();
    let made = |size: usize| async move {
        tokio::time::sleep(A_WHILE).await;
        held.reply(size)
    };
    if let Some(size) = number(&body, "made") {
        made(size).boxed()
    } else if let Some(size) = number(&body, "elsewhere") {
        let task = tokio::spawn(made(size));
        async move { task.await.expect("it is not dropped") }.boxed()
    } else if body.starts_with(b"hang") || body.starts_with(b"long hang") {
        pending().boxed()
    } else if let Some(ms) = number(&body, "later") {
        async move {
            tokio::time::sleep(Duration::from_millis(ms as u64)).await;
            body
        }
        .boxed()
    } else if body.starts_with(b"late") {
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            body
        }
        .boxed()
    } else if let Some(size) = number(&body, "size") {
        ready(Bytes::from(vec![b's'; size])).boxed()
    } else {
        ready(body).boxed()
    }
}

struct Counted(Arc<Mutex<i64>>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}

impl Service for Fake {
    fn peer_request(&self, from: NodeId, lane: Lane, body: Bytes) -> BoxFuture<'static, Bytes> {
        self.seen.lock().push((from, lane, body.slice(..body.len().min(64))));
        answer(body, &self.held)
    }

    fn client_request(&self, client: &ClientIdentity, body: Bytes) -> BoxFuture<'static, Bytes> {
        self.clients.lock().push(client.name.clone());
        answer(body, &self.held)
    }

    fn long_reply(&self, body: &Bytes) -> usize {
        if body.starts_with(b"long hang") { usize::MAX } else { number(body, "elsewhere").unwrap_or(0) }
    }

    fn client_stream(&self, _client: &ClientIdentity, body: Bytes) -> BoxStream<'static, Bytes> {
        *self.streams.lock() += 1;
        let counted = Counted(self.streams.clone());
        let items = self.items.clone();
        let numbers = move |n: usize| {
            futures_util::stream::iter(0..n).map(move |i| {
                let _open = &counted;
                *items.lock() += 1;
                Bytes::from(i.to_string())
            })
        };
        if let Some(n) = number(&body, "count") {
            numbers(n).boxed()
        } else if let Some(n) = number(&body, "drip") {
            numbers(n)
                .then(|item| async move {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    item
                })
                .boxed()
        } else {
            numbers(usize::MAX).map(|_| Bytes::from_static(&[7; 1000])).boxed()
        }
    }
}

pub struct TestNode {
    pub endpoint: Arc<Endpoint>,
    pub service: Arc<Fake>,
}

impl TestNode {
    pub fn start(config: EndpointConfig) -> TestNode {
        let endpoint = Endpoint::open(config).expect("opens");
        let service = Arc::new(Fake::default());
        endpoint.serve(service.clone());
        TestNode { endpoint, service }
    }

    pub fn node(id: u64) -> TestNode {
        TestNode::start(config(id))
    }

    pub fn address(&self) -> String {
        self.endpoint.local_address().to_string()
    }

    pub fn knows(&self, id: u64, other: &TestNode) {
        self.endpoint.set_addresses(NodeId(id), vec![other.address()]);
    }

    pub async fn ask(
        &self,
        to: u64,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, dogsled_replication::TransportError> {
        self.endpoint.request(NodeId(to), Lane::Data, body.into(), 5 * SECOND).await
    }
}

/// A QUIC client that does as it likes.
pub async fn connect(
    node: &TestNode,
    certificates: &Certificates,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let mut roots = rustls::RootCertStore::empty();
    for ca in &certificates.ca {
        roots.add(ca.clone()).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates.chain.clone(), certificates.key.clone_key())
        .expect("a certificate");
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("QUIC")));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
    let address = node.endpoint.local_address();
    endpoint.connect_with(config, address, "cluster-test.dogsled").expect("dials").await
}

/// Greets with these bytes; the answer.
pub async fn greet_on(
    (send, receive): &mut (quinn::SendStream, quinn::RecvStream),
    bytes: &[u8],
) -> (Verdict, String) {
    send.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    loop {
        if let Some((answer, _)) = wire::decode_answer(&answer).expect("sound") {
            return (answer.verdict, answer.reason);
        }
        let chunk = receive.read_chunk(1000, true).await.expect("readable").expect("an answer");
        answer.extend_from_slice(&chunk.bytes);
    }
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < 30 * SECOND, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What has been logged on this thread's subscriber, for tests of messages. Needs the
/// current-thread runtime.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn capture() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
