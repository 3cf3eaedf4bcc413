//! The cookie that a browser keeps a session's secret in.

use axum::http::HeaderValue;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponseParts, ResponseParts};

use super::sessions;
use crate::server::Peer;

/// Bound to this host and to HTTPS by its name: no other host, and no page without TLS, can set it.
const NAME: &str = "__Host-throughway";
/// Browsers take that name by HTTPS only; on loopback without it, this is the name.
const PLAIN: &str = "throughway-plain";

/// What a login or a logout does to the browser's cookie: put it before an answer's body.
#[derive(Clone, Debug)]
pub struct SetCookie(HeaderValue);

impl SetCookie {
    /// Gives it a secret, which is made of letters and digits.
    pub(super) fn new(peer: Peer, secret: &str) -> Option<Self> {
        Self::line(peer, secret, sessions::LONGEST)
    }

    /// Takes it away.
    pub(super) fn gone(peer: Peer) -> Option<Self> {
        Self::line(peer, "", 0)
    }

    fn line(peer: Peer, secret: &str, age: u64) -> Option<Self> {
        let secure = if peer.https { "; Secure" } else { "" };
        let line =
            format!("{}={secret}; Path=/{secure}; HttpOnly; SameSite=Strict; Max-Age={age}", name(peer));
        let mut value = HeaderValue::from_str(&line).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl IntoResponseParts for SetCookie {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut answer: ResponseParts) -> Result<ResponseParts, Self::Error> {
        answer.headers_mut().append(SET_COOKIE, self.0);
        Ok(answer)
    }
}

fn name(peer: Peer) -> &'static str {
    if peer.https { NAME } else { PLAIN }
}

/// The session's secret in a header `Cookie`.
pub(super) fn find(line: &str, peer: Peer) -> Option<&str> {
    line.split(';').find_map(|one| one.trim().strip_prefix(name(peer))?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: Peer = Peer { address: None, user: None, secure: true, https: true };
    const LOOPBACK: Peer = Peer { https: false, ..TLS };

    #[test]
    fn it_is_bound_to_the_host_and_to_https() {
        let text = |set: Option<SetCookie>| set.unwrap().0.to_str().unwrap().to_owned();
        assert_eq!(
            text(SetCookie::new(TLS, "abc")),
            "__Host-throughway=abc; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=43200"
        );
        assert_eq!(
            text(SetCookie::gone(LOOPBACK)),
            "throughway-plain=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
        );
        assert!(SetCookie::new(TLS, "a\nb").is_none());
        assert!(SetCookie::new(TLS, "abc").unwrap().0.is_sensitive());
    }

    #[test]
    fn it_is_found_among_others() {
        assert_eq!(find("a=b; __Host-throughway=x; c=d", TLS), Some("x"));
        assert_eq!(find("__Host-throughway=x", LOOPBACK), None);
        assert_eq!(find("throughway-plain=x", LOOPBACK), Some("x"));
        assert_eq!(find("throughway-plain=x", TLS), None);
        for none in ["", ";;", "__Host-throughway", "__Host-throughway2=x", "x__Host-throughway=y"] {
            assert_eq!(find(none, TLS), None, "{none}");
        }
    }
}
