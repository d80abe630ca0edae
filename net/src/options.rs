//! What an owner may set, and what becomes of it in QUIC.

use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::Lane;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// Limits and times of an endpoint. The defaults suit a local network.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// The longest body of a request or reply between nodes.
    pub max_peer_body: usize,
    /// The longest body that a client may send, or may be sent.
    pub max_client_body: usize,
    /// Bytes that may wait to be sent to one peer on one lane, before requests are refused.
    pub max_queued_bytes: usize,
    /// Requests of one peer on one lane that the service works on at a time.
    pub max_concurrent_peer_requests: usize,
    /// Requests of one client's connection that the service works on at a time. The others wait
    /// unread.
    pub max_concurrent_client_requests: usize,
    /// Bytes of requests of one stream that the service works on at a time (one request is
    /// always let through).
    pub max_concurrent_bytes: usize,
    /// Bytes of replies that the service has said [may be long](dogsled_replication::Service::long_reply) and that
    /// it works on at a time for one client's connection, by what it said (one is always let through).
    pub max_long_reply_bytes: usize,
    /// A connection on which replies wait is closed when the other side has taken nothing of them for so
    /// long. Much longer than it takes to read what fits into a [stream's window](Self::stream_window):
    /// the reader may wait until it has read an eighth of it before it says so.
    pub reply_patience: Duration,
    /// Connections of clients at a time; more are told so and closed.
    pub max_client_connections: usize,
    /// About how many bytes all clients together may have sent that are not read yet, and as many that were sent to
    /// them and have not arrived: the more of them are connected, the less may be on its way for each newcomer.
    pub max_client_ahead: usize,
    /// Streams of results that one client's connection may have open.
    pub max_client_streams: u32,
    /// Connections that are being made to this endpoint at a time; more are ignored, and from a
    /// quarter on an address must prove that it is no forgery.
    pub max_handshakes: usize,
    /// For one address: handshake and greeting.
    pub connect_timeout: Duration,
    /// A connection on which nothing arrives for so long is lost.
    pub idle_timeout: Duration,
    /// The side that dialled speaks at least so often.
    pub keep_alive: Duration,
    /// Pause before dialling a peer again after the first failure; doubles, with jitter.
    pub min_back_off: Duration,
    /// The longest such pause.
    pub max_back_off: Duration,
    /// The round trip that is expected before there is a measurement. A lost packet of a handshake
    /// costs about three of it.
    pub initial_rtt: Duration,
    /// How much one stream may send ahead of its reader.
    pub stream_window: u32,
    /// Asked of the system for each direction of the UDP socket.
    pub udp_buffer: usize,
    /// The largest datagram that path discovery tries, 1,200 to 6,550. Networks with jumbo frames
    /// and loopback gain by more than 1,452.
    pub max_datagram: u16,
    /// How often files of certificates are looked at for changes; `None`: only when told.
    pub certificate_poll: Option<Duration>,
}

impl Default for NetOptions {
    fn default() -> Self {
        NetOptions {
            max_peer_body: 16 << 20,
            max_client_body: 16 << 20,
            max_queued_bytes: 32 << 20,
            max_concurrent_peer_requests: 4096,
            max_concurrent_client_requests: 1024,
            max_concurrent_bytes: 32 << 20,
            max_long_reply_bytes: 32 << 20,
            reply_patience: Duration::from_secs(30),
            max_client_connections: 4096,
            max_client_ahead: 512 << 20,
            max_client_streams: 1024,
            max_handshakes: 256,
            connect_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(6),
            keep_alive: Duration::from_secs(1),
            min_back_off: Duration::from_millis(50),
            max_back_off: Duration::from_secs(1),
            initial_rtt: Duration::from_millis(10),
            stream_window: 8 << 20,
            udp_buffer: 8 << 20,
            max_datagram: 6500,
            certificate_poll: Some(Duration::from_secs(10)),
        }
    }
}

/// quinn hands up to ten datagrams to the kernel at a time, which takes less than 64 KiB together
/// and drops all of them if it is more.
const MAX_DATAGRAM: u16 = 6550;
/// What QUIC demands of every path.
const MIN_DATAGRAM: u16 = 1200;

impl NetOptions {
    pub(crate) fn datagram(&self) -> u16 {
        self.max_datagram.clamp(MIN_DATAGRAM, MAX_DATAGRAM)
    }

    /// For connections that this side dials as a peer.
    pub(crate) fn dialling(&self) -> TransportConfig {
        let mut config = self.common();
        config.max_concurrent_bidi_streams(VarInt::from_u32(0));
        config.keep_alive_interval(Some(self.keep_alive));
        config
    }

