"""Attacks on the way out, from inside a session. Prints what each came to: "ok", or what was wrong."""
import http.client, json, os, re, socket, ssl, struct, subprocess, sys, time

API, OTHER, RULED, PLAIN, PUBLIC, WRONG = [name + ".example.test" for name in ("api", "other", "ruled", "plain", "public", "wrong")]
HUB = "api.github.com"
CREDENTIAL = sys.argv[1]  # what a leak would look like, turned around
LEAK = CREDENTIAL[::-1]
out = {}

def probe(name, f):
    assert name not in out, name
    try:
        said = f()
        out[name] = "ok" if said in (None, True) else "said %r" % (said,)
    except Exception as error:
        out[name] = "raised %r" % error

def context(alpn=None, verify=True):
    c = ssl.create_default_context()
    if not verify:
        c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    if alpn:
        c.set_alpn_protocols(alpn)
    return c

def tls(host, sni="", verify=True, alpn=None):
    s = socket.create_connection((host, 443), 10)
    return context(alpn, verify).wrap_socket(s, server_hostname=host if sni == "" else sni)

def read_all(s, seconds=10):
    s.settimeout(seconds)
    said = b""
    try:
        while True:
            more = s.recv(65536)
            if not more:
                return said
            said += more
    except (TimeoutError, ConnectionResetError, ssl.SSLError):
        return said

def raw(message, host=API, seconds=5):
    with tls(host) as s:
        try:
            s.sendall(message)
        except (ConnectionError, ssl.SSLError):
            return read_all(s, seconds)
        return read_all(s, seconds)

def status(said):
    first = said.split(b"\r\n", 1)[0].split()
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0

def ask(path="/", host=API, method="GET", headers=None, body=None):
    c = http.client.HTTPSConnection(host, timeout=30, context=context())
    c.request(method, path, body=body, headers=headers or {})
    r = c.getresponse()
    data = r.read()
    assert LEAK.encode() not in data and LEAK not in str(r.headers), "the credential came back"
    return r.status, {k.lower(): v for k, v in r.getheaders()}, data

def is_refused(answer, code, word=None):
    s, h, _ = answer
    return (s == code and (word is None or h.get("x-cloister-refused") == word)) or "%s %s" % (s, h.get("x-cloister-refused"))

def refused_raw(message, *codes, host=API):
    said = raw(message, host)
    assert LEAK.encode() not in said
    return status(said) in codes or (said == b"" and 0 in codes) or said[:200]

def head(path="/", host=API, method="GET", more=""):
    return ("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n" % (method, path, host, more)).encode()

# Controls: what must work, or nothing below says anything.
probe("control call", lambda: ask("/x")[0] == 200)
probe("control plain host", lambda: ask("/x", PLAIN)[0] == 200)
probe("control http upgraded", lambda: (lambda c: (c.request("GET", "/x"), c.getresponse().status == 200)[1])(http.client.HTTPConnection(API, timeout=10)))
def h2(path, *more):
    return subprocess.run(["curl", "-sS", "--http2", "-m", "20", "-w", "\n%{http_code} %{http_version}", *more, "https://%s%s" % (API, path)], capture_output=True, text=True)
probe("control h2", lambda: (lambda r: r.stdout.endswith("200 2") or r)(h2("/x")))

# 1 - 7: reflection
def echoed():
    _, _, data = ask("/headers")
    shown = json.loads(data)["authorization"]
    return re.fullmatch(r"Bearer \*+", shown) is not None or shown
probe("1 echoed headers are covered", echoed)
probe("1 echoed headers are covered by h2", lambda: (lambda r: LEAK not in r.stdout and "Bearer ****" in r.stdout or r)(h2("/headers")))
def trailer():
    said = raw(head("/trailer"))
    return LEAK.encode() not in said and b"x-header: *****" in said or said
probe("2 headers and trailers are covered", trailer)
def h2_trailer():
    r = h2("/trailer", "-v", "-H", "te: trailers")
    return LEAK not in r.stdout + r.stderr and "x-trailer: *****" in r.stderr and r.stdout.startswith("body") or r
probe("2 trailers are covered by h2", h2_trailer)
def forms():
    _, _, data = ask("/forms")
    left = [line for line in data.decode().split("\n") if line.count("*") < len(line) * 0.7]
    return not left or left
