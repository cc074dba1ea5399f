//! Headers on their way out and back: what concerns one connection alone, what
//! lies about where a request came from, and credentials of the agent's own.

use cloister_types::egress::Attach;
use http::header::{self, HeaderMap, HeaderName};

/// Names the connection that a request wants; ours alone.
pub(crate) const CONNECTION_HEADER: &str = "x-cloister-connection";

/// Headers between two neighbours (RFC 9110, 7.6.1), and those that claim where
/// a request was before, or what it "really" asks for.
const HOPS: [&str; 26] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
    "max-forwards",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    CONNECTION_HEADER,
];

/// Headers in which programs send credentials.
const CREDENTIALS: [&str; 22] = [
    "authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "apikey",
    "x-apikey",
    "x-auth-token",
    "x-auth-key",
    "x-access-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-amz-security-token",
    "x-aws-access-key",
    "x-vault-token",
    "x-gitlab-token",
    "private-token",
    "job-token",
    "x-github-token",
    "x-figma-token",
    "x-shopify-access-token",
    "ocp-apim-subscription-key",
    "dd-api-key",
];

/// Parameters in which programs send credentials.
const PARAMETERS: [&str; 20] = [
    "access_token",
    "accesstoken",
    "api_key",
    "apikey",
    "api-key",
    "key",
    "token",
    "auth",
    "auth_token",
    "private_token",
    "client_secret",
    "password",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "awsaccesskeyid",
    "signature",
    "sig",
];

/// Takes out what goes no further than to us. A WebSocket's handshake is made
/// anew, and `te: trailers` says something about the client.
pub(crate) fn strip_hops(headers: &mut HeaderMap) {
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    listed.iter().for_each(|name| drop(headers.remove(name)));
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| HOPS.iter().any(|known| same(name.as_str(), known))).cloned().collect();
    ours.iter().for_each(|name| drop(headers.remove(name)));
    if trailers {
        headers.insert(header::TE, http::HeaderValue::from_static("trailers"));
    }
}

/// To some servers, `_` in a name is `-`.
fn same(name: &str, known: &str) -> bool {
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
}

/// The header, or parameter, that a connection attaches, if it attaches one.
#[must_use]
pub(crate) fn attached(attach: &Attach) -> Option<&str> {
    match attach {
        Attach::Header { name, .. } => Some(name),
        Attach::Basic { .. } | Attach::Sigv4 { .. } => Some("authorization"),
        Attach::Cookie { .. } => Some("cookie"),
        // A parameter, whose place nothing of the agent's own may take.
        Attach::Query { name } => Some(name),
        _ => None,
    }
}

/// Headers that hold credentials of the agent's own; `also` is one more name.
#[must_use]
pub(crate) fn credentials(headers: &HeaderMap, also: Option<&str>) -> Vec<HeaderName> {
    let also = also.map(str::to_ascii_lowercase);
    let mut known = CREDENTIALS.iter().copied().chain(also.as_deref()).collect::<Vec<_>>();
    known.push("proxy-authorization");
    let is_one = |name: &&HeaderName| known.iter().any(|known| same(name.as_str(), known));
    headers.keys().filter(is_one).cloned().collect()
}

/// A query without the parameters that hold credentials, or claim another
/// method; whether there were any. `also` is one more name.
#[must_use]
pub(crate) fn strip_query(query: &str, also: Option<&str>) -> (String, bool) {
    let is_one = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
        PARAMETERS.contains(&name.as_str())
            || name == "_method"
            || also.is_some_and(|also| also.eq_ignore_ascii_case(&name))
    };
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_one(pair)).collect();
    let kept = kept.join("&");
    let changed = kept != query;
    (kept, changed)
}

/// Headers by which a request asks for an answer that could not be looked through.
const PACKING: [&str; 5] =
    ["accept-encoding", "accept-charset", "a-im", "grpc-accept-encoding", "connect-accept-encoding"];

/// Asks for an answer as it is, and unless `ranges` may be asked for whole: what is
/// packed would have to be unpacked to be scrubbed, and pieces put together.
pub(crate) fn ask_for_plain(headers: &mut HeaderMap, ranges: bool) {
    if !ranges {
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
    }
    PACKING.iter().for_each(|name| drop(headers.remove(*name)));
    headers.insert(header::ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
}

/// How an answer is packed: nothing, in one way, or in ways of which no proxy
/// should make sense.
pub(crate) fn packing(headers: &HeaderMap) -> Result<Option<String>, ()> {
    let words = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter().flat_map(|value| value.to_str().unwrap_or("?").split(','));
        values
            .map(|word| word.trim().to_ascii_lowercase())
            .filter(|word| word != "identity" && !word.is_empty())
            .collect()
    };
    let inner = [words("grpc-encoding"), words("connect-content-encoding")].concat();
    let framing: Vec<String> = words("transfer-encoding").into_iter().filter(|word| word != "chunked").collect();
    match (words("content-encoding").as_slice(), inner.is_empty() && framing.is_empty()) {
        ([], true) => Ok(None),
        ([one], true) => Ok(Some(one.clone())),
        _ => Err(()),
    }
}

/// A query without one parameter, in whatever spelling.
pub(crate) fn without_parameter(query: &str, name: &str) -> String {
    let is_it = |pair: &&str| {
        let own = pair.split('=').next().unwrap_or_default();
        percent_encoding::percent_decode_str(own).decode_utf8_lossy().eq_ignore_ascii_case(name)
    };
    query.split('&').filter(|pair| !is_it(pair)).collect::<Vec<_>>().join("&")
}

/// Names of a query's parameters, for the audit.
#[must_use]
pub(crate) fn query_names(query: &str) -> Vec<String> {
    let names = query.split('&').filter(|pair| !pair.is_empty()).take(32);
    names.map(|pair| pair.split('=').next().unwrap_or_default().chars().take(64).collect()).collect()
}

/// Takes out of an answer what concerns our connection to the other side, and
/// what would lead clients around us.
pub(crate) fn strip_answer(headers: &mut HeaderMap) {
    strip_hops(headers);
    for name in ["alt-svc", "alternate-protocol", "public-key-pins", "nel", "report-to"] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_concerns_neighbours_stays_with_them() {
        let mut headers = map(&[
            ("connection", "close, X-Thing"),
            ("x-thing", "1"),
            ("te", "trailers"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-http-method-override", "DELETE"),
            ("http2-settings", "x"),
            ("accept", "a/b"),
        ]);
        strip_hops(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "te"]);
    }

    #[test]
    fn credentials_are_known_in_every_spelling() {
        let headers =
            map(&[("X_Api_Key", "1"), ("authorization", "2"), ("cookie", "3"), ("x-own", "4"), ("accept", "5")]);
        let mut found: Vec<String> = credentials(&headers, Some("X-Own")).iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found, ["authorization", "cookie", "x-own", "x_api_key"]);
        assert_eq!(strip_query("a=1&Access_Token=x&b&api%5fkey=y&_method=DELETE", None), ("a=1&b".into(), true));
        assert_eq!(strip_query("a=1&own=2", Some("own")), ("a=1".into(), true));
        assert_eq!(strip_query("a=1", None), ("a=1".into(), false));
        assert_eq!(query_names("a=secret&b"), ["a", "b"]);
        assert_eq!(without_parameter("a=1&K%65y=2&key&keys=3", "key"), "a=1&keys=3");
    }
}
