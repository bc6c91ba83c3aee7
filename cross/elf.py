"""What an ELF file says of itself, as far as `cross/arm` checks it. Nothing is executed."""

import struct

MACHINES = {40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
LOAD, DYNAMIC, INTERPRETER, STACK, RELRO = 1, 2, 3, 0x6474E551, 0x6474E552
EXECUTABLE, WRITABLE = 1, 2
SYMBOLS = 2
ARM_HARD_FLOAT = 0x400


def describe(data):
    """The properties of an ELF file as a dictionary; ValueError when it is none."""
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise ValueError("not a little-endian ELF file")
    wide = data[4] == 2
    if wide:
        kind, machine, _, _, segments_at, sections_at, flags, _, size, count, section_size, sections, _ = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
    else:
        kind, machine, _, _, segments_at, sections_at, flags, _, size, count, section_size, sections, _ = struct.unpack_from("<HHIIIIIHHHHHH", data, 16)
    # A 64-bit segment header has its flags second, a 32-bit one seventh.
    segments = []
    for index in range(count):
        at = segments_at + index * size
        segments.append((struct.unpack_from("<I", data, at)[0], struct.unpack_from("<I", data, at + (4 if wide else 24))[0]))
    section_kinds = [struct.unpack_from("<I", data, sections_at + index * section_size + 4)[0] for index in range(sections)]
    kinds = [segment for segment, _ in segments]
    stack = [flags for segment, flags in segments if segment == STACK]
    found = {
        "machine": MACHINES.get(machine, f"machine {machine}"),
        "static": INTERPRETER not in kinds,
        "position_independent": kind == 3,
        "no_writable_code": not any(segment == LOAD and flags & WRITABLE and flags & EXECUTABLE for segment, flags in segments),
        "no_executable_stack": bool(stack) and not stack[0] & EXECUTABLE,
        "relro": RELRO in kinds,
        "stripped": SYMBOLS not in section_kinds,
    }
    if found["machine"] == "arm":
        found["hard_float"] = bool(flags & ARM_HARD_FLOAT)
    return found
