//! What `front.py` measures against: a handler of axum's, and nothing before it.
//!
//! `bare ADDRESS` answers `GET /health` as the product does.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let health = || async { Json(json!({"status": "ok", "version": "0.0.0"})) };
    axum::serve(listener, Router::new().route("/health", get(health))).await
}
