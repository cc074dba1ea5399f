//! Keys: what is derived from what, and the two ways to close something: with a
//! key that opens it again, and with a public one that cannot.
//!
//! ```text
//! KEK (a file outside the data) --wraps--> root key --HKDF--> record keys, audit key, sealing key, session CA seeds
//! ```

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, EphemeralPrivateKey, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

/// Something cannot be opened: another key, or a changed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be opened: it was closed with another key, or changed")]
pub struct NotOpened;

/// Bytes of a nonce, which goes before what it closed. Random ones are safe
/// with GCM-SIV: equal nonces would show equal texts and nothing more
/// (RFC 8452).
const NONCE: usize = 12;
/// Bytes of a key.
const KEY: usize = 32;

/// A secret key.
pub(crate) struct Key(Zeroizing<[u8; KEY]>);

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY
    }
}

impl Key {
    pub(crate) fn random() -> Result<Self, NotOpened> {
        let mut bytes = Zeroizing::new([0; KEY]);
        SystemRandom::new().fill(&mut *bytes).map_err(|_| NotOpened)?;
        Ok(Self(bytes))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, NotOpened> {
        Ok(Self(Zeroizing::new(bytes.try_into().map_err(|_| NotOpened)?)))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// A key for one purpose.
    pub(crate) fn derive(&self, purpose: &str, context: &[u8]) -> Self {
        derive(&self.0[..], &[purpose.as_bytes(), b"\0", context])
    }

    /// Closes a text; `about` must be the same to open it.
    pub(crate) fn close(&self, about: &[u8], text: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let mut nonce = [0; NONCE];
        SystemRandom::new().fill(&mut nonce).map_err(|_| NotOpened)?;
        let mut body = text.to_vec();
        let sealed = self.aead()?.seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(about), &mut body);
        if sealed.is_err() {
            body.zeroize();
            return Err(NotOpened);
        }
        Ok([&nonce[..], &body].concat())
    }

    pub(crate) fn open(&self, about: &[u8], closed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        let (nonce, body) = closed.split_at_checked(NONCE).ok_or(NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self.aead()?.open_in_place(nonce, Aad::from(about), &mut body).map_err(|_| NotOpened)?.len();
        body.truncate(length);
        Ok(body)
    }

    fn aead(&self) -> Result<LessSafeKey, NotOpened> {
        UnboundKey::new(&AES_256_GCM_SIV, &self.0[..]).map(LessSafeKey::new).map_err(|_| NotOpened)
    }

    /// A keyed hash.
    pub(crate) fn mac(&self, text: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]), text);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Opens what was closed with [`SealingKey::seal`].
    pub(crate) fn unseal(&self, about: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        let (theirs, body) = sealed.split_at_checked(KEY).ok_or(NotOpened)?;
        let own = PrivateKey::from_private_key(&X25519, &self.0[..]).map_err(|_| NotOpened)?;
        let public = own.compute_public_key().map_err(|_| NotOpened)?;
        let shared = agreement::agree(&own, UnparsedPublicKey::new(&X25519, theirs), NotOpened, |shared| {
            Ok(derive(shared, &[b"seal\0", theirs, public.as_ref()]))
        })?;
        shared.open(about, body)
    }

    /// The public half of this key, taken as a private one.
    pub(crate) fn sealing_key(&self) -> Result<SealingKey, NotOpened> {
        let own = PrivateKey::from_private_key(&X25519, &self.0[..]).map_err(|_| NotOpened)?;
        SealingKey::from_bytes(own.compute_public_key().map_err(|_| NotOpened)?.as_ref())
    }
}

fn derive(secret: &[u8], info: &[&[u8]]) -> Key {
    let mut bytes = Zeroizing::new([0; KEY]);
    let extracted = Salt::new(HKDF_SHA256, b"cloister-vault/1").extract(secret);
    // It fails for lengths that are not this one.
    if let Ok(expanded) = extracted.expand(info, Length) {
        let _ = expanded.fill(&mut *bytes);
    }
    Key(bytes)
}

/// A public key with which anybody may close a text that the vault alone opens:
/// an ephemeral X25519 key, HKDF, AES-256-GCM-SIV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealingKey([u8; KEY]);

impl SealingKey {
    /// From its bytes.
    ///
    /// # Errors
    /// They are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotOpened> {
        Ok(Self(bytes.try_into().map_err(|_| NotOpened)?))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; KEY] {
        &self.0
    }

    /// Closes a text.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn seal(&self, about: &[u8], text: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let ours = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(|_| NotOpened)?;
        let public = ours.compute_public_key().map_err(|_| NotOpened)?;
        let shared = agreement::agree_ephemeral(ours, UnparsedPublicKey::new(&X25519, &self.0), NotOpened, |shared| {
            Ok(derive(shared, &[b"seal\0", public.as_ref(), &self.0]))
        })?;
        Ok([public.as_ref(), &shared.close(about, text)?].concat())
    }
}

/// Hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), key: [u8; 32]) {
            let key = Key::from_bytes(&key).unwrap();
            prop_assert!(key.open(b"", &bytes).is_err());
            prop_assert!(key.unseal(b"", &bytes).is_err());
            let _ = unhex(&String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn what_is_closed_opens_with_the_same_key_and_the_same_words_alone() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let closed = key.close(b"about", b"secret").unwrap();
        assert_eq!(&**key.open(b"about", &closed).unwrap(), b"secret");
        assert!(key.open(b"About", &closed).is_err() && other.open(b"about", &closed).is_err());
        for at in 0..closed.len() {
            let mut changed = closed.clone();
            changed[at] ^= 1;
            assert!(key.open(b"about", &changed).is_err(), "byte {at}");
            assert!(key.open(b"about", &closed[..at]).is_err(), "cut at {at}");
        }
        assert_ne!(closed, key.close(b"about", b"secret").unwrap());
    }

    #[test]
    fn the_public_key_closes_and_does_not_open() {
        let key = Key::random().unwrap();
        let public = key.sealing_key().unwrap();
        let sealed = public.seal(b"name", b"secret").unwrap();
        assert_eq!(&**key.unseal(b"name", &sealed).unwrap(), b"secret");
        assert!(key.unseal(b"other", &sealed).is_err());
        assert!(Key::from_bytes(public.bytes()).unwrap().unseal(b"name", &sealed).is_err());
        assert!(key.unseal(b"name", &sealed[..20]).is_err());
    }

    #[test]
    fn purposes_have_different_keys() {
        let key = Key::from_bytes(&[7; 32]).unwrap();
        assert_ne!(key.derive("a", b"b").bytes(), key.derive("a", b"c").bytes());
        assert_ne!(key.derive("a", b"b").bytes(), key.derive("ab", b"").bytes());
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!(unhex("abc"), None);
    }
}
