"""Measures the way out beside no proxy, nginx and mitmproxy, on the same machine in the same run.

Run by `cargo xtask bench egress`. An nginx is the other side; the rounds of all contestants alternate. Speaks to
loopback only, ends by itself, and ends what it started. Prints Markdown.
"""

import json, os, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

from server import BIN, Server, quantiles

ROUNDS = int(os.environ.get("ROUNDS", "9"))
MANY = int(os.environ.get("MANY", "500"))
MITM = sys.argv[2] if len(sys.argv) > 2 else None
NAME, TICK = "origin.example.test", os.sysconf("SC_CLK_TCK")
folder = tempfile.mkdtemp(prefix="cloister-bench-egress-")
os.chmod(folder, 0o755)
CLIENT = os.path.join(BIN, "egress_client")


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout


def certificates():
    path = lambda name: os.path.join(folder, name)
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path("ca.key"))
    run("openssl", "req", "-x509", "-new", "-key", path("ca.key"), "-subj", "/CN=bench", "-days", "30", "-out", path("ca.pem"))
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path("own.key"))
    run("openssl", "req", "-new", "-key", path("own.key"), "-subj", "/CN=" + NAME, "-out", path("own.csr"))
    open(path("san"), "w").write("subjectAltName=DNS:" + NAME)
    run("openssl", "x509", "-req", "-in", path("own.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key"), "-CAcreateserial",
        "-days", "30", "-extfile", path("san"), "-out", path("own.pem"))
    run("openssl", "pkcs8", "-topk8", "-nocrypt", "-in", path("own.key"), "-out", path("own.p8"))


def nginx(name, server, more=""):
    place = os.path.join(folder, name)
    os.makedirs(place)
    with open(os.path.join(place, "conf"), "w") as f:
        f.write(f"""daemon off; worker_processes 1; pid {place}/pid; error_log {place}/error; events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 10000000; keepalive_timeout 3600; client_body_temp_path {place}/b; proxy_temp_path {place}/p;
fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; {more}
server {{ ssl_certificate {folder}/own.pem; ssl_certificate_key {folder}/own.key; ssl_protocols TLSv1.2 TLSv1.3; {server} }} }}""")
    return subprocess.Popen(["/usr/sbin/nginx", "-p", place, "-c", place + "/conf"], stderr=subprocess.DEVNULL)


def ticks(*pids):
    total = 0
    for pid in pids:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK * 1e6


def children(pid):
    return [int(child) for task in os.listdir(f"/proc/{pid}/task") for child in open(f"/proc/{pid}/task/{task}/children").read().split()]


def rss(*pids):
    return sum(int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read()).group(1)) for pid in pids)


certificates()
origin_port, proxy_port, mitm_port = free(), free(), free()
BODY = "x" * 60
big = os.path.join(folder, "big")
with open(big, "wb") as f:
    f.truncate(256 << 20)
origin = nginx("origin", f"""listen 127.0.0.1:{origin_port} ssl; location / {{ return 200 "{BODY}"; }} location /big {{ root {folder}; sendfile off; }}""")
proxy = nginx("proxy", f"""listen 127.0.0.1:{proxy_port} ssl; location / {{ proxy_pass https://origin; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_set_header Host {NAME}; proxy_set_header Authorization "Bearer bench-credential-1234567890"; proxy_buffering off;
proxy_ssl_server_name on; proxy_ssl_name {NAME}; proxy_ssl_verify on; proxy_ssl_trusted_certificate {folder}/ca.pem; }}""",
              f"upstream origin {{ server 127.0.0.1:{origin_port}; keepalive 64; keepalive_requests 10000000; }}")
