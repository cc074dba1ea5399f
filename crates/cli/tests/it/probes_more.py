# More attack probes.
# Another tool's process, to be attacked.
SIBLING = os.fork() or time.sleep(60) or os._exit(0)
DIR = "in/rw/p2"
os.makedirs(DIR, exist_ok=True)

def refused(f, *names):
    """True if the kernel says no in one of these words."""
    try:
        f()
    except OSError as e:
        name = errno.errorcode.get(e.errno)
        return name in names or name
    return "it worked"

def dies(f, *signals):
    """True if f ends its process by one of these signals."""
    pid = os.fork()
    if pid == 0:
        try:
            f()
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return status & 127 in signals or "status %d" % status

def text(path):
    with open(path, "rb") as f:
        return f.read()

def ioctl(path, request, size=64, content=b""):
    fcntl.ioctl(os.open(path, os.O_RDONLY), request, bytearray(content.ljust(size, b"\0")))

s = lambda name: ctypes.c_char_p(name.encode())
env, sh = shutil.which("env"), os.path.realpath("/bin/sh")
loader, cache = os.path.realpath("/lib64/ld-linux-x86-64.so.2"), "/etc/ld.so.cache"
original = text(env)

# Other ways into the kernel: i386, x32, odd numbers
def code(machine):
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(machine)
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
i386 = lambda n: b"\xb8" + struct.pack("<I", n) + b"\xcd\x80\xc3"
for name, n in {"getpid": 20, "mount": 21, "socketcall": 102, "unshare": 310}.items():
    probe("is death by i386 " + name, lambda n=n: dies(lambda: code(i386(n)), 31, 11))
for name, n in {"getpid": 39, "ptrace": 521, "mount": 165, "io_submit": 544}.items():
    probe("is death by x32 " + name, lambda n=n: dies(lambda: value(0x40000000 + n, 0, 0, 0), 31))
probe("denied x32's own number without its bit", lambda: call(520, s(sh), 0, 0))
probe("denied mount with high bits in its number", lambda: call(165 | 1 << 32, s("none"), s("/tmp"), s("tmpfs"), 0, 0))
probe("is death by number -1", lambda: dies(lambda: value(-1), 31))
probe("denied number of the future", lambda: call(4096))
probe("control machine code", lambda: code(b"\xb8\x27\0\0\0\x0f\x05\xc3") == os.getpid())

# Calls that are not on the list, with arguments that would do something
fd0, page = ctypes.create_string_buffer(64), ctypes.create_string_buffer(4096)
calls = {"swapoff": (168, s("/x")), "clock_adjtime": (305, 0, page), "kexec_file_load": (320, -1, -1, 0, 0, 8), "fanotify_mark": (301, 0, 1, 0, -100, 0), "io_uring_enter": (426, 0, 0, 0, 0, 0),
         "io_uring_register": (427, -1, 0, 0, 0), "fsconfig": (431, 0, 6, 0, 0, 0), "quotactl_fd": (443, 0, 0x80000100, 0, 0), "set_mempolicy_home_node": (450, 0, 0, 0, 0), "cachestat": (451, 0, page, page, 0),
         "map_shadow_stack": (453, 0, 4096, 0), "futex_wake": (454, page, 1, 1, 2), "futex_wait": (455, page, 1, 1, 2, 0, 0), "futex_requeue": (456, page, 0, 0, 0), "lsm_get_self_attr": (459, 100, page, fd0, 0),
         "lsm_set_self_attr": (460, 100, page, 64, 0), "lsm_list_modules": (461, page, fd0, 0), "setxattrat": (463, -100, 0, 0, 0, 0, 0), "file_setattr": (469, -100, s("in"), page, 24, 0), "listns": (470, page, page, 1, 0),
         "migrate_pages": (256, 0, 1, page, page), "move_pages": (279, 0, 1, page, 0, page, 0), "sysfs": (139, 3), "ustat": (136, 2049, page), "_sysctl": (156, page), "uselib": (134, s(sh)),
         "io_pgetevents": (333, 0, 0, 0, 0, 0, 0), "create_module": (174, s("x"), 4096), "nfsservctl": (180, 0, 0, 0), "seccomp by flag": (317, 1, 1 << 3, page), "epoll_ctl_old": (214, 0, 0, 0, 0), "get_thread_area": (211, page)}
for name, arguments in calls.items():
    probe("denied call " + name, lambda a=arguments: call(*a))
# (newer kernels let these two past every filter)
for name, n in {"uretprobe": 335, "uprobe": 336}.items():
    probe("is %s of no use" % name, lambda n=n: dies(lambda: refused(lambda: value(n), "EPERM", "ENXIO", "ENOSYS") is True or os._exit(1), 0, 4, 31))
probe("control membarrier", lambda: call(324, 0, 0, 0))

# 17: every spelling of a mount, with true arguments
REMOUNT, BIND, MOVE, REC = 32, 4096, 8192, 16384
spellings = {"remount /usr writable": (165, 0, s("/usr"), 0, REMOUNT | BIND, 0), "remount the workspace": (165, 0, s("/opt/sandbox/workspace"), 0, REMOUNT | BIND, 0), "bind over /usr": (165, s("/tmp"), s("/usr"), 0, BIND | REC, 0),
          "move": (165, s("/tmp"), s("/dev/shm"), 0, MOVE, 0), "share": (165, 0, s("/"), 0, 1 << 20 | REC, 0), "new proc": (165, s("proc"), s("/proc"), s("proc"), 0, 0), "sysfs": (165, s("sysfs"), s("/tmp"), s("sysfs"), 0, 0),
          "cgroup2": (165, s("cgroup2"), s("/tmp"), s("cgroup2"), 0, 0), "devpts": (165, s("devpts"), s("/tmp"), s("devpts"), 0, s("newinstance")), "overlay": (165, s("o"), s("/tmp"), s("overlay"), 0, s("lowerdir=/usr,upperdir=/tmp,workdir=/tmp")),
          "umount scope": (166, s(os.path.abspath("in/rw")), 2), "umount tmp": (166, s("/tmp"), 1), "umount device": (166, s("/dev/null"), 8), "clone tree": (428, -100, s("/usr"), 1 | 0x8000 | 0x80000),
          "clear read-only": (442, -100, s("/usr"), 0x8000, ctypes.c_char_p(struct.pack("4Q", 0, 1, 0, 0)), 32), "clear nosuid": (442, -100, s("/tmp"), 0, ctypes.c_char_p(struct.pack("4Q", 0, 2, 0, 0)), 32)}
