//! What a request shows of who it is from, scheme by scheme, and what comes of
//! it. The same is told to whoever asks why (`auth explain`).

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, header};
use cloister_oidc::Rejected;
use cloister_session::SessionError;
use cloister_types::ErrorCode;
use cloister_types::access::Role;
use cloister_types::key::ApiKey;

use crate::Api;
use crate::auth::unix_now;
use crate::error::{Answer, ApiError};
use crate::principal::{Certified, Principal, Reach};
use crate::require::{Require, Scheme};

/// The cookie of somebody who has signed in.
pub(crate) const COOKIE: &str = "__Host-cloister";
/// Where an issuer's token comes if an API key comes as well.
pub(crate) const TOKEN: &str = "x-sso-token";

/// What came along.
#[derive(Default)]
pub(crate) struct Presented {
    /// What follows `Bearer`; in the one place where a key may be in a URL, that.
    pub(crate) bearer: Option<String>,
    /// In a header of its own.
    pub(crate) token: Option<String>,
    pub(crate) cookie: Option<String>,
    pub(crate) certified: Option<Certified>,
}

impl Presented {
    pub(crate) fn of(headers: &HeaderMap, certified: Option<Certified>) -> Self {
        // Two are one too many: who would say which counts?
        let only = |name: &str| {
            let mut all = headers.get_all(name).iter();
            all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok())
        };
        let bearer = only(header::AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        Self {
            bearer: bearer.map(|(_, token)| token.trim().to_owned()),
            token: only(TOKEN).map(str::to_owned),
            cookie: cookie(headers, COOKIE),
            certified,
        }
    }
}

/// A cookie's value, if there is one of that name.
pub(crate) fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| HeaderValue::to_str(value).ok());
    let pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    found.next().filter(|_| found.next().is_none())
}

/// What came of one scheme.
pub(crate) struct Shown {
    pub(crate) scheme: Scheme,
    pub(crate) principal: Option<Principal>,
    pub(crate) outcome: Cow<'static, str>,
    /// Nobody could say.
    unavailable: bool,
}

impl Shown {
    fn nobody(scheme: Scheme, outcome: impl Into<Cow<'static, str>>) -> Self {
        Self { scheme, principal: None, outcome: outcome.into(), unavailable: false }
    }

    fn somebody(scheme: Scheme, principal: Principal, outcome: &'static str) -> Self {
        Self { scheme, principal: Some(principal), outcome: outcome.into(), unavailable: false }
    }
}

/// What came of the schemes that count here.
pub(crate) async fn look(api: &Api, require: &Require, presented: Presented) -> Answer<Vec<Shown>> {
    let mut all = Vec::new();
    for scheme in [Scheme::Bearer, Scheme::Mtls, Scheme::Sso] {
        if require.names(scheme) {
            all.push(match scheme {
                Scheme::Bearer => bearer(api, presented.bearer.as_deref()).await?,
                Scheme::Mtls => mtls(presented.certified.clone()),
                Scheme::Sso => sso(api, &presented).await?,
            });
        }
    }
    Ok(all)
}

/// Who calls, by the first list of schemes of which all have something to say;
/// and which list that is, from 0.
pub(crate) fn decide(require: &Require, shown: &[Shown]) -> Answer<(Principal, usize)> {
    let of = |scheme: &Scheme| shown.iter().find(|shown| shown.scheme == *scheme)?.principal.clone();
    for (at, all) in require.0.iter().enumerate() {
        let together = all.iter().map(of).collect::<Option<Vec<_>>>();
        if let Some(principal) = together.and_then(|all| all.into_iter().reduce(Principal::and)) {
            return Ok((principal, at));
        }
    }
    if shown.iter().any(|shown| shown.unavailable) {
        return Err(ApiError::new(ErrorCode::Unavailable, "the issuer of this token does not answer"));
    }
    Err(ApiError::new(ErrorCode::Unauthorized, require.words()))
}

