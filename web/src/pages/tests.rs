//! Each page as a browser would get it, in each language: whole, with labels, within its size, with links that lead somewhere.

use std::collections::BTreeSet;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, header};
use tower::ServiceExt as _;

use super::*;
use crate::access::{Access, Settings};
use crate::server::Peer;
use crate::testing::Recorded;

/// The pages behind their gate, for root of the box; the folder goes with it.
struct Box_ {
    app: Router,
    _folder: tempfile::TempDir,
}

fn the_box(control: Recorded) -> Box_ {
    let folder = tempfile::tempdir().unwrap();
    let control: Shared = Arc::new(control);
    let settings = Settings {
        folder: folder.path().into(),
        users_file: None,
        hosts: Vec::new(),
        announce: Box::new(|_| {}),
    };
    let access = Access::open(settings, Arc::clone(&control)).unwrap();
    let root = Peer { address: None, user: Some((0, 0)), secure: true, https: false };
    let app = access.guard(Pages::new(control).router()).layer(Extension(root));
    Box_ { app, _folder: folder }
}

impl Box_ {
    async fn ask(&self, request: Request<Body>) -> Response<Body> {
        self.app.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, path: &str, language: &str) -> (u16, String) {
        let request = Request::get(path).header(header::ACCEPT_LANGUAGE, language).body(Body::empty());
        text(self.ask(request.unwrap()).await).await
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> (u16, String, String) {
        let kind = "application/x-www-form-urlencoded";
        let body = serde_urlencoded::to_string(form).unwrap();
        let request = Request::post(path).header(header::CONTENT_TYPE, kind).body(body.into()).unwrap();
        let answer = self.ask(request).await;
        let to = answer.headers().get(header::LOCATION).map(|to| to.to_str().unwrap().to_owned());
        let (status, text) = text(answer).await;
        (status, text, to.unwrap_or_default())
    }
}

async fn text(answer: Response<Body>) -> (u16, String) {
    let status = answer.status().as_u16();
    let bytes = to_bytes(answer.into_body(), 4 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

const PAGES: [&str; 19] = [
    "/",
    "/guests",
    "/guests/new",
    "/guests/firewall",
    "/guests/desktop",
    "/guests/firewall/edit",
    "/guests/firewall/console",
    "/devices",
    "/sriov",
    "/networks",
    "/images",
    "/configuration",
    "/changes",
    "/logs",
    "/logs?guest=web&of=console",
    "/audit",
    "/people",
    "/about",
    "/claim",
];

/// One tag: its name, its attributes as they stand there.
struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
}

impl<'a> Tag<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let (_, rest) = self.attributes.split_once(&format!(" {name}=\""))?;
        rest.split('"').next()
    }
}

/// All tags, and that each is closed where HTML wants it.
fn tags<'a>(page: &str, html: &'a str) -> Vec<Tag<'a>> {
    const VOID: [&str; 5] = ["meta", "link", "input", "br", "option"];
    const SHAPES: [&str; 4] = ["path", "rect", "circle", "line"];
    let mut open: Vec<&str> = Vec::new();
    let mut tags = Vec::new();
    for piece in html.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').unwrap_or_else(|| panic!("{page}: <{piece}"));
        if tag.starts_with('!') {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if name != "option" {
                assert_eq!(open.pop(), Some(name), "{page}: </{name}> closes another");
            }
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        let own = tag.ends_with('/');
        assert!(!own || SHAPES.contains(&name), "{page}: <{tag}>");
        if !own && !VOID.contains(&name) {
            open.push(name);
        }
        tags.push(Tag { name, attributes: &tag[name.len()..] });
    }
    assert!(open.is_empty(), "{page}: {open:?} are never closed");
    tags
}

fn well_made(page: &str, html: &str) -> Vec<String> {
    let tags = tags(page, html);
    let mut ids = BTreeSet::new();
    for id in tags.iter().filter_map(|tag| tag.get("id")) {
        assert!(ids.insert(id), "{page}: the id {id} is there twice");
    }
    let labels: BTreeSet<&str> =
        tags.iter().filter(|tag| tag.name == "label").filter_map(|tag| tag.get("for")).collect();
    for tag in &tags {
        let shown = tag.get("type") != Some("hidden");
        if matches!(tag.name, "input" | "select" | "textarea") && shown {
            let labelled =
                tag.get("id").is_some_and(|id| labels.contains(id)) || tag.get("aria-label").is_some();
            assert!(labelled, "{page}: <{}{}> has no label", tag.name, tag.attributes);
        }
        for attribute in ["aria-labelledby", "aria-describedby", "popovertarget", "for", "list"] {
            for id in tag.get(attribute).into_iter().flat_map(str::split_whitespace) {
                assert!(ids.contains(id), "{page}: {attribute}={id} leads nowhere");
            }
        }
        assert!(tag.get("style").is_none() && tag.name != "style", "{page}: a style in the page");
        assert!(tag.name != "script" || tag.get("src").is_some(), "{page}: a script in the page");
        let handler = |word: &str| word.starts_with("on") && word.contains('=');
        assert!(!tag.attributes.split(' ').any(handler), "{page}: <{}{}>", tag.name, tag.attributes);
        assert!(
            tag.name != "form" || tag.get("method").is_some() || tag.get("id") == Some("upload"),
            "{page}: {}",
            tag.attributes
        );
    }
    for (name, most) in [("h1", 1), ("main", 1)] {
        assert_eq!(tags.iter().filter(|tag| tag.name == name).count(), most, "{page}: {name}");
    }
    let links = tags.iter().flat_map(|tag| [tag.get("href"), tag.get("src"), tag.get("data-live")]);
    links.flatten().map(|link| link.replace("&amp;", "&").replace("&#38;", "&")).collect()
}