probe("3 encodings are covered", forms)
probe("4 cut to bytes", lambda: re.fullmatch(rb"<\*+>", ask("/bytes")[2]) is not None)
def events():
    with tls(API) as s:
        s.sendall(head("/events"))
        said, began = b"", time.time()
        while b"data: ***" not in said or b"\n\n" not in said.split(b"data: ***", 1)[1]:
            said += s.recv(4096)
        first = time.time()
        rest = read_all(s)
    return LEAK.encode() not in said + rest and b"second" in rest and time.time() - first > 0.15 or (said, rest)
probe("4 events are covered and not held", events)
probe("5 ranges are not asked for", lambda: b"range" not in ask("/headers", headers={"Range": "bytes=0-3", "If-Range": "x"})[2].lower())
probe("6 parts are refused", lambda: is_refused(ask("/part"), 502, "answer_refused"))
def websocket():
    with tls(API) as s:
        s.sendall(head("/socket", more="Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n").replace(b"Connection: close", b"Connection: Upgrade"))
        said = b""
        while b"\r\n\r\n" not in said:
            said += s.recv(4096)
        top, rest = said.split(b"\r\n\r\n", 1)
        while len(rest) < 2 or len(rest) < 2 + rest[1]:
            rest += s.recv(4096)
        s.sendall(bytes([0x81, 0x84, 1, 2, 3, 4]) + bytes(b ^ m for b, m in zip(b"ping", [1, 2, 3, 4])))
        echoed = rest[2 + rest[1]:]
        while len(echoed) < 6:
            echoed += s.recv(4096)
    return b" 101 " in top and b"extensions" not in top.lower() and rest[2:2 + rest[1]].startswith(b"hello ***") and LEAK.encode() not in rest and echoed[2:6] == b"ping" or (top, rest, echoed)
probe("7 websocket texts are covered", websocket)
# 8 - 13
def redirect():
    s, h, _ = ask("/redirect")
    return s == 302 and h["location"].startswith("https://evil.test/?k=***") or (s, h)
probe("8 9 redirects go to the client, covered", redirect)
probe("10 cookies are withheld", lambda: "set-cookie" not in ask("/cookie")[1])
def minted():
    value = json.loads(ask("/token")[2])
    return set(value["access_token"]) == {"*"} and value["n"] == 1 or value
probe("11 minted tokens are withheld", minted)
for method in ["TRACE", "TRACK", "CONNECT"]:
    probe("12 " + method, lambda m=method: refused_raw(head("/" if m != "CONNECT" else API + ":443", method=m), 405, 400))
probe("13 refusals repeat nothing", lambda: b"hunter2" not in raw(head("/a%00b?password=hunter2", more="X-Own: hunter2\r\n")))
probe("14 no such process", lambda: all(b"cloister\0" not in open("/proc/%s/cmdline" % p, "rb").read() for p in os.listdir("/proc") if p.isdigit() and p != str(os.getpid())))
# 17 - 21: credentials of the agent's own
def own(headers, path="/headers"):
    shown = ask(path, headers=headers)[2].decode().lower()
    return "hunter2" not in shown or shown
for name in ["Authorization", "authorization", "Cookie", "X-Api-Key", "X_Api_Key", "Proxy-Authorization", "X-Goog-Api-Key", "Private-Token"]:
    probe("17 own " + name, lambda n=name: own({n: "Bearer hunter2"}))
def in_query():
    ask("/own?api_key=hunter2&x=1&Access_Token=hunter2")
probe("17 own query", in_query)
def twice():
    said = raw(head("/headers", more="Authorization: Bearer hunter2\r\nAUTHORIZATION: Bearer hunter2\r\n"))
    return b"hunter2" not in said and b"Bearer ***" in said or said
probe("18 twice", twice)
probe("19 own key where everybody has one", lambda: is_refused(ask("/x", HUB, headers={"Authorization": "token hunter2"}), 403, "agent_credential"))
probe("19 own key in a query", lambda: is_refused(ask("/x?access_token=hunter2", HUB), 403, "agent_credential"))
probe("19 without one", lambda: ask("/x", HUB)[0] == 200)
def hop():
    said = raw(("GET /headers HTTP/1.1\r\nHost: %s\r\nConnection: close, Authorization\r\n\r\n" % API).encode())
    return b"Bearer ***" in said or said
probe("20 hop by hop", hop)
probe("21 a connection of nobody", lambda: is_refused(ask("/x", headers={"X-Cloister-Connection": "someone-elses"}), 403, "connection_not_granted"))
probe("21 the header stays here", lambda: b"x-cloister" not in ask("/headers", headers={"X-Cloister-Connection": "api"})[2])
# 24 - 35: which host
probe("24 another host inside", lambda: refused_raw(head("/x", OTHER), 421))
def alert(host, sni):
    try:
        with tls(host, sni, verify=False):
            return "a handshake"
    except ssl.SSLError as error:
        return True
    except ConnectionResetError:
        return True
