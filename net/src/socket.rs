//! UDP sockets, and QUIC endpoints upon them.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::pki_types::PrivateKeyDer;

use crate::options::NetOptions;

/// A socket with large buffers: a burst that finds no room is lost, and comes again a round trip
/// later. The system may grant less than is asked; what it did is returned.
pub(crate) fn bind(address: SocketAddr, buffer: usize) -> io::Result<(UdpSocket, usize)> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // For both families if the system can.
        let _ = socket.set_only_v6(false);
    }
    // Refusals show in what is granted.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    socket.bind(&address.into())?;
    let granted = socket.recv_buffer_size()?.min(socket.send_buffer_size()?);
    Ok((socket.into(), granted))
}

/// What all connections of an endpoint share. With the node's key, a restarted node tells others
/// at their next packet that it knows nothing of their connections, instead of leaving them to
/// find out by silence.
pub(crate) fn endpoint_config(
    key: Option<&PrivateKeyDer<'static>>,
    options: &NetOptions,
) -> quinn::EndpointConfig {
    let mut config = match key {
        None => quinn::EndpointConfig::default(),
        Some(key) => {
            let derive =
                |purpose: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.secret_der()), purpose);
            let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"dogsled stateless reset").as_ref());
            let ids = derive(b"dogsled connection ids");
            let ids = ids.as_ref().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let mut config = quinn::EndpointConfig::new(Arc::new(reset));
            config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
            config
        }
    };
    // An error would mean less than the 1200 bytes that QUIC demands.
    if config.max_udp_payload_size(options.datagram()).is_err() {
        tracing::error!("the largest datagram is out of range");
    }
    config
}

/// An endpoint on a socket, which is closed when the weak reference is dead.
pub(crate) fn open(
    socket: UdpSocket,
    config: quinn::EndpointConfig,
    server: Option<quinn::ServerConfig>,
) -> io::Result<(quinn::Endpoint, Weak<dyn AsyncUdpSocket>)> {
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    let weak = Arc::downgrade(&socket);
    let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok((endpoint, weak))
}
