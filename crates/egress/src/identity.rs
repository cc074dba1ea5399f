//! Client certificates. The certificate is here, its key is not: the vault
//! signs.

use std::sync::Arc;

use cloister_vault::wire::{Purpose, Reply, Request};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use tokio::runtime::Handle;

use crate::session::Tenant;

/// The certificate of one connection.
pub(crate) struct Identity(Arc<CertifiedKey>);

struct Remote {
    tenant: Arc<Tenant>,
    purpose: Purpose,
    runtime: Handle,
    scheme: SignatureScheme,
}

/// What the vault signs with.
const SCHEMES: [SignatureScheme; 3] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256];

impl Identity {
    pub(crate) fn new(tenant: Arc<Tenant>, purpose: Purpose, chain: Vec<Vec<u8>>) -> Arc<Self> {
        let key = Key { tenant, purpose, runtime: Handle::current(), rsa: is_rsa(chain.first()) };
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Arc::new(Self(Arc::new(CertifiedKey::new(chain, Arc::new(key)))))
    }
}

/// Is the key of a certificate an RSA key? By the object identifier of
/// `rsaEncryption`, which stands in no other certificate's public key.
fn is_rsa(certificate: Option<&Vec<u8>>) -> bool {
    const RSA: [u8; 13] = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    certificate.is_some_and(|der| der.windows(RSA.len()).any(|window| window == RSA))
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

struct Key {
    tenant: Arc<Tenant>,
    purpose: Purpose,
    runtime: Handle,
    rsa: bool,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let own = if self.rsa { &SCHEMES[1..] } else { &SCHEMES[..1] };
        let scheme = *own.iter().find(|scheme| offered.contains(scheme))?;
        let (tenant, purpose, runtime) = (self.tenant.clone(), self.purpose.clone(), self.runtime.clone());
        Some(Box::new(Remote { tenant, purpose, runtime, scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        if self.rsa { SignatureAlgorithm::RSA } else { SignatureAlgorithm::ECDSA }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remote")
    }
}

impl Signer for Remote {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let request =
            Request::SignTls { purpose: self.purpose.clone(), scheme: self.scheme.into(), message: message.to_vec() };
        match self.tenant.vault.ask_and_block(&self.runtime, &request) {
            Ok(Reply::Signature(signature)) => Ok(signature),
            _ => Err(rustls::Error::General("the vault does not sign".into())),
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