for name, arguments in spellings.items():
    probe("denied mount: " + name, lambda a=arguments: call(*a))
probe("is every system mount read-only", lambda: all(flags & RDONLY for path, flags in mounts().items() if path.startswith(("/usr", "/etc", "/opt/sandbox/bin")) or path == "/"))
probe("is no mount shared with the host", lambda: "shared:" not in open("/proc/self/mountinfo").read() and "master:" not in open("/proc/self/mountinfo").read())

# 5: mount points of the scope, renamed, removed, covered, exchanged
write(DIR + "/f"), write(".memory/p2")
rename2 = lambda a, b, flags: call(316, -100, s(a), -100, s(b), flags)
points = {"rename away": lambda: os.rename("in/rw", "in/gone"), "rename within": lambda: os.rename("in/rw", "in/rw/p2/in"), "rename over": lambda: os.rename(DIR, "in/rw"), "remove": lambda: os.rmdir("in/rw"), "remove .memory": lambda: os.rmdir(".memory"),
          "exchange": lambda: rename2("in/rw", ".memory", 2), "exchange with a new one": lambda: rename2(DIR, "in/rw", 2), "exchange across": lambda: rename2(DIR + "/f", ".memory/p2", 2), "noreplace": lambda: rename2(".memory", DIR + "/m", 1),
          "rename .sessions": lambda: os.rename(".sessions", "s"), "rename own": lambda: os.rename(glob.glob(".sessions/*")[0], ".sessions/x"), "link over": lambda: os.symlink("/tmp", "in/rw"), "rename the agent": lambda: os.rename(DIR + "/f", "/opt/sandbox/bin/cloister-agent")}
for name, f in points.items():
    probe("is refused of a mount point: " + name, lambda f=f: refused(f, "EBUSY", "EROFS", "EXDEV", "EINVAL", "EEXIST"))
probe("control exchange", lambda: (write(DIR + "/g"), rename2(DIR + "/f", DIR + "/g", 2)) and None)
# The same for a read path in a writable one, where the scope has one
if os.path.exists("in/rw/guarded/kept"):
    k, g = "in/rw/guarded/kept", "in/rw/guarded"
    for name, f in {"write": lambda: write(k), "create": lambda: write(g + "/new"), "unlink": lambda: os.unlink(k), "chmod": lambda: os.chmod(k, 0o777), "truncate": lambda: os.truncate(k, 0), "utime": lambda: os.utime(k, (1, 1)),
                    "setxattr": lambda: os.setxattr(k, "user.x", b"x"), "mkdir": lambda: os.mkdir(g + "/d"), "reopen": lambda: os.open("/proc/self/fd/%d" % os.open(k, os.O_RDONLY), os.O_RDWR)}.items():
        probe("readonly guarded " + name, f)
    for name, f in {"rename": lambda: os.rename(g, g + "2"), "replace": lambda: (os.makedirs(DIR + "/new"), os.rename(DIR + "/new", g)), "exchange": lambda: (os.makedirs(DIR + "/new", exist_ok=True), rename2(DIR + "/new", g, 2)), "remove": lambda: shutil.rmtree(g),
                    "link out": lambda: os.link(k, DIR + "/kept"), "move out": lambda: os.rename(k, DIR + "/kept"), "move in": lambda: os.rename(DIR + "/f", k)}.items():
        probe("is guarded from " + name, lambda f=f: refused(f, "EBUSY", "EROFS", "EXDEV"))
    probe("is guarded as it was", lambda: text(k) == b"original")

# 4, 46: what is read-only, by every handle
ro = lambda: os.open(env, os.O_RDONLY)
here = lambda f: "/proc/self/fd/%d" % f
for name, f in {"chmod": lambda: os.chmod(env, 0o777), "chown": lambda: os.chown(env, 1000, 1000), "utime": lambda: os.utime(env), "setxattr": lambda: os.setxattr(env, "user.x", b"x"), "unlink": lambda: os.unlink(env),
                "rename over the loader": lambda: os.rename(loader, loader + "x"), "write the loader": lambda: write(loader), "write ld.so.cache": lambda: write(cache),
                "reopen and truncate": lambda: os.open(here(ro()), os.O_RDONLY | os.O_TRUNC), "chmod by O_PATH": lambda: os.chmod(here(os.open(env, os.O_PATH)), 0o777),
                "fchmod": lambda: os.fchmod(ro(), 0o777), "fchmodat2 by handle": lambda: call(452, os.open(env, os.O_PATH), s(""), 0o777, 0x1000), "fchownat by handle": lambda: call(260, os.open(env, os.O_PATH), s(""), 1000, 1000, 0x1000),
                "utimensat by handle": lambda: call(280, ro(), 0, 0, 0), "fsetxattr": lambda: os.setxattr(ro(), "user.x", b"x"), "O_TMPFILE": lambda: os.open("/usr/bin", os.O_TMPFILE | os.O_RDWR), 
                "open by cwd": lambda: write("/proc/self/cwd/../../../usr/x"), "open by root": lambda: write("/proc/self/root/usr/x"), "dev": lambda: write("/dev/new"), "acl": lambda: os.setxattr(env, "system.posix_acl_access", struct.pack("<IHHIHHIHHI", 2, 1, 7, 0, 4, 7, 0, 32, 7, 0))}.items():
    probe("readonly " + name, f)
for name, f in {"write through a descriptor": lambda: os.write(ro(), b"x"), "fallocate": lambda: os.posix_fallocate(ro(), 0, 1), "copy_file_range": lambda: os.copy_file_range(os.open(DIR + "/f", 0), ro(), 1), "ficlone": lambda: fcntl.ioctl(ro(), 0x40049409, os.open(DIR + "/f", 0))}.items():
    probe("is no way to " + name, lambda f=f: refused(f, "EBADF", "EINVAL", "EPERM", "EACCES", "EROFS", "ENOTSUP", "EXDEV"))
for name, f in {"truncate": lambda: os.truncate(env, 0), "reopen": lambda: os.open(here(ro()), os.O_RDWR), "reopen O_PATH": lambda: os.open(here(os.open(env, os.O_PATH)), os.O_WRONLY), "own executable": lambda: open("/proc/self/exe", "r+b")}.items():
    probe("denied " + name, f)
