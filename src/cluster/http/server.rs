//! Connections, routes, and what is put together for them.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dogsled_replication::metrics::Family;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::{HttpOptions, exposition, page, process};
use crate::cluster::connections::{open_connections, refused_connections};
use crate::cluster::{Error, MemberStatus, Node, report};

/// For so long an answer is given again that cost something to put together.
const KEEP: Duration = Duration::from_millis(500);
/// Locks that the page is told of.
const LOCKS: usize = 100;
/// After an error of the system (no descriptor is left) before the next connection is taken.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a request that is under way may take when its connection has to end.
const FINISH: Duration = Duration::from_secs(2);
/// Names under which this machine is asked for by itself.
const OWN_NAME: &str = "localhost";

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// What requests share.
struct Shared {
    node: Node,
    /// Only asked for by its own names.
    loopback: bool,
    connections: AtomicU64,
    refused: AtomicU64,
    /// Answers by the first digit of their code: 2xx, 4xx, 5xx.
    answers: [AtomicU64; 3],
    metrics: Kept,
    figures: Kept,
    status: Kept,
}

/// An answer that is kept for a moment.
#[derive(Default)]
struct Kept(Mutex<Option<(Instant, Bytes)>>);

impl Kept {
    /// The answer, made anew if it is old. Only one at a time makes it.
    async fn get(&self, make: impl Future<Output = String>) -> Bytes {
        let mut kept = self.0.lock().await;
        if let Some((at, answer)) = &*kept
            && at.elapsed() < KEEP
        {
            return answer.clone();
        }
        let answer = Bytes::from(make.await);
        *kept = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// Serves until it is told to stop.
pub(super) async fn run(
    node: Node,
    listener: TcpListener,
    address: SocketAddr,
    options: HttpOptions,
    mut stop: watch::Receiver<bool>,
) {
    let shared = Arc::new(Shared {
        node,
        loopback: address.ip().is_loopback(),
        connections: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        answers: std::array::from_fn(|_| AtomicU64::new(0)),
        metrics: Kept::default(),
        figures: Kept::default(),
        status: Kept::default(),
    });
    let routes = routes(&shared);
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // An error is that its sender is gone.
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for HTTP could not be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            turn_away(&stream);
            continue;
        };
        tasks.spawn(serve(Arc::clone(&shared), routes.clone(), stream, options, stop.clone(), permit));
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// There are as many connections as there may be. If this does not fit into what the system buffers, they find out
/// by the end of the connection.
fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 50\r\n\
          connection: close\r\n\r\nthere are as many connections as are served here\r\n",
    );
}

async fn serve(
    shared: Arc<Shared>,
    routes: Router,
    stream: TcpStream,
    options: HttpOptions,
    mut stop: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        .max_buf_size(options.max_head_bytes.max(8 << 10))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    let is_over = tokio::select! {
        // What goes wrong on a connection is the other side's to know.
        _ = connection.as_mut() => true,
        () = tokio::time::sleep(options.connection_time) => false,
        _ = stop.wait_for(|stop| *stop) => false,
    };
    if !is_over {
        connection.as_mut().graceful_shutdown();
        // Whoever reads its answer too slowly does without the rest.
        let _ = tokio::time::timeout(FINISH, connection).await;
    }
    shared.connections.fetch_sub(1, Ordering::Relaxed);
}

fn routes(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| async { answer(StatusCode::OK, HTML, page::PAGE) }))
        .route("/metrics", get(metrics))
        .route("/metrics.json", get(figures))
        .route("/status", get(status))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .fallback(|| async {
            answer(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /, /metrics, /metrics.json, /status, /livez and /readyz\n",
            )
        })
        .with_state(Arc::clone(shared))
        .layer(from_fn_with_state(Arc::clone(shared), guard))
}

fn answer(code: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response {
    (code, [(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], body.into()).into_response()
}

/// Refuses what nobody has a reason to ask for, and says how the answer is to be treated.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&shared, request.method(), request.headers()) {
        Some((code, why)) => answer(code, TEXT, why),
        None => next.run(request).await,
    };
    let policy = HeaderValue::from_str(&page::POLICY).expect("the policy is plain text");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let class = match response.status().as_u16() {
        500.. => 2,
        400.. => 1,
        _ => 0,
    };
    shared.answers[class].fetch_add(1, Ordering::Relaxed);
    response
}

