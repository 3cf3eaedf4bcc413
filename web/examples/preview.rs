//! The pages of a box in memory, to look at them: `cargo run -p throughway-web --features testing --example preview [PORT]`.
//! Everybody is an administrator.

use std::sync::Arc;

use axum::Extension;
use throughway_web::access::{Access, Settings};
use throughway_web::pages::Pages;
use throughway_web::server::Peer;
use throughway_web::testing::Recorded;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(8480);
    let folder = std::env::temp_dir().join("throughway-preview");
    std::fs::create_dir_all(&folder)?;
    let control = Arc::new(Recorded::default());
    let announce = Box::new(|code: &str| println!("Code: {code}"));
    let settings = Settings { folder, users_file: None, hosts: Vec::new(), announce };
    let access = Access::open(settings, control.clone())?;
    // As if by the local socket, and as root.
    let root = Peer { address: None, user: Some((0, 0)), secure: true, https: false };
    let app = access.guard(Pages::new(control).router()).layer(Extension(root));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
