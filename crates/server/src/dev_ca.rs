//! An authority for development: certificates that this machine's own clients are
//! told to trust, and nobody else.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::ServerError;
use crate::files::{make_private_folder, write_private};

const AUTHORITY: &str = "Cloister development authority";
/// Days for which the authority stands, and for which what it has signed does;
/// clients may refuse longer ones than that.
const AUTHORITY_DAYS: i64 = 3650;
const DAYS: i64 = 365;

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Servers: names are hosts and addresses.
    Server,
    /// Clients: names may be URIs and mail addresses as well.
    Client,
}

/// Where everything is, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Issued {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Makes a certificate for `names` in `folder`, by the authority that is there or
/// that is made there now. Files are called after the first name.
///
/// # Errors
/// A name that is none, or a file that cannot be read or written.
pub fn issue(folder: &Path, names: &[String], kind: Kind) -> Result<Issued, ServerError> {
    let first = names.first().ok_or_else(|| ServerError::Config("a certificate is for one name at least".into()))?;
    let mut file =
        file_name(first).ok_or_else(|| ServerError::Config(format!("no file can be called after {first:?}")))?;
    if kind == Kind::Client {
        file.push_str("-client");
    }
    make_private_folder(folder).map_err(ServerError::start(format!("make {}", folder.display())))?;
    let (ca, authority) = authority(folder)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| alternative(name, kind)).collect::<Result<_, _>>()?;
    params.distinguished_name = called(first);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match kind {
        Kind::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Kind::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    (params.not_before, params.not_after) = (days(-1)?.to_datetime(), days(DAYS)?.to_datetime());
    let key = KeyPair::generate().map_err(failed)?;
    let signed = params.signed_by(&key, &authority).map_err(failed)?;
    let issued =
        Issued { ca, certificate: folder.join(format!("{file}.pem")), key: folder.join(format!("{file}.key")) };
    write(&issued.key, &key.serialize_pem())?;
    write(&issued.certificate, &signed.pem())?;
    Ok(issued)
}

/// The authority of a folder: its certificate's file, and what signs.
fn authority(folder: &Path) -> Result<(PathBuf, Issuer<'static, KeyPair>), ServerError> {
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name = called(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if certificate.exists() {
        let text = std::fs::read_to_string(&key).map_err(ServerError::start(format!("read {}", key.display())))?;
        let pair = KeyPair::from_pem(&text).map_err(failed)?;
        if !is_ours(&certificate, &pair) {
            let shown = certificate.display();
            return Err(ServerError::Config(format!(
                "{shown} is no authority of `cloister dev-ca`: choose another --dir"
            )));
        }
        // Of its certificate, what it signs repeats the name and the key's.
        return Ok((certificate, Issuer::new(params, pair)));
    }
    (params.not_before, params.not_after) = (days(-1)?.to_datetime(), days(AUTHORITY_DAYS)?.to_datetime());
    let pair = KeyPair::generate().map_err(failed)?;
    write(&key, &pair.serialize_pem())?;
    // Last: where it is, there is the key.
    write(&certificate, &params.self_signed(&pair).map_err(failed)?.pem())?;
    Ok((certificate, Issuer::new(params, pair)))
}

/// Has the authority of these files been made here?
fn is_ours(certificate: &Path, key: &KeyPair) -> bool {
    let Ok(der) = CertificateDer::from_pem_file(certificate) else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
    let called = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    called == Some(AUTHORITY) && parsed.public_key().raw == key.subject_public_key_info()
}

fn alternative(name: &str, kind: Kind) -> Result<SanType, ServerError> {
    let text = || name.try_into().map_err(|_| ServerError::Config(format!("{name:?} is no name of a certificate")));
    Ok(match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if kind == Kind::Client && name.contains("://") => SanType::URI(text()?),
        Err(_) if kind == Kind::Client && name.contains('@') => SanType::Rfc822Name(text()?),
        Err(_) => {
            let host = name.strip_prefix("*.").unwrap_or(name).parse::<cloister_types::Host>();
            host.map_err(|error| ServerError::Config(format!("{name:?} is no host: {error}")))?;
            SanType::DnsName(text()?)
        }
    })
}

/// What a file for a name is called.
fn file_name(name: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '@') { c } else { '_' };
    let file: String = name.chars().map(plain).collect();
    Some(file).filter(|file| !file.starts_with('.') && !file.is_empty() && file != "ca")
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// A moment so many days from now.
fn days(count: i64) -> Result<ASN1Time, ServerError> {
    let then = ASN1Time::from_timestamp(ASN1Time::now().timestamp() + count * 86_400);
    then.map_err(|error| ServerError::Start(format!("the clock is far off: {error}")))
}

fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    write_private(path, text.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: rcgen::Error) -> ServerError {
    ServerError::Start(format!("make a certificate: {error}"))
}
