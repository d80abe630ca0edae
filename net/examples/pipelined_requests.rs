//! Measures pipelined requests between two endpoints in one process, over loopback and mutual TLS.
//!
//! `cargo run --release -p dogsled-net --example pipelined_requests -- [outstanding] [body bytes] [seconds] [threads]`

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogsled_net::certs::Authority;
use dogsled_net::{CertificateSource, Endpoint, EndpointConfig, NetOptions};
use dogsled_replication::{ClientIdentity, Lane, NodeId, Service, Transport};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{BoxStream, FuturesUnordered, StreamExt, empty};

/// Answers with a few bytes, as a follower does.
struct Acknowledge;

impl Service for Acknowledge {
    fn peer_request(&self, _: NodeId, _: Lane, _: Bytes) -> BoxFuture<'static, Bytes> {
        ready(Bytes::from_static(b"sixteen bytes ok")).boxed()
    }

    fn client_request(&self, _: &ClientIdentity, _: Bytes) -> BoxFuture<'static, Bytes> {
        ready(Bytes::new()).boxed()
    }

    fn client_stream(&self, _: &ClientIdentity, _: Bytes) -> BoxStream<'static, Bytes> {
        empty().boxed()
    }
}

fn endpoint(authority: &Authority, node: u64) -> Arc<Endpoint> {
    let life = Duration::from_secs(86_400);
    let issued = authority.node(NodeId(node), &[], life).expect("a certificate");
    let endpoint = Endpoint::open(EndpointConfig {
        node: NodeId(node),
        cluster: 1,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        certificates: CertificateSource::Memory(issued.certificates().expect("a sound one")),
        options: NetOptions::default(),
    })
    .expect("a port");
    endpoint.serve(Arc::new(Acknowledge));
    endpoint
}

fn cpu_time() -> Duration {
    // Ticks of user and system time of this process, of which Linux has 100 per second.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

async fn measure(sender: &Endpoint, outstanding: usize, size: usize, time: Duration) {
    let body = Bytes::from(vec![7u8; size]);
    let ask = || sender.request(NodeId(2), Lane::Data, body.clone(), Duration::from_secs(10));
    ask().await.expect("answered");
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut count = 0u64;
    let mut latencies = Vec::new();
    if outstanding == 1 {
        while began.elapsed() < time {
            let asked = Instant::now();
            ask().await.expect("answered");
            latencies.push(asked.elapsed());
            count += 1;
        }
    } else {
        let mut replies: FuturesUnordered<_> = (0..outstanding).map(|_| ask()).collect();
        while began.elapsed() < time {
            for _ in 0..256 {
                replies.next().await.expect("outstanding").expect("answered");
                count += 1;
                replies.push(ask());
            }
        }
    }
    let (elapsed, cpu) = (began.elapsed(), cpu_time() - cpu);
    let rate = count as f64 / elapsed.as_secs_f64();
    print!(
        "{outstanding:>5} outstanding, {size:>7} bytes: {rate:>9.0} requests/s, {:>7.1} MiB/s, {:>6.2} us of CPU each",
        rate * size as f64 / f64::from(1 << 20),
        cpu.as_secs_f64() * 1e6 / count as f64,
    );
    latencies.sort();
    match latencies.get(latencies.len() / 2) {
        Some(median) => println!(", p50 {:.1} us", median.as_secs_f64() * 1e6),
        None => println!(),
    }
}

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let argument = |index: usize, default: usize| arguments.get(index).copied().unwrap_or(default);
    let threads = argument(3, 2);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let authority = Authority::generate("bench").expect("an authority");
        let (one, two) = (endpoint(&authority, 1), endpoint(&authority, 2));
        one.set_addresses(NodeId(2), vec![two.local_address().to_string()]);
        let seconds = Duration::from_secs(argument(2, 3) as u64);
        let (sender, arguments) = (one.clone(), arguments.clone());
        let run = tokio::spawn(async move {
            // The first numbers are one measurement, none the usual four.
            if let [outstanding, rest @ ..] = &arguments[..] {
                measure(&sender, *outstanding, rest.first().copied().unwrap_or(300), seconds).await;
            } else {
                for (outstanding, size) in [(1, 300), (64, 300), (1024, 300), (16, 1 << 20)] {
                    measure(&sender, outstanding, size, seconds).await;
                }
            }
        });
        run.await.expect("ran");
        one.close().await;
        two.close().await;
    });
}