probe("denied shared writable map", lambda: mmap.mmap(ro(), 4096, mmap.MAP_SHARED, mmap.PROT_WRITE))
def upgrade():
    address = libc.mmap
    address.restype = ctypes.c_void_p
    call(10, address(0, 4096, 1, 1, ro(), 0), 4096, 3)
probe("denied mprotect of a shared map", upgrade)
def dirty_pipe():
    r, w = os.pipe()
    os.write(w, b"x" * 65536), os.read(r, 65536)
    os.splice(ro(), w, 1, offset_src=1)
    os.write(w, b"HACK")
def dirty_memory():
    page = mmap.mmap(ro(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
    start = next(int(l.split("-")[0], 16) for l in open("/proc/self/maps") if l.split()[-1] == os.path.realpath(env))
    with open("/proc/self/mem", "r+b", 0) as f:
        f.seek(start), f.write(b"HACK")
def intact(f):
    try:
        f()
    except OSError:
        pass
    return text(env) == original
probe("is file intact after a dirty pipe", lambda: intact(dirty_pipe))
probe("is file intact after a dirty map", lambda: intact(dirty_memory))
for name, f in {"link": lambda: os.link(env, DIR + "/h"), "link by descriptor": lambda: call(265, ro(), s(""), -100, s(DIR + "/h"), 0x1000), "link by magic link": lambda: call(265, -100, s(here(ro())), -100, s(DIR + "/h"), 0x400),
                "link of the agent": lambda: os.link("/opt/sandbox/bin/cloister-agent", DIR + "/h"), "rename": lambda: os.rename(env, DIR + "/h")}.items():
    probe("is no hard way out: " + name, lambda f=f: refused(f, "EXDEV", "EPERM", "EROFS", "ENOENT", "EACCES"))
probe("control reopen", lambda: os.close(os.open(here(os.open(DIR + "/f", os.O_RDONLY)), os.O_RDWR)))
probe("control O_TMPFILE", lambda: call(265, -100, s(here(os.open(DIR, os.O_TMPFILE | os.O_RDWR))), -100, s(DIR + "/h2"), 0x400))

# Requests to file systems and devices
own = DIR + "/f"
for name, (path, request, content) in {"immutable": (own, 0x40086602, b"\x10"), "append-only": (own, 0x40086602, b"\x20"), "freeze": (DIR, 0xC0045877, b""), "thaw": (DIR, 0xC0045878, b""), "trim": (DIR, 0xC0185879, b"\0" * 8 + b"\xff" * 8), "shut down": (DIR, 0x8004587D, b"\2"),
                                       "set label": (DIR, 0x41009432, b"x"), "set uuid": (DIR, 0x4008662C, b"\x10"), "resize": (DIR, 0x40086610, b"\1"), "boot inode": (own, 0x6611, b""), "project": (own, 0x401C5820, b"\0" * 12 + b"\5"), "physical block": (own, 1, b""),
                                       "add entropy": ("/dev/random", 0x40045201, b"\x40"), "zap entropy": ("/dev/urandom", 0x5204, b""), "reseed": ("/dev/random", 0x5207, b""), "inject": ("/dev/null", 0x5412, b"x"), "line discipline": ("/dev/null", 0x5423, b"\x0f"),
                                       "controlling terminal": ("/dev/null", 0x540E, b""), "console": ("/dev/null", 0x541D, b"")}.items():
    probe("is refused ioctl " + name, lambda a=(path, request, 256, content): refused(lambda: ioctl(*a), "EPERM", "EACCES", "ENOTTY", "ENOTSUP", "EINVAL", "EROFS", "EBADF"))
probe("control FIONREAD", lambda: fcntl.ioctl(os.pipe()[0], 0x541B, bytearray(4)) == 0)
for name, f in {"chmod": lambda: os.chmod("/dev/null", 0o600), "chown": lambda: os.chown("/dev/null", 1000, 1000), "setxattr": lambda: os.setxattr("/dev/null", "user.x", b"x"), "date": lambda: os.utime("/dev/null", (1, 1))}.items():
    probe("denied device " + name, f)
probe("is device there to stay", lambda: refused(lambda: os.unlink("/dev/null"), "EBUSY", "EROFS", "EPERM", "EACCES"))
# 23: terminals are one's own
probe("control pty", lambda: os.ttyname(os.openpty()[1]).startswith("/dev/pts/"))

# 10, 12: /proc
for path in ["cpuinfo", "stat", "uptime", "loadavg", "net", "mounts", "filesystems", "partitions", "diskstats", "devices", "iomem", "ioports", "kpagecount", "kpageflags", "kpagecgroup", "vmallocinfo", "vmstat", "slabinfo", "zoneinfo", "buddyinfo", "crypto", "locks",
             "fs", "irq", "pressure", "sysvipc", "tty", "driver", "dma", "execdomains", "key-users", "self/../sys", "thread-self/../../sys", "self/root/proc/sys", "thread-self/root/proc/kcore", "self/cwd/../../../sys", "99999", "self/net/ip_conntrack"]:
    probe("absent /proc/" + path, lambda p=path: os.lstat("/proc/" + p))
for path in ["/sys/devices/system/cpu/vulnerabilities/meltdown", "/sys/class/dmi/id/product_uuid", "/sys/kernel/security", "/sys/fs/bpf", "/proc/self/root/sys/fs/cgroup", "/dev/mqueue", "/dev/hugepages", "/dev/userfaultfd", "/dev/uinput", "/dev/cuse", "/dev/log", "/dev/dri", "/dev/shm/host",
             ".sessions/sess_000000000000", "/opt/sandbox/sessions", "/sessions", "/etc/ld.so.preload", "/etc/ssl/private", "/etc/sudoers", "/etc/ssh", "/etc/environment", "/etc/fstab"]:
    probe("absent " + path, lambda p=path: os.lstat(p))
init, agent = "/proc/1/", "/proc/%d/" % AGENT
for who, base in {"init": init, "agent": agent, "init's thread": init + "task/1/", "agent's thread": agent + "task/%d/" % AGENT}.items():
    for part in ["root", "cwd", "exe"] + ["ns/" + kind for kind in ["user", "mnt", "net", "pid"]]:
        probe("denied %s %s" % (who, part), lambda p=base + part: os.readlink(p))
    for part in ["environ", "maps", "mem", "auxv", "syscall", "stack", "smaps", "pagemap", "personality"]:
        probe("denied %s %s" % (who, part), lambda p=base + part: open(p, "rb").read(8))
    for part in ["fd", "ns", "fdinfo"]:
        probe("denied %s list %s" % (who, part), lambda p=base + part: os.listdir(p))
for path in ["self/uid_map", "self/gid_map", "self/projid_map", "self/setgroups", "self/timens_offsets", "self/attr/exec", "self/attr/current", "self/loginuid", "1/oom_score_adj", "1/comm", "1/clear_refs", "1/coredump_filter", "1/autogroup", "1/sched",
             "%d/oom_score_adj" % AGENT, "%d/clear_refs" % AGENT, "%d/mem" % AGENT, "%d/exe" % AGENT, "1/exe", "1/task/1/mem", "thread-self/attr/exec"]:
    probe("denied write /proc/" + path, lambda p=path: open("/proc/" + p, "wb", 0).write(b"0 0 1"))
probe("denied map_files", lambda: os.open("/proc/self/map_files/" + os.listdir("/proc/self/map_files")[0], os.O_RDONLY))
probe("denied own kernel stack", lambda: text("/proc/self/stack"))
def frame():
    with open("/proc/self/pagemap", "rb", 0) as f:
        f.seek(ctypes.addressof(page) // 4096 * 8)
        return struct.unpack("Q", f.read(8))[0] & (1 << 55) - 1 == 0
probe("is no physical address shown", frame)
probe("is no cgroup named", lambda: all(line.rstrip().endswith(":/") for line in open("/proc/self/cgroup")) and all(line.rstrip().endswith(":/") for line in open("/proc/1/cgroup")))
probe("is host name hidden", lambda: os.uname().nodename == "cloister")
def domain():
    return libc.getdomainname(fd0, 64) == 0 and fd0.value in (b"(none)", b"", b"cloister")
probe("is domain hidden", domain)
def nowhere():
    """The server's folder is in nothing that can be read of any process, but for mount info."""
    files = [f for p in os.listdir("/proc") if p.isdigit() for f in glob.glob("/proc/%s/*" % p) if os.path.isfile(f) and os.path.basename(f) not in ("mountinfo", "mem", "pagemap", "clear_refs") and os.access(f, os.R_OK)]
    found = []
    for f in files:
        try:
            if folder.encode() in text(f) and not (f.endswith(("cmdline", "environ")) and b"probes" in text(f)):
                found.append(f)
        except OSError:
            pass
    return len(files) > 50 and not found or found
probe("is the data folder named nowhere", nowhere)
probe("is environment plain", lambda: not [k for k, v in os.environ.items() if folder in v or any(w in k for w in ("KEY", "TOKEN", "SECRET", "PROXY", "SSH", "SUDO", "DISPLAY", "DBUS", "XDG", "HOSTNAME"))])
auxv = lambda: dict(struct.iter_unpack("QQ", text("/proc/self/auxv")))
probe("is auxiliary vector plain", lambda: [auxv()[n] for n in (11, 12, 13, 14, 23)] == [1000, 1000, 1000, 1000, 0])
probe("is one private folder", lambda: len(os.listdir(".sessions")) == 1)

# Network tables name nothing of the host
table = lambda name: open("/proc/self/net/" + name).read().splitlines()
probe("is lo the only device", lambda: [line.split(":")[0].strip() for line in table("dev")[2:]] == ["lo"] == [name for _, name in socket.if_nameindex()])
probe("is lo the only address", lambda: all(line.split()[-1] == "lo" for line in table("if_inet6")) and len(table("route")) == 1 and len(table("arp")) == 1)
probe("is no foreign unix socket", lambda: all(len(line.split()) < 8 for line in table("unix")[1:]))
# The ways out are ports 80 and 443 of every address, and the resolver.
is_exit = lambda end: end.split(":")[0].endswith("7F") or end.split(":")[1] in ("0050", "01BB")
probe("is no foreign tcp socket", lambda: all(any(map(is_exit, line.split()[1:3])) for line in table("tcp")[1:]) and len(table("tcp6")) == 1 and len(table("packet")) == 1)
probe("is no foreign udp socket", lambda: all(line.split()[1] == "7F7F7F7F:0035" for line in table("udp")[1:]) and len(table("udp6")) == 1)

# 15, 18: other processes and their namespaces
other = lambda: os.pidfd_open(SIBLING)
for name, arguments in {"ptrace attach": (101, 16, SIBLING, 0, 0), "ptrace seize": (101, 0x4206, SIBLING, 0, 0), "process_vm_readv": (310, SIBLING, page, 1, page, 1, 0), "process_vm_writev": (311, SIBLING, page, 1, page, 1, 0), "kcmp": (312, SIBLING, SIBLING, 0, 0, 0),
                        "prlimit": (302, SIBLING, 7, page, 0), "prlimit of the agent": (302, AGENT, 9, page, 0), "prlimit with high bits": (302, 1 | 1 << 32, 7, page, 0), "robust list of init": (274, 1, page, fd0)}.items():
    probe("denied sibling " + name, lambda a=arguments: call(*a))
probe("denied sibling pidfd_getfd", lambda: call(438, other(), 0, 0))
probe("denied sibling memory", lambda: open("/proc/%d/mem" % SIBLING, "r+b"))
probe("denied advice to init", lambda: call(440, os.pidfd_open(1), ctypes.c_char_p(struct.pack("QQ", ctypes.addressof(page), 4096)), 1, 21, 0))
for kind, flag in {"mnt": 0x20000, "net": 0x40000000, "user": 0x10000000, "pid": 0x20000000}.items():
    probe("denied setns by pidfd " + kind, lambda f=flag: call(308, os.pidfd_open(1), f))
for who, pid in {"init": 1, "agent": AGENT}.items():
    for kind, n in {"mnt": 3, "net": 4, "user": 9}.items():
        probe("is no %s namespace by pidfd of %s" % (kind, who), lambda p=pid, n=n: refused(lambda: fcntl.ioctl(os.pidfd_open(p), 0xFF00 | n, 0), "EACCES", "EPERM", "ENOTTY", "EINVAL"))
for kind in ["user", "pid"]:
    probe("denied parent of the %s namespace" % kind, lambda k=kind: fcntl.ioctl(os.open("/proc/self/ns/" + k, 0), 0xB702))
for name, request in {"next": 0x8010B70B, "previous": 0x8010B70C}.items():
    probe("is no %s mount namespace" % name, lambda q=request: refused(lambda: ioctl("/proc/self/ns/mnt", q, 16), "EPERM", "ENOENT", "ENOTTY", "EACCES", "EINVAL"))
probe("control pidfd of a child", lambda: call(424, other(), 0, 0, 0))

# 19: signals to init
def deaf(send):
    for n in [n for n in range(1, 65) if n not in (32, 33)]:
        try:
            send(n)
        except OSError:
            pass
    time.sleep(0.05)
    return open("/proc/1/stat").read().rsplit(")", 1)[1].split()[0] in "SR"
info = lambda n: ctypes.create_string_buffer(struct.pack("iii", n, 0, -1), 128)
for name, send in {"kill": lambda n: os.kill(1, n), "tgkill": lambda n: call(234, 1, 1, n), "pidfd": lambda n: signal.pidfd_send_signal(os.pidfd_open(1), n), "sigqueue": lambda n: call(129, 1, n, info(n))}.items():
    probe("is init deaf to " + name, lambda f=send: deaf(f))
def owner(n):
    r, w = os.pipe()
    fcntl.fcntl(r, 10, n), fcntl.fcntl(r, 8, 1), fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(w, b"x")
probe("is init deaf to descriptors", lambda: deaf(owner))
probe("denied signal out of the namespace", lambda: os.kill(4194303, 9))
probe("control signal", lambda: dies(lambda: os.kill(os.getpid(), 9), 9))

# 35, 36, 37: privileges
def pr(*arguments):
    call(157, *arguments)
for name, arguments in {"capbset": (24, 0, 0, 0, 0), "securebits": (28, 0x2F, 0, 0, 0), "ambient": (47, 2, 21, 0, 0), "mm code": (35, 1, ctypes.addressof(page), 0, 0), "mm exe": (35, 13, 0, 0, 0), "io flusher": (57, 1, 0, 0, 0)}.items():
    probe("denied prctl " + name, lambda a=arguments: pr(*a))
for name, arguments in {"no_new_privs off": (38, 0, 0, 0, 0), "dumpable as root's": (4, 2, 0, 0, 0), "filter off": (22, 0, 0, 0, 0), "strict mode over the filter": (22, 1, 0, 0, 0), "endian": (20, 1, 0, 0, 0)}.items():
    probe("is refused prctl " + name, lambda a=arguments: refused(lambda: pr(*a), "EINVAL", "EPERM", "EACCES"))
def permissive():
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    pr(22, 2, ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(allow))), 0, 0)
    call(165, s("none"), s("/tmp"), s("tmpfs"), 0, 0)
probe("denied mount under a filter of one's own", permissive)
def traced():
    libc.prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)
    pid = os.fork() or time.sleep(1) or os._exit(0)
    call(101, 16, pid, 0, 0)
