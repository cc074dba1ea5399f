"""What the measuring scripts share: a `cloister dev` of their own, and quantiles."""

import http.client, json, os, re, shutil, signal, statistics, subprocess, sys, tempfile, time

BIN = sys.argv[1]


def quantiles(values):
    values = sorted(values)
    return statistics.median(values), values[min(len(values) - 1, int(len(values) * 0.99))]


class Server:
    """A `cloister dev` of our own."""

    def __init__(self, config=""):
        self.folder = tempfile.mkdtemp(prefix="cloister-bench-")
        ready = os.path.join(self.folder, "ready")
        with open(os.path.join(self.folder, "config.toml"), "w") as f:
            f.write("[limits]\nlive_sessions = 2000\n" + config)
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [os.path.join(BIN, "cloister"), "dev", "--listen", "127.0.0.1:0", "--data", os.path.join(self.folder, "data"),
             "--config", os.path.join(self.folder, "config.toml"), "--ready-file", ready],
            stderr=subprocess.DEVNULL)
        while not os.path.exists(ready):
            time.sleep(0.001)
        self.ready_after = time.perf_counter() - begun
        known = json.load(open(ready))
        self.host = known["url"].split("//")[1]
        self.headers = {"Authorization": "Bearer " + known["key"], "Content-Type": "application/json"}
        self.connection = http.client.HTTPConnection(self.host)

    def call(self, method, path, body=None):
        self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        answer = self.connection.getresponse()
        data = answer.read()
        assert answer.status < 300, (answer.status, data)
        return json.loads(data) if data else None

    def turn(self, session, lines):
        """Sends a script; yields (arrival, event name, data)."""
        message = "```script\n" + "\n".join(json.dumps(line) for line in lines) + "\n```"
        connection = http.client.HTTPConnection(self.host)
        connection.request("POST", f"/v1/sessions/{session}/messages", json.dumps({"message": message}), self.headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        name = None
        while True:
            line = answer.readline()
            if not line:
                break
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                yield time.time(), name, json.loads(line[6:])
        connection.close()

    def processes(self):
        """All pids below the server, itself included."""
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = open(f"/proc/{pid}/stat").read()
                parents.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(pid))
            except OSError:
                pass
        found = [self.process.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    def memory(self):
        """Proportional set size of all its processes, in KiB."""
        total = 0
        for pid in self.processes():
            try:
                total += int(re.search(r"Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read()).group(1))
            except (OSError, AttributeError):
                pass
        return total

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        shutil.rmtree(self.folder, ignore_errors=True)
