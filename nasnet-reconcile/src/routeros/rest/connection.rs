//! One kept-alive connection with one request in flight, and the line between "not sent" and "no answer".

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::RestOptions;

/// No menu of a router that this project manages comes near it; a larger reply is not read to its end.
const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A pooled connection idle for longer is replaced, so that a write rarely meets one the router is just closing.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// A whole answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Why there is no whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No byte of the request left this process.
    NotSent(String),
    /// Some of the request may have arrived.
    NoAnswer(String),
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
    idle_since: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    async fn usable(&mut self) -> bool {
        self.idle_since.elapsed() < IDLE_MAX && self.sender.ready().await.is_ok() && !self.sender.is_closed()
    }
}

/// The connection to one router for one login.
pub(super) struct Link {
    options: RestOptions,
    authority: String,
    authorization: HeaderValue,
    slot: Mutex<Option<Connection>>,
}

impl Link {
    pub(super) fn new(options: RestOptions) -> Self {
        let authority = options.authority();
        let authorization = options.authorization();
        Self { options, authority, authorization, slot: Mutex::new(None) }
    }

    pub(super) fn address(&self) -> &str {
        &self.authority
    }

    /// Sends one request and reads the whole answer; a second caller waits its turn.
    ///
    /// # Cancel safety
    ///
    /// A dropped call closes the connection; the request may have arrived.
    pub(super) async fn exchange(&self, method: &Method, path: &str, body: Option<Vec<u8>>) -> Result<Reply, Failure> {
        let mut slot = self.slot.lock().await;
        let deadline = Instant::now() + self.options.request_timeout;
        let mut request = self.request(method, path, body)?;
        // The connection leaves the slot while it is used: a cancelled exchange cannot leave half an answer behind.
        if let Some(mut connection) = slot.take()
            && connection.usable().await
        {
            match send(&mut connection, request, deadline).await {
                Ok(reply) => {
                    connection.idle_since = Instant::now();
                    *slot = Some(connection);
                    return Ok(reply);
                }
                Err(SendFailure::Returned(back)) => request = *back,
                // Reading again is harmless, and the router may just have closed an idle connection.
                Err(SendFailure::NoAnswer(_)) if method == Method::GET => request = self.request(method, path, None)?,
                Err(SendFailure::NoAnswer(cause)) => return Err(Failure::NoAnswer(cause)),
            }
        }
        let mut connection = self.connect().await?;
        match send(&mut connection, request, deadline).await {
            Ok(reply) => {
                connection.idle_since = Instant::now();
                *slot = Some(connection);
                Ok(reply)
            }
            Err(SendFailure::Returned(_)) => Err(Failure::NotSent("the connection closed before sending".to_owned())),
            Err(SendFailure::NoAnswer(cause)) => Err(Failure::NoAnswer(cause)),
        }
    }

    fn request(&self, method: &Method, path: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(HOST, &self.authority)
            .header(AUTHORIZATION, self.authorization.clone());
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Failure::NotSent(format!("not a request: {error}")))
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let connected = timeout(self.options.connect_timeout, self.dial()).await;
        connected.map_err(|_| Failure::NotSent("connecting took too long".to_owned()))?
    }

    async fn dial(&self) -> Result<Connection, Failure> {
        let not_sent = |error: &dyn std::fmt::Display| Failure::NotSent(error.to_string());
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((self.options.host.as_str(), self.options.port))
            .await
            .map_err(|error| not_sent(&error))?
            .collect();
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(|error| not_sent(&error))?;
        // Requests are small and each waits for its answer: Nagle's algorithm would only delay them.
        stream.set_nodelay(true).map_err(|error| not_sent(&error))?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| not_sent(&error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to the router ended");
            }
        });
        Ok(Connection { sender, task, idle_since: Instant::now() })
    }
}

enum SendFailure {
    Returned(Box<Request<Full<Bytes>>>),
    NoAnswer(String),
}

async fn send(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
    deadline: Instant,
) -> Result<Reply, SendFailure> {
    let exchange = async {
        let response = match connection.sender.try_send_request(request).await {
            Ok(response) => response,
            Err(mut error) => {
                return Err(match error.take_message() {
                    Some(request) => SendFailure::Returned(Box::new(request)),
                    None => SendFailure::NoAnswer(error.into_error().to_string()),
                });
            }
        };
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), REPLY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| SendFailure::NoAnswer(format!("reply broke off: {error}")))?
            .to_bytes();
        Ok(Reply { status, body })
    };
    match timeout_at(deadline, exchange).await {
        Ok(result) => result,
        Err(_) => Err(SendFailure::NoAnswer("no answer in time".to_owned())),
    }
}
