# Attack probes, in the order of the table that they follow.
# 1, 25, 26: files of the host
for path in ["/etc/shadow", "/root", "/root/.ssh", "/home", "/var", "/run", "/sys", "/boot", "/mnt", "/media", "/srv", folder, folder + "/canary",
             "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/run/systemd/private",
             "/etc/hostname", "/etc/machine-id", "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/vsock", "/dev/net/tun", "/dev/loop0",
             "/dev/vda", "/dev/sda", "/dev/console", "/dev/tty0", "/dev/ttyS0", "/dev/pts/0", "in/other", "../../../tmp/none", "top-secret.txt"]:
    probe("absent stat " + path, lambda p=path: os.lstat(p))
probe("control stat workspace", lambda: os.lstat("in/rw") and None)
probe("is passwd without host users", lambda: "root:" not in open("/etc/passwd").read())

# 3, 4, 46: what must not change
for path in ["new", "in/new", ".sessions/new", "/new", "/etc/new", "/usr/new", "/usr/bin/new", "/opt/sandbox/new", "/opt/sandbox/bin/cloister-agent",
             "/etc/passwd", "/etc/ld.so.preload"]:
    probe("readonly write " + path, lambda p=path: write(p))
probe("control write rw", lambda: write("in/rw/f"))
probe("control write tmp", lambda: write("/tmp/f"))
probe("control write own", lambda: write(".sessions/%s/f" % os.listdir(".sessions")[0]))
for name, f in {"rename skeleton": lambda: os.rename("in", "out"), "unlink skeleton": lambda: os.rmdir("in"),
                "chmod root": lambda: os.chmod("/", 0o777), "mkdir root": lambda: os.mkdir("/x"),
                "symlink root": lambda: os.symlink("a", "/l")}.items():
    probe("readonly " + name, f)
probe("denied truncate agent", lambda: os.truncate("/opt/sandbox/bin/cloister-agent", 0))

# 6: links out
for name, target in {"relative": "../../../../../etc/shadow", "absolute": folder + "/canary", "proc root": "/proc/1/root/etc/shadow", "self root": "/proc/self/root" + folder}.items():
    link = "in/rw/l-" + name.replace(" ", "-")
    os.symlink(target, link)
    denied = "denied" if name == "proc root" else "absent"
    probe(denied + " link " + name, lambda l=link: open(l).read())
probe("control link", lambda: (os.symlink("f", "in/rw/l-ok"), open("in/rw/l-ok").read()) and None)
# 7: across mounts
def across(f):
    try:
        f("in/rw/f", ".memory/f")
    except OSError as e:
        return e.errno == errno.EXDEV
probe("is link across EXDEV", lambda: across(os.link))
probe("is rename across EXDEV", lambda: across(os.rename))

# 8: devices
probe("denied mknod", lambda: os.mknod("in/rw/dev", 0o600 | 0o060000, os.makedev(254, 0)))
probe("denied mknod char", lambda: os.mknod("/tmp/dev", 0o600 | 0o020000, os.makedev(1, 1)))
probe("control mkfifo", lambda: os.mkfifo("/tmp/fifo"))

# 10: PID 1
for part in ["root", "cwd", "exe"]:
    probe("denied pid1 " + part, lambda p=part: os.readlink("/proc/1/" + p))
for part in ["environ", "maps", "mem", "auxv", "stack", "syscall", "io"]:
    probe("denied pid1 " + part, lambda p=part: open("/proc/1/" + p, "rb").read(1))
probe("denied pid1 fd", lambda: os.listdir("/proc/1/fd"))
probe("denied pid1 write mem", lambda: open("/proc/1/mem", "wb").write(b"x"))
probe("control own environ", lambda: open("/proc/self/environ", "rb").read(1) and None)
# 11
probe("is few processes", lambda: sum(n.isdigit() for n in os.listdir("/proc")) < 20)
# 12
for path in ["sys", "sys/kernel/core_pattern", "sys/kernel/modprobe", "sysrq-trigger", "kcore", "kallsyms", "kmsg", "keys", "timer_list", "sched_debug",
             "cmdline", "meminfo", "bus", "acpi", "scsi", "interrupts", "mounts2", "config.gz", "cgroups", "modules", "swaps", "version"]:
    probe("absent proc " + path, lambda p=path: os.lstat("/proc/" + p))
# 13
for table in ["mountinfo", "mounts", "mountstats"]:
    said = lambda t=table: open("/proc/self/" + t).read()
    probe("is without the canary: " + table, lambda f=said: "canary" not in f() and (not HIDDEN or folder not in f()))
    probe("is as little as can be: " + table, lambda f=said: (f() == "") == HIDDEN)
probe("control mounts are found", lambda: len(mounts()) > 14)
probe("denied statmount", lambda: call(457, 0, 0, 0, 0))
probe("denied listmount", lambda: call(458, 0, 0, 0, 0))
# 14
probe("is stdio without host path", lambda: all(os.readlink("/proc/self/fd/%d" % n).startswith(("pipe:", "/dev/null")) for n in range(3)))
probe("is nothing inherited", lambda: len(os.listdir("/proc/self/fd")) <= 6)

