//! [`Starting`]: what is answered on a node's port while there is no node yet.
//!
//! Opening a large log takes a while. Whoever watches a process would take one whose port takes connections and answers
//! nothing for one that hangs, and start it again, for ever.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

/// Connections at a time; others wait to be taken.
const CONNECTIONS: usize = 32;
/// How long one may take.
const TIME: Duration = Duration::from_secs(5);

/// Answers on a listener until it is dropped: `/livez` with 200, everything else with 503. What is connected then is closed;
/// who connects later waits for [`HttpServer`](super::HttpServer) on the same listener.
#[derive(Debug)]
pub struct Starting(JoinHandle<()>);

impl Starting {
    /// Begins. To be called in a tokio runtime with I/O and time drivers.
    ///
    /// # Errors
    /// What the system says about the listener.
    pub fn on(listener: &std::net::TcpListener) -> std::io::Result<Starting> {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(Starting(tokio::spawn(run(TcpListener::from_std(listener)?))))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(listener: TcpListener) {
    let said = |code: StatusCode, what: &'static str| {
        (
            code,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")],
            what,
        )
    };
    let routes = Router::new()
        .route("/livez", get(move || async move { said(StatusCode::OK, "alive\n") }))
        .fallback(move || async move { said(StatusCode::SERVICE_UNAVAILABLE, "the node is starting\n") });
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    // Ended with this.
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(routes.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(TIME)
                // Who asks again is to find the node, if there is one by then.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(TIME, connection).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_port_is_answered_for_before_there_is_a_node_and_given_on() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        let starting = Starting::on(&listener).unwrap();
        assert!(ask("/livez").await.starts_with("HTTP/1.1 200 "));
        for path in ["/readyz", "/metrics", "/"] {
            let said = ask(path).await;
            assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("the node is starting\n"), "{said}");
        }
        // One that says nothing is in nobody's way, and is closed in the end.
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(ask("/livez").await.starts_with("HTTP/1.1 200 "));
        drop(starting);
        assert_eq!(silent.read(&mut [0; 9]).await.unwrap_or(0), 0);
        let waiting = TcpStream::connect(address).await.unwrap();
        let (taken, from) = listener.accept().unwrap();
        assert_eq!(waiting.local_addr().unwrap(), from);
        drop(taken);
    }
}
