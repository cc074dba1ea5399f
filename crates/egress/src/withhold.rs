//! New credentials in an answer: whoever holds one can have others made. The
//! values of members (JSON), elements (XML) and pairs (forms) with telling names
//! are covered, as they stream.

/// Members whose values are credentials (RFC 6749, 5.1; AWS's STS and IAM).
const TELLING: [&str; 13] = [
    "access_token",
    "accessToken",
    "refresh_token",
    "refreshToken",
    "id_token",
    "client_secret",
    "SecretAccessKey",
    "SessionToken",
    "secret_key",
    "private_key",
    "api_key",
    "apiKey",
    "secret",
];
const COVER: u8 = b'*';
/// No telling name is longer.
const LONGEST: usize = 32;

/// Where in the JSON it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Between,
    String {
        escaped: bool,
    },
    /// A string has ended: a colon makes it a name.
    Behind,
    /// Behind the colon of a telling name.
    Value,
    Covered {
        escaped: bool,
    },
    /// In the name of an element, or of a pair.
    Name,
    /// In the text of an element, or the value of a pair.
    Text {
        telling: bool,
    },
}

/// How names and values are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    /// `<name>value<`.
    Xml,
    /// `name=value&`.
    Pairs,
}

/// Withholds new credentials from one stream of JSON.
pub(crate) struct Withholder {
    form: Form,
    at: At,
    name: Vec<u8>,
    /// Something was covered.
    pub(crate) found: bool,
}

impl Withholder {
    /// For answers of a content type; `None` if it has no names in it.
    pub(crate) fn for_kind(kind: &str) -> Option<Self> {
        let kind = kind.to_ascii_lowercase();
        let (form, at) = match () {
            () if kind.contains("json") => (Form::Json, At::Between),
            () if kind.contains("xml") => (Form::Xml, At::Text { telling: false }),
            () if kind.contains("x-www-form-urlencoded") => (Form::Pairs, At::Name),
            () => return None,
        };
        Some(Self { form, at, name: Vec::new(), found: false })
    }

    fn is_telling(&self) -> bool {
        TELLING.iter().any(|name| name.as_bytes() == self.name)
    }

    /// Covers what must be covered in the next bytes of the stream.
    pub(crate) fn cover(&mut self, bytes: &mut [u8]) {
        match self.form {
            Form::Json => self.cover_json(bytes),
            Form::Xml => self.cover_between(bytes, b'<', b'>'),
            Form::Pairs => self.cover_between(bytes, b'&', b'='),
        }
    }

    /// Names stand between `before` and `behind`, values up to the next `before`.
    fn cover_between(&mut self, bytes: &mut [u8], before: u8, behind: u8) {
        for byte in bytes {
            self.at = match (self.at, *byte) {
                (_, other) if other == before => {
                    self.name.clear();
                    At::Name
                }
                (At::Name, other) if other == behind => At::Text { telling: self.is_telling() },
                (At::Name, other) => {
                    if self.name.len() <= LONGEST {
                        self.name.push(other);
                    }
                    At::Name
                }
                (at, _) => {
                    if at == (At::Text { telling: true }) {
                        *byte = COVER;
                        self.found = true;
                    }
                    at
                }
            };
        }
    }

    fn cover_json(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.at = match (self.at, *byte) {
                (At::Between, b'"') => {
                    self.name.clear();
                    At::String { escaped: false }
                }
                (At::Between, _) => At::Between,
                (At::String { escaped: false }, b'"') => At::Behind,
                (At::String { escaped }, other) => {
                    if self.name.len() <= LONGEST {
                        self.name.push(other);
                    }
                    At::String { escaped: !escaped && other == b'\\' }
                }
                (At::Behind, b':') if self.is_telling() => At::Value,
                (At::Behind | At::Value, b' ' | b'\t' | b'\r' | b'\n') => self.at,
                (At::Value, b'"') => At::Covered { escaped: false },
                (At::Behind, b'"') => {
                    self.name.clear();
                    At::String { escaped: false }
                }
                (At::Behind | At::Value, _) => At::Between,
                (At::Covered { escaped: false }, b'"') => At::Between,
                (At::Name | At::Text { .. }, _) => At::Between,
                (At::Covered { escaped }, other) => {
                    *byte = COVER;
                    self.found = true;
                    At::Covered { escaped: !escaped && other == b'\\' }
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(text: &str, size: usize) -> String {
        cover_as("application/json", text, size)
    }

    fn cover_as(kind: &str, text: &str, size: usize) -> String {
        let mut withholder = Withholder::for_kind(kind).unwrap();
        let mut bytes = text.as_bytes().to_vec();
        bytes.chunks_mut(size).for_each(|chunk| withholder.cover(chunk));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn values_of_telling_members_are_covered_at_every_cut() {
        let text = r#"{"a":"access_token","access_token" : "ab\"c","x":["refresh_token"],"id_token":null,"n":{"refresh_token":"d"}}"#;
        let want = r#"{"a":"access_token","access_token" : "*****","x":["refresh_token"],"id_token":null,"n":{"refresh_token":"*"}}"#;
        for size in 1..text.len() {
            assert_eq!(cover(text, size), want, "pieces of {size}");
        }
        assert_eq!(cover("[1,\"a\"]", 2), "[1,\"a\"]");
        let (xml, pairs) =
            ("<a><SecretAccessKey>abc</SecretAccessKey><b>c</b></a>", "access_token=abc&scope=x&refresh_token=d");
        for size in 1..xml.len() {
            assert_eq!(cover_as("text/xml", xml, size), "<a><SecretAccessKey>***</SecretAccessKey><b>c</b></a>");
            assert_eq!(
                cover_as("application/x-www-form-urlencoded", pairs, size),
                "access_token=***&scope=x&refresh_token=*"
            );
        }
        assert!(Withholder::for_kind("text/plain").is_none());
    }
}
