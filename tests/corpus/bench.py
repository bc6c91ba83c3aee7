#!/usr/bin/env python3
"""What a delta costs on real layers, beside Debian's tools, all in one run.

    bench.py DELTA CORPUS [PAIR ...]        DELTA is the example program `delta` of wherry-images

For every pair: the bytes of the patch, and for ours those of the whole artifact (manifest, embedded image manifest and config, patch: all
that `wherry delta push` puts into the registry and a board fetches); CPU seconds to encode and to decode; the peak resident memory of
both; output decoded for each CPU second. Every patch is applied and compared with the new layer. Exits with 1 when a wanted figure is
missed, a patch does not apply, or a generic tool makes a smaller one.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

# The most bytes of a whole artifact.
WANTED = {"A_os_patch": 1_350_000, "B_dep_bump": 700_000, "C_app_only": 12_000, "D1_finetune_fp32": 19_500_000,
          "E1_rust_binary": 1_300_000}
# The most memory of a decoder, in kilobytes, and the least output for a CPU second, in MB.
RESIDENT = 24 * 1000
SPEED = 40
# bsdiff holds some 17 bytes for each byte of the old file: longer files are left out.
BSDIFF_LIMIT = 64 << 20


class Cost:
    """One process: CPU seconds, kilobytes."""

    def __init__(self, argv, work):
        # Not from this process: a child's peak would begin with the memory of an interpreter.
        told = work / "cost"
        argv = ["time", "-o", told, "-f", "%U %S %M", *argv]
        done = subprocess.run([str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.said, self.failed = done.stdout, done.returncode != 0
        user, system, resident = told.read_text().splitlines()[-1].split()
        self.seconds, self.resident = float(user) + float(system), int(resident)


def same(a, b):
    with open(a, "rb") as one, open(b, "rb") as other:
        while True:
            left, right = one.read(1 << 20), other.read(1 << 20)
            if left != right:
                return False
            if not left:
                return True


def unpacked(pair, tree):
    if not tree.exists():
        partial = tree.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["tar", "-C", partial, "-xpf", pair / "old.tar"], check=True)
        partial.rename(tree)
    return tree


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def commands(delta, pair, work):
    """Each tool: its name, how it encodes, how it decodes."""
    old, new, made = pair / "old.tar", pair / "new.tar", work / "made"
    tree, identity = unpacked(pair, work / pair.name), sha256(old)
    for codec in ("wherry", "tar-diff"):
        patch = work / codec
        yield (codec, patch, [[delta, "encode", codec, old, new, patch]],
               [[delta, "decode", codec, tree, identity, patch, made]])
    xdelta = work / "xdelta3"
    yield ("xdelta3 -9", xdelta, [["xdelta3", "-f", "-e", "-9", "-S", "djw", "-B", 512 << 20, "-s", old, new, xdelta]],
           [["xdelta3", "-f", "-d", "-B", 512 << 20, "-s", old, xdelta, made]])
    if old.stat().st_size <= BSDIFF_LIMIT:
        yield ("bsdiff", work / "bsdiff", [["bsdiff", old, new, work / "bsdiff"]], [["bspatch", old, made, work / "bsdiff"]])
    signature, raw, rdiff = work / "signature", work / "rdiff.raw", work / "rdiff"
    yield ("rdiff + zstd -19", rdiff,
           [["rdiff", "-f", "signature", old, signature], ["rdiff", "-f", "delta", signature, new, raw],
            ["zstd", "-q", "-f", "-19", raw, "-o", rdiff]],
           [["zstd", "-q", "-d", "-f", rdiff, "-o", raw], ["rdiff", "-f", "patch", old, raw, made]])
    zstd = work / "zstd"
    yield ("zstd -12 --patch-from", zstd,
           [["zstd", "-q", "-f", "-12", "--long=28", f"--patch-from={old}", new, "-o", zstd]],
           [["zstd", "-q", "-d", "-f", "--long=28", f"--patch-from={old}", zstd, "-o", made]])


def measure(delta, pair, work):
    """One table; false when something is not as wanted."""
    new, made, good = pair / "new.tar", work / "made", True
    output = new.stat().st_size
    print(f"\n{pair.name}: {output:,} bytes of tar")
    print(f"{'':24}{'patch':>12}{'artifact':>12}{'encode s':>10}{'MB':>7}{'decode s':>10}{'MB':>7}{'MB/s':>7}")
    ours, best = None, None
    for name, patch, encode, decode in commands(delta, pair, work):
        made.unlink(missing_ok=True)
        up = [Cost(argv, work) for argv in encode]
        down = [Cost(argv, work) for argv in decode]
        if any(cost.failed for cost in up + down) or not same(made, new):
            print(f"{name:24} FAILED")
            good = good and name not in ("wherry", "tar-diff")
            continue
        size, artifact = patch.stat().st_size, None
        if name in ("wherry", "tar-diff"):
            said = Cost([delta, "artifact", name, pair / "old.tar", new], work)
            words = said.said.split()
            artifact = int(words[1]) if len(words) == 4 and int(words[3]) == size else None
            if artifact is None:
                print(f"{name}: the artifact was not published as the patch was made: {said.said}")
                good = False
        encoding, decoding = sum(cost.seconds for cost in up), sum(cost.seconds for cost in down)
        memory = [max(cost.resident for cost in costs) for costs in (up, down)]
        speed = output / 1e6 / max(decoding, 0.01)
        print(f"{name:24}{size:12,}{artifact or 0:12,}{encoding:10.2f}{memory[0] / 1000:7.1f}{decoding:10.2f}"
              f"{memory[1] / 1000:7.1f}{speed:7.0f}", flush=True)
        if name == "wherry":
            ours = artifact
            if memory[1] > RESIDENT or speed < SPEED:
                print(f"MISSED: at most {RESIDENT / 1000} MB and at least {SPEED} MB/s are wanted of the decoder")
                good = False
        elif best is None or size < best:
            best = size
    wanted = WANTED.get(pair.name)
    if ours is None or (wanted and ours > wanted):
        print(f"MISSED: at most {wanted:,} bytes are wanted")
        good = False
    elif best is not None and ours > best:
        print("MISSED: another tool's patch is smaller")
        good = False
    return good


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    delta, corpus, wanted = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    work = corpus / ".bench"
    work.mkdir(exist_ok=True)
    # Where images are made for the artifacts: beside the corpus, not in memory.
    os.environ["TMPDIR"] = str(work)
    good = True
    for pair in sorted(path.parent for path in corpus.glob("*/new.tar")):
        if not wanted or pair.name in wanted:
            good = measure(delta, pair, work) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