#[tokio::test]
async fn pages_are_well_made_in_each_language() {
    for control in [Recorded::default(), Recorded::empty()] {
        let the_box = the_box(control);
        for language in words::Language::ALL {
            let empty = the_box.get("/", "en").await.1.contains("There are no guests yet");
            let mut links = BTreeSet::new();
            for page in PAGES {
                let (status, html) = the_box.get(page, language.tag()).await;
                let gone = empty && page.starts_with("/guests/") && page != "/guests/new";
                if gone && status == 404 {
                    continue;
                }
                assert_eq!(status, 200, "{page}: {html}");
                assert!(html.contains(&format!("<html lang=\"{}\"", language.tag())), "{page}");
                links.extend(well_made(page, &html));
            }
            // The one without guests still has networks with some on them.
            links.retain(|link| !(empty && link.starts_with("/guests/")));
            for link in links.iter().filter(|link| link.starts_with('/') && !link.starts_with("/api/")) {
                let status = the_box.get(link, "en").await.0;
                assert!(status < 400 || link.contains("/edit"), "{link} leads to {status}");
            }
        }
    }
}

#[tokio::test]
async fn the_first_page_is_small() {
    let the_box = the_box(Recorded::default());
    for page in PAGES {
        let (_, html) = the_box.get(page, "zh").await;
        let mut whole = html.len();
        for link in
            BTreeSet::from_iter(well_made(page, &html)).iter().filter(|link| link.starts_with("/assets/"))
        {
            whole += the_box.get(link, "en").await.1.len();
        }
        assert!(whole < 60 << 10, "{page} has {whole} bytes");
    }
}

#[tokio::test]
async fn what_the_live_part_says_is_in_the_page() {
    let the_box = the_box(Recorded::default());
    for page in ["/", "/guests", "/guests/firewall", "/networks", "/changes", "/logs"] {
        let request = Request::get(page).header("x-live", "1").body(Body::empty()).unwrap();
        let (status, part) = text(the_box.ask(request).await).await;
        assert_eq!(status, 200);
        assert!(!part.contains("<html"), "{page}");
        tags(page, &part);
    }
}

#[tokio::test]
async fn a_guest_is_started_and_stopped_by_its_form() {
    let the_box = the_box(Recorded::default());
    let act = "/guests/desktop/act";
    let (status, _, to) = the_box.post(act, &[("verb", "start"), ("back", "/guests")]).await;
    assert_eq!((status, to.as_str()), (303, "/guests"));
    assert!(the_box.get("/guests/desktop", "en").await.1.contains("Running"));
    // A second time is said to be too late, on a page.
    let (status, html, _) = the_box.post(act, &[("verb", "start")]).await;
    assert_eq!(status, 409);
    well_made("conflict", &html);
    let (status, _, to) = the_box.post(act, &[("verb", "stop"), ("back", "//evil.example/")]).await;
    assert_eq!((status, to.as_str()), (303, "/"));
    assert_eq!(the_box.post(act, &[("verb", "explode")]).await.0, 400);
}

