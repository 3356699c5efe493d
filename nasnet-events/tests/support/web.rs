//! A real web server on loopback that receives lines of JSON and misbehaves on demand.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// Takes the events in, and the connection ends without an answer.
    DropReply,
    /// Never answers.
    Hang,
}

type Script = Box<dyn FnMut(&[Value]) -> Answer + Send>;

struct State {
    script: Script,
    requests: Vec<Vec<Value>>,
    keys: Vec<String>,
    late: usize,
    accepted: Vec<Value>,
    ids: HashSet<String>,
}

pub struct Web {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Web {
    pub async fn start(script: impl FnMut(&[Value]) -> Answer + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    pub async fn start_at(address: SocketAddr, script: impl FnMut(&[Value]) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (script, ids): (Script, _) = (Box::new(script), HashSet::new());
        let state = State { script, requests: Vec::new(), keys: Vec::new(), late: 0, accepted: Vec::new(), ids };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, state, task }
    }

    /// Returns when nobody listens any more and every connection is closed.
    pub async fn stop(mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }

    pub fn url(&self) -> String {
        format!("http://{}/in", self.address)
    }

    pub fn script(&self, script: impl FnMut(&[Value]) -> Answer + Send + 'static) {
        self.state.lock().unwrap().script = Box::new(script);
    }

    /// `stream@version` of what was taken in, in order, each once.
    pub fn accepted(&self) -> Vec<String> {
        self.state.lock().unwrap().accepted.iter().map(label).collect()
    }

    /// What was taken in, in order, each once.
    pub fn lines(&self) -> Vec<Value> {
        self.state.lock().unwrap().accepted.clone()
    }

    /// How many requests held this event.
    pub fn tries(&self, wanted: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|lines| lines.iter().any(|line| label(line) == wanted)).count()
    }

    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().requests.len()
    }

    pub fn late(&self) -> usize {
        self.state.lock().unwrap().late
    }

    pub fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().keys.clone()
    }
}

pub fn label(line: &Value) -> String {
    format!("{}@{}", line["stream"].as_str().unwrap(), line["version"])
}

pub fn any(lines: &[Value], stream: &str) -> bool {
    lines.iter().any(|line| line["stream"] == stream)
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let late = request.headers().contains_key("nasnet-late");
    assert_eq!(request.headers()["content-type"], "application/x-ndjson");
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let lines: Vec<Value> = serde_json::Deserializer::from_slice(&body).into_iter().map(Result::unwrap).collect();
    let answer = {
        let mut state = state.lock().unwrap();
        let answer = (state.script)(&lines);
        state.requests.push(lines.clone());
        state.keys.push(key);
        state.late += usize::from(late);
        if matches!(answer, Answer::Status(200..=299) | Answer::DropReply) {
            for line in lines {
                if state.ids.insert(line["id"].as_str().unwrap().to_owned()) {
                    state.accepted.push(line);
                }
            }
        }
        answer
    };
    match answer {
        Answer::Status(status) => {
            Ok(Response::builder().status(status).body(Full::new(Bytes::from_static(b"said so"))).unwrap())
        }
        Answer::DropReply => Err(std::io::Error::other("dropped")),
        Answer::Hang => std::future::pending().await,
    }
}
