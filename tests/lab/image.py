"""The lab's image: a RAM disk and a root disk from Debian's packages, and for QEMU a kernel.

Built once into a cache folder, under a name that is the digest of everything that goes into it.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What has to be installed where the lab is built and run.
PACKAGES_HERE = (
    *("qemu-system-x86", "qemu-utils", "mmdebstrap", "cpio", "busybox-static", "e2fsprogs"),
    *("openssh-client", "util-linux"),
)
PACKAGES_FOR = {"uml": ("user-mode-linux",), "qemu": ("kmod",)}
PACKAGES_THERE = (
    *("python3", "lvm2", "dmsetup", "thin-provisioning-tools", "openssh-server", "openssh-client"),
    *("iproute2", "fio", "kmod", "procps", "e2fsprogs", "util-linux", "mount", "qemu-utils"),
    *("dash", "bash", "coreutils", "login", "passwd", "libc-bin", "grep", "sed", "mawk"),
    *("findutils", "tar", "diffutils", "hostname", "zstd", "ncurses-base", "base-files"),
    *("base-passwd", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"),
    "qemu-system-x86",
)
REQUIREMENTS = ("blake3", "click", "numpy", "rich", "zstandard", "asyncssh", "uvloop", "coverage")
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay", "ext4"),
    *("af_packet", "dm-mod", "dm-snapshot", "dm-thin-pool", "dm-mirror", "dm-raid", "dm-delay"),
    *("dm-flakey", "dm-log-writes", "raid1", "loop", "sch_netem", "sch_tbf", "crc32c_generic"),
)
KERNEL = "linux-image-cloud-amd64"
UML_MODULES = "/usr/lib/uml/modules"  # of this host: the guest mounts them


@dataclass(frozen=True, slots=True)
class Image:
    """The files that a guest starts from, in one folder.

    Attributes:
        folder: Where they are.
        engine: What they are for, `uml` or `qemu`.
    """

    folder: Path
    engine: str

    @property
    def kernel(self) -> Path:
        """The kernel; User-Mode Linux has its own, a program."""
        return self.folder / "vmlinuz"

    @property
    def ramdisk(self) -> Path:
        """The initial RAM disk; for QEMU, with the modules."""
        return self.folder / "initrd.cpio"

    @property
    def root(self) -> Path:
        """The root disk; read-only, for any number of guests at once."""
        return self.folder / "root.ext4"


class NoLabError(Exception):
    """The lab cannot be built or run on this machine."""


def cached() -> Image:
    """Return the image for the engine that LAB_ENGINE names, built if it is not in the cache.

    Raises:
        NoLabError: If something that is needed is not installed, or the build fails.
    """
    engine = os.environ.get("LAB_ENGINE", "uml")
    if engine not in PACKAGES_FOR:
        raise NoLabError(f"LAB_ENGINE={engine} is neither uml nor qemu")
    missing = missing_packages(engine)
    if missing:
        raise NoLabError(f"the lab needs {' '.join(missing)}: apt-get install them")
    kernel = _kernel_package() if engine == "qemu" else ""
    folder = cache() / _key(engine, kernel)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists() and os.geteuid() != 0:
            raise NoLabError("the lab's image is built as root: run `scripts/lab build` so once")
        if not folder.exists():
            _build(folder, kernel)
    return Image(folder, engine)


def cache() -> Path:
    """Return the folder for images."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("BLOCKSTREAM_LAB_CACHE") or f"{base}/blockstream-lab")


def missing_packages(engine: str) -> list[str]:
    """Return the packages that are not installed."""
    needed = (*PACKAGES_HERE, *PACKAGES_FOR[engine])
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *needed],
        capture_output=True,
        text=True,
        check=False,
    )
    there = {line.split()[0] for line in done.stdout.splitlines() if "ok installed" in line}
    return [name for name in needed if name not in there]


def _kernel_package() -> str:
    said = _run("apt-cache", "depends", KERNEL)
    for line in said.splitlines():
        word = line.split()[-1]
        if "Depends:" in line and word.startswith("linux-image-"):
            return word
    raise NoLabError(f"apt knows no {KERNEL}: apt-get update")


def _key(engine: str, kernel: str) -> str:
    digest = hashlib.sha256()
    for name in ("image.py", "init.sh", "main.sh"):
        digest.update((HERE / name).read_bytes())
    digest.update(f"{kernel} {sys.version_info[:2]}".encode())
    return f"{engine}-{digest.hexdigest()[:16]}"


