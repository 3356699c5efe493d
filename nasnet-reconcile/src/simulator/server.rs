//! The HTTP front end on loopback, and what the network does to its answers.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::error::SimError;
use super::message::{Delivery, Request, Response};
use super::sim::Sim;

/// A request body above this is not read to its end.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long open connections may finish their answers at shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// A simulated router that is being served, shared by its front end and everyone who watches or edits it.
#[derive(Clone)]
pub struct SharedSim {
    sim: Arc<Mutex<Sim>>,
    started: Instant,
}

impl std::fmt::Debug for SharedSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSim").finish_non_exhaustive()
    }
}

impl SharedSim {
    /// Works on the router between two requests.
    pub fn with<T>(&self, work: impl FnOnce(&mut Sim) -> T) -> T {
        work(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Sim> {
        // Edits happen on a copy, so a panic in one leaves the router as it was.
        self.sim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, request: &Request) -> Response {
        let uptime_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lock().handle(request, uptime_ms)
    }
}

/// A running front end.
///
/// Dropping it stops it at once; [`SimServer::shutdown`] lets answers finish first.
#[derive(Debug)]
pub struct SimServer {
    sim: SharedSim,
    address: SocketAddr,
    front: Option<Front>,
}

#[derive(Debug)]
struct Front {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SimServer {
    /// Serves a router on a loopback address; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// [`SimError::NotLoopback`], [`SimError::AddressInUse`], [`SimError::Listen`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call serves nothing.
    pub async fn start(sim: Sim, address: SocketAddr) -> Result<Self, SimError> {
        if !address.ip().is_loopback() {
            return Err(SimError::NotLoopback { address });
        }
        let listener = listen(address).await?;
        let address = listener.local_addr().map_err(|source| SimError::Listen { address, source })?;
        let sim = SharedSim { sim: Arc::new(Mutex::new(sim)), started: Instant::now() };
        let front = Some(Front::start(listener, sim.clone()));
        Ok(Self { sim, address, front })
    }

    /// Returns the router that is served.
    pub fn sim(&self) -> &SharedSim {
        &self.sim
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// F01: closes the listening socket and all connections, so that connecting is refused.
    ///
    /// # Cancel safety
    ///
    /// A dropped call closes everything as well, without waiting for it.
    pub async fn refuse_connections(&mut self) {
        if let Some(front) = self.front.take() {
            front.stop().await;
        }
    }

    /// Listens again on the same address after [`SimServer::refuse_connections`].
    ///
    /// # Errors
    ///
    /// [`SimError::AddressInUse`] when another program has taken the address, [`SimError::Listen`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves connections refused.
    pub async fn accept_connections(&mut self) -> Result<(), SimError> {
        if self.front.is_none() {
            let listener = listen(self.address).await?;
            self.front = Some(Front::start(listener, self.sim.clone()));
        }
        Ok(())
    }

    /// Stops listening, lets answers finish for a moment and closes all connections.
    ///
    /// # Cancel safety
    ///
    /// A dropped call stops everything at once.
    pub async fn shutdown(mut self) {
        self.refuse_connections().await;
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, SimError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => SimError::AddressInUse { address },
        _ => SimError::Listen { address, source },
    })
}

impl Front {
    fn start(listener: TcpListener, sim: SharedSim) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(accept(listener, sim, stopped)) }
    }

    async fn stop(mut self) {
        // The receivers may be gone already, which is what stopping wants.
        let _ = self.stop.send(true);
        if let Err(error) = (&mut self.task).await
            && !error.is_cancelled()
        {
            tracing::warn!(%error, "the simulator's front end ended abnormally");
        }
    }
}

async fn accept(listener: TcpListener, sim: SharedSim, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop_asked(&mut stopped) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve(stream, peer, sim.clone(), stopped.clone()));
                }
                Err(error) => tracing::warn!(%error, "accepting a connection failed"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        connections.shutdown().await;
    }
}

/// Ends when the front end is to stop, or is gone.
async fn stop_asked(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(stream: TcpStream, peer: SocketAddr, sim: SharedSim, mut stopped: watch::Receiver<bool>) {
    let in_service = stopped.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (sim, stopped) = (sim.clone(), in_service.clone());
        async move { answer(request, peer, sim, stopped).await }
    });
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop_asked(&mut stopped) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the simulator ended early");
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    peer: SocketAddr,
    sim: SharedSim,
    mut stopped: watch::Receiver<bool>,
) -> Result<hyper::Response<Delivered>, io::Error> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut read = Request {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        authorization: text(AUTHORIZATION),
        content_type: text(CONTENT_TYPE),
        peer: peer.ip().to_string(),
        body: Vec::new(),
    };
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    read.body = body.to_bytes().to_vec();
    let response = sim.handle(&read);
    match response.delivery {
        Delivery::Whole | Delivery::Cut { .. } => {}
        Delivery::Dropped => return Err(io::Error::other("the answer is lost")),
        Delivery::Delayed { by_ms } => {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(by_ms)) => {}
                () = stop_asked(&mut stopped) => {}
            }
        }
        Delivery::Never => {
            stop_asked(&mut stopped).await;
            return Err(io::Error::other("the answer never comes"));
        }
    }
    deliver(response)
}

fn deliver(response: Response) -> Result<hyper::Response<Delivered>, io::Error> {
    let mut builder = hyper::Response::builder().status(response.status).header(CONTENT_TYPE, response.content_type);
    if response.status != 204 {
        // Named outright, because a cut body announces more than it delivers.
        builder = builder.header(CONTENT_LENGTH, response.body.len());
    }
    let whole = Bytes::from(response.body);
    let frames = match response.delivery {
        Delivery::Cut { bytes } => {
            VecDeque::from([Ok(whole.slice(..bytes)), Err(io::Error::other("the answer is cut off"))])
        }
        _ => VecDeque::from([Ok(whole)]),
    };
    builder.body(Delivered { frames }).map_err(io::Error::other)
}

/// A response body that may break off.
struct Delivered {
    frames: VecDeque<Result<Bytes, io::Error>>,
}

impl Body for Delivered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.frames.pop_front().map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
    }
}
