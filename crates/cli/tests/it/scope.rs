//! The scope, from both sides: what a path gives inside the sandbox and what
//! it gives over the file API, in one table.

use std::path::Path;

use cloister_testkit::{As, Stack};
use cloister_types::SessionId;
use serde_json::{Value, json};

/// Makes the host's side of the workspace: files that belong to its owner.
fn place(stack: &Stack, path: &str, content: &str) {
    use std::os::unix::fs::{MetadataExt, chown};
    let root = stack.workspace();
    let owner = std::fs::metadata(&root).unwrap();
    let full = root.join(path);
    std::fs::create_dir_all(full.parent().unwrap()).unwrap_or_else(|error| panic!("{path}: {error}"));
    std::fs::write(&full, content).unwrap();
    for part in full.ancestors().take_while(|part| *part != root) {
        chown(part, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

fn link(stack: &Stack, path: &str, target: &str) {
    let full = stack.workspace().join(path);
    if !full.is_symlink() {
        std::os::unix::fs::symlink(target, full).unwrap();
    }
}

fn furnish(stack: &Stack) {
    for path in [
        "projects/acme/a.txt",
        "projects/acme/deep/er/b.txt",
        "projects/acme/output/c.txt",
        "projects/acme-corp/secret.txt",
        "projects/other/secret.txt",
        "shared/templates/t.txt",
        "shared/private.txt",
        "single.txt",
        "top-secret.txt",
        "w/x.txt",
        "w/dir/frozen/f.txt",
        ".sessions/sess_00000000000f/theirs.txt",
    ] {
        place(stack, path, "content");
    }
    link(stack, "projects/acme/up", "../other/secret.txt");
    link(stack, "projects/acme/abs", "/opt/sandbox/workspace/top-secret.txt");
    link(stack, "projects/acme/near", "a.txt");
    link(stack, "projects/acme/home", "/opt/sandbox/workspace/shared/templates/t.txt");
    link(stack, "w/escape", "../../../../../../etc/shadow");
}

/// What the three operations give inside, as errno names.
const INSIDE: &str = r#"
import os, sys, json, errno
def attempt(f):
    try:
        f()
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
def get(p):
    os.listdir(p) if os.path.isdir(p) else open(p, "rb").read(1)
def put(p):
    os.makedirs(os.path.dirname(p) or ".", exist_ok=True)
    open(p, "wb").write(b"changed")
def delete(p):
    os.rmdir(p) if os.path.isdir(p) and not os.path.islink(p) else os.unlink(p)
ops = {"get": get, "put": put, "delete": delete}
print(json.dumps(attempt(lambda: ops[sys.argv[1]](sys.argv[2]))))
"#;

/// Do a status and an errno say the same?
fn agree(operation: &str, inside: &str, status: u16) -> bool {
    match (operation, inside) {
        (_, "ok") => matches!(status, 200 | 201 | 204),
        (_, "ENOENT") => status == 404,
        // In the sealed folders on the way to the scope nothing can be made;
        // to a client such a path does not exist. Elsewhere it is read-only.
        // A read-only folder answers so to the removal of what is not there.
        ("put" | "delete", "EROFS") => matches!(status, 403 | 404),
        (_, "EROFS") => status == 403,
        ("put", "EISDIR") => matches!(status, 403 | 409),
        ("put", "ENOTDIR" | "EEXIST" | "FileExistsError") => status == 409,
        ("get" | "delete", "ENOTDIR") => status == 404,
        ("delete", "EBUSY") => status == 409,
        ("delete", "ENOTEMPTY") => status == 400,
        _ => false,
    }
}

async fn compare(stack: &Stack, session: &SessionId, path: &str) -> Vec<(String, String, u16)> {
    let mut rows = Vec::new();
    for operation in ["get", "put", "delete"] {
        furnish(stack);
        let (said, _) = stack.bash(session, &format!("python3 .memory/inside.py {operation} '{path}'")).await;
        let inside: String = serde_json::from_str(said.trim()).unwrap_or(said);
        // The same state again for the other side.
        furnish(stack);
        let method = operation.to_uppercase();
        let answer = stack.raw(&method, &format!("/v1/sessions/{session}/files/{path}"), &[], b"changed").await;
        rows.push((operation.to_owned(), inside, answer.status));
    }
    rows
}

#[tokio::test]
async fn both_surfaces_agree_on_every_path_and_operation() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        furnish(&stack);
        place(&stack, ".memory/inside.py", INSIDE);
        let scoped = json!({"file_access": {
            "read": ["projects/acme", "shared/templates/t.txt", "w/dir/frozen"],
            "write": ["projects/acme/output", "single.txt", "w"],
        }});
        let scoped = stack.session_with(scoped).await.id;
        let whole = stack.session().await;
        let reader = stack.session_with(json!({"file_access": {"read": [""]}})).await.id;
        let own = format!(".sessions/{scoped}/mine.txt");
        // (path, what get, put, delete must give to the scoped session)
        let table: &[(&str, [u16; 3])] = &[
            ("projects", [200, 403, 403]),
            ("projects/new.txt", [404, 404, 404]),
            ("projects/acme", [200, 409, 403]),
            ("projects/acme/a.txt", [200, 403, 403]),
            ("projects/acme/new.txt", [404, 403, 404]),
            ("projects/acme/new/deep.txt", [404, 403, 404]),
            ("projects/acme/deep", [200, 409, 403]),
            ("projects/acme/near", [200, 403, 403]),
            ("projects/acme/home", [200, 403, 403]),
            ("projects/acme/up", [404, 404, 403]),
            ("projects/acme/abs", [404, 404, 403]),
            ("projects/acme/output", [200, 409, 403]),
            ("projects/acme/output/c.txt", [200, 201, 204]),
            ("projects/acme/output/new/d.txt", [404, 201, 204]),
            ("projects/acme-corp/secret.txt", [404, 404, 404]),
            ("projects/other/secret.txt", [404, 404, 404]),
            ("projects/none/at/all.txt", [404, 404, 404]),
            ("shared/private.txt", [404, 404, 404]),
            ("shared/templates/t.txt", [200, 403, 403]),
            ("single.txt", [200, 201, 403]),
            ("top-secret.txt", [404, 404, 404]),
            ("w/x.txt", [200, 201, 204]),
            ("w/escape", [404, 404, 204]),
            ("w/dir", [200, 409, 409]),
            ("w/dir/frozen", [200, 409, 409]),
            ("w/dir/frozen/f.txt", [200, 403, 403]),
            ("w/dir/frozen/new.txt", [404, 403, 404]),
            (".memory", [200, 409, 403]),
            (".sessions", [200, 403, 403]),
            (".sessions/sess_00000000000f/theirs.txt", [404, 404, 404]),
            (&own, [404, 201, 204]),
        ];
        for (path, want) in table {
            let rows = compare(&stack, &scoped, path).await;
            for ((operation, inside, status), want) in rows.iter().zip(want) {
                let settled = match (operation.as_str(), *path) {
                    // What the put before it made is there to be deleted.
                    ("delete", path) if path.ends_with("d.txt") || path.ends_with("mine.txt") => {
                        matches!(status, 204 | 404)
                    }
                    // Inside, writing through a link that leads nowhere makes
                    // an error of the place it leads to.
                    ("put", "projects/acme/up" | "projects/acme/abs" | "w/escape") => matches!(status, 403 | 404),
                    _ => status == want,
                };
                assert!(settled, "{who:?} {operation} {path}: API {status}, want {want}; inside {inside}");
                let exempt = operation == "put"
                    && matches!(*path, "projects/acme/up" | "projects/acme/abs" | "w/escape")
                    || operation == "delete" && (path.ends_with("d.txt") || path.ends_with("mine.txt"));
                assert!(
                    exempt || agree(operation, inside, *status),
                    "{who:?} {operation} {path}: inside {inside}, API {status}"
                );
            }
        }
        for (session, path) in [
            (&whole, "top-secret.txt"),
            (&whole, ".memory"),
            (&whole, ".sessions"),
            (&whole, ".sessions/sess_00000000000f"),
            (&reader, "top-secret.txt"),
            (&reader, "new.txt"),
            (&reader, "w/dir"),
        ] {
            for (operation, inside, status) in compare(&stack, session, path).await {
                assert!(
                    agree(&operation, &inside, status),
                    "{who:?} {operation} {path}: inside {inside}, API {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn absent_and_out_of_scope_are_the_same_answer() {
    let stack = Stack::start().await;
    furnish(&stack);
    let session = stack.session_with(json!({"file_access": {"write": ["w"]}})).await.id;
    for method in ["GET", "PUT", "DELETE"] {
        let mut answers = Vec::new();
        for path in ["top-secret.txt", "no-such-thing.txt", "projects/other/secret.txt", "projects/none/none.txt"] {
            let mut answer = stack.raw(method, &format!("/v1/sessions/{session}/files/{path}"), &[], b"x").await;
            answer.headers.remove("date");
            answers.push(answer);
        }
        assert!(answers.iter().all(|answer| *answer == answers[0] && answer.status == 404), "{method}: {answers:?}");
    }
    let listing = stack.raw("GET", &format!("/v1/sessions/{session}/files"), &[], b"").await.json();
    let names: Vec<&str> = listing.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, [".memory", ".sessions", "w"]);
}

#[tokio::test]
async fn protected_paths_cannot_be_moved_away_and_scopes_follow_what_appears() {
    let stack = Stack::start().await;
    furnish(&stack);
    let ask = json!({"file_access": {"write": ["w"], "read": ["w/dir/frozen", "later"]}});
    let session = stack.session_with(ask).await.id;
    let commands = "mv w/dir w/moved; echo A$?; rm -rf w/dir/frozen; echo B$?; mv w/dir/frozen w/y; echo C$?; \
                    echo ok > w/dir/beside; echo D$?; ls later; echo E$?";
    let (said, _) = stack.bash(&session, commands).await;
    for want in ["A1", "B1", "C1", "D0", "E2"] {
        assert!(said.contains(want), "{want} in {said}");
    }
    assert!(stack.workspace().join("w/dir/frozen/f.txt").exists());
    // Made by somebody else meanwhile: there with the next turn.
    place(&stack, "later/now.txt", "here");
    let (said, failed) = stack.bash(&session, "cat later/now.txt").await;
    assert_eq!((said.as_str(), failed), ("here", false));
    assert_eq!(stack.raw("GET", &format!("/v1/sessions/{session}/files/later/now.txt"), &[], b"").await.text(), "here");
}

#[tokio::test]
async fn other_sessions_folders_do_not_exist_even_with_the_whole_workspace() {
    let stack = Stack::start().await;
    let (a, b) = (stack.session().await, stack.session().await);
    stack.bash(&a, &format!("echo private > .sessions/{a}/note")).await;
    let (said, _) = stack
        .bash(
            &b,
            &format!(
                "ls .sessions; cat .sessions/{a}/note; mkdir .sessions/x; rmdir .sessions; mv .sessions y; mv .memory z"
            ),
        )
        .await;
    assert!(said.starts_with(&format!("{b}\n")) && said.contains("No such file"), "{said}");
    assert!(!said.contains("private"));
    assert!(Path::new(&stack.workspace().join(".memory")).exists());
    let path = format!("/v1/sessions/{b}/files/.sessions/{a}/note");
    assert_eq!(stack.raw("GET", &path, &[], b"").await.status, 404);
    let own: Value = stack.raw("GET", &format!("/v1/sessions/{a}/files/.sessions/{a}"), &[], b"").await.json();
    assert_eq!(own[0]["name"], "note");
}

#[tokio::test]
async fn a_readable_path_above_a_writable_one_that_is_made_is_there() {
    let stack = Stack::start().await;
    // Nothing of it exists; the second is protected inside a writable path.
    for (read, write) in [(json!(["p"]), json!(["p/q/r"])), (json!(["x/y"]), json!(["x", "x/y/z"]))] {
        let session = stack.session_with(json!({"file_access": {"read": read, "write": write}})).await.id;
        let inner = write.as_array().unwrap().last().unwrap().as_str().unwrap();
        let (out, failed) =
            stack.bash(&session, &format!("echo in > {inner}/f && cat {inner}/f; touch {inner}/../no")).await;
        assert!(failed && out.starts_with("in\n") && out.contains("Read-only file system"), "{out}");
    }
}

#[tokio::test]
async fn a_protected_folder_that_another_session_makes_anew_is_protected_again() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let everything = stack.session().await;
        stack.bash(&everything, "mkdir -p a/b; echo x > a/b/file").await;
        let scope = json!({"file_access": {"write": ["a"], "read": ["a/b"]}});
        let seen = stack.session_with(scope.clone()).await.id;
        let tries = "touch a/b/x; touch a/y && echo wrote";
        assert!(stack.bash(&seen, tries).await.0.contains("Read-only file system\nwrote"), "{who:?}");
        // The kernel lets go of what is mounted on a folder that is removed, and
        // ext4 gives the next one the same inode.
        for _ in 0..5 {
            stack.bash(&everything, "rm -rf a/b; mkdir a/b").await;
            let later = stack.session_with(scope.clone()).await.id;
            for session in [&seen, &later] {
                let (said, _) = stack.bash(session, tries).await;
                assert!(said.contains("Read-only file system\nwrote"), "{who:?}: {said}");
                let path = format!("/v1/sessions/{session}/files/a/b/x");
                assert_eq!(stack.raw("PUT", &path, &[], b"x").await.status, 403, "{who:?}");
            }
        }
    }
}
