//! Everything that can be checked without opening anything.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cloister_types::address::is_public;

use super::{Config, Listen, ModelTable};
use crate::ServerError;

impl Config {
    /// Says what is wrong first.
    pub(super) fn check(&self) -> Result<(), String> {
        let plain = |text: &str, most: usize, also: &[u8]| {
            (1..=most).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || also.contains(&byte))
        };
        if !plain(&self.tenant, 63, b"-") {
            return Err(format!("tenant {:?} must be 1 to 63 of a-z, 0-9 and -", self.tenant));
        }
        if let Some(acme) = &self.listen.acme {
            acme.check(&self.listen)?;
        }
        let listeners = self.all_listeners();
        for (at, listen) in listeners.iter().enumerate() {
            listen.check(&self.auth).map_err(|why| if at == 0 { why } else { format!("listener {at}: {why}") })?;
            // What one authority may sign, another may not.
            let mut others = listeners[..at].iter().filter_map(Listen::authorities);
            if listen.authorities().is_some_and(|own| others.any(|other| other != own)) {
                return Err(format!(
                    "listener {at} has another client_ca than one before: say whose its certificates are, in [[listener.mtls]]"
                ));
            }
            if listen.address.port() != 0 && listeners[..at].iter().any(|other| other.address == listen.address) {
                return Err(format!("two listeners have the address {}", listen.address));
            }
        }
        if self.listeners.iter().any(|other| other.acme.is_some()) {
            return Err("certificates are got for listen.acme alone; other listeners use them as well".into());
        }
        self.auth.check(&listeners)?;
        let mut names = BTreeMap::new();
        for model in &self.models {
            if !plain(&model.name.to_ascii_lowercase(), 64, b"._-") || model.name.starts_with('.') {
                return Err(format!(
                    "model name {:?} must be 1 to 64 of letters, digits, '.', '_' and '-'",
                    model.name
                ));
            }
            if names.insert(&model.name, ()).is_some() {
                return Err(format!("two models are named {:?}", model.name));
            }
            model.check().map_err(|why| format!("model {:?}: {why}", model.name))?;
        }
        if self.models.iter().filter(|model| model.default).count() > 1 {
            return Err("more than one model says default = true".into());
        }
        let bad = |dollars: f64| !dollars.is_finite() || dollars < 0.0;
        let metered = [self.egress.limits.session_dollars, self.egress.limits.dollars_per_day];
        let dollars = metered.into_iter().chain([self.limits.turn_dollars]).flatten();
        if dollars.into_iter().any(|dollars| bad(dollars) || dollars == 0.0) {
            return Err("limits in dollars must be more than 0".into());
        }
        if let Some(free) = self.models.iter().find(|model| model.price.is_none())
            && metered.iter().any(Option::is_some)
        {
            return Err(format!("egress.limits has a limit in dollars, and model {:?} no price", free.name));
        }
        for price in self.models.iter().filter_map(|model| model.price) {
            if [price.input, price.output, price.cache_read, price.cache_write].into_iter().any(bad) {
                return Err("prices must be 0 or more".into());
            }
        }
        if !self.egress.default.is_within(&self.egress.ceiling) {
            return Err("egress.default reaches further than egress.ceiling".into());
        }
        if self.limits.live_sessions == 0 || self.limits.steps == 0 || self.limits.turn_seconds == 0 {
            return Err("limits must be more than 0".into());
        }
        Ok(())
    }
}

impl Config {
    /// Refuses models that lie in another region than the tenant, once it is known
    /// where that lies.
    pub(crate) fn check_region(&self) -> Result<(), ServerError> {
        let elsewhere = self.models.iter().find(|model| model.region.is_some() && model.region != self.region);
        match elsewhere {
            None => Ok(()),
            Some(model) => Err(ServerError::Config(format!(
                "model {:?} lies in region {:?}, and the tenant in {:?}",
                model.name,
                model.region.as_deref().unwrap_or_default(),
                self.region.as_deref().unwrap_or("none")
            ))),
        }
    }
}