    /// For connections that this side dials as a client.
    pub(crate) fn dialling_as_client(&self) -> TransportConfig {
        let mut config = self.dialling();
        // Each stream has its own bound, and there are as many as this side opens. With one for all of them, streams of
        // results that are not read would keep the replies to requests on the same connection from coming.
        config.receive_window(VarInt::MAX);
        config.stream_receive_window(VarInt::from_u32(self.stream_window.min(CLIENT_STREAM_WINDOW)));
        config
    }

    /// For connections that arrive.
    pub(crate) fn serving(&self) -> Arc<TransportConfig> {
        let mut config = self.common();
        // Besides the one of requests. More than a peer needs; see there.
        let streams = self.max_client_streams.saturating_add(1).max(LANES.len() as u32 + 1);
        config.max_concurrent_bidi_streams(VarInt::from_u32(streams));
        // Enough to greet. What was given cannot be taken back: more comes when it is known who it is.
        config.receive_window(VarInt::from_u32(LEAST_WINDOW.min(self.stream_window)));
        // The dialling side keeps it alive; whoever does not is gone.
        config.keep_alive_interval(None);
        Arc::new(config)
    }

    /// How much a client's connection may send ahead of its reader if there are so many.
    pub(crate) fn client_window(&self, connections: usize) -> u32 {
        let share = self.max_client_ahead / connections.max(1);
        let most = self.stream_window.saturating_mul(WINDOWS);
        u32::try_from(share).unwrap_or(u32::MAX).clamp(LEAST_WINDOW.min(most), most)
    }

    /// The window of a peer's whole connection: more than its streams can fill together, or bulk that nobody reads would stop
    /// the control lane.
    pub(crate) fn connection_window(&self) -> VarInt {
        VarInt::from_u64(u64::from(self.stream_window) * u64::from(WINDOWS)).unwrap_or(VarInt::MAX)
    }

    fn common(&self) -> TransportConfig {
        let connection_window = self.connection_window();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.datagram());
        // Nearly every packet is answered by one that can carry its acknowledgement; one for every second
        // packet, as without this, costs a packet of its own for each that is long.
        let mut acknowledgements = AckFrequencyConfig::default();
        acknowledgements.ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGE_AFTER));
        let mut config = TransportConfig::default();
        config
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_idle_timeout(Some(
                IdleTimeout::try_from(self.idle_timeout).unwrap_or_else(|_| IdleTimeout::from(VarInt::MAX)),
            ))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(connection_window)
            .send_window(connection_window.into_inner())
            .initial_rtt(self.initial_rtt)
            .ack_frequency_config(Some(acknowledgements))
            .mtu_discovery_config(Some(discovery))
            .datagram_receive_buffer_size(None);
        config
    }
}

/// Packets that the other side may receive before it has to acknowledge them at once.
const ACKNOWLEDGE_AFTER: u32 = 8;

/// What a client is sent ahead of its reader on a stream: it may have a stream for each partition.
const CLIENT_STREAM_WINDOW: u32 = 2 << 20;

/// Less makes a client wait for the next round trip amid its request.
const LEAST_WINDOW: u32 = 64 << 10;

/// How many streams' windows fit into a connection's: those of all lanes, and one.
pub(crate) const WINDOWS: u32 = LANES.len() as u32 + 1;

/// All lanes, in the order of their importance.
pub(crate) const LANES: [Lane; 4] = [Lane::Control, Lane::Data, Lane::Client, Lane::Bulk];

pub(crate) fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Control => 0,
        Lane::Data => 1,
        Lane::Client => 2,
        Lane::Bulk => 3,
    }
}

/// QUIC sends what is pending on streams of higher priority first.
pub(crate) fn lane_priority(lane: Lane) -> i32 {
    match lane {
        Lane::Control => 2,
        // They take turns.
        Lane::Data | Lane::Client => 1,
        Lane::Bulk => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_share_what_few_may_send_ahead() {
        let options = NetOptions::default();
        assert_eq!(options.client_window(1), 40 << 20);
        assert_eq!(options.client_window(12), 40 << 20);
        assert_eq!(options.client_window(512), 1 << 20);
        assert_eq!(options.client_window(1_000_000), LEAST_WINDOW);
        let together = |count: usize| count as u64 * u64::from(options.client_window(count));
        assert!([17, 100, 1_000, 8_192].into_iter().all(|count| together(count) <= 512 << 20));
    }
}
