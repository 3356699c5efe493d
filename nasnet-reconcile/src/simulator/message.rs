//! Requests and responses without sockets.

/// One HTTP request as the router's web server sees it.
#[derive(Clone, Default)]
pub struct Request {
    /// The method, such as `PATCH`.
    pub method: String,
    /// The target as sent, such as `/rest/ip/address/*1A?disabled=false`.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Content-Type` header.
    pub content_type: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// The address of the client.
    pub peer: String,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The authorization header and the body may hold secrets.
        f.debug_struct("Request").field("method", &self.method).field("target", &self.target).finish_non_exhaustive()
    }
}

/// What the client gets to see of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All of it.
    Whole,
    /// Nothing: the connection closes without an answer (F03, F04).
    Dropped,
    /// The head and this many bytes of the body, then the connection closes (F05).
    Cut {
        /// Bytes of the body that are sent.
        bytes: usize,
    },
    /// All of it, late (F06).
    Delayed {
        /// How late.
        by_ms: u64,
    },
    /// Nothing, and the connection stays open (F02).
    Never,
}

/// One HTTP response.
#[derive(Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The `Content-Type` header.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// What the client gets to see.
    pub delivery: Delivery,
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

impl Response {
    pub(crate) fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: "application/json", body, delivery: Delivery::Whole }
    }

    pub(crate) fn html(status: u16, reason: &str) -> Self {
        let body = format!("<html><head><title>Error {status}: {reason}</title></head><body>{reason}</body></html>");
        Self { status, content_type: "text/html", body: body.into_bytes(), delivery: Delivery::Whole }
    }
}