probe("denied ptrace after naming a tracer", traced)
def landlock():
    rules = value(444, ctypes.c_char_p(struct.pack("Q", 0x1FFF)), 8, 0)
    call(445, rules, 1, ctypes.c_char_p(struct.pack("<Qi", 0x1FFF, os.open("/", os.O_PATH))), 0)
    call(446, rules, 0)
    write("/proc/self/coredump_filter", "0")
probe("denied write after a wider Landlock", landlock)
def kept():
    libc.prctl(8, 1, 0, 0, 0), libc.setresuid(1000, 1000, 1000)
    return all(int(line.split()[1], 16) == 0 for line in open("/proc/self/status") if line.startswith("Cap"))
probe("is nothing kept", kept)
probe("denied capset", lambda: call(126, ctypes.c_char_p(struct.pack("Ii", 0x20080522, 0)), ctypes.c_char_p(struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0))))
for name, f in {"setgroups": lambda: os.setgroups([0]), "setgid": lambda: os.setgid(0), "setresuid": lambda: os.setresuid(0, 0, 0), "setreuid": lambda: os.setreuid(-1, 0), "setuid nobody": lambda: os.setuid(65534), "chown": lambda: os.chown(own, 0, 0), "chown nobody": lambda: os.chown(own, 65534, 65534)}.items():
    probe("is refused id: " + name, lambda f=f: refused(f, "EPERM", "EINVAL"))