def _build(folder: Path, kernel: str) -> None:
    """Build in a temporary folder, and give it its name when it is complete.

    Args:
        folder: Its name.
        kernel: The kernel's package; empty for none.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as name:
        work = Path(name)
        out = work / "out"
        out.mkdir()
        ramdisk = _ramdisk_tree(work)
        if kernel:
            tree, version = _unpacked_kernel(work, kernel)
            shutil.copy(tree / f"boot/vmlinuz-{version}", out / "vmlinuz")
            _add_modules(ramdisk, tree, version)
        _pack(ramdisk, out / "initrd.cpio")
        _make_root(work, out / "root.ext4")
        out.rename(folder)


def _unpacked_kernel(work: Path, kernel: str) -> tuple[Path, str]:
    """Unpack the kernel's package without installing it; return the tree and the version."""
    tree, version = work / "kernel", kernel.removeprefix("linux-image-")
    _run("apt-get", "-q", "download", kernel, cwd=work)  # by its exact name, or all versions come
    (package,) = work.glob(f"{kernel}_*.deb")
    _run("dpkg", "-x", package, tree)
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    _run("depmod", "-b", tree, version)
    return tree, version


def _ramdisk_tree(work: Path) -> Path:
    tree = work / "ramdisk"
    for name in ("bin", "dev", "lib/modules", "lower", "newroot", "proc", "rw", "sys"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for applet in ("sh", "modprobe", "insmod"):
        (tree / "bin" / applet).symlink_to("busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    shutil.copy(HERE / "main.sh", tree / "main.sh")
    (tree / "init").chmod(0o755)
    (tree / "main.sh").chmod(0o755)
    return tree


def _add_modules(tree: Path, kernel: Path, version: str) -> None:
    base = f"lib/modules/{version}"
    for module in MODULES:
        show = ["modprobe", "-d", str(kernel), "-S", version, "--show-depends"]
        show.append("--ignore-install")
        for line in _run(*show, module, check=False).splitlines():
            words = line.split()
            if words[:1] == ["insmod"]:
                inside = words[1][words[1].index(base) :]
                (tree / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(words[1], tree / inside)
    for name in ("builtin", "order", "builtin.modinfo"):
        shutil.copy(kernel / base / f"modules.{name}", tree / base / f"modules.{name}")
    _run("depmod", "-b", tree, version)


def _pack(tree: Path, target: Path) -> None:
    listing = "\0".join(sorted(str(p.relative_to(tree)) for p in tree.rglob("*")))
    with target.open("wb") as out:
        # Uncompressed: an emulated processor unpacks slowly.
        words = ["cpio", "-0", "-o", "-H", "newc", "--quiet"]
        subprocess.run(words, input=listing.encode(), stdout=out, cwd=tree, check=True)


def _make_root(work: Path, target: Path) -> None:
    tree, archive = work / "root", work / "root.tar"
    tree.mkdir()
    release = _release()
    sources = [
        *Path("/etc/apt").glob("sources.list"),
        *Path("/etc/apt/sources.list.d").glob("*.sources"),
    ]
    # Variant "extract" runs no maintainer scripts; what they would do is done below.
    packages = ",".join(PACKAGES_THERE)
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=extract",
        f"--include={packages}",
        release,
        archive,
        *sources,
    )
    _run("tar", "-C", tree, "--exclude=./dev/*", "-xf", archive)
    archive.unlink()
    for name in ("passwd", "group"):
        shutil.copy(tree / f"usr/share/base-passwd/{name}.master", tree / f"etc/{name}")
    with (tree / "etc/passwd").open("a") as file:
        file.write("sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n")
    _run("ldconfig", "-r", tree)
    for link, where in (("usr/bin/awk", "mawk"), ("usr/bin/sh", "dash")):
        if not os.path.lexists(tree / link):
            (tree / link).symlink_to(where)
    shutil.copy("/bin/busybox", tree / "usr/bin/busybox")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tree / "etc/ssh/ssh_host_ed25519_key")
    for place in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "var/cache",
    ):
        shutil.rmtree(tree / place, ignore_errors=True)
    shutil.rmtree(tree / "var/lib/apt", ignore_errors=True)
    _install_python(tree)
    kib = int(_run("du", "-sk", tree).split()[0])
    size = f"{int(kib * 1.15) + 40 * 1024}k"
    plain = ["-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=0"]
    _run("mkfs.ext4", "-q", "-F", *plain, "-d", tree, target, size)


def _install_python(tree: Path) -> None:
    """Put the wheels where the guest's Python finds them; both Pythons are of one version."""
    site = tree / "opt/site"
    _run(
        sys.executable,
        "-m",
        "pip",
        "-q",
        "install",
        "--no-compile",
        "--target",
        site,
        *REQUIREMENTS,
    )
    (tree / "usr/lib/python3/dist-packages/lab.pth").write_text("/opt/site\n")
    # One process: without /dev/shm several compile nothing, and say nothing.
    places = ["/usr/lib/python3.11", "/opt/site", "/usr/lib/python3/dist-packages"]
    _run("chroot", tree, "python3", "-m", "compileall", "-q", *places, check=False)


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise NoLabError("this is no Debian with a name")


def _run(*command: str | Path, cwd: Path | None = None, check: bool = True) -> str:
    done = subprocess.run(  # no shell
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    if check and done.returncode:
        raise NoLabError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
