#!/usr/bin/env python3
"""Makes pairs of real linux/arm64 image layers, an old and a new version of each, for the delta benchmark.

    make.py OUT [PAIR ...]        OUT/PAIR/old.tar and new.tar, uncompressed layers

Packages come from the Debian mirror that this system uses and from the Python package index, through apt-get and pip; they are kept in
OUT/.cache, so that nothing is fetched twice. apt works in a directory of its own: no root, no change of the system. The same packages
make the same tars. Needs python3 with numpy and pip, apt-get, dpkg-deb; about 2 GB of disk.

A_os_patch          60 Debian packages, the release's and those of today     ~115 MB
B_dep_bump          Python packages, several one release up, byte-compiled   ~150 MB
C_app_only          the same packages, three application files changed, built again: new mtimes, another order
D1_finetune_fp32    a safetensors file of 32-bit floats, 20 training steps later   ~34 MB
E1_rust_binary      one stripped Rust program, the next release              ~20 MB
"""

import functools
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

RELEASE = "bookworm"
DEBS = """libc6 libc-bin libssl3 openssl libsystemd0 libudev1 perl-base libgnutls30 libexpat1 zlib1g libsqlite3-0
libxml2 libcurl4 curl python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libtasn1-6 gpgv
libgcrypt20 tzdata ca-certificates libpam0g libpam-modules login passwd tar bash dash coreutils dpkg apt
libapt-pkg6.0 libcap2 liblzma5 xz-utils libkrb5-3 libgssapi-krb5-2 libk5crypto3 libssh2-1 libnghttp2-14 libblkid1
libmount1 util-linux mount libuuid1 bsdutils libsmartcols1 sed grep gzip libgcc-s1 libstdc++6 debianutils
libncursesw6 libtinfo6 ncurses-base""".split()
# What slim base images leave out.
NO_SLIM = ("doc", "man", "locale", "info", "lintian")

WHEELS = {
    "old": """numpy==1.26.3 scikit-learn==1.4.1.post1 onnxruntime==1.17.1 flask==3.0.2 werkzeug==3.0.1 jinja2==3.1.3
        joblib==1.3.2 threadpoolctl==3.3.0 click==8.1.7 itsdangerous==2.1.2 blinker==1.7.0 markupsafe==2.1.5
        protobuf==4.25.2 flatbuffers==23.5.26 packaging==23.2""".split(),
    "new": """numpy==1.26.4 scikit-learn==1.4.2 onnxruntime==1.17.3 flask==3.0.3 werkzeug==3.0.2 jinja2==3.1.3
        joblib==1.4.0 threadpoolctl==3.4.0 click==8.1.7 itsdangerous==2.1.2 blinker==1.7.0 markupsafe==2.1.5
        protobuf==4.25.3 flatbuffers==24.3.25 packaging==24.0""".split(),
}
PROGRAM = {"old": ["ruff==0.4.1"], "new": ["ruff==0.4.2"]}
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
TIMES = {"old": 1710000000, "new": 1714000000}
DEB_TIMES = {"old": 1700000000, "new": 1763000000}


def run(*argv, **options):
    return subprocess.run([str(word) for word in argv], check=True, text=True, **options)


def said(*argv):
    return run(*argv, stdout=subprocess.PIPE).stdout