#[tokio::test]
async fn a_text_is_looked_at_saved_and_applied_and_a_stale_one_is_not_lost() {
    let the_box = the_box(Recorded::default());
    let text = "version: 1\r\nvms: {}\r\n";
    let (status, html, _) =
        the_box.post("/configuration", &[("text", text), ("tag", "v1"), ("do", "plan")]).await;
    assert_eq!(status, 200);
    well_made("plan", &html);
    assert!(html.contains("num-vfs 4 -&#62; 8") && html.contains("<span class=\"del\">"), "{html}");
    let wrong = [("text", "version: 1\nwrong: 2\n"), ("tag", "v1"), ("do", "plan")];
    let html = the_box.post("/configuration", &wrong).await.1;
    assert!(html.contains("data-line=\"2\"") && html.contains("<b>2</b>"), "{html}");
    let save = [("text", text), ("tag", "v1"), ("do", "save")];
    assert_eq!(the_box.post("/configuration", &save).await.2, "/configuration?done=saved");
    let (status, html, _) =
        the_box.post("/configuration", &[("text", "version: 1 # mine"), ("tag", "v1"), ("do", "save")]).await;
    assert_eq!(status, 412);
    well_made("stale", &html);
    assert!(html.contains("version: 1 # mine") && html.contains("name=\"tag\" value=\"v2\""), "{html}");
    let apply = [("text", text), ("tag", "v2"), ("do", "apply")];
    assert_eq!(the_box.post("/configuration", &apply).await.2, "/changes?done=applying");
    // Now a banner is on every page, and its form confirms.
    let html = the_box.get("/guests", "en").await.1;
    assert!(html.contains("action=\"/changes/4/confirm\"") && html.contains("role=\"timer\""), "{html}");
    assert_eq!(the_box.post("/changes/4/confirm", &[]).await.0, 303);
    assert!(!the_box.get("/guests", "en").await.1.contains("role=\"timer\""));
}

#[tokio::test]
async fn what_a_form_makes_is_a_text_to_look_at() {
    let the_box = the_box(Recorded::default());
    let form = [
        ("name", "new"),
        ("vcpus", "2"),
        ("memory", "1GiB"),
        ("boot", "uefi"),
        ("kernel", "/unused"),
        ("disk-name", "root"),
        ("disk-path", "/a.raw"),
        ("disk-format", "raw"),
        ("disk-as", "cdrom"),
        ("disk-name", ""),
        ("disk-path", "/b"),
        ("disk-format", "raw"),
        ("disk-as", "disk"),
        ("nic-name", "lan"),
        ("nic-on", "pool lan-vfs"),
    ];
    let (status, html, _) = the_box.post("/guests", &form).await;
    assert_eq!(status, 200);
    well_made("form", &html);
    for part in [
        "put-guest",
        "&#34;cdrom&#34;:true",
        "&#34;pool&#34;:&#34;lan-vfs&#34;",
        "&#34;kernel&#34;:&#34;&#34;",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    assert!(!html.contains("/b&#34;"), "{html}");
    let give = [("address", "0000:41:00.0"), ("guest", "web")];
    assert!(the_box.post("/devices/give", &give).await.1.contains("give-device"));
    assert!(
        the_box.post("/sriov", &[("address", "0000:01:00.0"), ("count", "8")]).await.1.contains("set-vfs")
    );
    assert_eq!(the_box.post("/sriov", &[("address", "0000:01:00.0"), ("count", "x")]).await.0, 400);
}

#[tokio::test]
async fn the_console_keeps_its_screen_and_takes_keys() {
    let the_box = the_box(Recorded::default());
    let page = "/guests/web/console";
    assert!(the_box.get(page, "en").await.1.contains("login: 你好"));
    assert_eq!(the_box.post(page, &[("line", "uname -a")]).await.0, 303);
    assert_eq!(the_box.post(page, &[("key", "Meteor")]).await.0, 400);
    // As a script does.
    let keys = Request::post("/guests/web/console/keys").body(Body::from("ls\r")).unwrap();
    assert_eq!(the_box.ask(keys).await.status(), 204);
    let screen = Request::get("/guests/web/console/screen?seen=0").body(Body::empty()).unwrap();
    let answer = the_box.ask(screen).await;
    let version: u64 = answer.headers()["x-version"].to_str().unwrap().parse().unwrap();
    assert!(version > 0);
    assert!(text(answer).await.1.contains("login: 你好"));
}

#[tokio::test]
async fn language_and_colours_are_the_browsers_own() {
    let the_box = the_box(Recorded::default());
    let kind = "application/x-www-form-urlencoded";
    let form = "language=zh-Hans&theme=dark&back=%2Fguests";
    let request = Request::post("/look").header(header::CONTENT_TYPE, kind).body(form.into()).unwrap();
    let answer = the_box.ask(request).await;
    let cookies: Vec<_> =
        answer.headers().get_all(header::SET_COOKIE).iter().map(|one| one.to_str().unwrap()).collect();
    assert!(
        cookies[0].starts_with("language=zh-Hans;") && cookies[1].starts_with("theme=dark;"),
        "{cookies:?}"
    );
    let request =
        Request::get("/").header(header::COOKIE, "theme=dark; language=zh-Hans").body(Body::empty());
    let html = text(the_box.ask(request.unwrap()).await).await.1;
    assert!(html.contains("<html lang=\"zh-Hans\" data-theme=\"dark\">"));
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let the_box = the_box(Recorded::default());
    for page in ["/nothing", "/guests/none", "/guests/none/edit", "/assets/none.css"] {
        let (status, html) = the_box.get(page, "en").await;
        assert_eq!(status, 404, "{page}");
        if !html.is_empty() {
            well_made(page, &html);
        }
    }
}
