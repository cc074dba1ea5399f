//! Who has signed in from here, server by server: a file that only its owner
//! reads.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use cloister_client::{Client, Login, Place, SignedIn};
use serde::{Deserialize, Serialize};

use crate::output::Failure;

/// Seconds before its end at which a token is renewed.
const EARLY: f64 = 30.0;

#[derive(Serialize, Deserialize)]
struct Kept {
    place: Place,
    signed_in: SignedIn,
}

type All = BTreeMap<String, Kept>;

fn file() -> Result<PathBuf, Failure> {
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let base = base.or_else(home).ok_or_else(|| Failure::new("no home directory to keep a sign-in in"))?;
    Ok(base.join("cloister/logins.json"))
}

fn read() -> Result<All, Failure> {
    let path = file()?;
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(All::new()),
        Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
    }
}

fn write(all: &All) -> Result<(), Failure> {
    let path = file()?;
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Whole or not at all: others may read it now.
    let fresh = path.with_extension(format!("{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let text = serde_json::to_vec_pretty(all).map_err(|error| Failure::new(error.to_string()))?;
    file.write_all(&text).and_then(|()| std::fs::rename(&fresh, &path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })?;
    Ok(())
}

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64())
}

fn name(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// Keeps a sign-in.
pub(crate) fn keep(url: &str, place: Place, signed_in: SignedIn) -> Result<(), Failure> {
    let mut all = read()?;
    all.insert(name(url).to_owned(), Kept { place, signed_in });
    write(&all)
}

/// Forgets a sign-in; false if there is none.
pub(crate) fn forget(url: &str) -> Result<bool, Failure> {
    let mut all = read()?;
    let found = all.remove(name(url)).is_some();
    write(&all)?;
    Ok(found)
}

/// What somebody has who has signed in to a server, renewed if it is about to end.
pub(crate) async fn token(url: &str, authority: Option<&[u8]>) -> Result<Option<SignedIn>, Failure> {
    let Some(Kept { place, signed_in }) = read()?.remove(name(url)) else { return Ok(None) };
    let refresh = match &signed_in.refresh_token {
        Some(refresh) if now() + EARLY >= signed_in.expires_at => refresh.clone(),
        None if now() >= signed_in.expires_at => {
            let hint = Some(format!("cloister login --url {url}"));
            return Err(Failure { hint, ..Failure::new(format!("the sign-in to {url} has ended")) });
        }
        _ => return Ok(Some(signed_in)),
    };
    let login = Login::at(place, authority)?;
    match login.renew(&refresh).await {
        Ok(renewed) => {
            keep(url, login.place, renewed.clone())?;
            Ok(Some(renewed))
        }
        // Another command may have renewed it meanwhile, once and for all.
        Err(error) => match read()?.remove(name(url)) {
            Some(other) if other.signed_in.token != signed_in.token => Ok(Some(other.signed_in)),
            _ => Err(error.into()),
        },
    }
}

/// Has a client show the next token before the present one ends, for as long as
/// the command follows something. It ends where there is none to be had; what is
/// refused then says so.
pub(crate) async fn keep_fresh(client: Client, url: String, authority: Option<Vec<u8>>, mut signed_in: SignedIn) {
    loop {
        let left = (signed_in.expires_at - EARLY - now()).max(1.0);
        tokio::time::sleep(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)).await;
        match token(&url, authority.as_deref()).await {
            Ok(Some(next)) => {
                client.set_key(&next.token);
                signed_in = next;
            }
            _ => return,
        }
    }
}
