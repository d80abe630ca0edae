//! What systemd wants to hear of a service of `Type=notify`: a datagram to the socket that it names.
//!
//! Without the variable `NOTIFY_SOCKET` nobody wants to hear it. That a message was not heard is no
//! reason to stop serving.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells systemd, if it listens: `READY=1`, `STOPPING=1`, `STATUS=…`, each on a line.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(?socket, %error, "systemd was not notified");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address(socket)?).map(drop)
}

#[cfg(target_os = "linux")]
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

#[cfg(not(target_os = "linux"))]
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    debug_assert!(!socket.as_bytes().is_empty(), "checked by the caller");
    SocketAddr::from_pathname(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_arrives_at_a_socket_with_and_without_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 64];
        send(path.as_os_str(), "READY=1").unwrap();
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");

        #[cfg(target_os = "linux")]
        {
            let name = format!("@dogsled-test-{}", std::process::id());
            let listener = UnixDatagram::bind_addr(&address(OsStr::new(&name)).unwrap()).unwrap();
            send(OsStr::new(&name), "STOPPING=1").unwrap();
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"STOPPING=1");
        }
        assert!(send(OsStr::new("/does/not/exist"), "READY=1").is_err());
    }
}
