//! The page at `/`: the files of `crates/serve/src/page`, embedded in the program.
//!
//! The page loads nothing from other hosts. Its content security policy allows only the embedded scripts and
//! styles.

use super::error::ApiError;
use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};

const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The path of the page's parts.
pub(super) const PARTS_PATH: &str = "/page/";

macro_rules! parts {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../page/", $name)))),*] };
}

const PAGE_FILES: [(&str, &str); 11] = parts!(
    "style.css",
    "actions.js",
    "api.js",
    "format.js",
    "header.js",
    "heatmap.js",
    "lists.js",
    "main.js",
    "plan.js",
    "time.js",
    "index.html"
);

/// Returns the page itself.
pub(super) async fn get_page() -> Result<Response, ApiError> {
    get_page_part(Path("index.html".into())).await
}

/// Returns one part of the page.
pub(super) async fn get_page_part(Path(name): Path<String>) -> Result<Response, ApiError> {
    let file = PAGE_FILES.iter().find(|(known, _)| *known == name);
    let (name, text) = file.ok_or_else(|| ApiError::not_found("no such part of the page", "GET /"))?;
    let kind = match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/html; charset=utf-8",
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, *text).into_response())
}
