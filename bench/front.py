"""Measures what stands before the API: TLS and keys against a bare handler, the region's door against haproxy, idle connections.

Run by `cargo xtask bench front`. The rounds of all contestants alternate. Speaks to loopback only, ends by itself, and
ends what it started. Prints Markdown.
"""

import json, os, re, resource, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

BIN = sys.argv[1]
ROUNDS = int(os.environ.get("ROUNDS", "7"))
IDLE = int(os.environ.get("IDLE", "10000"))
NAME, TICK = "acme.example.test", os.sysconf("SC_CLK_TCK")
folder = tempfile.mkdtemp(prefix="cloister-bench-front-")
path = lambda name: os.path.join(folder, name)
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
# What is in front has two descriptors for each idle connection.
THROUGH = min(IDLE, (FILES - 400) // 2)
CLIENT, CLOISTER = os.path.join(BIN, "egress_client"), os.path.join(BIN, "cloister")


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port):
    until = time.time() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.time() < until, "nobody listens"
        time.sleep(0.05)


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-keyout", path("ca.key"),
    "-out", path("ca.pem"), "-subj", "/CN=bench")
run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path("own.key"), "-out", path("own.csr"),
    "-subj", "/CN=own")
open(path("ext"), "w").write(f"subjectAltName=DNS:{NAME}\n")
run("openssl", "x509", "-req", "-in", path("own.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key"), "-CAcreateserial", "-days", "30",
    "-extfile", path("ext"), "-out", path("own.pem"))

MODEL = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n"
started = []


def start(*command, ready=None, **more):
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **more)
    started.append(process)
    until = time.time() + 30
    while ready and not os.path.exists(ready):
        assert time.time() < until and process.poll() is None, command
        time.sleep(0.01)
    return process


def serve(name, tls):
    made = json.loads(run(CLOISTER, "tenant", "create", name, "--region", "eu", "--root", path("tenants")))
    listen = f"[listen]\naddress = '127.0.0.1:0'\n" + (f"tls_cert = '{path('own.pem')}'\ntls_key = '{path('own.key')}'\n" if tls else "")
    open(path(name + ".toml"), "w").write(listen + MODEL)
    process = start(CLOISTER, "serve", "--data", made["data"], "--config", path(name + ".toml"), "--ready-file", path(name + ".json"), ready=path(name + ".json"))
    return process, json.load(open(path(name + ".json")))["url"].split("//")[1], made["key"]


def ticks(process):
    fields = open(f"/proc/{process.pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK * 1e6


def rss(process):
    return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{process.pid}/status").read()).group(1))


def ask(address, connections, count, place="/health", measured=(), **environment):
    """Median and 99th percentile in microseconds, and CPU of what is measured for each request."""
    before = [ticks(process) for process in measured]
    said = json.loads(run(CLIENT, NAME, address, path("ca.pem"), str(connections), str(count), place, env={**os.environ, **environment}))
    cpu = [(ticks(process) - then) / (connections * count) for process, then in zip(measured, before)]
    return said["p50"], said["p99"], *cpu


def medians(rows):
    return [statistics.median(column) for column in zip(*rows)]


def table(title, head, rows):
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")


try:
    bare = subprocess.Popen([os.path.join(BIN, "bare")], stdout=subprocess.PIPE, text=True)
    started.append(bare)
    bare_at = bare.stdout.readline().strip()
    plain, plain_at, plain_key = serve("plain", False)
    acme, acme_at, key = serve("acme", True)

    # One connection at a time: latency. Sixteen: CPU for each request.
    ways = {
        "bare axum handler": (bare, bare_at, "/health", {"PLAIN": "1"}),
        "without TLS or key (`/health`)": (plain, plain_at, "/health", {"PLAIN": "1"}),
        "with a key (`/v1/me`)": (plain, plain_at, "/v1/me", {"PLAIN": "1", "BEARER": plain_key}),
        "with TLS": (acme, acme_at, "/health", {}),
        "with TLS and a key": (acme, acme_at, "/v1/me", {"BEARER": key}),
    }
    found = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (process, address, place, more) in ways.items():
            latency = ask(address, 1, 2000, place, **more)
            busy = ask(address, 16, 1500, place, (process,), **more)
            found[way].append((latency[0], latency[1], busy[2]))
    base = medians(found["bare axum handler"])
    table("Kept connections, HTTP/1.1", ["", "p50, us", "p99, us", "CPU a request, us", "p50 of bare", "CPU of bare"],
          [(way, *(row := medians(rows)), row[0] / base[0], row[2] / base[2]) for way, rows in found.items()])

    # The door: the same tenant, by itself, through ours and through haproxy.
    open(path("region.toml"), "w").write(f"[region]\nname = 'eu'\naddress = '127.0.0.1:0'\n[[region.tenant]]\nhost = '{NAME}'\ndata = 'tenants/acme'\n")
    door = start(CLOISTER, "region", "--config", path("region.toml"), "--ready-file", path("region.json"), ready=path("region.json"))
    door_at = json.load(open(path("region.json")))["address"]
    port = free()
    open(path("haproxy.cfg"), "w").write(f"""global
  maxconn {THROUGH + 100}
  nbthread 2
defaults
  mode tcp
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend f
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend acme if {{ req_ssl_sni -i {NAME} }}
backend acme
  server acme {acme_at}
""")
    haproxy = start("/usr/sbin/haproxy", "-db", "-f", path("haproxy.cfg"))
    wait_for(port)
    doors = {"none": (acme, acme_at), "cloister region": (door, door_at), "haproxy": (haproxy, f"127.0.0.1:{port}")}
    found = {way: [] for way in doors}
    for _ in range(ROUNDS):
        for way, (process, address) in doors.items():
            kept = ask(address, 1, 2000)
            busy = ask(address, 16, 1500, measured=(process,))
            fresh = ask(address, 1, 300, measured=(process,), FRESH="1")
            found[way].append((kept[0], busy[2], fresh[0], fresh[2]))
    base = medians(found["haproxy"])
    head = ["in front", "request, p50 us", "its CPU a request, us", "new connection, p50 us", "its CPU a connection, us"]
    table("A door before the tenant (without one, the CPU is the tenant's own)", head, [(way, *medians(rows)) for way, rows in found.items()])
    ours = medians(found["cloister region"])
    print("\nOf haproxy's: " + ", ".join(f"{one / other:.2f}x" for one, other in zip(ours, base)))

    # Idle connections, each with TLS.
    rows = []
    for way, process, address, count in (("the tenant", acme, acme_at, IDLE), ("the door", door, door_at, THROUGH), ("haproxy", haproxy, doors["haproxy"][1], THROUGH)):
        before = rss(process)
        idle = subprocess.Popen([CLIENT, NAME, address, path("ca.pem"), str(count), "60", "idle"], stdout=subprocess.PIPE, text=True)
        started.append(idle)
        assert idle.stdout.readline().strip() == "open"
        grown = (rss(process) - before) / count
        busy = ask(acme_at, 1, 1000, "/v1/me", BEARER=key)
        rows.append((way, f"{count:,}", grown, busy[0], busy[1]))
        idle.terminate()
        idle.wait()
        time.sleep(2)
    table("Idle connections", ["through", "connections", "its memory for each, KiB", "a request to the tenant beside them, p50 us", "p99 us"], rows)
finally:
    for process in reversed(started):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
    shutil.rmtree(folder, ignore_errors=True)
