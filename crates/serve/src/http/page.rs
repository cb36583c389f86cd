//! The page at `/`: the files of `src/serve/page`, held in the program.
//!
//! Nothing is fetched from elsewhere, and the policy sent along forbids it: scripts and styles are these files alone.

use super::error::ApiError;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the parts of the page are.
pub(super) const PARTS: &str = "/page/";

macro_rules! parts {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../page/", $name)))),*] };
}

const FILES: [(&str, &str); 11] = parts!(
    "style.css",
    "acts.js",
    "head.js",
    "heat.js",
    "lists.js",
    "main.js",
    "net.js",
    "plan.js",
    "time.js",
    "words.js",
    "index.html"
);

/// The page itself.
pub(super) async fn page() -> Result<Response, ApiError> {
    part(Path("index.html".into())).await
}

/// One of its parts.
pub(super) async fn part(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|(known, _)| *known == name);
    let (name, text) = file.ok_or_else(|| ApiError::not_found("no such part of the page", "GET /"))?;
    let kind = match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/html; charset=utf-8",
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, *text).into_response())
}
