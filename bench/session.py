"""Measures Cloister as its clients feel it, beside bwrap and a plain process.

Run by `cargo xtask bench`, which builds a release first. Speaks to loopback
only, ends by itself, and ends what it started. Prints a Markdown table; the
rounds of all contestants alternate, so that a busy machine is busy for all.
"""

import http.client, json, os, re, shutil, signal, statistics, subprocess, sys, tempfile, time

from server import BIN, Server, quantiles

ROUNDS = int(os.environ.get("ROUNDS", "200"))


def bwrap():
    links = [a for name in ("bin", "lib", "lib64", "sbin") if os.path.islink("/" + name) for a in ("--symlink", os.readlink("/" + name), "/" + name)]
    return ["bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", *links, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
            "--bind", tempfile.gettempdir(), "/work", "--die-with-parent", "true"]


def timed(f):
    begun = time.perf_counter()
    f()
    return (time.perf_counter() - begun) * 1000


def row(what, values):
    p50, p99 = quantiles(values)
    print(f"| {what} | {p50:.2f} | {p99:.2f} |", flush=True)
    return p50


def slab():
    text = open("/proc/meminfo").read()
    return sum(int(re.search(name + r":\s+(\d+)", text).group(1)) for name in ("Slab", "KernelStack", "PageTables", "Percpu"))


# What a session does that wants everything, by what it wants.
NOISES = {
    "processes and memory": """python3 - <<'X' &
import os
while True:
    try:
        x = bytearray(40 << 20)
        if os.fork() == 0:
            while True: pass
    except OSError:
        pass
X
""",
    "more memory than there is": "(while :; do python3 -c 'x = bytearray(3 << 30)'; done) > /dev/null 2>&1 &\n",
    "folders": "(while :; do ls -R /usr; done) > /dev/null &\n",
    "the disk": "(while :; do head -c 100000000 /dev/zero > .sessions/$(ls .sessions)/big; done) &\n",
}
SPIN = "(for i in $(seq 190); do (while :; do :; done) & done; wait) &\n"
# A busy loop outside, behind everybody: what the machine itself does to a neighbour.
OUTSIDE = ["nice", "-n", "19", "sh", "-c", "while :; do :; done"]


def neighbours(noise, outside=None):
    """p50 and p99 of a quiet session's steps, alone and beside a noisy one, or beside a program outside."""
    server = Server("[sandbox]\nmemory_bytes = 500000000\nprocesses = 200\ncpus = 1.0\n")
    quiet = server.call("POST", "/v1/sessions", {})["id"]
    lines = [{"tool": "bash", "input": {"command": "date +%s.%N"}} for _ in range(20)]

    def steps(rounds):
        found = []
        for _ in range(rounds):
            before = time.time()
            for arrival, name, _ in server.turn(quiet, lines):
                if name == "tool_result":
                    found.append((arrival - before) * 1000)
                    before = arrival
        return quantiles(found)

    steps(2)
    alone = steps(20)
    noisy = server.call("POST", "/v1/sessions", {})["id"]
    work = server.turn(noisy, [{"tool": "bash", "input": {"command": noise + "sleep 300\n", "timeout": 300}}])
    next(work)
    beside_it = subprocess.Popen(outside) if outside else None
    time.sleep(3)
    beside = steps(20)
    if beside_it:
        beside_it.kill()
        beside_it.wait()
    server.call("DELETE", f"/v1/sessions/{noisy}")
    server.stop()
    return alone, beside


def main():
    server = Server()
    time.sleep(0.5)
    idle = server.memory()
    create, first, whole, delete, boxed, plain = [], [], [], [], [], []
    contestant = bwrap()
    with_bwrap = shutil.which("bwrap") is not None
    for n in range(ROUNDS + 5):
        begun = time.perf_counter()
        session = server.call("POST", "/v1/sessions", {"file_access": {"write": ["a"], "read": ["b"]}})["id"]
        created = time.perf_counter()
        stream = server.turn(session, [{"say": "hi"}])
        next(stream)
        seen = time.perf_counter()
        for _ in stream:
            pass
        done = time.perf_counter()
        gone = timed(lambda: server.call("DELETE", f"/v1/sessions/{session}"))
        box = timed(lambda: subprocess.run(contestant, check=True)) if with_bwrap else 0.0
        bare = timed(lambda: subprocess.run(["true"], check=True))
        if n >= 5:
            create.append((created - begun) * 1000)
            first.append((seen - begun) * 1000)
            whole.append((done - begun) * 1000)
            delete.append(gone)
            boxed.append(box)
            plain.append(bare)

    session = server.call("POST", "/v1/sessions", {})["id"]
    steps, lag, spawned = [], [], []
    for _ in range(10):
        lines = [{"tool": "bash", "input": {"command": "date +%s.%N"}} for _ in range(20)]
        begun = time.perf_counter()
        for arrival, name, data in server.turn(session, lines):
            if name == "tool_result":
                lag.append((arrival - float(data["content"])) * 1000)
        steps.append((time.perf_counter() - begun) * 1000 / 20)
        spawned += [timed(lambda: subprocess.run(["bash", "-c", "date +%s.%N"], check=True, stdout=subprocess.DEVNULL)) for _ in range(20)]

    many = 100
    server.call("DELETE", "/v1/sessions?status=idle")
    time.sleep(3)
    before, kernel = server.memory(), slab()
    for _ in range(many):
        server.call("POST", "/v1/sessions", {})
    time.sleep(1)
    user_each, kernel_each = (server.memory() - before) / many, (slab() - kernel) / many
    ready = [server.ready_after]
    server.stop()
    for _ in range(4):
        again = Server()
        ready.append(again.ready_after)
        again.stop()

    print("\n| ms | p50 | p99 |\n|---|---|---|")
    row("create a session (scope of two paths, sandbox started), over HTTP", create)
    a = row("create a session to first event", first)
    row("create a session to the end of its first turn (model call through egress)", whole)
    row("delete a session", delete)
    if with_bwrap:
        b = row("bwrap: all namespaces, /usr, proc, dev, tmp, one bind; run true", boxed)
    c = row("a plain process: run true", plain)
    row("20 tool calls in one turn, each step (model call, bash, durable events)", steps)
    row("bash -c date, plain, for comparison", spawned)
    row("tool's end to its event at the client", lag)
    print(f"\n* create to first event is {a / b:.1f} times one bwrap, {a / c:.1f} times a plain process" if with_bwrap else "")
    print(f"* server ready after {statistics.median(ready) * 1000:.0f} ms (median of 5)")
    print(f"* idle server, all roles: {idle / 1024:.1f} MiB (proportional set size)")
    print(f"* a live idle session: {user_each:.0f} KiB of processes, {kernel_each:.0f} KiB of kernel memory; asleep: no process")


def beside_noise():
    print("\n| a quiet session's step, ms | alone p50 | p99 | beside p50 | p99 | p50, times | p99, times |\n|---|---|---|---|---|---|---|")
    rows = [(what, noise, None) for what, noise in NOISES.items()]
    for what, noise, outside in [("a busy loop outside, nice 19", "", OUTSIDE), *rows, ("190 busy loops", SPIN, None), ("all of these but the 190", "".join(NOISES.values()), None)]:
        alone, beside = neighbours(noise, outside)
        print(f"| {what} | {alone[0]:.1f} | {alone[1]:.1f} | {beside[0]:.1f} | {beside[1]:.1f} | {beside[0] / alone[0]:.1f} | {beside[1] / alone[1]:.1f} |", flush=True)


if os.environ.get("ONLY") != "neighbours":
    main()
beside_noise()
