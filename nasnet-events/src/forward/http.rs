//! A web server as a receiver.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use nasnet_dbmanager::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Error;
use crate::forward::{Batch, Delivery, Sink};

/// What is read of an answer, to say why.
const ANSWER_BYTES_MAX: usize = 16 << 10;
const WHY_CHARS_MAX: usize = 200;

/// Posts batches as lines of JSON, the form of the cold tier (`application/x-ndjson`), with an `Idempotency-Key` that is the
/// same for the same events. Each line has `id`, and `epoch` and `seq` that grow within its stream: what a receiver needs to
/// know a repetition in other company. One connection a batch; plain HTTP: put a proxy that speaks TLS beside it.
///
/// | answer | taken as |
/// |---|---|
/// | 2xx, 409 (it has them already) | `Delivered` |
/// | 408, 425, 429, 5xx, no or half an answer, no answer in time | `Retry` |
/// | 400, 413, 415, 422 and other 4xx | `Rejected` |
/// | cannot connect, 401, 403, 404, 405, 407, 410, 1xx, 3xx: nothing would be accepted now | `Offline` |
#[derive(Clone)]
pub struct HttpSink {
    uri: Uri,
    host: String,
    port: u16,
    headers: Vec<(HeaderName, HeaderValue)>,
    connect_timeout: Duration,
    timeout: Duration,
}

impl fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold credentials.
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("HttpSink").field("host", &self.host).field("port", &self.port).field("headers", &names).finish()
    }
}

impl HttpSink {
    /// A sink that posts to `http://host[:port]/path`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn new(url: &str) -> Result<Self, Error> {
        let invalid = |why| Error::Invalid { what: "url", value: without_secrets(url), why };
        let uri: Uri = url.parse().map_err(|_| invalid("it is not one"))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("expected http://"));
        }
        let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("credentials belong into a header"));
        }
        // Of credentials with a `/` or `?` in the password, what is before it looks like a port.
        let behind_host = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        if !matches!(behind_host, "" | ":") && uri.port_u16().is_none() {
            return Err(invalid("its port is no number"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let (connect_timeout, timeout) = (Duration::from_secs(5), Duration::from_secs(20));
        Ok(Self { uri, host, port, headers: Vec::new(), connect_timeout, timeout })
    }

    /// Adds a header to each request, such as `Authorization`. Its value is never shown.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not a header.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, Error> {
        let invalid = |why| Error::Invalid { what: "header", value: name.to_owned(), why };
        let named: HeaderName = name.parse().map_err(|_| invalid("it is not a name"))?;
        let mut valued: HeaderValue = value.parse().map_err(|_| invalid("its value cannot be sent"))?;
        valued.set_sensitive(true);
        self.headers.push((named, valued));
        Ok(self)
    }

    /// Sets how long the whole exchange may take. Default 20 seconds; 25 at most.
    #[must_use]
    pub fn timeout(mut self, longest: Duration) -> Self {
        self.timeout = longest.min(Duration::from_secs(25));
        self
    }

    fn request(&self, batch: Batch<'_>) -> Result<Request<Full<Bytes>>, String> {
        let mut body = Vec::new();
        for event in batch.events {
            serde_json::to_writer(&mut body, event).map_err(|error| error.to_string())?;
            body.push(b'\n');
        }
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::post(path)
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/x-ndjson")
            .header("idempotency-key", batch.key)
            .header("nasnet-source", batch.source);
        if batch.late {
            request = request.header("nasnet-late", "1");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())
    }

    async fn exchange(&self, batch: Batch<'_>) -> Delivery {
        let request = match self.request(batch) {
            Ok(request) => request,
            Err(why) => return Delivery::Rejected { why },
        };
        let dialled = timeout(self.connect_timeout, TcpStream::connect((self.host.as_str(), self.port))).await;
        let stream = match dialled {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Delivery::Offline { why: format!("connecting: {error}") },
            Err(_) => return Delivery::Offline { why: "connecting took too long".to_owned() },
        };
        let (mut sender, driver) = match http1::handshake(TokioIo::new(stream)).await {
            Ok(connected) => connected,
            Err(error) => return Delivery::Offline { why: format!("connecting: {error}") },
        };
        let driver = tokio::spawn(driver);
        let answered = timeout(self.timeout, async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            // An answer that is too long or breaks off has said its status.
            Ok::<_, String>((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
        })
        .await;
        driver.abort();
        match answered {
            Ok(Ok((status, body))) => verdict(status, &body),
            Ok(Err(why)) => Delivery::Retry { why: format!("no answer: {why}") },
            Err(_) => Delivery::Retry { why: "no answer in time".to_owned() },
        }
    }
}

impl Sink for HttpSink {
    fn deliver<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Delivery> {
        Box::pin(self.exchange(batch))
    }
}

/// What a status means for a batch.
fn verdict(status: u16, body: &[u8]) -> Delivery {
    let text = String::from_utf8_lossy(body);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WHY_CHARS_MAX).collect();
    let why = format!("answer {status} {}", text.trim()).trim_end().to_owned();
    match status {
        200..=299 | 409 => Delivery::Delivered,
        408 | 425 | 429 | 500..=599 => Delivery::Retry { why },
        401 | 403 | 404 | 405 | 407 | 410 => Delivery::Offline { why },
        400..=499 => Delivery::Rejected { why },
        _ => Delivery::Offline { why },
    }
}

