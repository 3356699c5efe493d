//! Where a router is and how to log in, without ever showing the password.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

/// A login's password: no `Debug`, no `Display`, no serde.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// How to reach one router over plain HTTP.
#[derive(Clone)]
pub struct RestOptions {
    /// The host name or address.
    pub host: String,
    /// The port of the `www` service.
    pub port: u16,
    /// The login's name.
    pub user: String,
    /// The login's password.
    pub password: Password,
    /// The longest time to wait for a connection; 5 seconds by default.
    pub connect_timeout: Duration,
    /// The longest time from sending to the last byte of the answer; 55 seconds by default, since the router itself
    /// ends a command after 60.
    pub request_timeout: Duration,
}

impl RestOptions {
    /// Names a router on plain HTTP: the password and all configuration cross the network readable by everyone on the
    /// path, so this is for loopback and for a private link to the router.
    pub fn plain(host: impl Into<String>, port: u16, user: impl Into<String>, password: Password) -> Self {
        Self {
            host: host.into(),
            port,
            user: user.into(),
            password,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(55),
        }
    }

    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(super) fn authorization(&self) -> HeaderValue {
        let text = format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password.0)));
        // Base64 holds nothing a header must not hold.
        let mut value = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Basic"));
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for RestOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
