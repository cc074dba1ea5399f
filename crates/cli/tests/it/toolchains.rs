//! What people install and expect to work, in the default view.

use cloister_testkit::{As, Stack};

/// Each must print its last line.
const USES: [(&str, &str, &str); 8] = [
    (
        "git",
        "git init -q a && cd a && echo x > f && git add f && git -c user.name=a -c user.email=a@b commit -qm one && cd .. && \
         git clone -q a b && git -C b fsck --strict && git -C b gc -q && git -C b worktree add -q ../c && cat c/f",
        "x",
    ),
    (
        "Python with venv and pip",
        "python3 -m venv v && python3 - <<'X'\n\
         import zipfile\n\
         with zipfile.ZipFile('pk-1-py3-none-any.whl', 'w') as z:\n    \
             z.writestr('pk.py', 'def f(): return 42')\n    \
             z.writestr('pk-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: pk\\nVersion: 1\\n')\n    \
             z.writestr('pk-1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
             z.writestr('pk-1.dist-info/RECORD', 'pk.py,,\\npk-1.dist-info/METADATA,,\\npk-1.dist-info/WHEEL,,\\npk-1.dist-info/RECORD,,\\n')\n\
         X\n\
         v/bin/pip install -q --no-index ./pk-1-py3-none-any.whl && v/bin/python -c 'import pk; print(pk.f())'",
        "42",
    ),
    (
        "Python's processes, threads and asyncio",
        "python3 -c '\n\
         import asyncio, multiprocessing, concurrent.futures, sqlite3, ssl, os\n\
         assert multiprocessing.Pool(3).map(abs, [-1, -2]) == [1, 2]\n\
         assert list(concurrent.futures.ThreadPoolExecutor(4).map(abs, [-3])) == [3]\n\
         async def main():\n    \
             server = await asyncio.start_server(lambda r, w: w.close(), \"127.0.0.1\", 0)\n    \
             r, w = await asyncio.open_connection(*server.sockets[0].getsockname())\n    \
             return await r.read()\n\
         assert asyncio.run(main()) == b\"\"\n\
         assert ssl.create_default_context().cert_store_stats()[\"x509\"] > 0\n\
         print(os.cpu_count() > 0)'",
        "True",
    ),
    (
        "Node with npm",
        "mkdir -p n/dep && cd n && echo '{\"name\":\"dep\",\"version\":\"1.0.0\",\"main\":\"i.js\"}' > dep/package.json && \
         echo 'module.exports = () => 7' > dep/i.js && (cd dep && npm pack --silent >/dev/null) && \
         echo '{\"name\":\"app\",\"version\":\"1.0.0\",\"scripts\":{\"go\":\"node -e \\\"console.log(require(\\\\\\\"dep\\\\\\\")())\\\"\"}}' > package.json && \
         npm install --silent --offline --no-audit --no-fund ./dep/dep-1.0.0.tgz >/dev/null && \
         node -e 'const { Worker } = require(\"worker_threads\"); new Worker(\"process.exit(0)\", { eval: true }); if (!(require(\"os\").availableParallelism() > 0)) process.exit(1)' && \
         npm run -s go",
        "7",
    ),
    (
        "a C compiler",
        "printf '#include <stdio.h>\\n#include <pthread.h>\\nvoid *f(void *a) { return a; }\\nint main(void) { pthread_t t; \
         pthread_create(&t, 0, f, 0); pthread_join(t, 0); puts(\"c\"); }\\n' > m.c && gcc -O2 -pthread m.c -o m && ./m",
        "c",
    ),
    (
        "cargo",
        "cargo init -q --vcs none --name hello r && cd r && cargo test -q --offline >/dev/null 2>&1 && cargo run -q --offline",
        "Hello, world!",
    ),
    (
        "Java",
        "printf 'public class H { public static void main(String[] a) throws Exception { Thread t = new Thread(() -> {}); t.start(); t.join(); \
         System.out.println(Runtime.getRuntime().availableProcessors() > 0); } }' > H.java && javac H.java && jar cf h.jar H.class && java -cp h.jar H",
        "true",
    ),
    (
        "shell tools",
        "printf 'b\\na\\n' | sort | tr a-z A-Z | sed 's/A/x/' | awk '{print}' | tar cf - --files-from=/dev/null | xargs -n1 echo | wc -l; date +%Z",
        "UTC",
    ),
];

#[tokio::test]
async fn common_tool_chains_work_without_exceptions() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        for (what, command, last) in USES {
            let session = stack.session().await;
            let own = format!("cd .sessions/* && {{ {command}\n}}");
            let (said, failed) = stack.bash(&session, &own).await;
            assert!(!failed && said.trim_end().lines().last() == Some(last), "{what} as {who:?}: {said}");
            stack.client.delete(&session).await.unwrap();
        }
    }
}
