//! The kernel's "no" to a request: its errno and, where it has any, its words (NETLINK_EXT_ACK, linux/netlink.h).

use std::{fmt, io};

/// NLMSGERR_ATTR_MSG: a sentence for people.
const WORDS: u16 = 1;
/// Of a netlink header, and so where a request's payload begins.
const HEADER: usize = 16;

/// Why a request was refused.
#[derive(Debug)]
pub struct Refusal {
    errno: io::Error,
    words: Option<String>,
}

impl Refusal {
    /// The errno; none where no answer came from the kernel.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.errno.raw_os_error()
    }

    /// A negative errno and what follows it in NLMSG_ERROR.
    pub(crate) fn of_answer(errno: i32, rest: &[u8]) -> Self {
        Self { errno: io::Error::from_raw_os_error(errno.saturating_neg()), words: words(rest) }
    }

    /// With words of ours, where the kernel has none.
    pub(crate) fn because(self, words: &str) -> Self {
        Self { words: self.words.or_else(|| Some(words.to_owned())), ..self }
    }

    pub(crate) fn is(&self, errno: rustix::io::Errno) -> bool {
        self.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl From<io::Error> for Refusal {
    fn from(errno: io::Error) -> Self {
        Self { errno, words: None }
    }
}

impl From<rtnetlink::Error> for Refusal {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                Self { errno: message.to_io(), words: words(&message.header) }
            }
            other => io::Error::other(other.to_string()).into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(f, "{}: {words}", self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for Refusal {}

/// The words in what follows the errno: the whole request again, header first, then attributes (length, kind, value), each
/// at a multiple of four.
fn words(answer: &[u8]) -> Option<String> {
    let request = usize::try_from(u32::from_ne_bytes(*answer.first_chunk()?)).ok()?;
    let mut rest = answer.get(request.max(HEADER).checked_next_multiple_of(4)?..)?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let (kind, _) = after.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        if u16::from_ne_bytes(*kind) == WORDS {
            let text = rest.get(4..length)?.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned()).filter(|text| !text.is_empty());
        }
        rest = rest.get(length.max(4).checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer to a request of `request` bytes, with attributes.
    fn answer(request: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = request.to_ne_bytes().to_vec();
        bytes.resize(request as usize, 0xaa);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        for (kind, value) in attributes {
            bytes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn words_are_found_wherever_they_stand() {
        let offset = (2, [0, 0, 0, 9].as_slice());
        for request in [16, 33, 52] {
            let bytes = answer(request, &[offset, (WORDS, b"mtu is too large\0")]);
            assert_eq!(words(&bytes).as_deref(), Some("mtu is too large"));
        }
        assert_eq!(words(&answer(52, &[offset])), None);
        assert_eq!(words(&answer(52, &[(WORDS, b"\0")])), None);
    }

    #[test]
    fn a_refusal_reads_errno_first() {
        let refusal =
            Refusal { errno: io::Error::from_raw_os_error(22), words: Some("mtu is too large".into()) };
        assert_eq!(refusal.to_string(), "Invalid argument (os error 22): mtu is too large");
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic(bytes: Vec<u8>, request in 0_u32..80) {
            words(&bytes);
            let mut bytes = [request.to_ne_bytes().as_slice(), &bytes].concat();
            words(&bytes);
            bytes.truncate(21);
            words(&bytes);
        }
    }
}
