"""What cargo needs to build for one of the targets of targets.toml.

Whatever it is, it is fetched and made beside cargo's own output, in TARGET_DIR/cross: nothing is installed.
- The standard library: the toolchain's own when it has the target or rustup can add it, else it is compiled from its
  source (rustup's component rust-src, else Debian's package rust-src of the same version) into a private sysroot. On 32 bits
  it is always compiled here: the toolchain's own holds a time in 32 bits and panics in 2038.
- The C compiler and linker: zig, from the Python package ziglang.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent
TARGETS = tomllib.loads((HERE / "targets.toml").read_text())
ZIG_VERSION = "0.17.0"


class Failure(Exception):
    """A line for whoever called."""


def output_directory():
    """Cargo's target directory, absolute."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or PROJECT / "target").absolute()


def run(command, **how):
    """Runs a command that must succeed; what it says is shown only when it does not."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise Failure(f"{words}: exit code {done.returncode}\n{done.stdout.strip()[-4000:]}")
    return done.stdout


def into_place(directory, make):
    """Makes a directory in one step: it is there, whole, or it is not there."""
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".making-") as new:
            made = make(pathlib.Path(new))
            try:
                made.rename(directory)
            except OSError:
                if not directory.is_dir():  # Somebody else was faster.
                    raise
    return directory


def zig(cross):
    """The C compiler."""

    def make(new):
        print(f"cross: fetching zig {ZIG_VERSION} (the Python package ziglang)", file=sys.stderr)
        try:
            run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
                 "--dest", new, f"ziglang=={ZIG_VERSION}"])
        except Failure as failure:
            raise Failure(f"{failure}\ncross: pip (Debian's package python3-pip) could not fetch zig") from None
        wheel, = new.glob("ziglang-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(new / "wheel")
        (new / "wheel/ziglang/zig").chmod(0o755)
        return new / "wheel/ziglang"

    return into_place(cross / f"zig-{ZIG_VERSION}", make) / "zig"


def wrappers(cross, triple):
    """Scripts in the places of cc and ar. Flags that rustc and build scripts pass in another compiler's spelling are dropped."""
    compiler = zig(cross)
    target = " ".join(TARGETS[triple]["zig"])
    directory = cross / "bin" / triple
    directory.mkdir(parents=True, exist_ok=True)
    cache = cross / "zig-cache"
    head = f"#!/bin/bash\nexport ZIG_GLOBAL_CACHE_DIR='{cache}' ZIG_LOCAL_CACHE_DIR='{cache}'\n"
    scripts = {
        "cc": "a=()\nfor x; do case $x in --target=*|-march=*|-Wl,--fix-cortex-a53-843419|-Wl,-melf*) ;; "
              f"*) a+=(\"$x\") ;; esac; done\nexec '{compiler}' cc {target} \"${{a[@]}}\"\n",
        "ar": f"exec '{compiler}' ar \"$@\"\n",
    }
    for name, text in scripts.items():
        path = directory / name
        if not path.exists() or path.read_text() != head + text:
            new = directory / f".{name}.{os.getpid()}"
            new.write_text(head + text)
            new.chmod(0o755)
            new.rename(path)
    return directory