probe("is file-system id unchanged", lambda: libc.setfsuid(0) == 1000 and libc.setfsuid(-1) == 1000)
for name in ["security.capability", "security.ima", "trusted.x"]:
    probe("denied attribute " + name, lambda n=name: os.setxattr(own, n, struct.pack("<5I", 0x2000001, 1 << 21, 0, 0, 0)))
probe("control attribute", lambda: os.setxattr(own, "user.x", b"x"))
def setuid(path):
    shutil.copy(shutil.which("id"), path), os.chmod(path, 0o6755)
    return subprocess.run([path, "-u"], capture_output=True).stdout == b"1000\n"
for path in [DIR + "/suid", "/tmp/suid", "/dev/shm/suid"]:
    probe("is setuid without gain in " + path, lambda p=path: setuid(p))
def after_exec():
    fd = os.memfd_create("x")
    os.write(fd, text(shutil.which("grep")))
    words = r"Seccomp:\s2|NoNewPrivs:\s1|Cap(Eff|Prm|Bnd|Inh|Amb):\s0000000000000000"
    return subprocess.run([here(fd), "-cE", words, "/proc/self/status"], pass_fds=[fd], capture_output=True).stdout == b"7\n"
probe("is filtered after an exec from memory", after_exec)

# 30, 31: the sandbox's own network is not its to change
def netlink(kind, flags=5, body=bytes(16)):
    with socket.socket(16, 3, 0) as link:
        link.bind((0, 0)), link.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        answer = link.recv(65536)
    if struct.unpack_from("H", answer, 4)[0] == 2:
        code = -struct.unpack_from("i", answer, 16)[0]
        if code:
            raise OSError(code, "netlink")
    return answer
for name, kind in {"new link": 16, "delete link": 17, "set link": 19, "new address": 20, "delete address": 21, "new route": 24, "delete route": 25, "new neighbour": 28, "new rule": 32, "new queue": 36, "new filter": 44, "new nsid": 88, "new nexthop": 104}.items():
    probe("denied netlink " + name, lambda k=kind: netlink(k) and None)
probe("control netlink read", lambda: netlink(18, 0x301) and None)
for name, request in {"up": 0x8914, "address": 0x8916, "route": 0x890B, "arp": 0x8955, "name": 0x8923, "bridge": 0x89A0, "vlan": 0x8983, "tunnel": 0x89F1, "mtu": 0x8922, "hardware": 0x8924, "queue": 0x8943}.items():
    probe("is refused network ioctl " + name, lambda q=request: refused(lambda: fcntl.ioctl(socket.socket(2, 2), q, bytearray(b"lo".ljust(128, b"\0"))), "EPERM", "EACCES", "ENOTTY", "EINVAL", "ENOTSUP", "ENOPKG", "ENODEV", "EFAULT"))