class Debian:
    """Packages for arm64 of one release with its updates, through an apt of our own."""

    def __init__(self, directory):
        mirrors = said("apt-get", "indextargets", "--format", "$(REPO_URI)").split()
        wanted = (("/debian", (RELEASE, RELEASE + "-updates")), ("/debian-security", (RELEASE + "-security",)))
        lines = []
        for end, suites in wanted:
            mirror = next((uri for uri in mirrors if uri.rstrip("/").endswith(end)), None)
            if mirror is None:
                sys.exit(f"apt knows no mirror whose address ends with {end}")
            lines += [f"deb {mirror} {suite} main\n" for suite in suites]
        for part in ("lists/partial", "archives/partial", "packages"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text("".join(lines))
        options = {
            "Dir::Etc::sourcelist": directory / "sources.list", "Dir::Etc::sourceparts": "-", "Dir::State": directory,
            "Dir::State::status": directory / "status", "Dir::Cache": directory, "APT::Architecture": "arm64",
            "APT::Architectures": "arm64", "APT::Sandbox::User": "", "Acquire::Languages": "none",
        }
        self.options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self.packages = directory / "packages"
        if not any((directory / "lists").glob("*Packages*")):
            run("apt-get", "-qq", *self.options, "update")

    def versions(self, name):
        """The versions that the mirror has, the lowest first."""
        lines = said("apt-cache", *self.options, "madison", name).splitlines()
        found = {line.split("|")[1].strip() for line in lines if "Sources" not in line}

        def compare(a, b):
            lower = subprocess.run(["dpkg", "--compare-versions", a, "lt", b]).returncode == 0
            return -1 if lower else int(a != b)
        return sorted(found, key=functools.cmp_to_key(compare))

    def unpack(self, name, version, directory):
        pattern = f"{name}_{version.replace(':', '%3a')}_*.deb"
        if not list(self.packages.glob(pattern)):
            run("apt-get", "-qq", *self.options, "download", f"{name}={version}", cwd=self.packages)
        run("dpkg-deb", "-x", next(self.packages.glob(pattern)), directory)


def wheels(cache, names):
    """The files of these Python packages for arm64."""
    cache.mkdir(parents=True, exist_ok=True)

    def found():
        files = []
        for name in names:
            stem, version = name.replace("-", "_").split("==")
            files += [f for f in cache.glob("*.whl") if f.name.lower().replace("-", "_").startswith(f"{stem}_{version}_")]
        return files
    if len(found()) < len(names):
        platforms = [word for name in PLATFORMS for word in ("--platform", name + "_aarch64")]
        run(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
            "--python-version", "311", "--implementation", "cp", *platforms, "-d", cache, *names)
    return found()


def paths_in(root):
    """Everything beneath `root`, by name."""
    entries = []
    for directory, names, files in os.walk(root):
        entries += [os.path.relpath(os.path.join(directory, name), root) for name in names + files]
    return sorted(entries)


def shuffled(entries, seed):
    """As another machine's directories list them: brothers in another order."""
    rnd, keys = random.Random(seed), {}

    def key(path):
        parts = path.split("/")
        return [keys.setdefault("/".join(parts[:n + 1]), rnd.random()) for n in range(len(parts))]
    return sorted(entries, key=key)


def set_times(root, mtime, entries):
    """What a build leaves: times that differ by seconds, and each .pyc with its source's time in bytes 8 to 12."""
    rnd = random.Random(mtime)
    for entry in entries:
        os.utime(root / entry, (mtime, mtime + rnd.randint(0, 20)), follow_symlinks=False)
    for pyc in sorted(root.rglob("*.pyc")):
        source = pyc.parent.parent / (pyc.name.split(".cpython")[0] + ".py")
        content = bytearray(pyc.read_bytes())
        content[8:12] = struct.pack("<I", int(source.stat().st_mtime))
        pyc.write_bytes(content)
        os.utime(pyc, (mtime, mtime + 25))


def layer(out, root, prefix="", mtime=None, shuffle=None):
    """Writes a tree as an image's layer."""
    entries = paths_in(root)
    if mtime is not None:
        set_times(root, mtime, entries)
    if shuffle is not None:
        entries = shuffled(entries, shuffle)

    def owned(info):
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = int(info.mtime)
        return info
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for entry in entries:
            tar.add(root / entry, arcname=prefix + entry, recursive=False, filter=owned)
    partial.rename(out)


def A_os_patch(out, cache):
    debian = Debian(cache / "debian")
    for side in ("old", "new"):
        shutil.rmtree(cache / f"A_{side}", ignore_errors=True)
        (cache / f"A_{side}").mkdir()
    for name in DEBS:
        versions = debian.versions(name)
        if not versions:
            sys.exit(f"the mirror has no package {name}")
        debian.unpack(name, versions[0], cache / "A_old")
        debian.unpack(name, versions[-1], cache / "A_new")
    for side in ("old", "new"):
        for part in NO_SLIM:
            shutil.rmtree(cache / f"A_{side}" / "usr/share" / part, ignore_errors=True)
        layer(out / f"{side}.tar", cache / f"A_{side}")


def site_packages(cache, side):
    root = cache / f"B_{side}"
    if not (cache / f"B_{side}.done").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for file in wheels(cache / f"wheels-{side}", WHEELS[side]):
            zipfile.ZipFile(file).extractall(root)
        # Some packages carry files of test data that do not compile: they stay as they are.
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-s", root, "-p", "/app/site-packages", root],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (cache / f"B_{side}.done").touch()
    return root


def B_dep_bump(out, cache):
    for side in ("old", "new"):
        layer(out / f"{side}.tar", site_packages(cache, side), "usr/local/lib/python3.11/site-packages/", TIMES[side])


def C_app_only(out, cache):
    app = {
        "app/main.py": "from flask import Flask, request, jsonify\nimport numpy as np\napp=Flask(__name__)\nVERSION='%s'\n"
        + "".join(f"@app.route('/v1/p{i}')\ndef p{i}():\n    x=np.asarray(request.json['x'])\n"
                  f"    return jsonify(y=(x*{i}).tolist(),version=VERSION)\n" for i in range(60)),
        "app/pre.py": "MEAN=%s\n" + "".join(f"def f{i}(x):\n    return (x-MEAN)/{i + 1}\n" for i in range(200)),
        "app/version.json": '{"version":"%s"}\n'}
    for side, mtime, version, mean, seed in (
            ("old", TIMES["new"], "1.4.0", "0.485", None),
            ("new", TIMES["new"] + 600000, "1.4.1", "0.4851\nSTD=0.229", 7)):
        root = cache / f"C_{side}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(site_packages(cache, "new"), root, symlinks=True)
        (root / "app").mkdir()
        for path, text in app.items():
            (root / path).write_text(text % (mean if "pre" in path else version))
        layer(out / f"{side}.tar", root, "app/", mtime, seed)


def train(np, seed, steps, rate, teacher, weights=None, data_seed=0, batch=32):
    """Trains a perceptron of three layers with Adam: its weights differ as trained weights do."""
    sizes = [1024, 2048, 2048, 1024]
    rnd = np.random.default_rng(seed)
    w = [x.copy() for x in weights] if weights else [
        (rnd.standard_normal((a, b)) * np.sqrt(2 / a)).astype("f4") for a, b in zip(sizes, sizes[1:])]
    data = np.random.default_rng(data_seed + 1000)
    m, v = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w]
    for step in range(1, steps + 1):
        x = data.standard_normal((batch, sizes[0])).astype("f4")
        y = np.maximum(x @ teacher[0], 0) @ teacher[1]
        h1 = x @ w[0]
        a1 = np.maximum(h1, 0)
        h2 = a1 @ w[1]
        a2 = np.maximum(h2, 0)
        g3 = (a2 @ w[2] - y) / np.float32(batch)
        g2 = (g3 @ w[2].T) * (h2 > 0)
        g1 = (g2 @ w[1].T) * (h1 > 0)
        for i, grad in enumerate((x.T @ g1, a1.T @ g2, a2.T @ g3)):
            m[i] *= np.float32(.9)
            m[i] += np.float32(.1) * grad
            v[i] *= np.float32(.999)
            v[i] += np.float32(.001) * grad * grad
            w[i] -= np.float32(rate / (1 - .9 ** step)) * m[i] / (
                np.sqrt(v[i] / np.float32(1 - .999 ** step)) + np.float32(1e-8))
    return w