/// Whom an API key stands for; none if it works for nobody now.
pub(crate) async fn known(api: &Api, key: &ApiKey) -> Answer<Option<Principal>> {
    if key.tenant() != api.tenant {
        return Ok(None);
    }
    let known = api.sessions.store().known(key, unix_now()).await.map_err(SessionError::from)?;
    Ok(known.map(|known| Principal {
        reach: Reach { session: known.session, file_access: known.file_access, egress: known.egress },
        by: vec![(known.id, known.proof)],
        ends: known.expires_at,
        is_token: known.is_token,
        ..Principal::new(known.caller, vec![known.role], "bearer")
    }))
}

async fn bearer(api: &Api, text: Option<&str>) -> Answer<Shown> {
    let nobody = |why: &'static str| Shown::nobody(Scheme::Bearer, why);
    let Some(text) = text else { return Ok(nobody("no API key came along")) };
    let Ok(key) = text.parse::<ApiKey>() else { return Ok(nobody("what came along is no API key")) };
    if key.tenant() != api.tenant {
        return Ok(nobody("the key is another tenant's"));
    }
    Ok(match known(api, &key).await? {
        Some(principal) => Shown::somebody(Scheme::Bearer, principal, "the key works"),
        None => nobody("the key is unknown, or has ended"),
    })
}

fn mtls(certified: Option<Certified>) -> Shown {
    match certified {
        // The handshake was before; connections are kept.
        Some(Certified { ends, .. }) if ends <= unix_now() => {
            Shown::nobody(Scheme::Mtls, "the certificate that came along has ended meanwhile")
        }
        Some(Certified { caller, role, ends }) => {
            let principal = Principal { ends: Some(ends), ..Principal::new(caller, vec![role], "mtls") };
            Shown::somebody(Scheme::Mtls, principal, "the certificate fits a rule")
        }
        None => Shown::nobody(Scheme::Mtls, "no certificate came along that fits a rule"),
    }
}

async fn sso(api: &Api, presented: &Presented) -> Answer<Shown> {
    let nobody = |why: Cow<'static, str>| Shown::nobody(Scheme::Sso, why);
    let Some(sso) = &api.sso else { return Ok(nobody("auth.oidc is not set".into())) };
    // An API key is no token of an issuer's.
    let is_token = |text: &&String| text.parse::<ApiKey>().is_err();
    if let Some(token) = presented.token.as_ref().or(presented.bearer.as_ref().filter(is_token)) {
        let verified = sso.issuer.verify(token, unix_now()).await;
        return Ok(match verified.and_then(|claims| sso.principal(&claims)) {
            Ok(principal) => somebody_by_groups(principal),
            Err(why) => {
                let unavailable = matches!(why, Rejected::Unavailable(_));
                Shown { unavailable, ..nobody(format!("the token is not taken: {why}").into()) }
            }
        });
    }
    let Some(cookie) = &presented.cookie else { return Ok(nobody("no token came along, nor a cookie".into())) };
    let store = api.sessions.store();
    let who = store.signed_in(cookie, unix_now()).await.map_err(SessionError::from)?;
    Ok(match who {
        Some((who, proof)) => Shown::somebody(
            Scheme::Sso,
            Principal {
                by: vec![(who.id, proof)],
                ends: Some(who.expires_at),
                csrf: Some(store.csrf_token(cookie)),
                ..Principal::new(who.caller, who.roles, "sso")
            },
            "the cookie is of somebody who is signed in",
        ),
        None => nobody("the cookie is of nobody who is signed in".into()),
    })
}

fn somebody_by_groups(principal: Principal) -> Shown {
    let none = principal.roles.iter().all(Vec::<Role>::is_empty);
    let outcome = if none {
        "the token is good, but none of its groups has a role in auth.oidc.roles"
    } else {
        "the token is good"
    };
    Shown::somebody(Scheme::Sso, principal, outcome)
}
