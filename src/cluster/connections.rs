//! The families of metrics that all servers of a node tell of their connections.

use dogsled_replication::metrics::Family;

/// Connections that are open, each `kind` of them.
pub(super) fn open_connections() -> Family {
    Family::gauge("dogsled_connections", "Connections that are open, by who made them.")
}

/// Connections that were not let in, by `reason`.
pub(super) fn refused_connections() -> Family {
    Family::counter("dogsled_connections_refused_total", "Connections that were not let in, by why.")
}
