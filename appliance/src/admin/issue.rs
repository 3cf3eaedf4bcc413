//! What the box's own screen says before anybody logs in: how to claim it, as long as nobody has (issue(5), agetty(8)).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::link::Claim;
use crate::config::Listen;

/// How long a code is good, as the process says that makes it.
const GOOD: Duration = Duration::from_secs(web::access::CODE_LASTS);

/// The file, in the folder of what belongs to the running system: `/run/issue.d` beside `/run/throughway`.
fn place(running: &Path) -> Option<PathBuf> {
    Some(running.parent()?.join("issue.d/throughway.issue"))
}

/// Nobody is told a code any more.
pub(super) fn clear(running: &Path) {
    let Some(path) = place(running) else { return };
    match fs::remove_file(&path) {
        Ok(()) => shown_again(running),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("Removing {}: {error}", path.display()),
    }
}

/// Whoever stands before the box is told how to claim it.
pub(super) fn show(running: &Path, listen: &[Listen], claim: &Claim) {
    let Some(path) = place(running) else { return };
    let until = SystemTime::now().checked_add(GOOD).unwrap_or(SystemTime::UNIX_EPOCH);
    let Some(text) = text(listen, claim, until) else {
        tracing::warn!("The admin interface tells a code that is none: the console does not show it");
        return;
    };
    match put(&path, &text) {
        Ok(()) => shown_again(running),
        Err(error) => tracing::warn!("Writing {}: {error}", path.display()),
    }
}

/// None where what is told is not what it should be: it goes to a terminal, and comes from who talks to strangers.
fn text(listen: &[Listen], claim: &Claim, until: SystemTime) -> Option<String> {
    let of = |text: &str, length: usize, more: u8| {
        text.len() == length
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == more)
    };
    let Claim { code, fingerprint } = claim;
    if !of(code, 14, b'-') || fingerprint.as_deref().is_some_and(|text| !of(text, 95, b':')) {
        return None;
    }
    let mut text = "\nNobody has claimed this box yet. Its admin interface:\n".to_owned();
    for listen in listen {
        let (scheme, port) = (if listen.https { "https" } else { "http" }, listen.address.port());
        let mut line = |address: &str| text.push_str(&format!("  {scheme}://{address}:{port}/\n"));
        match listen.address.ip() {
            // agetty puts the address that the box has when it shows this, and shows it again when that is another one.
            ip if ip.is_unspecified() => {
                line("\\4");
                if ip.is_ipv6() {
                    line("[\\6]");
                }
            }
            _ => line(listen.address.to_string().rsplit_once(':')?.0),
        }
    }
    text.push_str(&format!("Code: {code} (until {})\n", humantime::format_rfc3339_seconds(until)));
    if let Some(fingerprint) = fingerprint {
        text.push_str(&format!("Certificate, SHA-256:\n  {fingerprint}\n"));
    }
    text.push('\n');
    Some(text)
}

/// Whole, and for those alone who stand before the screen: agetty is root.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // agetty reads names that end in .issue alone.
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

/// As `agetty --reload` does it: who waits for a name shows it anew.
fn shown_again(running: &Path) {
    let Some(folder) = running.parent() else { return };
    let touch = || {
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o644)
            .open(folder.join("agetty.reload"))?;
        file.set_modified(SystemTime::now())
    };
    if let Err(error) = touch() {
        tracing::debug!("Having the console shown anew: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(all: &[&str]) -> Vec<Listen> {
        all.iter().map(|one| (*one).to_owned().try_into().unwrap()).collect()
    }

    #[test]
    fn who_stands_before_the_box_reads_where_and_by_what_code() {
        let claim = Claim { code: "JPXG-38QA-87CJ".into(), fingerprint: Some(["AB"; 32].join(":")) };
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let all = listen(&[
            "https://[::]:8443",
            "https://0.0.0.0:1",
            "https://[2001:db8::1]:2",
            "http://127.0.0.1:80",
        ]);
        let expected = format!(
            "\nNobody has claimed this box yet. Its admin interface:\n  https://\\4:8443/\n  https://[\\6]:8443/\n  https://\\4:1/\n  \
             https://[2001:db8::1]:2/\n  http://127.0.0.1:80/\nCode: JPXG-38QA-87CJ (until 2027-01-15T08:00:00Z)\nCertificate, SHA-256:\n  {}\n\n",
            ["AB"; 32].join(":")
        );
        assert_eq!(text(&all, &claim, until).unwrap(), expected);
    }

    #[test]
    fn nothing_but_a_code_gets_to_a_terminal() {
        let claim = |code: &str, fingerprint: Option<&str>| {
            let claim = Claim { code: code.into(), fingerprint: fingerprint.map(Into::into) };
            text(&[], &claim, SystemTime::UNIX_EPOCH)
        };
        assert!(claim("JPXG-38QA-87CJ", None).is_some());
        for bad in
            ["", "JPXG-38QA-87C", "JPXG-38QA-87C\x1b", "JPXG-38QA-87C\\", "JPXG 38QA 87CJ", "jpxg-38qa-87cj"]
        {
            assert_eq!(claim(bad, None), None, "{bad:?}");
        }
        assert_eq!(claim("JPXG-38QA-87CJ", Some("AB:CD")), None);
        assert_eq!(claim("JPXG-38QA-87CJ", Some(&"\x1b".repeat(95))), None);
    }

    #[test]
    fn it_is_there_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let running = folder.path().join("throughway");
        let path = folder.path().join("issue.d/throughway.issue");
        clear(&running);
        let claim = Claim { code: "JPXG-38QA-87CJ".into(), fingerprint: None };
        show(&running, &[], &claim);
        show(&running, &[], &claim);
        assert!(fs::read_to_string(&path).unwrap().contains("JPXG-38QA-87CJ"));
        assert!(folder.path().join("agetty.reload").exists());
        show(&running, &[], &Claim { code: "no code".into(), fingerprint: None });
        assert!(fs::read_to_string(&path).unwrap().contains("JPXG-38QA-87CJ"), "it is not touched");
        clear(&running);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path().join("issue.d")).unwrap().count(), 0);
    }
}
