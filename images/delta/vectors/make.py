#!/usr/bin/env python3
"""Writes the golden vectors of the tar-diff decoder from the published description of the format
(containers/tar-diff, file-format.md; the zstd frame by RFC 8878, with raw blocks only).

    images/delta/vectors/make.py        rewrites old/, NAME.tardiff and NAME.out beside this file
                                        and the fuzz target's seeds in tests/fuzz/seeds/tardiff

Nothing of the project's own code is used: the vectors judge it.
"""
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
SEEDS = os.path.join(HERE, "../../../tests/fuzz/seeds/tardiff")
DATA, OPEN, COPY, ADD_DATA, SEEK, ZSTD_DICT = range(6)

OLD = {
    "bin/tool": bytes(range(256)) * 4,
    "etc/motd": b"Welcome aboard the first boat.\n",
    "lib/long": bytes((i * i >> 3) & 0xFF for i in range(70000)),
}


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))


def op(code, size, payload=b""):
    return bytes([code]) + varint(size) + payload


def opened(path):
    return op(OPEN, len(path), path.encode())


def data(b):
    return op(DATA, len(b), b)


def add(b):
    return op(ADD_DATA, len(b), b)


def zstd_raw(b):
    """One frame: no content size, window 8 MiB, raw blocks of at most 64 KiB."""
    out = struct.pack("<IBB", 0xFD2FB528, 0x00, (23 - 10) << 3)
    blocks = [b[i:i + 65536] for i in range(0, len(b), 65536)] or [b""]
    for i, block in enumerate(blocks):
        last = int(i == len(blocks) - 1)
        out += struct.pack("<I", last | 0 << 1 | len(block) << 3)[:3] + block
    return out


tool, motd, long = OLD["bin/tool"], OLD["etc/motd"], OLD["lib/long"]
new_motd = b"Welcome aboard the third boat.\n"
VECTORS = {
    # name: (magic, operations, output)
    "empty": (b"tardf1\n\0", b"", b""),
    "data": (b"tardf1\n\0", data(b"hello ") + op(DATA, 0) + data(b"world"), b"hello world"),
    "copy": (b"tardf1\n\0", opened("bin/tool") + op(COPY, 1024), tool),
    "seek": (b"tardf1\n\0", opened("bin/tool") + op(SEEK, 250) + op(COPY, 10) + op(SEEK, 3) + op(COPY, 2) + op(COPY, 1),
             tool[250:260] + tool[3:6]),
    "add": (b"tardf1\n\0", opened("etc/motd") + op(COPY, 19)
            + add(bytes((a - b) & 255 for a, b in zip(b"third", b"first"))) + op(COPY, 7), new_motd),
    "reopen": (b"tardf1\n\0", opened("etc/motd") + op(COPY, 7) + opened("bin/tool") + op(COPY, 4)
               + opened("etc/motd") + op(COPY, 7), b"Welcome" + tool[:4] + b"Welcome"),
    "buffers": (b"tardf1\n\0", opened("lib/long") + add(b"\x01" * 70000) + op(SEEK, 1) + op(COPY, 69999) + data(b"z" * 70000),
                bytes((b + 1) & 255 for b in long) + long[1:] + b"z" * 70000),
    "version2": (b"tardf2\n\0", data(b"ab") + opened("etc/motd") + op(COPY, 3), b"abWel"),
}


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(content)


for path, content in OLD.items():
    write(f"{HERE}/old/{path}", content)
for name, (magic, operations, output) in VECTORS.items():
    write(f"{HERE}/{name}.tardiff", magic + zstd_raw(operations))
    write(f"{HERE}/{name}.out", output)
    write(f"{SEEDS}/{name}", operations)