impl ModelTable {
    fn check(&self) -> Result<(), String> {
        let rest = match self.base_url.split_once("://") {
            Some(("https", rest)) => rest,
            Some(("http", rest)) if self.allow_private => rest,
            Some(("http", _)) => {
                return Err("base_url is not https; a key would travel in the clear (allow_private = true permits it for a private host)".into());
            }
            _ => return Err(format!("base_url {:?} is not an https URL", self.base_url)),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') || rest.contains(['?', '#']) {
            return Err(format!("base_url {:?} must be scheme, host and path alone", self.base_url));
        }
        if self.thinking_tokens.is_some_and(|thinking| thinking >= self.max_output_tokens) {
            return Err("thinking_tokens must be less than max_output_tokens".into());
        }
        let host = match authority.parse::<SocketAddr>() {
            Ok(address) => Some(address.ip()),
            Err(_) => authority.trim_matches(['[', ']']).parse().ok(),
        };
        match host {
            Some(address) if is_public(address) && self.base_url.starts_with("http:") => {
                Err(format!("{address} is public: a key would travel there in the clear; use https"))
            }
            Some(address) if !is_public(address) && !self.allow_private => {
                Err(format!("{address} is a private address; say allow_private = true if that is meant"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    const MODEL: &str = "[[model]]\nname = 'm'\nwire = 'openai-chat'\n";

    #[test]
    fn unknown_keys_are_errors_that_name_the_known_ones() {
        let error = parse("tenat = 'x'").unwrap_err();
        assert!(error.contains("tenat") && error.contains("tenant"), "{error}");
    }

    #[test]
    fn a_key_never_travels_in_the_clear_or_to_a_private_place_unasked() {
        assert!(parse(&format!("{MODEL}base_url = 'https://api.example.com/v1'")).is_ok());
        for bad in [
            "http://api.example.com",
            "https://127.0.0.1:9",
            "https://[::1]",
            "https://a@b",
            "ftp://x",
            "https://x/?q",
            "https://10.0.0.1/v1",
        ] {
            assert!(parse(&format!("{MODEL}base_url = '{bad}'")).is_err(), "{bad}");
        }
        assert!(parse(&format!("{MODEL}base_url = 'http://127.0.0.1:9'\nallow_private = true")).is_ok());
        assert!(parse(&format!("{MODEL}base_url = 'http://1.1.1.1'\nallow_private = true")).is_err());
    }

    #[test]
    fn the_default_is_shown_and_read_back() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&text), Ok(Config::default()));
    }

    #[test]
    fn certificates_that_the_server_gets_are_as_good_as_files() {
        let base = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n\
                    [auth]\nrequire = [['bearer'], ['sso']]\n[auth.oidc]\nissuer = 'https://id.example.com'\naudience = 'cloister'\nclient_id = 'c'\n\
                    public_url = 'https://acme.example.com'\n[auth.oidc.roles]\nstaff = 'developer'\n[listen]\n";
        let acme = "[listen.acme]\nhosts = ['acme.example.com']\ndirectory = 'https://ca.example.com/directory'\n";
        let check = |more: &str| toml::from_str::<Config>(&format!("{base}{more}")).unwrap().check();
        assert_eq!(check(&format!("client_ca = 'ca.pem'\n{acme}")), Ok(()));
        for (more, why) in [
            ("", "sign-in with a browser needs TLS"),
            (&*format!("tls_cert = 'a.pem'\ntls_key = 'a.key'\n{acme}"), "leave listen.tls_cert"),
            (&acme.replace("https://ca", "http://ca"), "is no https:// URL"),
            (&acme.replace("'acme.example.com'", ""), "names no host"),
        ] {
            assert!(check(more).unwrap_err().contains(why), "{more}");
        }
    }
}
