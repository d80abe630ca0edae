//! What a server counts, told with the figures of its node.

use std::sync::atomic::Ordering;

use dogsled_replication::metrics::{Family, Figures};

use super::server::Shared;
use crate::cluster::connections::{open_connections, refused_connections};

impl Figures for Shared {
    fn families(&self) -> Vec<Family> {
        let (mut open, mut refused) = (open_connections(), refused_connections());
        open.add(vec![("kind", "redis".into())], self.connected.load(Ordering::Relaxed) as u64);
        refused.add(vec![("reason", "too_many_redis".into())], self.rejected.load(Ordering::Relaxed));
        let moved = Family::counter(
            "dogsled_redis_moved_total",
            "Replies to Redis clients that sent them to the node that leads a key's partition.",
        );
        let mut held = Family::gauge(
            "dogsled_redis_held_bytes",
            "Bytes held for Redis clients: of commands and replies under way, and of messages not taken yet.",
        );
        let hub = self.database.hub.figures();
        held.add(vec![("what", "traffic".into())], self.held.bytes() as u64);
        held.add(vec![("what", "messages".into())], hub.waiting_bytes);
        let mut subscriptions = Family::gauge(
            "dogsled_redis_subscriptions",
            "Subscriptions of Redis clients at this node, to channels and to patterns of them.",
        );
        subscriptions.add(vec![("kind", "channel".into())], hub.channels);
        subscriptions.add(vec![("kind", "pattern".into())], hub.patterns);
        let messages = Family::counter(
            "dogsled_redis_messages_total",
            "Messages and notices of keys for Redis clients subscribed at this node, one for each who gets it.",
        );
        vec![
            open,
            refused,
            moved.of(self.topology.told_to_move()),
            held,
            subscriptions,
            messages.of(hub.messages),
        ]
    }
}
