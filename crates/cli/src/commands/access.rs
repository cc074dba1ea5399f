//! Signing in, and who is who.

use std::io::Read;
use std::path::Path;

use cloister_client::{Client, Login};
use cloister_types::access::{Explain, NewToken, Role, SignIn};

use crate::arguments::{AuthCommand, ServerArguments};
use crate::connect::authority;
use crate::logins;
use crate::output::{Failure, Output};

fn url(server: &ServerArguments) -> Result<&str, Failure> {
    server.url.as_deref().ok_or_else(|| Failure {
        usage: true,
        hint: Some("cloister login --url https://<the tenant's host>".into()),
        ..Failure::new("say which server: --url, or CLOISTER_URL")
    })
}

pub(super) async fn login(server: &ServerArguments, device: bool, output: Output) -> Result<(), Failure> {
    let (url, authority) = (url(server)?, authority(server)?);
    let login = Login::discover(url, authority.as_deref()).await?;
    let signed_in = if device {
        let show = |device: &cloister_client::Device| {
            output.talk(&format!("Open {} and type in: {}", device.verification_uri, device.user_code));
            if let Some(place) = &device.verification_uri_complete {
                output.talk(&format!("or open {place}"));
            }
        };
        login.by_device(show).await?
    } else {
        login.by_browser(|place| output.talk(&format!("Open this in a browser on this machine:\n{place}"))).await?
    };
    let client = Client::new(url, &signed_in.token, authority.as_deref())?;
    logins::keep(url, login.place, signed_in)?;
    me(&client, output).await?;
    output.next("cloister session ls");
    Ok(())
}

pub(super) fn logout(server: &ServerArguments, output: Output) -> Result<(), Failure> {
    let url = url(server)?;
    let found = logins::forget(url)?;
    output.talk(&if found { format!("Signed out of {url}.") } else { format!("Nobody was signed in to {url}.") });
    Ok(())
}

fn words(roles: &[Role]) -> String {
    let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    if words.is_empty() { "no role".into() } else { words.join(", ") }
}

async fn me(client: &Client, output: Output) -> Result<(), Failure> {
    let me = client.me().await?;
    output.value(&me, &format!("{}  {}  by {}", me.caller, words(&me.roles), me.scheme))
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|found| text = found)
    };
    read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
}

pub(super) async fn auth(client: &Client, command: AuthCommand, output: Output) -> Result<(), Failure> {
    match command {
        AuthCommand::Me => me(client, output).await,
        AuthCommand::Explain { listener, endpoint, token_file, sso_token_file, cookie_file, certificate, address } => {
            let [bearer, token, cookie, certificate] = [token_file, sso_token_file, cookie_file, certificate]
                .map(|file| file.as_deref().map(read).transpose());
            let (bearer, token, cookie, certificate) = (bearer?, token?, cookie?, certificate?);
            let asked = Explain { listener, endpoint, bearer, token, cookie, certificate, address };
            let explained = client.explain_access(&asked).await?;
            let mut text: Vec<String> =
                explained.steps.iter().map(|step| format!("{:<8} {}", step.rule, step.outcome)).collect();
            text.push(match &explained.caller {
                Some(caller) if explained.admitted => format!("admitted as {caller}: {}", words(&explained.roles)),
                _ => "refused".into(),
            });
            output.value(&explained, &text.join("\n"))
        }
        AuthCommand::Ls => {
            let list = client.sign_ins().await?;
            let line = |one: &SignIn| format!("{}  {}  {}", one.id, one.caller, words(&one.roles));
            output.value(&list, &list.data.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        AuthCommand::End { id } => {
            client.end_sign_in(&id).await?;
            output.talk(&format!("{id} is signed out."));
            Ok(())
        }
        AuthCommand::Token { session, role, expires_in } => {
            let made = client.session_token(&session, &NewToken { role, expires_in }).await?;
            output.value(&made, &made.key)
        }
    }
}
