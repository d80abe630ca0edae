//! Where work runs that may take long or wait for the disk.

use std::io;

/// See the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blocking {
    /// On a thread for such work.
    Threads,
    /// In the task itself: for simulations, in which nothing may depend on threads.
    Inline,
}

impl Blocking {
    pub(crate) async fn run<T, F>(self, work: F) -> io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        match self {
            Blocking::Inline => Ok(work()),
            Blocking::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
        }
    }
}
