//! The accept loop against clients that do not behave.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body, routing::get};
use gqla_telemetry::{CancellationToken, HttpLimits, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// More than the kernel buffers for one connection.
fn flood() -> Body {
    let chunk = || Ok::<_, Infallible>(vec![b'x'; 1 << 20]);
    Body::from_stream(futures::stream::iter((0..64).map(move |_| chunk())))
}

#[tokio::test]
async fn a_client_that_stops_reading_loses_its_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = HttpLimits {
        header_timeout: Duration::from_secs(5),
        write_timeout: Duration::from_millis(300),
        max_connections: 1,
    };
    let router = Router::new().route("/", get(|| async { flood() }));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, router, limits, stop.clone()));

    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(REQUEST).await.unwrap();
    let mut reading = TcpStream::connect(address).await.unwrap();
    reading.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), reading.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 64 << 20, "{} bytes", answer.len());

    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
}
