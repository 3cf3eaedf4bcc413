//! Files that pages bring along: part of the program, under names that change with what is in them, so that a browser keeps
//! them for good.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// One file.
pub(super) struct Asset {
    /// As templates name it.
    name: &'static str,
    kind: &'static str,
    pub(super) bytes: &'static [u8],
    /// As a browser asks for it.
    hashed: String,
}

macro_rules! assets {
    ($($name:literal as $kind:literal,)*) => {
        /// All of them.
        pub(super) static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| vec![
            $(Asset::new($name, $kind, include_bytes!(concat!("../../assets/", $name))),)*
        ]);
    };
}

assets! {
    "throughway.css" as "text/css; charset=utf-8",
    "throughway.js" as "text/javascript; charset=utf-8",
    "console.js" as "text/javascript; charset=utf-8",
    "editor.js" as "text/javascript; charset=utf-8",
    "upload.js" as "text/javascript; charset=utf-8",
    "mark.svg" as "image/svg+xml",
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, bytes: &'static [u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
        let hashed = format!("{stem}-{:016x}.{end}", hasher.finish());
        Self { name, kind, bytes, hashed }
    }
}

/// Where a browser finds a file.
pub(super) fn url(name: &str) -> String {
    let asset = ASSETS.iter().find(|asset| asset.name == name);
    asset.map_or_else(String::new, |asset| format!("/assets/{}", asset.hashed))
}

/// A file, for a year.
pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.hashed == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kept = "public, max-age=31536000, immutable";
    ([(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, kept)], asset.bytes).into_response()
}