option = lambda level, name, content=struct.pack("i", 7), kind=1: socket.socket(2, kind).setsockopt(level, name, content)
for name, arguments in {"mark": (1, 36), "receive buffer by force": (1, 33), "send buffer by force": (1, 32), "priority": (1, 12), "transparent": (0, 19), "repair": (6, 19), "netfilter": (0, 64, bytes(128)), "debug": (1, 1)}.items():
    probe("denied option " + name, lambda a=arguments: option(*a))
for name, arguments in {"device": (1, 25, b"eth0\0"), "bpf": (1, 50), "reuseport bpf": (1, 52), "multicast routing": (0, 200), "ipsec policy": (0, 17, bytes(168)), "arptables": (0, 96, bytes(128)), "zerocopy of nothing": (1, 9999)}.items():
    probe("is refused option " + name, lambda a=arguments: refused(lambda: option(*a), "EPERM", "EACCES", "ENODEV", "EBADF", "ENOPROTOOPT", "ENOTSUP", "EINVAL"))
probe("denied listening in every namespace", lambda: socket.socket(16, 3, 0).setsockopt(270, 8, 1))
for name, arguments in {"ping": (2, 2, 1), "ping6": (10, 2, 58), "raw": (2, 3, 255), "raw6": (10, 3, 58), "raw igmp": (2, 3, 2), "old packet": (2, 10, 0x300), "unix raw netlink": (16, 2, 2), "sock_diag": (16, 3, 4), "uevent": (16, 3, 15), "scsi": (16, 3, 18), "crypto": (16, 3, 21), "tipc": (30, 1, 0), "rds": (21, 5, 0), "qrtr": (42, 2, 0), "nfc": (39, 3, 0),
                        "family with high bits": (2**32 + 17, 3, 0), "atm": (20, 2, 0), "x25": (9, 5, 0), "appletalk": (5, 2, 0), "kcm": (41, 2, 0), "mctp": (45, 2, 0)}.items():
    probe("denied family " + name, lambda a=arguments: call(41, *a))
for p in [80, 53, 443]:
    probe("denied low port %d" % p, lambda p=p: socket.socket().bind(("127.0.0.1", p)))
def hijack():
    with socket.socket() as s:
        s.setsockopt(1, 2, 1), s.setsockopt(1, 15, 1), s.bind(("127.127.127.127", 80))
probe("denied the listener's address", hijack)
def as_another():
    # Every address is this network's own; that leads nobody else here.
    with socket.socket() as s:
        s.bind(("10.1.2.3", 0)), s.listen()
        return s.getsockname()[0] == "10.1.2.3"
probe("is another address of no use", as_another)
for host, p in [("0.0.0.0", port), ("127.0.0.53", 53), ("100.64.0.1", 80), ("169.254.170.2", 80), ("127.0.0.1", 631), ("127.0.0.1", 5432)]:
    probe("unreachable by tcp %s %s" % (host, "host port" if p == port else p), lambda h=host, p=p: turned_away(socket.create_connection((h, p), 3), h, p))
for host in ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::", "fd00:ec2::254", "64:ff9b::1"]:
    probe("unreachable by tcp6 " + host, lambda h=host: socket.create_connection((h, port), 3))
def datagram(family, address, fast=False):
    with socket.socket(family, 2) as s:
        s.setsockopt(1, 6, 1), s.sendto(b"x", 0x20000000 if fast else 0, address)
def counted():
    # All that can be sent goes to this network's own loopback, and no further.
    before = table("dev")
    for address in [("255.255.255.255", 9), ("224.0.0.251", 5353)]:
        datagram(2, address)
    return [line.split(":")[0] for line in before[2:]] == [line.split(":")[0] for line in table("dev")[2:]]
probe("is a broadcast heard by nobody else", counted)
probe("unreachable datagram metadata", lambda: unheard(("169.254.169.254", 80)))
probe("unreachable fast open", lambda: socket.socket().sendto(b"x", 0x20000000, ("192.0.2.1", 22)))
probe("unreachable abstract socket of the host", lambda: socket.socket(1).connect("\0" + folder))
for name in ["/tmp/.X11-unix/X0", "/tmp/dbus-x", "/run/systemd/journal", "snap", "/containerd-shim/x"]:
    probe("unreachable abstract " + name, lambda n=name: socket.socket(1).connect("\0" + n))
def abstract():
    server = socket.socket(1)
    server.bind("\0p2"), server.listen(), socket.socket(1).connect("\0p2")
probe("control abstract socket", abstract)
def credentials(pid, uid):
    a, b = socket.socketpair()
    a.sendmsg([b"x"], [(1, 2, struct.pack("iII", pid, uid, 1000))])
probe("denied forged pid", lambda: credentials(1, 1000))
probe("is refused forged root", lambda: refused(lambda: credentials(os.getpid(), 0), "EPERM", "EINVAL"))
def passed():
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [os.open(own, 0)])
    return os.read(socket.recv_fds(b, 1, 1)[1][0], 1) == b"x"
probe("control descriptor passing", passed)

# System V and POSIX queues: one's own, and empty
def ipc(number, command, at, *ids):
    value(number, *ids, command, page)
    return struct.unpack_from("i", page.raw, at)[0] == 0
probe("is no foreign shared memory", lambda: ipc(31, 14, 0, 0))
probe("is no foreign semaphore", lambda: ipc(66, 19, 28, 0, 0))
probe("is no foreign queue", lambda: ipc(71, 12, 0, 0))
probe("is refused a POSIX queue", lambda: refused(lambda: call(240, s("p2"), 0o102, 0o600, 0), "EMFILE", "EACCES", "EPERM", "ENOSYS", "ENOSPC"))
def shared():
    i = value(29, 0, 4096, 0o1600)
    call(31, i, 0, 0)
probe("control shared memory", shared)

# 38 - 42: resources
def scheduler(policy, priority=1):
    os.sched_setscheduler(0, policy, os.sched_param(priority))
