"""Damage valid files by what they are made of: a PNG by its chunks, a JSON by its values, a TIFF by its tags.

Flipped bits alone end at the first checksum. What is changed here keeps its checksums and lengths, so that it reaches
the code behind them. Every mutation takes bytes and a seeded generator and returns bytes; what it cannot parse it
damages bit by bit.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, *_NUMBERS, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1.0, 1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, "", "a", "0", "\0", "\ud800", "../a", "/etc/passwd", "..\\a", "c:a", "a" * 300),
    *([], {}, [[]], {"": None}, [0] * 40, "__HUGE__", "__DEEP__", {"a": {"a": {}}}),
)


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, insert, remove, repeat or overwrite some bytes."""
    out = bytearray(data)
    kind, place = rng.randrange(7), rng.randrange(len(out) + 1)
    if kind == 0 and out:
        out[place % len(out)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[place:place] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 2:
        del out[place : place + rng.randrange(1, 65)]
    elif kind == 3:
        out[place:place] = out[place : place + rng.randrange(1, 65)]
    elif kind == 4:
        size, order = rng.choice(("B", "H", "I", "Q")), rng.choice("<>")
        content = struct.pack(order + size, rng.choice(_NUMBERS) % (1 << 8 * struct.calcsize(size)))
        out[place : place + len(content)] = content
    elif kind == 5:
        del out[place:]
    elif out:
        out[place % len(out)] = rng.randrange(256)
    return bytes(out)


def mutate_in_place(data: bytes, rng: Random) -> bytes:
    """Overwrite some bytes, so that the file stays as long as it is said to be elsewhere."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8))
        out[place : place + size] = rng.randbytes(size)
    return bytes(out[: len(data)])


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Change a value, a key or the nesting of a JSON file."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    if rng.random() < 0.05:
        return mutate_bytes(data, rng)
    places = list(_places(content))
    if not places or rng.random() < 0.03:
        content = rng.choice(_HOSTILE)
    else:
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 2:
            parent[key] = rng.choice(_HOSTILE)
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, name = rng.choice(places)
            parent[key] = json.loads(json.dumps(other[name]))
        elif kind == 5 and isinstance(parent, dict):
            parent[rng.choice(("id", "name", "a", "\ud800", key + "x"))] = parent.pop(key)
        elif kind == 6 and isinstance(parent, list):
            parent[key:key] = [parent[key]] * rng.randrange(1, 20)
        elif isinstance(parent[key], int):
            parent[key] += rng.choice((-1, 1, 256, -256))
        else:
            parent[key] = [parent[key]]
    try:
        text = json.dumps(content)
    except (ValueError, RecursionError):
        return data
    text = text.replace('"__HUGE__"', "9" * rng.choice((20, 400, 4299, 5000)))
    depth = rng.choice((50, 900, 4000))
    text = text.replace('"__DEEP__"', "[" * depth + "]" * depth)
    if rng.random() < 0.02 and (start := text.find('"id"')) >= 0:
        text = text[:start] + '"id": 1, ' + text[start:]  # a key twice
    return text.encode("utf-8", "surrogatepass")


def _places(content: Any) -> Any:
    stack = [content]
    while stack:
        here = stack.pop()
        pairs = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, value in pairs:
            yield here, key
            if isinstance(value, (dict, list)):
                stack.append(value)


def mutate_lines(data: bytes, rng: Random) -> bytes:
    """Change one line of a file with a JSON object per line, or the lines themselves."""
    lines = data.splitlines(keepends=True)
    if not lines or rng.random() < 0.1:
        return mutate_bytes(data, rng)
    place = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines[place:place] = [rng.choice((lines[place], b"\n", b"null\n", b"[]\n", b"{}\n"))]
    else:
        lines[place] = mutate_json(lines[place], rng) + (b"\n" if rng.random() < 0.95 else b"")
    return b"".join(lines)


def mutate_png(data: bytes, rng: Random) -> bytes:
    """Change the chunks of a PNG, their checksums put right."""
    chunks = _chunks(data)
    if not chunks or rng.random() < 0.1:
        return mutate_bytes(data, rng)
    place = rng.randrange(len(chunks))
    name, content = chunks[place]
    kind = rng.randrange(8)
    if kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), (name, content))
    elif kind == 2:
        chunks[place] = (name, mutate_bytes(content, rng))
    elif kind == 3 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        header = list(struct.unpack(">2I5B", chunks[0][1]))
        field = rng.randrange(7)
        header[field] = rng.choice((*_NUMBERS, 3, 4, 5, 6, 8, 16)) % (1 << 32 if field < 2 else 256)
        chunks[0] = (b"IHDR", struct.pack(">2I5B", *header))
    elif kind == 4:
        known = (
            b"PLTE",
            b"tRNS",
            b"iCCP",
            b"zTXt",
            b"iTXt",
            b"tEXt",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"gAMA",
            b"pHYs",
        )
        inner = rng.randbytes(rng.choice((0, 1, 2, 4, 6, 8, 26, 256, 768)))
        if rng.random() < 0.3:
            inner = b"a\0\0" + zlib.compress(bytes(rng.choice((10, 10**5, 2 * 10**6))))
        chunks.insert(rng.randrange(len(chunks) + 1), (rng.choice(known), inner))
    elif kind <= 6:
        pixels = b"".join(inner for of, inner in chunks if of == b"IDAT")
        try:
            raw = zlib.decompressobj().decompress(pixels, 1 << 20)
        except zlib.error:
            raw = b""
        first = next((number for number, chunk in enumerate(chunks) if chunk[0] == b"IDAT"), len(chunks))
        chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        packed = zlib.compress(mutate_bytes(raw, rng), 1)
        cut = rng.randrange(len(packed) + 1)
        parts = [packed] if rng.random() < 0.8 else [packed[:cut], packed[cut:]]
        chunks[first:first] = [(b"IDAT", part) for part in parts]
    else:
        rng.shuffle(chunks)
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    for name, content in chunks:
        out.write(struct.pack(">I", len(content)) + name + content)
        out.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
    return out.getvalue()


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    if data[:4] != b"\x89PNG":
        return []
    chunks, place = [], 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        if place + 12 + size > len(data):
            break
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def mutate_tiff(data: bytes, rng: Random) -> bytes:
    """Change the entries of the first directory of a TIFF: which tag, which type, how many, what or where."""
    out = bytearray(data)
    if data[:4] != b"II*\0" or len(data) < 16 or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    (start,) = struct.unpack_from("<I", out, 4)
    if start + 2 > len(out):
        return mutate_bytes(data, rng)
    (count,) = struct.unpack_from("<H", out, start)
    entries = [start + 2 + 12 * number for number in range(count) if start + 14 + 12 * number <= len(out)]
    if not entries:
        return mutate_bytes(data, rng)
    place, kind = rng.choice(entries), rng.randrange(6)
    if kind == 0:
        tags = (254, 256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 330, 338, 339, 700)
        struct.pack_into("<H", out, place, rng.choice(tags))
    elif kind == 1:
        struct.pack_into("<H", out, place + 2, rng.randrange(20))
    elif kind == 2:
        struct.pack_into("<I", out, place + 4, rng.choice((*_NUMBERS, 3, 4, 5)))
    elif kind <= 4:
        struct.pack_into("<I", out, place + 8, rng.choice((*_NUMBERS, 3, 4, 5, 8, 16, 32, 64, start, len(out))))
    else:
        end = start + 2 + 12 * count
        if end + 4 <= len(out):
            struct.pack_into("<I", out, end, rng.choice((0, 8, start, len(out) - 1, 2**32 - 1)))
    return bytes(out)


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Change the JSON header of a safetensors file, or the length that it claims."""
    if len(data) < 8:
        return mutate_bytes(data, rng)
    (size,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + size], data[8 + size :]
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(data, rng)
    if kind == 1:
        return struct.pack("<Q", rng.choice((*_NUMBERS, 2**63, 2**64 - 1, len(header) + 1))) + header + rest
    if kind == 2:
        return data[: 8 + size] + mutate_bytes(rest, rng)
    if kind <= 4:  # numbers that are none
        place = rng.randrange(len(rest) // 4 + 1) * 4
        hostile = struct.pack("<f", rng.choice((math.nan, math.inf, -math.inf, 3e38, -1.0)))
        return data[: 8 + size] + rest[:place] + hostile + rest[place + 4 :]
    header = mutate_json(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """Change one member of a zip archive, its checksum put right, as in a checkpoint of torch."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # whatever a zip that is none raises
        return mutate_bytes(data, rng)
    if not members:
        return data
    place, kind = rng.randrange(len(members)), rng.randrange(5)
    name, content = members[place]
    if kind == 0:
        del members[place]
    elif kind == 1:
        members[place] = (rng.choice(("../a", "/a", "", name + "x")), content)
    else:
        pickled = next((number for number, member in enumerate(members) if member[0].endswith("data.pkl")), place)
        place = pickled if kind < 4 else place
        members[place] = (members[place][0], mutate_bytes(members[place][1], rng))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in dict(members).items():
            archive.writestr(name or "a", content)
    return out.getvalue()


MUTATIONS: Mapping[str, Mutation] = {
    "json": mutate_json,
    "lines": mutate_lines,
    "png": mutate_png,
    "tiff": mutate_tiff,
    "safetensors": mutate_safetensors,
    "zip": mutate_zip,
    "bytes": mutate_bytes,
    "flips": mutate_in_place,
}


def pack(parts: tuple[bytes, ...]) -> bytes:
    """Return the files of one input as one text of bytes, each behind its length."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unpack(data: bytes, like: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the files of one input; what is no pack of as many is the first of them."""
    parts, place = [], 0
    while len(parts) < len(like) and place + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, place)
        parts.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    if len(parts) < len(like) or place != len(data):
        return (data, *like[1:])
    return tuple(parts)


def mutated(parts: tuple[bytes, ...], kinds: tuple[str, ...], rng: Random) -> tuple[bytes, ...]:
    """Return an input with one to four changes."""
    out = list(parts)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
        place = rng.randrange(len(out))
        out[place] = MUTATIONS[kinds[place]](out[place], rng)[:20_000]
    return tuple(out)