def safetensors(path, tensors):
    head, offset = {}, 0
    for name, tensor in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def D1_finetune_fp32(out, cache):
    import numpy as np
    rnd = np.random.default_rng(99)
    teacher = [(rnd.standard_normal((1024, 256)) * .04).astype("f4"), (rnd.standard_normal((256, 1024)) * .06).astype("f4")]
    base = train(np, 1, 30, 2e-4, teacher)
    tuned = train(np, 1, 20, 1e-5, teacher, weights=base, data_seed=5)
    for side, weights in (("old", base), ("new", tuned)):
        root = cache / f"D1_{side}"
        (root / "models").mkdir(parents=True, exist_ok=True)
        safetensors(root / "models/model.safetensors", dict(zip(("fc1.weight", "fc2.weight", "fc3.weight"), weights)))
        (root / "models/meta.json").write_text(json.dumps({"trained": TIMES[side]}))
        layer(out / f"{side}.tar", root, "srv/", TIMES[side])


def E1_rust_binary(out, cache):
    for side in ("old", "new"):
        root = cache / f"E1_{side}"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for file in wheels(cache / f"program-{side}", PROGRAM[side]):
            archive = zipfile.ZipFile(file)
            for name in archive.namelist():
                if os.path.basename(name) == "ruff":
                    (root / "ruff").write_bytes(archive.read(name))
        layer(out / f"{side}.tar", root, "usr/local/bin/", TIMES[side])


PAIRS = (A_os_patch, B_dep_bump, C_app_only, D1_finetune_fp32, E1_rust_binary)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    out, wanted = pathlib.Path(sys.argv[1]).absolute(), sys.argv[2:]
    cache = out / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    for make in PAIRS:
        pair = out / make.__name__
        if (wanted and make.__name__ not in wanted) or all((pair / f"{side}.tar").exists() for side in ("old", "new")):
            continue
        make(pair, cache)
        sizes = [(pair / f"{side}.tar").stat().st_size for side in ("old", "new")]
        print(f"{make.__name__}: old {sizes[0]} bytes, new {sizes[1]} bytes", flush=True)


if __name__ == "__main__":
    main()
