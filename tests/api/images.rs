//! Images: brought in whole or not at all.

use std::fs;
use std::io::Write;

use crate::appliance::file;
use crate::client::{Answer, Served};
use crate::config::SmallDisk;
use crate::machine::{available, wait_until};

const KIND: &str = "Content-Type: application/octet-stream";

fn left(served: &Served) -> Vec<String> {
    let entries = fs::read_dir(served.appliance.path("state").join("images")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn an_image_comes_and_goes() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let put = |name: &str| served.ask("PUT", &format!("/api/v1/images/{name}"), &[KIND], &bytes);
    let made = put("a.iso");
    assert_eq!(made.status, 201, "{}", made.text());
    let path = made.json()["path"].as_str().unwrap().to_owned();
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(put("a.iso").problem().0, 409);
    for name in [".hidden", "a%2fb", "..", "%00"] {
        assert_eq!(put(name).problem().0, 400, "{name}");
    }
    assert_eq!(served.ask("PUT", "/api/v1/images/b", &[], &bytes).problem().0, 415);
    // One that a guest of the file has stays.
    let text = format!(
        "version: 1\nmanagement: {{listen: []}}\nvms: {{g: {{memory: 16MiB, boot: {{firmware: uefi}}, disks: {{d: {{path: \"{path}\"}}}}}}}}\n"
    );
    served.save(&text, &served.tag()).good();
    let (status, detail) = served.ask("DELETE", "/api/v1/images/a.iso", &[], b"").problem();
    assert_eq!(status, 409);
    assert!(detail.contains("guest g"), "{detail}");
    served.save("version: 1\nmanagement: {listen: []}\n", &served.tag()).good();
    assert_eq!(served.ask("DELETE", "/api/v1/images/a.iso", &[], b"").status, 204);
    assert_eq!(served.get("/api/v1/images").good().json(), serde_json::json!([]));
    assert!(left(&served).is_empty());
}

#[test]
fn one_that_is_cut_off_leaves_nothing() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let mut stream = served.connect();
    let head = format!(
        "PUT /api/v1/images/a HTTP/1.1\r\nHost: localhost\r\n{KIND}\r\nContent-Length: 1000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![1; 300_000]).unwrap();
    wait_until("it comes", || !left(&served).is_empty());
    assert_eq!(served.get("/api/v1/images").good().json(), serde_json::json!([]), "it is not there yet");
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(stream);
    wait_until("nothing is left", || left(&served).is_empty());
    wait_until("it is written down", || {
        served
            .audit()
            .iter()
            .any(|(what, detail, _)| what == "give an upload up" && detail.contains("cut off"))
    });
}

#[test]
fn one_that_has_no_room_is_refused_before_it_comes() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let _disk = rustix::process::geteuid()
        .is_root()
        .then(|| SmallDisk::at(&served.appliance.path("state").join("images"), 80 << 20));
    let mut stream = served.connect();
    let head = format!(
        "PUT /api/v1/images/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{KIND}\r\nContent-Length: 99999999999999\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let (status, detail) = Answer::read(stream).problem();
    assert_eq!(status, 507, "{detail}");
    assert!(left(&served).is_empty());
    let unsaid = {
        let mut stream = served.connect();
        let head = format!(
            "PUT /api/v1/images/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{KIND}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Answer::read(stream)
    };
    assert_eq!(unsaid.problem().0, 411);
}