probe("25 another name", lambda: alert(API, OTHER))
probe("25 a name that is not allowed", lambda: alert(API, "evil.test"))
probe("25 no name", lambda: alert(API, None))
def by_address():
    with socket.create_connection(("192.0.2.7", 443), 5) as s:
        s = context(verify=False).wrap_socket(s, server_hostname=API)
def by_address_fails():
    try:
        by_address()
    except (ssl.SSLError, ConnectionResetError):
        return True
    return "a handshake"
probe("25 an address of nobody", by_address_fails)
probe("26 absolute form", lambda: refused_raw(("GET https://%s/x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (OTHER, API)).encode(), 421))
probe("27 two hosts", lambda: refused_raw(("GET /x HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nConnection: close\r\n\r\n" % (API, OTHER)).encode(), 400))
probe("27 the same host twice", lambda: refused_raw(("GET /x HTTP/1.1\r\nHost: %s\r\nHost: %s\r\nConnection: close\r\n\r\n" % (API, API)).encode(), 400))
probe("28 userinfo", lambda: refused_raw(head("/x", "user@" + API), 400, 421))
probe("28 userinfo in the target", lambda: refused_raw(("GET https://user:pw@%s/x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (API, API)).encode(), 400, 421))
probe("29 h2 with another host", lambda: (lambda r: r.stdout.endswith("421 2") or r)(h2("/x", "-H", "Host: " + OTHER)))
for n, host in enumerate(["a\0b", "a%00b", "a b", "a\\b", "a/b", "a?b", "a#b", API + ".", "." + API, "xn--", "\u0430pi.example.test", "evil" + API, API + ".evil.test", "2130706433", "0x7f.1", "127.0.0.1", "[::1]"]):
    probe("31 host %d" % n, lambda h=host: refused_raw(b"GET /x HTTP/1.1\r\nHost: " + h.encode() + b"\r\nConnection: close\r\n\r\n", 400, 421))
for port in [":443@x", ":0443", ":+443", ":65979", ":", ":80", ":8443"]:
    probe("34 port " + port, lambda p=port: refused_raw(head("/x", API + p), 400, 421))
# 36 - 41: addresses and names
def query(name, kind, tcp=False):
    q = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l.encode() for l in name.split(".") if l) + struct.pack(">BHH", 0, kind, 1)
    if tcp:
        with socket.create_connection(("127.127.127.127", 53), 5) as s:
            s.sendall(struct.pack(">H", len(q)) + q)
            said = s.recv(2000)[2:]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(5), s.sendto(q, ("127.127.127.127", 53))
            said = s.recv(2000)
    return said
def lookup(name, kind, tcp=False):
    said = query(name, kind, tcp)
    return said[3] & 15, struct.unpack(">H", said[6:8])[0]
def of_this_machine():
    address = socket.inet_ntoa(query("localhost", 1)[-4:])
    with socket.create_connection((address, 443), 5) as s, context().wrap_socket(s, server_hostname="localhost") as s:
        s.sendall(head("/x", "localhost"))
        said = read_all(s)
    return b" 403 " in said and b"address_refused" in said or said
probe("37 a name of this machine", of_this_machine)
probe("37 a name that is nobody's", lambda: is_refused(ask("/x", "nobody.invalid"), 502, "name_unknown"))
probe("41 an allowed name", lambda: lookup(API, 1) == (0, 1))
probe("41 an allowed name by tcp", lambda: lookup(API, 1, True) == (0, 1))
for kind in [2, 5, 12, 15, 16, 28, 33, 64, 65, 255]:
    probe("41 kind %d" % kind, lambda k=kind: lookup(API, k) == (0, 0))
probe("42 another resolver", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)) == 1)
# 44 - 55: framing
def post(more, body):
    return ("POST /echo HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n" % (API, more)).encode() + body
SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: %s\r\n\r\n" % API.encode()
probe("44 length and chunks", lambda: refused_raw(post("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(SMUGGLED), SMUGGLED), 200, 400))
probe("45 chunks and length", lambda: refused_raw(post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"5c\r\nGET /smuggled HTTP/1.1\r\n" + b"x" * 66 + b"\r\n0\r\n\r\n"), 200, 400, 502))
for n, coding in enumerate(["xchunked", "chunked, identity", "\x0bchunked", "identity", "chunked;q=1"]):
    probe("46 coding %d" % n, lambda c=coding: refused_raw(post("Transfer-Encoding: %s\r\n" % c, SMUGGLED), 400, 501))
probe("46 space before the colon", lambda: refused_raw(post("Transfer-Encoding : chunked\r\n", SMUGGLED), 400))
for n, length in enumerate(["1\r\nContent-Length: 2", "1, 2", "+1", "18446744073709551616", "-1", "0x1", "1 1"]):
    probe("47 length %d" % n, lambda l=length: refused_raw(post("Content-Length: %s\r\n" % l, b"ab"), 400))
probe("48 folded", lambda: refused_raw(head("/x", more="X-A: 1\r\n folded\r\n"), 400))
probe("48 a bare return", lambda: refused_raw(head("/x", more="X-A: 1\rX-B: 2\r\n"), 400))
probe("48 nul in a value", lambda: refused_raw(head("/x", more="X-A: 1\0\r\n"), 400))
probe("49 chunk size", lambda: refused_raw(post("Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\nx"), 400, 502, 0))
probe("51 nested tunnel", lambda: refused_raw(("CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n" % (OTHER, OTHER)).encode(), 400, 405, 421))
probe("52 http 0.9", lambda: refused_raw(b"GET /x\r\n\r\n", 400, 0))
probe("52 lower case", lambda: refused_raw(head("/x", method="get"), 405))
def pipelined():
    said = raw(("GET /x HTTP/1.1\r\nHost: %s\r\n\r\n" % API).encode() + ("GET /x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % OTHER).encode())
    return [int(m) for m in re.findall(rb"HTTP/1.1 (\d+)", said)] == [200, 421] or said
probe("55 each decided alone", pipelined)
# 56 - 58: rules about paths and methods
for n, path in enumerate(["/v1/../admin", "/v1/%2e%2e/admin", "/v1/..%2fadmin", "/v1/%252e%252e/admin", "/v1/..;/admin", "/v1/..;x=1/admin", "/v1/\\..\\admin", "/v1/%5c..%5cadmin", "//admin", "/v1//../admin", "/v1/./../admin", "/v1/%c0%ae%c0%ae/admin", "/v1/\xe4", "/v1/%00", "/v1/%0d%0aX:%20y", "/v1x", "/V1/x", "/v1/x\t", "/v1/%", "/admin"]):
    probe("56 path %d" % n, lambda p=path: refused_raw(head(p, RULED).replace("\xe4".encode(), b"\xe4"), 400, 403, host=RULED))
probe("56 what the rule is for", lambda: ask("/v1/x/./y", RULED)[0] == 200)
probe("57 another method", lambda: is_refused(ask("/v1/x", RULED, "DELETE"), 403, "not_covered"))
probe("57 claimed methods", lambda: b"override" not in ask("/v1/x", RULED, headers={"X-HTTP-Method-Override": "DELETE", "X-Original-URL": "/admin", "X-Rewrite-URL": "/admin"})[2])
# 59 - 66: limits
probe("62 63 a large header", lambda: refused_raw(head("/x", more="X-A: " + "a" * 200_000 + "\r\n"), 431, 400, 0))
probe("63 many headers", lambda: refused_raw(head("/x", more="".join("X-%d: 1\r\n" % n for n in range(10_000))), 431, 400, 0))
probe("63 a long target", lambda: refused_raw(head("/" + "a" * 9000), 414))
def bomb():
    try:
        return len(ask("/bomb")[2]) < 100 << 20
    except (http.client.IncompleteRead, ConnectionError, ssl.SSLError):
        return True
probe("64 a bomb", bomb)
probe("3 compressed", lambda: re.fullmatch(rb"\*+", ask("/gzip")[2]) is not None)
probe("3 compressed in another way", lambda: is_refused(ask("/zstd"), 502, "answer_refused"))
probe("65 a large body streams", lambda: len(ask("/echo", PLAIN, "POST", body=b"x" * (8 << 20))[2]) == 8 << 20)
probe("71 a certificate of another name", lambda: is_refused(ask("/x", WRONG), 502, "upstream_insecure"))
probe("44 hints around us", lambda: "alt-svc" not in ask("/hints")[1])
probe("own server", lambda: (lambda s: (s.bind(("127.0.0.1", 0)), s.listen(), socket.create_connection(s.getsockname())))(socket.socket()) and None)
print(json.dumps(out))
