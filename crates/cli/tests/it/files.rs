//! The files API.

use cloister_testkit::{Options, Stack};
use serde_json::{Value, json};

struct Files {
    stack: Stack,
    base: String,
}

impl Files {
    async fn start() -> Self {
        let stack = Stack::start().await;
        let session = stack.session().await;
        Self { base: format!("/v1/sessions/{session}/files"), stack }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> cloister_testkit::Answer {
        self.stack.raw(method, &format!("{}{path}", self.base), headers, body).await
    }

    async fn put(&self, path: &str, body: &[u8]) -> u16 {
        self.ask("PUT", path, &[], body).await.status
    }
}

#[tokio::test]
async fn upload_download_list_delete() {
    let files = Files::start().await;
    let put = files.ask("PUT", "/a/b/c.txt", &[("content-type", "text/weird")], b"hello world").await;
    assert_eq!(put.status, 201);
    assert_eq!((&put.json()["path"], &put.json()["size"]), (&json!("a/b/c.txt"), &json!(11)));
    assert!(put.json()["modified"].as_f64().unwrap() > 1.7e9);
    assert_eq!(files.put("/a/b/c.txt", b"hello again").await, 201, "overwriting answers 201 too");
    let got = files.ask("GET", "/a/b/c.txt", &[], b"").await;
    assert_eq!((got.status, got.text().as_str()), (200, "hello again"));
    assert_eq!((got.headers["content-length"].as_str(), got.headers["accept-ranges"].as_str()), ("11", "bytes"));
    let names = |list: &Value| {
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let root = files.ask("GET", "", &[], b"").await.json();
    assert_eq!(names(&root), [".memory", ".pokee", ".sessions", "a"]);
    assert_eq!(root[3]["type"], "directory");
    for listing in [
        files.ask("GET", "/a/b", &[], b"").await,
        files.ask("GET", "/a/b/", &[], b"").await,
        files.ask("GET", "?path=a/b", &[], b"").await,
    ] {
        let listing = listing.json();
        assert_eq!(
            (&listing[0]["name"], &listing[0]["type"], &listing[0]["size"]),
            (&json!("c.txt"), &json!("file"), &json!(11))
        );
    }
    let full = files.ask("DELETE", "/a", &[], b"").await;
    assert_eq!((full.status, full.json()["error"].as_str()), (400, Some("is_directory")));
    assert_eq!(files.ask("DELETE", "/a/b/c.txt", &[], b"").await.status, 204);
    assert_eq!(files.ask("DELETE", "/a/b/c.txt", &[], b"").await.status, 404);
    assert_eq!(files.ask("DELETE", "/a/b", &[], b"").await.status, 204);
    assert_eq!(files.ask("GET", "/a/b", &[], b"").await.status, 404);
    assert_eq!(files.put("/a", b"x").await, 409, "a directory is in the way");
    assert_eq!(files.put("/", b"x").await, 405, "the root is no file");
    assert_eq!(files.put("/f", b"").await, 201);
    assert_eq!(files.put("/f/below", b"x").await, 409, "a file is in the way");
    assert_eq!(files.ask("GET", "?path=nowhere", &[], b"").await.status, 404);
}

#[tokio::test]
async fn ranges_and_validators() {
    let files = Files::start().await;
    let body: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(files.put("/big.bin", &body).await, 201);
    let part = async |range: &str| files.ask("GET", "/big.bin", &[("range", range)], b"").await;
    let got = part("bytes=100-199").await;
    assert_eq!((got.status, got.body.as_slice()), (206, &body[100..200]));
    assert_eq!(got.headers["content-range"], "bytes 100-199/200000");
    assert_eq!(part("bytes=-5").await.body, body[199_995..]);
    assert_eq!(part("bytes=199990-").await.body, body[199_990..]);
    let outside = part("bytes=200000-").await;
    assert_eq!((outside.status, outside.headers["content-range"].as_str()), (416, "bytes */200000"));
    assert_eq!(part("bytes=0-1,5-6").await.status, 200);

    let tag = files.ask("GET", "/big.bin", &[], b"").await.headers["etag"].clone();
    assert_eq!(files.ask("GET", "/big.bin", &[("if-none-match", &tag)], b"").await.status, 304);
    assert_eq!(files.ask("GET", "/big.bin", &[("if-match", "\"no\"")], b"").await.status, 412);
    assert_eq!(files.ask("PUT", "/big.bin", &[("if-none-match", "*")], b"x").await.status, 412);
    assert_eq!(files.ask("PUT", "/new.bin", &[("if-match", "*")], b"x").await.status, 412);
    let written = files.ask("PUT", "/big.bin", &[("if-match", &tag)], b"newer").await;
    assert_eq!(written.status, 201);
    assert_ne!(written.headers["etag"], tag);
    assert_eq!(files.ask("PUT", "/big.bin", &[("if-match", &tag)], b"older").await.status, 412);
    assert_eq!(files.ask("DELETE", "/big.bin", &[("if-match", &tag)], b"").await.status, 412);
    assert_eq!(files.ask("DELETE", "/big.bin", &[("if-match", &written.headers["etag"])], b"").await.status, 204);
}

#[tokio::test]
async fn of_two_conditional_writers_one_wins() {
    let files = Files::start().await;
    assert_eq!(files.put("/f", b"0").await, 201);
    for round in 0..10 {
        let tag = files.ask("GET", "/f", &[], b"").await.headers["etag"].clone();
        let headers = [("if-match", tag.as_str())];
        let body = format!("round {round}");
        let (a, b) =
            tokio::join!(files.ask("PUT", "/f", &headers, body.as_bytes()), files.ask("PUT", "/f", &headers, b"other"));
        let mut statuses = [a.status, b.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 412]);
        let create = [("if-none-match", "*")];
        let name = format!("/new-{round}");
        let (a, b) = tokio::join!(files.ask("PUT", &name, &create, b"a"), files.ask("PUT", &name, &create, b"b"));
        let mut statuses = [a.status, b.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 412]);
    }
}

