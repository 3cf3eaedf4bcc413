//! The pages of a box in memory, to look at them: `cargo run -p throughway-web --features testing --example preview [PORT]`.
//! Everybody is an administrator.

use std::sync::Arc;

use axum::Extension;
use throughway_web::Role;
use throughway_web::pages::{Pages, Who};
use throughway_web::testing::{Recorded, actor};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(8480);
    let who = Who { actor: actor(Role::Admin), csrf: "preview".into() };
    let app = Pages::new(Arc::new(Recorded::default())).router().layer(Extension(who));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await
}
