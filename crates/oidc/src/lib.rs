//! Tokens that others issue. A token is verified against what is pinned of its
//! issuer (name, audience, algorithms), with keys that are fetched from the
//! issuer and kept; whoever has a browser is sent to the issuer and comes back
//! with a code (OpenID Connect Core 1.0, with PKCE).
//!
//! Nothing here knows what a caller may do.

mod flow;
mod issuer;
mod keys;
mod token;

pub use flow::{Begun, Flow, NoSignIn};
pub use issuer::{Issuer, IssuerUrl, Metadata};
pub use keys::Keys;
pub use token::{Algorithm, Claims, Expect, Rejected, issuer_of};