mitm = MITM and subprocess.Popen([MITM, "-q", "--mode", f"reverse:https://127.0.0.1:{origin_port}", "--listen-host", "127.0.0.1", "--listen-port",
                                  str(mitm_port), "--ssl-insecure", "--certs", f"{NAME}={folder}/both.pem", "--set", f"confdir={folder}/mitm"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if MITM else None
with open(os.path.join(folder, "both.pem"), "w") as f:
    f.write(open(folder + "/own.p8").read() + open(folder + "/own.pem").read())
if mitm:
    mitm.kill(), mitm.wait()
    mitm = subprocess.Popen(mitm.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
server = Server(f"""[egress]\nextra_ca = "{folder}/ca.pem"\n[egress.hosts]\n"{NAME}" = "127.0.0.1:{origin_port}"\n
[egress.limits]\nsession_requests_per_minute = 0\nsession_bytes_per_day = 0\n[sandbox]\nprocesses = 2048\n""")
try:
    server.call("PUT", "/v1/connections/origin", {"targets": [{"host": NAME}], "attach": {"kind": "header"}})
    server.call("PUT", "/v1/connections/origin/secret", {"kind": "static", "value": "bench-credential-1234567890"})
    session = server.call("POST", "/v1/sessions", {"connections": ["origin"]})["id"]
    server.connection.request("PUT", f"/v1/sessions/{session}/files/client", open(CLIENT, "rb").read(), server.headers)
    assert server.connection.getresponse().read()
    egress = next(pid for pid in server.processes() if b"egress-process" in open(f"/proc/{pid}/cmdline", "rb").read())
    vault = next(pid for pid in server.processes() if b"vault-process" in open(f"/proc/{pid}/cmdline", "rb").read())
    before, lines = rss(egress), [{"tool": "bash", "input": {"command": f"chmod +x client; ./client {NAME} {NAME}:443 /tmp/.cloister/ca.pem 200 4 idle & sleep 2; echo open; wait"}}]
    peak = 0
    for _, name, data in server.turn(session, lines):
        if name == "tool_use.executing":
            time.sleep(2)
            peak = rss(egress)
    print(f"* an idle TLS connection: {(peak - before) / 200:.1f} KiB (goal 32); egress at rest {before / 1024:.1f} MiB, vault {rss(vault) / 1024:.1f} MiB")
    nginx_worker = children(proxy.pid)[0]

    def inside(connections, requests, path="/", seconds=None):
        command = f"chmod +x client; ./client {NAME} {NAME}:443 /tmp/.cloister/ca.pem {connections} {requests} {path}"
        results = [data["content"] for _, name, data in server.turn(session, [{"tool": "bash", "input": {"command": command, "timeout": 300}}]) if name == "tool_result"]
        return json.loads(results[0])

    def outside(port, connections, requests, path="/"):
        return json.loads(run(CLIENT, NAME, f"127.0.0.1:{port}", folder + "/ca.pem", str(connections), str(requests), path))

    contestants = {"direct": lambda *a: outside(origin_port, *a), "nginx, TLS to TLS": lambda *a: outside(proxy_port, *a), "Cloister": inside}
    if mitm:
        for _ in range(200):
            try:
                outside(mitm_port, 1, 1)
                break
            except subprocess.CalledProcessError:
                time.sleep(0.1)
        contestants["mitmproxy"] = lambda *a: outside(mitm_port, *a)
    for contestant in contestants.values():
        contestant(1, 50)
    found = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            found[name].append(contestant(1, 200 if name == "mitmproxy" else 2000))
    p50 = {name: statistics.median(one["p50"] for one in rounds) for name, rounds in found.items()}
    p99 = {name: statistics.median(one["p99"] for one in rounds) for name, rounds in found.items()}
    added = {name: value - p50["direct"] for name, value in p50.items()}
    print("\n| one connection, kept, 60 bytes | p50 us | p99 us | added p50 us |\n|---|---|---|---|")
    for name in contestants:
        print(f"| {name} | {p50[name]:.0f} | {p99[name]:.0f} | {added[name]:.0f} |")
    print(f"\n* added latency: {added['Cloister'] / added['nginx, TLS to TLS']:.2f} times nginx's (goal 1.5), with credential, scrub and audit")
    cpu = {"Cloister": [], "nginx": []}
    for _ in range(ROUNDS):
        before = ticks(egress, vault)
        inside(32, 400)
        cpu["Cloister"].append((ticks(egress, vault) - before) / (32 * 400))
        before = ticks(nginx_worker)
        outside(proxy_port, 32, 400)
        cpu["nginx"].append((ticks(nginx_worker) - before) / (32 * 400))
    cpu = {name: statistics.median(values) for name, values in cpu.items()}
    print(f"* CPU of a request at 32 connections: {cpu['Cloister']:.1f} us (egress and vault), nginx {cpu['nginx']:.1f} us: {cpu['Cloister'] / cpu['nginx']:.2f} times (goal 1.1)")
    if mitm:
        before = ticks(mitm.pid)
        outside(mitm_port, 8, 100)
        print(f"* CPU of a request, mitmproxy: {(ticks(mitm.pid) - before) / 800:.0f} us: {(ticks(mitm.pid) - before) / 800 / cpu['Cloister']:.0f} times ours (goal 20)")
    rates = {name: contestants[name](1, 1, "/big") for name in ("direct", "nginx, TLS to TLS", "Cloister")}
    rate = {name: one["bytes"] / one["seconds"] / 1e6 for name, one in rates.items()}
    print(f"* 256 MiB: direct {rate['direct']:.0f}, nginx {rate['nginx, TLS to TLS']:.0f}, Cloister {rate['Cloister']:.0f} MB/s: {rate['Cloister'] / rate['direct']:.2f} of direct (goal 0.6)")
    fresh = []
    for _ in range(5):
        before = ticks(egress)
        inside(100, 1)
        fresh.append((ticks(egress) - before) / 100 / 1000)
    print(f"* a new TLS connection with its request: {statistics.median(fresh):.2f} ms of CPU (goal 0.6)")
    server.connection.close()  # The server has closed it meanwhile.
    other = server.call("POST", "/v1/sessions", {"connections": ["origin"]})["id"]
    noisy = f"for i in $(seq 400); do ./client {NAME} {{}} {{}} 16 50 / > /dev/null; done"

    def noise(seconds):
        command = "chmod +x client; " + noisy.format(NAME + ":443", "/tmp/.cloister/ca.pem")
        turn = iter(server.turn(other, [{"tool": "bash", "input": {"command": command, "timeout": seconds}}]))
        next(turn)
        return turn

    def beside(measure, begin, end):
        alone = statistics.median(measure()["p99"] for _ in range(ROUNDS))
        noise = begin()
        found = statistics.median(measure()["p99"] for _ in range(ROUNDS))
        end(noise)
        return found / alone

    command = "cd " + folder + "; ln -sf " + CLIENT + " client; " + noisy.format(f"127.0.0.1:{proxy_port}", folder + "/ca.pem")
    nginx_ratio = beside(lambda: outside(proxy_port, 1, 500), lambda: subprocess.Popen(["sh", "-c", command], start_new_session=True),
                         lambda noise: (os.killpg(noise.pid, signal.SIGKILL), noise.wait()))
    ours = beside(lambda: inside(1, 500), lambda: noise(60), lambda turn: list(turn))
    print(f"* p99 of one busy session beside a noisy one on the same two cores: {ours:.1f} times; through nginx {nginx_ratio:.1f} times")

    # Each of many sessions calls now and then; the p99 of all their calls together.
    server.connection.close()
    many = [server.call("POST", "/v1/sessions", {"connections": ["origin"]})["id"] for _ in range(MANY)]
    import threading

    def crowd():
        found = []
        command = f"chmod +x client; PACE=1000 ./client {NAME} {NAME}:443 /tmp/.cloister/ca.pem 1 15 /"

        def one(session):
            for _, name, data in server.turn(session, [{"tool": "bash", "input": {"command": command, "timeout": 120}}]):
                if name == "tool_result":
                    found.append(json.loads(data["content"])["p99"])

        threads = [threading.Thread(target=one, args=(session,)) for session in many]
        for thread in threads:
            thread.start(), time.sleep(0.02)
        for thread in threads:
            thread.join()
        return statistics.median(found)

    quiet = crowd()
    turn = noise(45)
    loud = crowd()
    list(turn)
    print(f"* {MANY} sessions that call once a second: p99 {quiet / 1000:.1f} ms (median of the sessions'), beside a noisy one {loud / 1000:.1f} ms: {loud / quiet:.1f} times (goal 2)")
finally:
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    for process in (origin, proxy, mitm):
        if process:
            process.terminate(), process.wait()
    shutil.rmtree(folder, ignore_errors=True), shutil.rmtree(server.folder, ignore_errors=True)
