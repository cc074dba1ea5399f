//! Whatever the tree, the scope and the operation: the agent, from inside, and
//! the file API, from outside, get the same outcome.
//!
//! Each case makes two equal trees, `A` and `B`, with links of every kind in
//! them, and two sessions with the same scope on one of them each. The same
//! operations run on `A` by a program inside and on `B` over HTTP. Then the
//! outcomes must be equal one by one, and so must the trees.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cloister_testkit::{As, Stack};
use serde_json::{Value, json};

use crate::crash::Random;

/// Does what the file API promises, with plain system calls, and says how it
/// went: `ok`, or the error's name.
const INSIDE: &str = r#"
import ctypes, errno, json, os, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def parents(path):
    made = ''
    for part in path.split('/')[:-1]:
        made = made + part + '/'
        try: os.mkdir(made)
        except FileExistsError: pass
        except OSError as error:
            if not os.path.isdir(made): raise
def put(path, data):
    parents(path)
    try: mode = os.lstat(path).st_mode
    except FileNotFoundError: mode = None
    if mode is None or stat.S_ISREG(mode):
        aside = os.path.join(os.path.dirname(path) or '.', '.aside')
        try:
            with open(aside, 'w') as file: file.write(data)
            os.replace(aside, path)
            return
        except OSError as error:
            if mode is None or error.errno not in (errno.EBUSY, errno.EROFS): raise
            if error.errno == errno.EBUSY: os.unlink(aside)
            elif not bound(path): raise
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode): raise IsADirectoryError(errno.EISDIR, '')
    if not stat.S_ISREG(mode): raise OSError(errno.EEXIST, '')
    with open(path, 'r+') as file:
        file.truncate()
        file.write(data)
def bound(path):
    said = ctypes.create_string_buffer(256)
    if libc.syscall(332, -100, ctypes.c_char_p(os.fsencode(path)), 0x100, 0, said) < 0: raise OSError(ctypes.get_errno(), '')
    return bool(struct.unpack_from('Q', said, 8)[0] & 0x2000)
def get(path):
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode): return sorted(os.listdir(path))
    if not stat.S_ISREG(mode): raise OSError(errno.EEXIST, '')
    with open(path) as file: return file.read()
def delete(path):
    if stat.S_ISDIR(os.lstat(path).st_mode): os.rmdir(path)
    else: os.unlink(path)
home = os.getcwd()
def within(path):
    # To the file API nothing exists outside the workspace.
    real = os.path.realpath(path)
    if real != home and not real.startswith(home + '/'): raise FileNotFoundError(errno.ENOENT, '')
for op, path, data in json.loads(sys.argv[1]):
    try:
        within(path if op != 'DELETE' else os.path.dirname(path))
        got = put(path, data) if op == 'PUT' else get(path) if op == 'GET' else delete(path)
        print(json.dumps(['ok', got]))
    except OSError as error:
        print(json.dumps([errno.errorcode.get(error.errno, '?'), None]))
"#;

/// One operation: method, path below the tree, content.
type Op = (&'static str, String, String);

struct Case {
    random: Random,
}

impl Case {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize].clone()
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.random.below(3);
        (0..depth).map(|_| self.pick(&["a", "b", "c"])).collect::<Vec<_>>().join("/")
    }

    /// Makes the same tree below each of the roots.
    fn tree(&mut self, roots: [&Path; 2]) {
        for _ in 0..4 + self.random.below(10) {
            let (kind, path, other) = (self.random.below(12), self.path(), self.path());
            let mode = self.pick(&[0o644, 0o644, 0o444, 0o600]);
            let link = match self.random.below(7) {
                0 => "..".to_owned(),
                1 => "../../..".to_owned(),
                2 => "/etc/hosts".to_owned(),
                3 => format!("/opt/sandbox/workspace/ROOT/{other}"),
                4 => format!("../{other}"),
                5 => path.rsplit('/').next().unwrap_or_default().to_owned(),
                _ => other.clone(),
            };
            for root in roots {
                let (at, source) = (root.join(&path), root.join(&other));
                let folder = at.parent().unwrap();
                // Nothing is made through a link: it may lead anywhere.
                let real = folder.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap();
                if real.canonicalize().ok().as_deref() != Some(real) || std::fs::create_dir_all(folder).is_err() {
                    continue;
                }
                if at.symlink_metadata().is_ok() {
                    continue;
                }
                let name = root.file_name().unwrap().to_str().unwrap();
                match kind {
                    0..=3 => std::fs::create_dir(&at).unwrap(),
                    4..=6 => {
                        std::fs::write(&at, format!("{path} at first")).unwrap();
                        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode)).unwrap();
                    }
                    7 if source.symlink_metadata().is_ok_and(|found| found.is_file()) => {
                        std::fs::hard_link(source, at).unwrap();
                    }
                    8 => fifo(&at),
                    _ => std::os::unix::fs::symlink(link.replace("ROOT", name), at).unwrap(),
                }
            }
        }
    }

    /// A scope, as paths below a tree.
    fn scope(&mut self) -> (Vec<String>, Vec<String>) {
        let mut lists = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(4) {
            let path = if self.random.below(5) == 0 { String::new() } else { self.path() };
            if self.random.below(2) == 0 { lists.0.push(path) } else { lists.1.push(path) }
        }
        lists
    }

    fn ops(&mut self) -> Vec<Op> {
        let count = 30 + self.random.below(30);
        let op = |n| {
            let (op, path) = (self.pick(&["GET", "GET", "PUT", "DELETE"]), self.path());
            (op, path, format!("written {n}"))
        };
        (0..count).map(op).collect()
    }
}

