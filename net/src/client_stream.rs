//! Streams of results: the serving end ([`serve`]) and the client's ([`ResultStream`]).
//!
//! Each has a QUIC stream of its own, so that one that is read slowly holds up no other, and QUIC's
//! window is the back-pressure: the service's stream is polled only while there is room to write.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::{ClientIdentity, Service, TransportError};
use futures_util::stream::{BoxStream, Stream};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;

use crate::peer::CLOSED_NORMALLY;
use crate::requester::{ResetWhenDropped, poll_pieces, poll_write};
use crate::wire::{FrameKind, FrameReader, FrameWriter};

/// Items are gathered up to so many bytes before they are written.
const BATCH_BYTES: usize = 64 << 10;
/// The longest request for a stream: it names what is to be followed, and brings nothing. A connection may have many
/// that have begun to come.
const MAX_OPENING: usize = 256 << 10;
/// Items that are gathered at a time.
const BATCH_ITEMS: usize = 256;

/// Serves one stream of results. An error means that the client breaks the protocol; that it lost
/// interest is none.
pub(crate) async fn serve(
    service: Arc<dyn Service>,
    client: ClientIdentity,
    (send, mut receive): (SendStream, RecvStream),
    mut closing: watch::Receiver<bool>,
    patience: Duration,
    max_item: usize,
) -> Result<(), String> {
    let body = match tokio::time::timeout(patience, opening(&mut receive)).await {
        Ok(Ok(Some(body))) => body,
        Ok(Err(why)) => return Err(why),
        // Given up before it began, or not begun in time.
        Ok(Ok(None)) | Err(_) => return Ok(()),
    };
    // Nothing follows. What came all the same would be kept for as long as there are results.
    drop(receive);
    let mut items = service.client_stream(&client, body);
    let mut writer = FrameWriter::default();
    let mut ended = false;
    let mut stopped = pin!(send.stopped());
    let mut send = ResetWhenDropped::new(send);
    let mut closing = pin!(closing.wait_for(|closing| *closing));
    poll_fn(|context| {
        // The client has dropped its end, the connection has failed, or the endpoint closes.
        if stopped.as_mut().poll(context).is_ready() || closing.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        for _ in 0..8 {
            ended = ended || gather(context, &mut items, &mut writer, max_item);
            match poll_write(context, send.stream(), &mut writer) {
                Err(_) => return Poll::Ready(()),
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
            }
            if ended && writer.pending() == 0 {
                send.finish();
                return Poll::Ready(());
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    Ok(())
}

/// The request that a stream begins with; `None`: the client has given it up.
async fn opening(receive: &mut RecvStream) -> Result<Option<Bytes>, String> {
    let mut reader = FrameReader::new(MAX_OPENING);
    loop {
        match reader.next_frame().map_err(|error| error.to_string())? {
            Some((header, body)) if header.kind == FrameKind::Open => return Ok(Some(body)),
            Some(_) => return Err("a stream begins with a frame that does not open one".to_owned()),
            None => {}
        }
        let more = poll_fn(|context| match poll_pieces(context, receive, &mut reader) {
            Ok(None) => Poll::Pending,
            Ok(Some(more)) => Poll::Ready(more),
            Err(_) => Poll::Ready(false),
        });
        if !more.await {
            return Ok(None);
        }
    }
}

/// Moves items that are ready into the writer while it has room; whether the stream has ended.
fn gather(
    context: &mut Context<'_>,
    items: &mut BoxStream<'static, Bytes>,
    writer: &mut FrameWriter,
    max_item: usize,
) -> bool {
    for _ in 0..BATCH_ITEMS {
        if writer.pending() >= BATCH_BYTES {
            return false;
        }
        match items.as_mut().poll_next(context) {
            Poll::Pending => return false,
            Poll::Ready(Some(item)) if item.len() <= max_item => writer.push(FrameKind::Item, 0, item),
            Poll::Ready(Some(item)) => {
                let reason = format!("an item of {} bytes is over the limit of {max_item}", item.len());
                tracing::error!(reason, "a stream of results is cut");
                writer.push(FrameKind::Failed, 0, reason.into());
                return true;
            }
            Poll::Ready(None) => {
                writer.push(FrameKind::End, 0, Bytes::new());
                return true;
            }
        }
    }
    // More may be ready at once.
    context.waker().wake_by_ref();
    false
}

/// A client's connection. The task that drives its requests does not keep it open.
pub(crate) struct ClosedWhenDropped(pub(crate) Connection);

impl Drop for ClosedWhenDropped {
    fn drop(&mut self) {
        self.0.close(CLOSED_NORMALLY.into(), b"the client needs it no longer");
    }
}

/// The results of one [`open_stream`](crate::ClientConnection::open_stream). Dropping it ends the
/// stream on the server. The last element is an error unless the stream came to its end.
pub struct ResultStream {
    receive: RecvStream,
    reader: FrameReader,
    /// While there are streams the connection stays open.
    _connection: Arc<ClosedWhenDropped>,
    ended: bool,
}

impl std::fmt::Debug for ResultStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResultStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl ResultStream {
    pub(crate) fn new(
        connection: Arc<ClosedWhenDropped>,
        receive: RecvStream,
        max_item: usize,
    ) -> ResultStream {
        ResultStream { receive, reader: FrameReader::new(max_item), _connection: connection, ended: false }
    }

    /// The next item: the same as of the [`Stream`].
    pub async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, String>> {
        loop {
            match self.reader.next_frame() {
                Err(error) => return Poll::Ready(Err(error.to_string())),
                Ok(Some((header, body))) => {
                    return Poll::Ready(match header.kind {
                        FrameKind::Item => Ok(Some(body)),
                        FrameKind::End => Ok(None),
                        FrameKind::Failed => Err(String::from_utf8_lossy(&body).into_owned()),
                        _ => Err("the server sent a frame that is no item".to_owned()),
                    });
                }
                Ok(None) => {}
            }
            match poll_pieces(context, &mut self.receive, &mut self.reader) {
                Err(why) => return Poll::Ready(Err(why)),
                Ok(None) => return Poll::Pending,
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Poll::Ready(Err("the stream was cut".to_owned())),
            }
        }
    }
}

impl Stream for ResultStream {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.poll_item(context));
        self.ended = !matches!(item, Ok(Some(_)));
        Poll::Ready(item.map_err(TransportError::Lost).transpose())
    }
}