fn refusal(shared: &Shared, method: &Method, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body {
        return Some((StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body\n"));
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "this only shows: GET\n"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if shared.loopback && !host.is_some_and(is_own_name) {
        return Some((
            StatusCode::MISDIRECTED_REQUEST,
            "this listens on a loopback address, and is asked for by no such name: see --http\n",
        ));
    }
    None
}

/// Whether a name, perhaps with a port, is one by which a machine asks for itself.
fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case(OWN_NAME) || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.get(async { exposition::text(&shared.families().await) }).await;
    answer(StatusCode::OK, exposition::TEXT, text)
}

async fn figures(State(shared): State<Arc<Shared>>) -> Response {
    let json = shared.figures.get(async { shared.figures_document().await.to_string() }).await;
    answer(StatusCode::OK, JSON, json)
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let json = shared.status.get(async { shared.status_document().await.to_string() }).await;
    answer(StatusCode::OK, JSON, json)
}

async fn alive(State(shared): State<Arc<Shared>>) -> Response {
    match shared.node.replication().failure() {
        None => answer(StatusCode::OK, TEXT, "alive\n"),
        Some(failure) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{failure}\n")),
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let why = shared.node.replication().unready();
    match why.is_empty() {
        true => answer(StatusCode::OK, TEXT, "ready\n"),
        false => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, why.join("\n") + "\n"),
    }
}

/// Each family once: those that the node and the servers beside it have in common have the values of all.
fn merged(families: Vec<Family>) -> Vec<Family> {
    let mut merged: Vec<Family> = Vec::with_capacity(families.len());
    for family in families {
        match merged.iter_mut().find(|known| known.name == family.name) {
            Some(known) => known.samples.extend(family.samples),
            None => merged.push(family),
        }
    }
    merged
}

impl Shared {
    async fn families(&self) -> Vec<Family> {
        let mut build = Family::gauge("dogsled_build_info", "Which version runs.");
        build.add(vec![("version", env!("CARGO_PKG_VERSION").into())], 1_u64);
        let mut families = vec![build];
        families.extend(self.node.replication().families().await);
        families.extend(self.of_connections());
        families.extend(process::families());
        merged(families)
    }

    fn of_connections(&self) -> Vec<Family> {
        let quic = self.node.connections();
        let mut open = open_connections();
        for (kind, count) in [
            ("client", quic.clients),
            ("peer", quic.peers),
            ("http", self.connections.load(Ordering::Relaxed)),
        ] {
            open.add(vec![("kind", kind.into())], count);
        }
        let mut refused = refused_connections();
        for (reason, count) in [
            ("flood", quic.flooded),
            ("too_many_clients", quic.busy),
            ("failed", quic.failed),
            ("too_many_http", self.refused.load(Ordering::Relaxed)),
        ] {
            refused.add(vec![("reason", reason.into())], count);
        }
        let stalled = Family::counter(
            "dogsled_connections_stalled_total",
            "Connections that were closed because they did not take their replies.",
        )
        .of(quic.stalled);
        let mut answers =
            Family::counter("dogsled_http_requests_total", "Requests over HTTP, by their answer.");
        for (class, count) in ["2xx", "4xx", "5xx"].into_iter().zip(&self.answers) {
            answers.add(vec![("code", class.into())], count.load(Ordering::Relaxed));
        }
        let accepted =
            Family::counter("dogsled_connections_accepted_total", "Clients and peers that were let in.");
        vec![open, accepted.of(quic.accepted), refused, stalled, answers]
    }

    async fn figures_document(&self) -> Value {
        let families = self.families().await;
        let node = self.node.replication();
        let (locks, more) = node.locks(LOCKS).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let locks = locks.iter().map(|lock| {
            let holders = lock.queue.holders.iter().map(|permit| {
                // One that lives with a session, or for ever.
                let left_ms = (permit.expires_ms != u64::MAX && permit.session.is_none())
                    .then(|| permit.expires_ms.saturating_sub(lock.now_ms));
                json!({
                    "owner": text(&permit.owner),
                    "token": permit.token.0,
                    "permits": permit.permits,
                    "left_ms": left_ms,
                })
            });
            let waiters = lock.queue.waiters.iter().map(
                |waiter| json!({ "owner": text(&waiter.owner), "ticket": waiter.ticket, "permits": waiter.permits }),
            );
            json!({
                "name": text(&lock.queue.name),
                "group": lock.group,
                "capacity": lock.queue.capacity,
                "holders": holders.collect::<Vec<_>>(),
                "waiters": waiters.collect::<Vec<_>>(),
                "waiting": lock.queue.waiting,
            })
        });
        let slow = node.slow_commands().into_iter().map(|slow| {
            json!({
                "operation": slow.operation,
                "group": slow.group,
                "tree": slow.tree,
                "seconds": slow.took.as_secs_f64(),
                "at_ms": slow.at_ms,
            })
        });
        json!({
            "node": self.node.id().0,
            "version": env!("CARGO_PKG_VERSION"),
            "families": exposition::json(&families),
            "locks": locks.collect::<Vec<_>>(),
            "more_locks": more,
            "slow": slow.collect::<Vec<_>>(),
        })
    }

    async fn status_document(&self) -> Value {
        let (map, record) = (self.node.map(), self.node.record());
        let members = self.node.replication().member_statuses().await;
        let mut members: Vec<MemberStatus> = members
            .into_iter()
            .map(|(node, addresses, status)| MemberStatus {
                node,
                addresses,
                status: status.map_err(Error::Unavailable),
            })
            .collect();
        members.sort_by_key(|member| member.node);
        // The record of a cluster that is being made tells nothing yet.
        report::status_document(&map, &members, record.as_deref().filter(|_| map.epoch > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_asks_for_itself_by_these_names() {
        for own in
            ["localhost", "LOCALHOST:7480", "127.0.0.1:7480", "127.0.0.1", "127.1.2.3", "[::1]:7480", "[::1]"]
        {
            assert!(is_own_name(own), "{own}");
        }
        for other in
            ["", "example.org", "example.org:7480", "localhost.example.org", "10.0.0.1:7480", "[::2]", "::"]
        {
            assert!(!is_own_name(other), "{other}");
        }
    }
}
