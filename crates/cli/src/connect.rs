//! Which server to talk to.

use std::path::PathBuf;

use cloister_client::Client;
use serde::Deserialize;

use crate::arguments::ServerArguments;
use crate::logins;
use crate::output::Failure;

#[derive(Deserialize)]
struct ClientFile {
    url: String,
    key: String,
}

/// The data directory of the development server on this machine.
pub(crate) fn data_directory(arguments: &ServerArguments) -> Result<PathBuf, Failure> {
    if let Some(path) = &arguments.data {
        return Ok(path.clone());
    }
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let base = base.or_else(home).ok_or_else(|| Failure::new("no home directory: say --data"))?;
    Ok(base.join("cloister"))
}

/// The authority to trust besides the system's.
pub(crate) fn authority(arguments: &ServerArguments) -> Result<Option<Vec<u8>>, Failure> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())));
    arguments.ca.as_ref().map(read).transpose()
}

/// A client: from flags, the environment, a sign-in, or what `cloister dev` left.
pub(crate) async fn client(arguments: &ServerArguments) -> Result<Client, Failure> {
    let authority = authority(arguments)?;
    if let (Some(url), None) = (&arguments.url, &arguments.key)
        && let Some(signed_in) = logins::token(url, authority.as_deref()).await?
    {
        let client = Client::new(url, &signed_in.token, authority.as_deref())?;
        tokio::spawn(logins::keep_fresh(client.clone(), url.clone(), authority, signed_in));
        return Ok(client);
    }
    let (url, key) = match (&arguments.url, arguments.key.clone()) {
        (Some(url), Some(key)) => (url.clone(), key),
        (url, key) => {
            let path = data_directory(arguments)?.join("client.json");
            let known = match std::fs::read_to_string(&path) {
                Ok(text) => serde_json::from_str::<ClientFile>(&text)
                    .map(Some)
                    .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
                Err(_) => None,
            };
            // The key of one server is not sent to another.
            match (url, known) {
                (None, Some(known)) => (known.url, key.unwrap_or(known.key)),
                (Some(url), Some(known)) if known.url == url.trim_end_matches('/') => (known.url, known.key),
                (Some(url), _) => {
                    return Err(Failure {
                        hint: Some(format!("sign in with: cloister login --url {url}   (or set CLOISTER_KEY)")),
                        ..Failure::new(format!("nobody is signed in to {url}"))
                    });
                }
                (None, None) => {
                    return Err(Failure {
                        hint: Some("start a server with: cloister dev   (or set CLOISTER_URL and CLOISTER_KEY)".into()),
                        ..Failure::new("no server is known here")
                    });
                }
            }
        }
    };
    Ok(Client::new(&url, &key, authority.as_deref())?)
}