/// Where it leads, without what may be secret: credentials end at the last `@`, since a password may hold others and whatever
/// else ends a host; the addresses of web hooks are secret from the path on.
fn without_secrets(url: &str) -> String {
    let (before, rest) = match (url.rsplit_once('@'), url.split_once("://")) {
        (Some((_, rest)), _) => ("..@".to_owned(), rest),
        (None, Some((scheme, rest))) => (format!("{scheme}://"), rest),
        (None, None) => (String::new(), url),
    };
    match rest.split_once(['/', '?', '#']) {
        Some((host, _)) => format!("{before}{host}/.."),
        None => before + rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_meaning() {
        for status in 0..1_000 {
            let delivery = verdict(status, b"no\nsuch");
            let expected = match status {
                200..=299 | 409 => "Delivered",
                408 | 425 | 429 | 500..=599 => "Retry",
                400 | 402 | 406 | 411..=499 => "Rejected",
                _ => "Offline",
            };
            assert!(format!("{delivery:?}").starts_with(expected), "{status}: {delivery:?}");
        }
    }

    #[test]
    fn only_plain_addresses_without_credentials_are_taken() {
        for bad in ["", "https://a/", "a", "http://u:secret@a/", "ftp://a", "/path"] {
            let error = HttpSink::new(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        // Whatever stands in the password.
        for bad in
            ["http://u:secret@secret@a/", "http://u:secret/secret@a/x@y", "http://u:secret?secret#secret@a/?x=@y"]
        {
            let error = HttpSink::new(bad).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("..@"), "{error}");
        }
        for bad in ["https://hooks.test/T0/secret?secret#secret", "hooks.test/secret", "http:/hooks.test/secret"] {
            let error = HttpSink::new(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let error = HttpSink::new("https://hooks.test/secret").unwrap_err().to_string();
        assert!(error.contains("https://hooks.test/.."), "{error}");
        assert!(HttpSink::new("http://a/b@c?d=@e").is_ok());
        let sink = HttpSink::new("http://[::1]:8080/in?a=b").unwrap().header("Authorization", "Bearer secret").unwrap();
        assert_eq!((sink.host.as_str(), sink.port), ("::1", 8080));
        assert!(!format!("{sink:?}").contains("secret"));
        assert!(HttpSink::new("http://a").unwrap().header("a b", "c").is_err());
    }
}