probe("denied real time (FIFO)", lambda: scheduler(1))
probe("denied real time (RR)", lambda: scheduler(2))
probe("denied deadline", lambda: call(314, 0, ctypes.c_char_p(struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**7, 10**7)), 0))
probe("denied better priority", lambda: os.setpriority(0, 0, -1))
probe("denied better priority of init", lambda: os.setpriority(0, 1, -1))
probe("denied real-time I/O", lambda: call(251, 1, 0, 1 << 13))
for clock in (8, 9):
    for name, arguments in {"timer": (222, clock, 0, page), "descriptor": (283, clock, 0)}.items():
        probe("is refused alarm %s %d" % (name, clock), lambda a=arguments: refused(lambda: call(*a), "EPERM", "ENOTSUP", "EINVAL"))
for name, advice in {"poison": 100, "offline": 101}.items():
    probe("is refused advice " + name, lambda a=advice: refused(lambda: call(28, ctypes.addressof(page) & ~4095, 4096, a), "EPERM", "EINVAL"))
probe("denied moving all pages", lambda: call(237, ctypes.addressof(page) & ~4095, 4096, 0, 0, 0, 4))
anonymous = lambda size, flags=0: mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
def lock():
    m = anonymous(256 << 20)
    call(149, ctypes.addressof(ctypes.c_char.from_buffer(m)), 256 << 20)
probe("is refused to lock memory", lambda: refused(lock, "ENOMEM", "EPERM", "EAGAIN"))
# (where the machine has huge pages to give, these take them)
probe("is refused huge pages", lambda: refused(lambda: anonymous(1 << 30, 0x40000), "ENOMEM", "EPERM", "EINVAL", "ENOSYS", "ENOTSUP"))
probe("is refused shared huge pages", lambda: refused(lambda: call(29, 0, 1 << 30, 0o5600), "ENOMEM", "EPERM", "EINVAL", "ENOSYS"))
probe("denied a larger pipe", lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 27))
def until_refused(f, most):
    kept = []
    while len(kept) <= most + 100:
        try:
            kept.append(f())
        except OSError:
            break
    return len(kept) <= most or len(kept)
probe("is number of files limited", lambda: until_refused(lambda: os.dup(0), 4096))
probe("is number of watchers limited", lambda: until_refused(lambda: value(294, 0), 32))
probe("is file size limited", lambda: refused(lambda: os.truncate(own, 1 << 40), "EFBIG"))
for path in ["/tmp", "/dev/shm"]:
    probe("is space limited in " + path, lambda p=path: refused(lambda: os.posix_fallocate(os.open(p + "/fill", os.O_CREAT | os.O_RDWR), 0, 4 << 30), "ENOSPC", "EFBIG") and os.statvfs(p).f_files < 1 << 20)
def bomb():
    threading.stack_size(1 << 16)
    try:
        for n in range(1100):
            threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
    except RuntimeError:
        return n < 1024
probe("is number of threads limited", bomb)
def raised():
    """The limits, by name, whose hard value could be raised."""
    found = []
    for name in [n for n in dir(resource) if n.startswith("RLIMIT_")]:
        soft, hard = resource.getrlimit(getattr(resource, name))
        if hard != resource.RLIM_INFINITY:
            try:
                resource.setrlimit(getattr(resource, name), (soft, hard + 1))
                if resource.getrlimit(getattr(resource, name))[1] > hard:
                    found.append(name)
            except (ValueError, OSError):
                pass
    return found or None
probe("is no limit raised", raised)
probe("is no privilege in limits", lambda: all(resource.getrlimit(r)[1] == 0 for r in (resource.RLIMIT_NICE, resource.RLIMIT_RTPRIO)) and 0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] <= 64 << 20)

# 8, 40: names and shapes that a workspace must bear
def odd(name):
    path = os.path.join(DIR.encode(), name)
    write(path), os.stat(path), os.unlink(path)
for what, name in {"255 bytes": b"n" * 255, "no UTF-8": b"\xff\xfe\x80", "line end": b"a\nb", "escape": b"\x1b[2J", "dash": b"-rf"}.items():
    probe("control name: " + what, lambda n=name: odd(n))
probe("is too long a name", lambda: refused(lambda: odd(b"n" * 256), "ENAMETOOLONG"))
def deep(base, levels, name):
    os.chdir(base)
    try:
        for _ in range(levels):
            os.mkdir(name), os.chdir(name)
        write("f")
    finally:
        os.chdir("/"), subprocess.run(["rm", "-rf", os.path.join(base, name)], check=True)
probe("control 2048 folders deep", lambda: deep("/tmp", 2048, "d"))
probe("control path longer than paths may be", lambda: deep(os.path.abspath(DIR), 50, "d" * 100))
def huge():
    os.mkdir(DIR + "/huge")
    for n in range(1000):
        write(DIR + "/huge/%d" % n)
    assert len(os.listdir(DIR + "/huge")) == 1000
    shutil.rmtree(DIR + "/huge")
probe("control huge folder", huge)
def sparse():
    write(DIR + "/s"), os.truncate(DIR + "/s", 1 << 30)
    blocks = os.stat(DIR + "/s").st_blocks
    os.unlink(DIR + "/s")
    return blocks < 100
probe("control sparse file", sparse)
probe("control fifo", lambda: (os.mkfifo(DIR + "/fifo"), os.unlink(DIR + "/fifo")) and None)
for name, f in {"loop": lambda: (os.symlink("l", DIR + "/l"), open(DIR + "/l")), "chain": lambda: ([os.symlink("c%d" % (n + 1), DIR + "/c%d" % n) for n in range(50)], open(DIR + "/c0"))}.items():
    probe("is end of links: " + name, lambda f=f: refused(f, "ELOOP"))
probe("denied block device by another call", lambda: call(259, -100, s(DIR + "/b"), 0o060600, 0xFE00))
probe("is terminal of a child without use", lambda: refused(lambda: open("/dev/tty"), "ENOENT", "ENXIO"))

# 43, 45: it is a sandbox for code
def run_from(path):
    shutil.copy(shutil.which("true"), path), os.chmod(path, 0o755)
    return subprocess.run([path]).returncode == 0
for path in [DIR + "/true", "/tmp/true", "/dev/shm/true"]:
    probe("control exec from " + path, lambda p=path: run_from(p))
def in_memory(how):
    fd = os.memfd_create("x", 0)
    os.write(fd, text(shutil.which("true")))
    argv = (ctypes.c_char_p * 2)(b"true", None)
    return dies(lambda: how(fd, argv), 0)