#[tokio::test]
async fn names_are_bytes_and_paths_cannot_climb() {
    let files = Files::start().await;
    for path in
        ["/..", "/a/../b", "/%2e%2e/x", "/a/%2E%2e/b", "/a%2fb", "//etc/passwd", "/%2fetc/passwd", "/a%00b", "/a%zz"]
    {
        for method in ["GET", "PUT", "DELETE"] {
            let answer = files.ask(method, path, &[], b"").await;
            assert_eq!(
                (answer.status, answer.json()["error"].as_str()),
                (403, Some("invalid_path")),
                "{method} {path}"
            );
        }
    }
    for query in ["?path=..", "?path=/etc", "?path=a/../..", "?path=%2e%2e"] {
        assert_eq!(files.ask("GET", query, &[], b"").await.status, 403, "{query}");
    }
    // Unknown sessions are told first.
    let other = "/v1/sessions/sess_000000000000/files/../x";
    assert_eq!(files.stack.raw("GET", other, &[], b"").await.status, 404);
    for name in [
        "/caf%C3%A9.txt",
        "/with%20space",
        "/percent%25",
        "/question%3Fmark",
        "/bad%FF%FEname",
        "/back%5Cslash",
        "/..%20not-climbing",
    ] {
        assert_eq!(files.put(name, name.as_bytes()).await, 201, "{name}");
        assert_eq!(files.ask("GET", name, &[], b"").await.text(), name);
    }
    let listing = files.ask("GET", "", &[], b"").await.json();
    let odd = listing.as_array().unwrap().iter().find(|entry| entry["name_encoded"].is_string()).unwrap();
    assert_eq!(odd["name_encoded"], "bad%FF%FEname");
    assert!(files.stack.workspace().join("caf\u{e9}.txt").exists());
}

#[tokio::test]
async fn what_is_no_file_is_not_opened() {
    let files = Files::start().await;
    let session = files.base.split('/').nth(3).unwrap().parse().unwrap();
    let plant = "mkfifo fifo; ln -s /etc/passwd out; ln -s loop loop; ln -s fifo tofifo; ln -s ../../../../etc/passwd up; \
                 ln -s /opt/sandbox/workspace/good inside; echo good > good; ln -s /proc/self/environ env; mkdir d; ln -s d dlink; \
                 echo x > shut; chmod 000 shut";
    files.stack.bash(&session, plant).await;
    // By somebody outside: a session cannot make one here.
    let _socket = std::os::unix::net::UnixListener::bind(files.stack.workspace().join("sock")).unwrap();
    for (path, status) in [
        ("/fifo", 409),
        ("/sock", 409),
        ("/tofifo", 409),
        ("/out", 404),
        ("/up", 404),
        ("/loop", 404),
        ("/env", 404),
        ("/inside", 200),
        ("/dlink", 200),
        ("/shut", 403),
    ] {
        let got =
            tokio::time::timeout(std::time::Duration::from_secs(5), files.ask("GET", path, &[], b"")).await.unwrap();
        assert_eq!(got.status, status, "{path}: {}", got.text());
    }
    assert_eq!(files.put("/fifo", b"x").await, 409);
    assert_eq!(files.put("/inside", b"through the link").await, 201);
    assert_eq!(files.ask("GET", "/good", &[], b"").await.text(), "through the link");
    for path in ["/fifo", "/sock", "/loop", "/out", "/inside"] {
        assert_eq!(files.ask("DELETE", path, &[], b"").await.status, 204, "{path}");
    }
    assert_eq!(files.ask("GET", "/good", &[], b"").await.status, 200, "deleting a link leaves its target");
    assert_eq!(files.ask("GET", "", &[], b"").await.status, 200);
}

#[tokio::test]
async fn limits_are_kept_and_nothing_half_written_shows() {
    let config = "[limits]\nupload_bytes = 100000\n".to_owned();
    let stack = Stack::with(Options { config: Some(config), ..Options::default() }).await;
    let session = stack.session().await;
    let base = format!("/v1/sessions/{session}/files");
    let files = Files { stack, base };
    assert_eq!(files.put("/ok", &vec![1; 100_000]).await, 201);
    let long = files.ask("PUT", "/ok", &[], &vec![2; 100_001]).await;
    assert_eq!((long.status, long.json()["error"].as_str()), (413, Some("payload_too_large")));
    // Without an announced length the limit holds while it streams.
    let mut chunked = Vec::new();
    for _ in 0..30 {
        chunked.extend_from_slice(b"1388\r\n");
        chunked.extend_from_slice(&[3; 5000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let url = files.stack.url.trim_start_matches("http://").to_owned();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(&url).await.unwrap();
    let head = format!(
        "PUT {}/ok HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        files.base, files.stack.key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let _ = socket.write_all(&chunked).await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(files.ask("GET", "/ok", &[], b"").await.body, vec![1; 100_000], "the old content stays");
    let listing = files.ask("GET", "", &[], b"").await.json();
    assert_eq!(listing.as_array().unwrap().len(), 4, "{listing}");
    // .pokee has a limit of its own, over all its files.
    let files = Files::start().await;
    assert_eq!(files.put("/.pokee/1.md", &vec![b'x'; 700_000]).await, 201);
    assert_eq!(files.put("/.pokee/2.md", &vec![b'x'; 700_000]).await, 413);
    assert_eq!(files.put("/.pokee/1.md", &vec![b'x'; 900_000]).await, 201, "what it replaces does not count");
}
