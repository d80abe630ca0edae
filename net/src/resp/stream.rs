//! [`ClientStream`]: the TCP connection of a Redis client, in clear or within TLS.
//!
//! TLS 1.3 with the certificate of the node, which the client checks by the cluster's authority (`ca.crt`). Clients are asked for
//! no certificate: they say a password, as all of Redis's clients can.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::CertificateSource;
use crate::certs::{CertificateError, Certificates};
use crate::tls::tcp_server_config;

/// Files of certificates are looked at again for a connection that comes so long after the last look.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// What is waited for is so small at first, as whoever says nothing is to be kept no buffer.
const FIRST_PIECE: usize = 256;
/// How much is read at once while something is written.
const PIECE: usize = 4 << 10;

/// Puts connections within TLS.
pub struct ClientTls {
    source: CertificateSource,
    acceptor: ArcSwap<rustls::ServerConfig>,
    looked: Mutex<Instant>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn load(source: &CertificateSource) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
    match source {
        CertificateSource::Files(files) => tcp_server_config(&Certificates::load(files)?),
        CertificateSource::Memory(certificates) => tcp_server_config(certificates),
    }
}

impl ClientTls {
    /// With a node's certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(source: CertificateSource) -> Result<ClientTls, CertificateError> {
        let source = source.absolute();
        let acceptor = ArcSwap::new(load(&source)?);
        Ok(ClientTls { source, acceptor, looked: Mutex::new(Instant::now()) })
    }

    /// Shakes hands. The caller bounds how long that takes.
    ///
    /// # Errors
    /// It is not TLS that the client speaks, or it does not like the certificate, or is gone.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<ClientStream> {
        self.look_again();
        let stream = TlsAcceptor::from(self.acceptor.load_full()).accept(stream).await?;
        Ok(ClientStream::Tls(Box::new(stream)))
    }

    /// Takes renewed certificates into use; those that are of no use leave the old ones.
    fn look_again(&self) {
        let CertificateSource::Files(_) = self.source else { return };
        let mut looked = self.looked.lock();
        if looked.elapsed() < LOOK_AGAIN {
            return;
        }
        *looked = Instant::now();
        match load(&self.source) {
            Ok(acceptor) => self.acceptor.store(acceptor),
            Err(error) => {
                tracing::warn!(%error, "the certificates for Redis clients are not usable; the old ones stay");
            }
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum ClientStream {
    /// In clear.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a connection has done: see [`ClientStream::write_or_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes were written.
    Written(usize),
    /// All that was written is on its way.
    Flushed,
    /// So many bytes have come; 0: there will be no more.
    Read(usize),
}

fn poll_write(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    context: &mut Context<'_>,
) -> Poll<io::Result<Moved>> {
    match bytes.is_empty() {
        true => Pin::new(stream).poll_flush(context).map_ok(|()| Moved::Flushed),
        false => Pin::new(stream).poll_write(context, bytes).map_ok(Moved::Written),
    }
}

/// By way of a small buffer, so that what is waited for costs nothing.
fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<Moved>> {
    let mut piece = [0; PIECE];
    let mut piece = ReadBuf::new(&mut piece);
    ready!(Pin::new(stream).poll_read(context, &mut piece))?;
    buffer.put_slice(piece.filled());
    Poll::Ready(Ok(Moved::Read(piece.filled().len())))
}

impl ClientStream {
    /// What is below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            ClientStream::Plain(stream) => stream,
            ClientStream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Reads what there is when there is something, about `room` bytes at most; 0: there will be no more. Nothing is
    /// lost when the future is dropped, and the buffer grows only when something has come.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn read(&mut self, buffer: &mut BytesMut, room: usize) -> io::Result<usize> {
        match self {
            ClientStream::Plain(stream) => loop {
                stream.readable().await?;
                buffer.reserve(room);
                // Not `try_read_buf`: that would have to be told by the system that nothing more is there, for each request.
                // Nor within the task's budget: without that it would be tried for ever.
                if let Some(read) = unconstrained(stream.read_buf(buffer)).now_or_never() {
                    return read;
                }
            },
            ClientStream::Tls(stream) => {
                let mut piece = [0; FIRST_PIECE];
                let mut count = stream.read(&mut piece).await?;
                buffer.put_slice(&piece[..count]);
                if count == FIRST_PIECE {
                    buffer.reserve(room);
                    // What else was in the record is there by now. An error comes again.
                    let more = stream.read_buf(&mut buffer.limit(room)).now_or_never();
                    count += more.and_then(Result::ok).unwrap_or(0);
                }
                Ok(count)
            }
        }
    }

    /// Writes what can be written without waiting; how much, which may be nothing.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn write_at_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            ClientStream::Plain(stream) if !bytes.is_empty() => match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                written => written,
            },
            // Within TLS what is written has to be flushed.
            _ => Ok(0),
        }
    }

    /// Writes a part of the bytes, or, if there are none, has what was written sent; or reads into a buffer, if there is one,
    /// what comes before that can be done. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn write_or_read(
        &mut self,
        bytes: &[u8],
        mut buffer: Option<&mut BytesMut>,
    ) -> io::Result<Moved> {
        poll_fn(|context| {
            let written = match self {
                ClientStream::Plain(stream) => poll_write(stream, bytes, context),
                ClientStream::Tls(stream) => poll_write(stream, bytes, context),
            };
            match (written, &mut buffer) {
                (Poll::Pending, Some(buffer)) => match self {
                    ClientStream::Plain(stream) => poll_read(stream, buffer, context),
                    ClientStream::Tls(stream) => poll_read(stream, buffer, context),
                },
                (written, _) => written,
            }
        })
        .await
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            ClientStream::Plain(stream) => stream.shutdown().await,
            ClientStream::Tls(stream) => stream.shutdown().await,
        }
    }
}