# 15, 16: namespaces
for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"]:
    probe("denied setns own " + kind, lambda k=kind: call(308, os.open("/proc/self/ns/" + k, 0), 0))
flags = {"NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000, "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000, "NEWTIME": 0x80}
for name, flag in flags.items():
    probe("denied unshare " + name, lambda f=flag: call(272, f))
    probe("denied clone " + name, lambda f=flag: call(56, f | 17, 0, 0, 0, 0))
    args = struct.pack("11Q", flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    probe("denied clone3 " + name, lambda a=args: call(435, ctypes.c_char_p(a), 88))
probe("control fork", lambda: os.waitpid(os.fork() or os._exit(0), 0) and None)
probe("control thread", lambda: threading.Thread(target=lambda: None).start())

# 17: mounts
zero = ctypes.c_char_p(b"none")
tmp = ctypes.c_char_p(b"/tmp")
calls = {"mount": (165, zero, tmp, ctypes.c_char_p(b"tmpfs"), 0, 0), "umount2": (166, ctypes.c_char_p(b"/opt/sandbox/workspace"), 2),
         "pivot_root": (155, tmp, tmp), "chroot": (161, tmp), "open_tree": (428, -100, tmp, 1), "move_mount": (429, -100, tmp, -100, tmp, 0),
         "fsopen": (430, ctypes.c_char_p(b"tmpfs"), 0), "fsmount": (432, 0, 0, 0), "fspick": (433, -100, tmp, 0),
         "mount_setattr": (442, -100, tmp, 0, 0, 0), "open_tree_attr": (467, -100, tmp, 0, 0, 0)}
# 18, 20, 21, 22 and relatives
calls.update({"ptrace": (101, 16, 1, 0, 0), "ptrace traceme": (101, 0, 0, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0), "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
              "pidfd_getfd": (438, 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0), "keyctl": (250, 0, -3, 1), "add_key": (248, zero, zero, zero, 4, -3),
              "request_key": (249, zero, zero, zero, -3), "bpf": (321, 0, 0, 0), "perf_event_open": (298, 0, 0, 0, 0, 0), "userfaultfd": (323, 1),
              "io_uring_setup": (425, 1, 0), "init_module": (175, 0, 0, zero), "finit_module": (313, 0, zero, 0), "delete_module": (176, zero, 0),
              "kexec_load": (246, 0, 0, 0, 0), "reboot": (169, 0xfee1dead, 672274793, 0, 0), "swapon": (167, zero, 0), "acct": (163, zero),
              "quotactl": (179, 0, 0, 0, 0), "settimeofday": (164, 0, 0), "clock_settime": (227, 0, 0), "adjtimex": (159, 0), "sethostname": (170, zero, 4),
              "setdomainname": (171, zero, 4), "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "syslog": (103, 2, 0, 0), "personality": (135, 0x40000),
              "open_by_handle_at": (304, -100, 0, 0), "name_to_handle_at": (303, -100, zero, 0, 0, 0), "fanotify_init": (300, 0, 0), "seccomp": (317, 1, 8, 0),
              "memfd_secret": (447, 0), "vhangup": (153,), "lookup_dcookie": (212, 0, 0, 0), "modify_ldt": (154, 0, 0, 0), "unknown": (999,)})
for name, arguments in calls.items():
    probe("denied " + name, lambda a=arguments: call(*a))
probe("control getpid", lambda: call(39))

# 19: signals
probe("is kill of init without effect", lambda: os.kill(1, 9) or os.path.exists("/proc/1"))
probe("denied kill outside", lambda: os.kill(99999, 0))

# 23: terminals
def tiocsti(number):
    import pty, fcntl
    fcntl.ioctl(0, number, b"x")
probe("denied TIOCSTI", lambda: tiocsti(0x5412))
def on_own_terminal(number):
    import pty, fcntl
    fcntl.ioctl(pty.openpty()[1], number, struct.pack("i", 1))
probe("denied TIOCSTI on an own terminal", lambda: on_own_terminal(0x5412))
probe("denied line discipline on an own terminal", lambda: on_own_terminal(0x5423))
probe("control window size of an own terminal", lambda: on_own_terminal(0x5413))
def no_controlling():
    try:
        os.open("/dev/tty", os.O_RDWR)
    except OSError as e:
        return e.errno == errno.ENXIO
probe("is without a controlling terminal", no_controlling)
probe("denied TIOCLINUX", lambda: tiocsti(0x541C))
def high_bits():
    if libc.ioctl(0, ctypes.c_ulong(0x5412 | 1 << 40), ctypes.c_char_p(b"x")) < 0:
        raise OSError(ctypes.get_errno(), "ioctl")
probe("denied TIOCSTI with high bits", high_bits)

# 27 - 31: network
def tcp(host, p, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    s.connect((host, p))
    turned_away(s, host, p)
for host, p in [("192.0.2.1", 443), ("169.254.169.254", 80), ("10.0.0.1", 80), ("172.17.0.1", 80), ("192.168.1.1", 53), ("127.0.0.1", port), ("127.0.0.1", 22), ("127.127.127.127", port)]:
    probe("unreachable tcp %s:%d" % (host, p) if p != port else "unreachable tcp %s host port" % host, lambda h=host, q=p: tcp(h, q))
probe("unreachable tcp6", lambda: tcp("2001:db8::1", 80, socket.AF_INET6))
probe("unreachable tcp6 host", lambda: tcp("::1", port, socket.AF_INET6))
probe("unreachable link-local", lambda: tcp("fe80::1%lo", 80, socket.AF_INET6))
def udp():
    unheard(("192.0.2.53", 53))
probe("unreachable udp", udp)
probe("unreachable name", lambda: socket.getaddrinfo("canary.example.com", 80))
def multicast():
    unheard(("224.0.0.1", 9))
probe("unreachable multicast", multicast)
for name, arguments in {"raw": (2, 3, 1), "packet": (17, 3, 0), "vsock": (40, 1, 0), "alg": (38, 5, 0), "netfilter": (16, 3, 12), "generic netlink": (16, 3, 16),
                        "audit": (16, 3, 9), "bluetooth": (31, 3, 1), "xdp": (44, 3, 0), "can": (29, 3, 1), "key": (15, 3, 2), "smc": (43, 1, 0)}.items():
    probe("denied socket " + name, lambda a=arguments: call(41, *a))
probe("control own server", lambda: (lambda s: (s.bind(("127.0.0.1", 0)), s.listen(), tcp(*s.getsockname())))(socket.socket()) and None)
# 32 in part: the model listener takes model calls and nothing else
def listener(request):
    s = socket.create_connection(("127.127.127.127", 80), 3)
    s.sendall(request)
    return s.recv(4096).split(b" ")[1] in (b"403", b"400", b"405", b"414", b"431")
for name, request in {"other path": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "absolute": b"POST http://127.0.0.1:%d/v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n" % port,
                      "connect": b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nhost: x\r\n\r\n" % port, "other model": b"POST /nope/v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
                      "other session's model": b"POST /scripted-chat/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
                      "dots": b"POST /scripted/v1/messages/../../x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
                      "query": b"POST /scripted/v1/messages?x=1 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "garbage": b"\x00\x01\x02\r\n\r\n"}.items():
    probe("is refused by the listener: " + name, lambda r=request: listener(r))

# 35, 36, 37: privileges
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
    probe("is zero " + name, lambda n=name: int(status[n], 16) == 0)
probe("is no_new_privs", lambda: status["NoNewPrivs"].strip() == "1")
probe("is filtered", lambda: status["Seccomp"].strip() == "2")
probe("is one user", lambda: os.getuid() == 1000 and open("/proc/self/uid_map").read().split()[0] == "1000")
probe("is nosuid everywhere", lambda: all(flags & NOSUID for flags in mounts().values()))
probe("is nodev but for devices", lambda: all(flags & NODEV or path.startswith("/dev/") for path, flags in mounts().items()))
def no_setuid():
    try:
        os.setuid(0)
    except OSError as e:
        return e.errno in (errno.EPERM, errno.EINVAL)
probe("is setuid refused", no_setuid)
probe("is sudo without gain", lambda: subprocess.run(["/usr/bin/sudo", "-n", "id", "-u"], capture_output=True).stdout.strip() != b"0" if os.path.exists("/usr/bin/sudo") else True)
probe("denied agent memory", lambda: open("/proc/%d/mem" % AGENT, "r+b").read(1))
probe("denied limits of init", lambda: call(302, 1, 7, ctypes.byref((ctypes.c_ulong * 2)(64, 64)), 0))
probe("is init without a story", lambda: b"/" not in open("/proc/1/cmdline", "rb").read())
# 41, 42
probe("absent cgroup", lambda: os.lstat("/sys/fs/cgroup"))
def raise_limit():
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    except ValueError:
        return True
probe("is limit not raised", raise_limit)
probe("denied lower oom", lambda: write("/proc/self/oom_score_adj", "-1000"))
probe("denied lower oom to nothing", lambda: write("/proc/self/oom_score_adj", "0"))
probe("is without core dumps", lambda: resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1)
# 45: a code sandbox runs code
def memfd():
    fd = os.memfd_create("x")
    os.write(fd, b"#!/bin/sh\nexit 0\n")
    os.execve("/proc/self/fd/%d" % fd, ["x"], {})
probe("control python", lambda: subprocess.run(["/usr/bin/env", "true"], check=True) and None)
# no secret in what can be read
def no_key():
    text = b"".join(open("/proc/%s/environ" % p, "rb").read() for p in os.listdir("/proc") if p.isdigit() and p != "1" and os.access("/proc/%s/environ" % p, os.R_OK))
    return b"pk_" not in text and b"canary" not in text
probe("is environment without keys", no_key)
print(json.dumps(out))
