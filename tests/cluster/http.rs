//! The bounds of a node's HTTP server, made small.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use dogsled::cluster::http::{HttpOptions, HttpServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Cluster, eventually};

const SMALL: HttpOptions = HttpOptions {
    max_connections: 3,
    max_head_bytes: 8 << 10,
    head_timeout: Duration::from_secs(4),
    connection_time: Duration::from_secs(12),
};

async fn start(cluster: &Cluster, options: HttpOptions) -> HttpServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    HttpServer::start(&cluster.nodes[&1], listener, options).unwrap()
}

async fn connect(server: &HttpServer) -> TcpStream {
    TcpStream::connect(server.local_address()).await.unwrap()
}

/// What comes until the server closes the connection; a reset is an end, too.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let read = async {
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..length]);
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("the server closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_many_visitors_are_sent_away_and_others_are_served() {
    let cluster = Cluster::made(1, 2).await;
    let server = start(&cluster, SMALL).await;
    // Those that send no head, or part of one, are cut off in time.
    let began = Instant::now();
    let mut silent = connect(&server).await;
    let mut slow = connect(&server).await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n").await.unwrap();
    let mut third = connect(&server).await;
    third.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut buffer = [0; 12];
    third.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 200");
    // That was all that may be connected.
    let told = rest(&mut connect(&server).await).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 503"), "{told}");
    assert!(
        began.elapsed() < Duration::from_millis(3_500),
        "too slow to prove anything: {:?}",
        began.elapsed()
    );
    assert_eq!(rest(&mut silent).await, "");
    // hyper may say that it waited too long, or just close.
    let told = rest(&mut slow).await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 408"), "{told}");
    rest(&mut third).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    eventually("there is room again", || async {
        let mut stream = connect(&server).await;
        let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        if stream.write_all(request).await.is_err() {
            return false;
        }
        let told = rest(&mut stream).await;
        told.starts_with("HTTP/1.1 200") && told.contains("refused_total{reason=\"too_many_http\"} 1\n")
    })
    .await;
    let address = server.local_address();
    server.stop().await;
    assert!(TcpListener::bind(address).is_ok(), "the port is not free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_kept_alive_ends_in_time_and_so_does_one_that_never_reads() {
    let cluster = Cluster::made(1, 2).await;
    let (head_timeout, connection_time) = (Duration::from_secs(2), Duration::from_secs(4));
    let server = start(&cluster, HttpOptions { head_timeout, connection_time, ..SMALL }).await;
    let began = Instant::now();
    let mut busy = connect(&server).await;
    let mut served = 0;
    // Asks again and again, each time soon enough.
    while busy.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.is_ok() {
        let mut buffer = [0; 1024];
        match busy.read(&mut buffer).await {
            Ok(1..) => served += 1,
            _ => break,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(20), "it is served for ever");
    }
    assert!(served > 3, "{served}");
    // One that asks for much and reads nothing.
    let mut deaf = connect(&server).await;
    let many = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(400);
    let _ = tokio::time::timeout(Duration::from_secs(1), deaf.write_all(&many)).await;
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