def toolchain_has(triple):
    """Whether the toolchain carries this target's standard library, or rustup can add it."""
    def there():
        directory = pathlib.Path(run(["rustc", "--print", "target-libdir", "--target", triple]).strip())
        return any(directory.glob("libstd-*.rlib"))

    if there():
        return True
    if shutil.which("rustup"):
        subprocess.run(["rustup", "target", "add", triple], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return there()


def library_source(cross):
    """The source of the standard library, of rustc's version."""
    version = run(["rustc", "--version"]).split()[1]

    def of_rustup():
        return pathlib.Path(run(["rustc", "--print", "sysroot"]).strip()) / "lib/rustlib/src/rust/library"

    if not of_rustup().is_dir() and shutil.which("rustup"):
        subprocess.run(["rustup", "component", "add", "rust-src"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if of_rustup().is_dir():
        return of_rustup()

    def make(new):
        print(f"cross: fetching Debian's rust-src {version}", file=sys.stderr)
        import debian  # It needs this module.
        for name in ("trixie-backports", "forky", "sid"):
            try:
                suite = debian.Suite(new / name, name, "amd64")
                full = suite.version("rust-src", f"{version}+")
            except Failure:
                continue
            if full:
                suite.unpack(f"rust-src={full}", new)
                return new / f"usr/src/rustc-{version}/library"
        raise Failure(f"the standard library's source for rustc {version} was not found: `rustup component add rust-src`, "
                      "or a Debian mirror that has the package rust-src of that version")

    return into_place(cross / f"rust-src-{version}", make)


def has_32_bits(triple):
    return TARGETS[triple]["machine"] == "arm"


# Makes the crate libc, and what is built on it, use musl's 64-bit times: since libc 0.2.187, off by default.
TIME64 = "--cfg=libc_unstable_time64"


def with_time64(source, copy):
    """A copy of the standard library's source whose libc is the project's own, which knows 64-bit times on 32 bits."""
    shutil.copytree(source, copy, symlinks=True)
    entry = r'name = "libc"\nversion = "([^"]*)"\nsource = "[^"]*"\nchecksum = "([^"]*)"'
    version, checksum = re.search(entry, (PROJECT / "Cargo.lock").read_text()).groups()
    lock = copy / "Cargo.lock"
    text, count = re.subn(entry, lambda found: found[0].replace(found[1], version).replace(found[2], checksum), lock.read_text())
    if count != 1:
        raise Failure(f"{source}/Cargo.lock names libc {count} times: this code expects one")
    lock.write_text(text)
    # There its timespec is padded, with a private field: it cannot be written as a literal any more.
    literal = re.compile(r"libc::timespec \{\s*tv_sec: (.*?),\s*tv_nsec: (.*?),?\s*\}", re.DOTALL)
    made = r"{ let mut value: libc::timespec = unsafe { crate::mem::zeroed() }; value.tv_sec = \1; value.tv_nsec = \2; value }"
    for file in (copy / "std/src/sys").rglob("*.rs"):
        text = file.read_text()
        if literal.search(text):
            file.write_text(literal.sub(made, text))
    return copy


def private_sysroot(cross, triple):
    """A sysroot with the standard library for one target, compiled here."""
    version = run(["rustc", "--version"]).split()[1]

    def make(new):
        source = library_source(cross)
        print(f"cross: compiling the standard library for {triple} (once, about a minute)", file=sys.stderr)
        if has_32_bits(triple):
            source = with_time64(source, new / "library")
        seed = new / "seed"
        (seed / "src").mkdir(parents=True)
        (seed / "src/lib.rs").write_text("#![no_std]\n")
        (seed / "Cargo.toml").write_text('[workspace]\n[package]\nname = "seed"\nversion = "0.0.0"\nedition = "2024"\n')
        # One library for both panic strategies, as the toolchain's own: only this crate is always compiled for abort.
        wrapper = new / "rustc"
        wrapper.write_text('#!/bin/sh\ncase " $* " in *" --crate-name panic_abort "*) exec "$@" -Cpanic=abort ;; esac\nexec "$@"\n')
        wrapper.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CARGO", "RUSTC", "RUSTFLAGS"))}
        for kept in ("CARGO_HOME",):
            if kept in os.environ:
                environment[kept] = os.environ[kept]
        environment |= {
            "RUSTC_BOOTSTRAP": "1",
            "RUSTC_WRAPPER": str(wrapper),
            "__CARGO_TESTS_ONLY_SRC_ROOT": str(source),
            "RUSTFLAGS": " ".join([
                "-Cembed-bitcode=yes", "-Zforce-unstable-if-unmarked",
                f"--remap-path-prefix={source}=/rustc/{version}/library", f"--remap-path-prefix={new}=/rustc/{version}",
                f"--remap-path-prefix={cargo_home()}=/cargo", *([TIME64] if has_32_bits(triple) else []),
            ]),
        } | compilers(cross, triple)
        run(["cargo", "build", "--quiet", "--release", "--target", triple, "-Zbuild-std=std,panic_abort,panic_unwind,test"],
            cwd=seed, env=environment)
        library = new / "sysroot/lib/rustlib" / triple / "lib"
        library.mkdir(parents=True)
        for file in (seed / "target" / triple / "release/deps").glob("*.rlib"):
            if not file.name.startswith("libseed-"):
                file.rename(library / file.name)
        return new / "sysroot"

    return into_place(cross / f"sysroot-{version}{'-time64' if has_32_bits(triple) else ''}" / triple, make)


def cargo_home():
    return os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo"


def compilers(cross, triple, project=PROJECT, output=None):
    """The environment that names the C compiler, the linker and the archiver."""
    tools = wrappers(cross, triple)
    name = triple.replace("-", "_")
    moved = [f"-ffile-prefix-map={path}={to}" for path, to in places(project, output or output_directory())]
    return {
        f"CC_{name}": str(tools / "cc"),
        f"AR_{name}": str(tools / "ar"),
        f"CFLAGS_{name}": " ".join(["-fno-sanitize=all", *moved]),
        f"CARGO_TARGET_{name.upper()}_LINKER": str(tools / "cc"),
    }


def places(project, output):
    """The directories of this machine that could get into a binary, and what stands for each; the last that fits wins."""
    return [(project, "/wherry"), (output, "/target"), (cargo_home(), "/cargo")]


def environment(triple, project=PROJECT, output=None):
    """The environment in which cargo builds a tree for a target; no path of this machine gets into a binary."""
    if triple not in TARGETS:
        raise Failure(f"no target {triple!r} in cross/targets.toml; there are: {', '.join(TARGETS)}")
    cross = output_directory() / "cross"
    toolchain = run(["rustc", "--print", "sysroot"]).strip()
    flags = ["-Ctarget-feature=+crt-static", "-Clink-self-contained=no"]
    flags += [f"--remap-path-prefix={path}={to}" for path, to in places(project, output or output_directory())]
    # Where rustup's rust-src lies, rustc names the library's files by it.
    flags.append(f"--remap-path-prefix={toolchain}/lib/rustlib/src/rust=/rustc")
    if has_32_bits(triple):
        flags.append(TIME64)
    if has_32_bits(triple) or not toolchain_has(triple):
        flags.append(f"--sysroot={private_sysroot(cross, triple)}")
    return compilers(cross, triple, project, output) | {
        f"CARGO_TARGET_{triple.replace('-', '_').upper()}_RUSTFLAGS": " ".join(flags)
    }
