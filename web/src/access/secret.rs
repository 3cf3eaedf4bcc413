//! Random secrets, what is kept of them, and how they are compared.

use std::fmt;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// Crockford's alphabet: no letter that is read as another one.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// What is kept of a secret: its SHA-256, in hexadecimal.
///
/// That is enough for secrets of 60 random bits and more, which nobody guesses from a digest; passwords go through Argon2.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Digest(String);

impl Digest {
    /// Of a secret.
    pub(super) fn of(secret: &str) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
        let mut text = String::with_capacity(64);
        for byte in digest.as_ref() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        Self(text)
    }

    /// Whether it is that of the same secret, in a time that says nothing of how much of it is right.
    pub(super) fn is(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }

    /// As a text.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Its first characters: a name for what must not be named by its secret.
    pub(super) fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// Never a secret in a log, and not what is kept of one either.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// Compares in a time that depends on the lengths alone.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// Random bytes of the kernel's.
///
/// # Errors
/// The kernel has none, which it has on every machine that has booted.
pub(super) fn bytes<const N: usize>() -> rustix::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// A secret of 256 random bits, as 52 characters.
///
/// # Errors
/// As [`bytes`].
pub(super) fn long() -> rustix::io::Result<String> {
    Ok(base32(&bytes::<32>()?))
}

/// Bytes as characters of Crockford's alphabet.
pub(super) fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut held, mut bits) = (0_u32, 0);
    let mut push = |value: u32| text.push(char::from(ALPHABET[(value & 31) as usize]));
    for byte in bytes {
        held = (held & 31) << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            push(held >> bits);
        }
    }
    if bits > 0 {
        push(held << (5 - bits));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_bits_are_a_character() {
        assert_eq!(base32(&[]), "");
        assert_eq!(base32(&[0xff]), "zw");
        assert_eq!(base32(&[0, 0, 0, 0, 1]), "00000001");
        assert_eq!(base32(b"hello"), "d1jprv3f");
        assert_eq!(base32(&[0xff; 32]).len(), 52);
    }

    #[test]
    fn a_digest_is_sha_256() {
        let digest = Digest::of("abc");
        assert_eq!(digest.0, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(digest.is(&Digest::of("abc")));
        assert!(!digest.is(&Digest::of("abd")));
    }

    #[test]
    fn no_two_secrets_are_the_same() {
        assert_ne!(long().unwrap(), long().unwrap());
        assert_eq!(long().unwrap().len(), 52);
    }
}