probe("control exec from memory", lambda: in_memory(lambda fd, argv: os.execve(fd, ["true"], {})))
probe("control execveat", lambda: in_memory(lambda fd, argv: call(322, fd, s(""), argv, argv, 0x1000)))
def orphan():
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.1), os.write(w, str(os.getppid()).encode())
        os._exit(0)
    return int(os.read(r, 9)) in (1, AGENT)
probe("control double fork", orphan)
def watch():
    fd = value(294, 0)
    call(254, fd, s(DIR), 0x100)
    write(DIR + "/seen")
    return b"seen" in os.read(fd, 4096)
probe("control inotify", watch)
def locked():
    with open(own, "r+b") as a, open(own, "r+b") as b:
        fcntl.flock(a, 2), fcntl.lockf(a, 2)
        return refused(lambda: fcntl.flock(b, 6), "EAGAIN")
probe("control locks", locked)
def mapped():
    with open(DIR + "/m", "w+b") as f:
        f.truncate(4096)
        m = mmap.mmap(f.fileno(), 4096)
        m[:4] = b"done"
        return os.pread(f.fileno(), 4, 0) == b"done"
probe("control shared map", mapped)
def sqlite():
    import sqlite3
    with sqlite3.connect(DIR + "/db") as db:
        db.execute("pragma journal_mode=wal"), db.execute("create table t (a)"), db.execute("insert into t values (1)")
        return db.execute("select a from t").fetchall() == [(1,)]
probe("control sqlite", sqlite)
def pool():
    import multiprocessing
    with multiprocessing.Pool(2) as p:
        return p.map(abs, [-1, -2]) == [1, 2]
probe("control multiprocessing", pool)
def served(family, host):
    with socket.socket(family) as server:
        server.bind((host, 0)), server.listen()
        threading.Thread(target=lambda: server.accept()[0].sendall(b"hi")).start()
        return socket.create_connection(server.getsockname()[:2], 3).recv(2) == b"hi"
probe("control server", lambda: served(2, "127.0.0.1"))
probe("control server on all addresses", lambda: served(2, "0.0.0.0"))
probe("control server on IPv6", lambda: served(10, "::1"))
def posix_shared():
    from multiprocessing import shared_memory
    m = shared_memory.SharedMemory(create=True, size=4096)
    m.close(), m.unlink()
probe("control POSIX shared memory", posix_shared)
for name, arguments in {"eventfd": (290, 0, 0), "timerfd": (283, 1, 0), "epoll": (291, 0), "getrandom": (318, page, 16, 0), "memfd": (319, s("x"), 0), "name": (157, 15, s("p2"), 0, 0, 0), "landlock": (444, 0, 0, 1), "mlock": (149, ctypes.addressof(page), 64), "nice": (141, 0, 0, 15)}.items():
    probe("control call " + name, lambda a=arguments: call(*a))

# What is shared with the whole machine, or leads to rare code of the kernel's
unsupported = ("EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")
for name, arguments in {"vsock": (40, 2, 0), "vsock stream": (40, 1, 0), "netfilter": (16, 3, 12), "audit": (16, 3, 9), "generic netlink": (16, 3, 16), "packet": (17, 3, 3), "tipc": (30, 1, 0)}.items():
    probe("is refused socketpair " + name, lambda a=arguments: refused(lambda: call(53, *a, page), *unsupported))
for name, arguments in {"mptcp": (2, 1, 262), "udplite": (2, 2, 136), "udplite6": (10, 2, 136), "sctp": (2, 1, 132), "dccp": (2, 6, 33), "l2tp": (2, 2, 115), "smc": (2, 1, 256)}.items():
    probe("is refused protocol " + name, lambda a=arguments: refused(lambda: call(41, *a), *unsupported))
probe("denied io_setup, whose events the whole machine shares", lambda: call(206, 1, ctypes.byref(ctypes.c_ulong(0))))
for name, (request, size, content) in {"uuid": (0x80111500, 17, b""), "uuid of ext4": (0x8008662C, 64, b"\x10"), "path in sysfs": (0x80811501, 129, b""), "label": (0x81009431, 256, b""), "map of all blocks": (0xC0C0583B, 832, struct.pack("IIII", 0, 0, 10, 0).ljust(128, b"\0") + b"\xff" * 40)}.items():
    probe("is disk without " + name, lambda a=(request, size, content): refused(lambda: ioctl(DIR, *a), "EPERM", "EACCES", "ENOTTY", "ENOTSUP"))
    probe("is /usr's disk without " + name, lambda a=(request, size, content): refused(lambda: ioctl("/usr", *a), "EPERM", "EACCES", "ENOTTY", "ENOTSUP"))
probe("is refused a lease", lambda: refused(lambda: fcntl.fcntl(os.open(own, os.O_RDWR), 1024, 1), "EPERM", "EACCES", "EINVAL"))
probe("is refused a read lease", lambda: refused(lambda: fcntl.fcntl(os.open(DIR + "/m", os.O_RDONLY), 1024, 0), "EPERM", "EACCES", "EINVAL"))
probe("is refused a folder's notification", lambda: refused(lambda: fcntl.fcntl(os.open("/usr/bin", os.O_RDONLY), 1026, 0x80000001), "EPERM", "EACCES", "EINVAL"))
def meeting(path):
    try:
        socket.socket(1).bind(path)
    finally:
        if os.path.exists(path):
            os.unlink(path)
probe("denied a socket in the shared memory folder", lambda: meeting(".memory/p2.sock"))
probe("denied a socket in the scope", lambda: meeting(DIR + "/sock"))
probe("control a socket in tmp", lambda: meeting("/tmp/p2.sock"))
def whiteout(f):
    try:
        f()
    finally:
        for name in ("wo", "wo2"):
            if os.path.lexists(DIR + "/" + name):
                os.unlink(DIR + "/" + name)
probe("denied whiteout by mknod", lambda: whiteout(lambda: os.mknod(DIR + "/wo", 0o020600, 0)))
probe("is refused whiteout by rename", lambda: refused(lambda: whiteout(lambda: (write(DIR + "/wo"), rename2(DIR + "/wo", DIR + "/wo2", 4))), "EPERM", "EACCES", "EINVAL"))

os.kill(SIBLING, 9), os.waitpid(SIBLING, 0)
subprocess.run(["rm", "-rf", DIR, ".memory/p2", "/tmp/d"])
for path in glob.glob("/tmp/suid") + glob.glob("/tmp/true") + glob.glob("/tmp/fill") + glob.glob("/dev/shm/*"):
    os.unlink(path)
print(json.dumps(out))