fn fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What is below a folder: kinds, modes of files, contents.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let text = if kind.is_dir() {
                folders.push(path.clone());
                "folder".to_owned()
            } else if kind.is_file() {
                let links = std::fs::metadata(&path).unwrap().nlink();
                format!("file of {links}: {}", std::fs::read_to_string(&path).unwrap_or_default())
            } else {
                format!("{kind:?}")
            };
            all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    all
}

/// The names that the agent's error may have where the API gives this answer.
fn fits(error: &str, status: u16, code: &str) -> bool {
    match (status, code) {
        // In a folder on the way to the scope, nothing can be made; for the
        // API such a path is outside the scope.
        (404, _) => ["ENOENT", "ENOTDIR", "ELOOP", "EROFS"].contains(&error),
        (403, "forbidden") => ["EACCES", "EPERM"].contains(&error),
        // Of two reasons against it, each may name another.
        (400, "is_directory") | (403 | 409, _) => {
            ["EROFS", "EBUSY", "EISDIR", "EEXIST", "ENOTDIR", "ENOTEMPTY"].contains(&error)
        }
        _ => false,
    }
}

async fn outside(stack: &Stack, session: &str, op: &Op) -> (u16, Value, String) {
    let path = format!("/v1/sessions/{session}/files/B/{}", op.1);
    let body = if op.0 == "PUT" { op.2.as_bytes() } else { b"" };
    let answer = stack.raw(op.0, &path, &[], body).await;
    let text = answer.text();
    let value = match (op.0, answer.status, answer.headers.get("content-type").map(String::as_str)) {
        ("GET", 200, Some(kind)) if kind.starts_with("application/json") => {
            let entries: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            let mut names: Vec<Value> = entries.iter().map(|entry| entry["name"].clone()).collect();
            names.sort_by_key(ToString::to_string);
            Value::Array(names)
        }
        ("GET", 200, _) => json!(text),
        _ => Value::Null,
    };
    let code = serde_json::from_str::<Value>(&text).ok().and_then(|body| body["error"].as_str().map(str::to_owned));
    (answer.status, value, code.unwrap_or_default())
}

/// Runs one case; what it was about if the two surfaces differ.
async fn differs(stack: &Stack, seed: u64) -> Result<bool, String> {
    let mut case = Case { random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1) };
    let roots = ["A", "B"].map(|name| stack.workspace().join(name));
    for root in &roots {
        let _ = std::fs::remove_dir_all(root);
        std::fs::create_dir(root).unwrap();
    }
    case.tree([&roots[0], &roots[1]]);
    let (read, write) = case.scope();
    for root in &roots {
        let owner = std::fs::metadata(stack.workspace()).unwrap();
        let own = format!("{}:{}", owner.uid(), owner.gid());
        assert!(std::process::Command::new("chown").args(["-hR", &own]).arg(root).status().unwrap().success());
    }
    let mut sessions = Vec::new();
    for root in ["A", "B"] {
        let of = |list: &[String]| -> Vec<String> {
            list.iter().map(|path| format!("{root}/{path}").trim_end_matches('/').to_owned()).collect()
        };
        let ask = json!({"file_access": {"read": of(&read), "write": of(&write)}});
        sessions.push(stack.post("/v1/sessions", &ask).await);
    }
    let about = format!("seed {seed}, read {read:?}, write {write:?}, tree {:#?}", snapshot(&roots[1]));
    let [one, other] = &sessions[..] else { unreachable!() };
    if one.status != other.status || one.status >= 500 {
        return Err(format!("{about}\ncreation: {} {}", one.text(), other.text()));
    }
    if one.status != 201 {
        return Ok(false);
    }
    let (one, other) = (one.json()["session_id"].clone(), other.json()["session_id"].clone());
    let ops = case.ops();
    let argument: Vec<Value> = ops.iter().map(|(op, path, data)| json!([op, format!("A/{path}"), data])).collect();
    let command = format!("python3 -c '{}' '{}'", INSIDE.replace('\'', "'\"'\"'"), json!(argument));
    let id = one.as_str().unwrap().parse().unwrap();
    let (said, failed) = stack.bash(&id, &command).await;
    assert!(!failed, "{said}");
    // A link upwards shows the name of the tree itself.
    let renamed = said.replace(r#""A""#, r#""B""#);
    let inside: Vec<(String, Value)> = renamed.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(inside.len(), ops.len());
    for (op, (word, value)) in ops.iter().zip(&inside) {
        let (status, got, code) = outside(stack, other.as_str().unwrap(), op).await;
        let equal =
            if word == "ok" { (200..300).contains(&status) && got == *value } else { fits(word, status, &code) };
        if !equal {
            return Err(format!("{about}\n{op:?}: inside {word} {value}, outside {status} {code} {got}"));
        }
    }
    let trees = roots.each_ref().map(|root| snapshot(root));
    for id in [one, other] {
        stack.client.delete(&id.as_str().unwrap().parse().unwrap()).await.unwrap();
    }
    if trees[0] == trees[1] { Ok(true) } else { Err(format!("{about}\nafter {ops:#?}: {:#?}", trees)) }
}

/// `CLOISTER_CASES` asks for more, `CLOISTER_SEED` for others.
#[tokio::test]
async fn agent_and_file_api_get_the_same_outcome_whatever_is_tried() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (cases, seed) = (number("CLOISTER_CASES").unwrap_or(40), number("CLOISTER_SEED").unwrap_or(1));
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let mut made = 0;
        for case in 0..cases {
            match differs(&stack, seed * 1_000_003 + case).await {
                Ok(compared) => made += u64::from(compared),
                Err(difference) => panic!("{who:?}: {difference}"),
            }
        }
        assert!(made * 2 > cases, "only {made} of {cases} scopes could be honoured");
    }
}
