"""Every Triton kernel compiles for a real GPU, down to machine code: the interpreter takes much that this refuses.

No GPU is needed for that, only the compiler. It runs in a process of its own, for kernels that were defined for the
interpreter cannot be compiled. A kernel that is not in the table fails `test_no_kernel_is_forgotten`.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import lovasz_embed

PACKAGE = Path(lovasz_embed.__file__).parent
HOPPER = ("cuda", 90, 32)


class Kernel(NamedTuple):
    """A kernel and one way to call it.

    Attributes:
        module: Its file in `_ops/gpu`, without ending.
        name: Its name there.
        arguments: The types of all arguments that are no constants, in order: "*i32" points at int32, "i32" is one;
            "*T" and "T" become float32 and float64.
        constants: The others.
    """

    module: str
    name: str
    arguments: str
    constants: dict[str, Any]


CELLS = {"C": 19, "SHIFT": 14, "CELLS": 65538, "CHUNK": 4, "BLOCK": 256}
SLOTS = {"FIRST": 4096, "LATER": 1024, "BLOCK": 512}
TREE = {"NODES": 128, "CELLS": 65538, "D": 6, "D_PAD": 8, "BLOCK": 512}
GRADIENT = f"*T {6 * '*i32 '} *T *T *fp64 *T *i32 *fp64 *i64 *fp64 *T {5 * 'i32 '}"
KERNELS = [
    Kernel("counting_kernels", "weigh_cells_kernel", "*i32 *T *i64", {"BINS": 32768, "BLOCK": 2048}),
    Kernel("counting_kernels", "weigh_cells_kernel", "*i64 *T *i64", {"BINS": 512, "BLOCK": 512}),
    *(
        Kernel("extension_kernels", name, arguments, {**CELLS, "KIND": kind, **more})
        for kind, labels in ((1, "*u8"), (2, "*i64"))
        for name, arguments, more in (
            ("count_kernel", f"*T {labels} *i32 i32 i32 {6 * 'i64 '} i64 i32", {}),
            ("loss_kernel", f"*T {labels} *T *T *T i32 i32 {9 * 'i64 '} i64 i32", {"WANTED": False}),
            ("loss_kernel", f"*T {labels} *T *T *T i32 i32 {9 * 'i32 '} i64 i64", {"WANTED": True}),
            ("slope_kernel", f"*T {labels} *T *T *T i32 i32 {9 * 'i64 '} i64 i32", {"TABLE": True}),
            ("slope_kernel", f"*T {labels} *T *T *T i32 i32 {9 * 'i32 '} i64 i64", {"TABLE": False}),
        )
    ),
    Kernel(
        "extension_sort_kernels",
        "softmax_kernel",
        f"*T *i16 *T *T i32 i32 {5 * 'i64 '} i32",
        {"C": 5, "CHUNK": 4, "BLOCK": 256},
    ),
    *(
        Kernel(
            "extension_sort_kernels",
            "errors_kernel",
            f"*T *i32 *T *T *T *u8 *i64 i32 i32 i32 {6 * 'i64 '} i64",
            {"KIND": kind, "BLOCK": 1024},
        )
        for kind in (1, 2)
    ),
    *(
        Kernel(
            "extension_sort_kernels",
            "weigh_sorted_kernel",
            "*T *i64 *i32 *i64 *T *T i32 i32 i64 i64",
            {"WANTED": wanted, "BLOCK": 1024},
        )
        for wanted in (False, True)
    ),
    *(
        Kernel("nodes_kernels", "claim_kernel", f"{labels} *i64 i32 i32", {**SLOTS, "PER_PICTURE": per, "ROUND": part})
        for labels, per, part in (("*i64", True, 0), ("*u8", False, 5))
    ),
    Kernel("nodes_kernels", "collect_kernel", "*i64 *i32 *i64 i32 i32", {"BLOCK": 1024}),
    Kernel("nodes_kernels", "number_kernel", "*i32 *i64 *i32 *i32 *i32 *i32 i32 i32", {**SLOTS, "PER_PICTURE": True}),
    Kernel("nodes_kernels", "parents_kernel", "*i32 *i32 *i32 *i32 i32", {"BLOCK": 512}),
    *(
        Kernel("tree_kernels", name, arguments, {**TREE, "GAUSSIAN": gaussian, "SIBLINGS": gaussian, **more})
        for gaussian in (False, True)
        for name, arguments, more in (
            ("count_kernel", f"*T {6 * '*i32 '} *T *T *fp64 *i32 *i32 {5 * 'i32 '}", {}),
            ("gradient_kernel", GRADIENT, {"WANTED": True, "BANDWIDTH": gaussian}),
            ("gradient_kernel", GRADIENT, {"WANTED": False, "BANDWIDTH": False}),
        )
    ),
    *(
        Kernel("tree_kernels", name, arguments, {"BANDWIDTH": bandwidth, "D": 6, "D_PAD": 8, "BLOCK": 512})
        for bandwidth in (False, True)
        for name, arguments in (
            ("sums_kernel", "*T *i32 *T *i32 *fp64 *i64 i32 i32 i32"),
            ("spread_kernel", "*i32 *i32 *T *T *T i32 i32 i32"),
        )
    ),
    *(
        Kernel(
            "ncm_kernels",
            "classify_kernel",
            f"{pixels} {4 * 'i64 '} i32 i32 {6 * '*T '} {3 * '*fp64 '} {names} i32 {names}",
            {"D": 8, "REJECTS": rejects, "CHUNK": 16, "BLOCK": 256},
        )
        for pixels, names, rejects in (("*T", "*i64", True), ("*bf16", "*i32", False), ("*fp16", "*i32", True))
    ),
    *(
        Kernel(
            "margin_kernels",
            "assign_kernel",
            f"{pixels} i64 i64 i64 i32 i32 i32 *i64 *i32 *i32 *T *i32 *i32 i32 *T *T i32 *T *i64 *i32 *i32 *i32",
            {"D": width, "INDEXED": indexed, "LATE": late, "CHUNK": 16, "BLOCK": 256},
        )
        for pixels, width, indexed, late in (
            ("*T", 8, True, False),
            ("*T", 8, False, True),
            ("*bf16", 32, False, False),
        )
    ),
    Kernel(
        "margin_kernels",
        "measure_kernel",
        "*fp16 i64 i64 i64 i32 i32 *i32 *T i32 *T *T i32 *T *i64 *i64 *i32",
        {"D": 8, "BLOCK": 256},
    ),
    *(
        Kernel("margin_pair_kernels", name, "*T *i32 *i32 *i32 i32 *T *i32 *i32", {"D": 8, "CHUNK": 16, "BLOCK": 128})
        for name in ("company_kernel", "leaders_kernel")
    ),
    *(
        Kernel(
            "margin_pair_kernels",
            "climb_kernel",
            "*T *i32 *i32 i32 *i64 *i32 *i32 i32 *T *T *i32 *i32",
            {"D": width, "D_PAD": padded, "STEPS": 50, "BLOCK": 4096 // padded},
        )
        for width, padded in ((8, 8), (20, 32))
    ),
    Kernel("margin_pair_kernels", "thin_kernel", "*T *i32 i32 *T *i32 *i32", {"D": 8, "CHUNK": 16, "BLOCK": 128}),
    Kernel("assembly_kernels", "tally_kernel", "*i32 *i32 i32 i32 *i32 *i32", {"BLOCK": 1024}),
    Kernel("assembly_kernels", "number_kernel", "*i32 *i32 i32 i32 *i32 *i32", {"BLOCK": 1024}),
    Kernel("tree_kernels", "weigh_kernel", "*i32 *T *i64 *i32 i32", {"BINS": 32768, "BLOCK": 2048}),
]


def compiled(kernel: Kernel, scalar: str) -> int:
    """Return the bytes of machine code of a kernel; only in a process without the interpreter."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"lovasz_embed._ops.gpu.{kernel.module}"), kernel.name)
    types = iter(kernel.arguments.replace("T", scalar).split())
    signature = {name: "constexpr" if name in kernel.constants else next(types) for name in function.arg_names}
    assert next(types, None) is None, "more types than arguments"
    source = ASTSource(fn=function, signature=signature, constexprs=kernel.constants)
    return len(triton.compile(source, target=GPUTarget(*HOPPER)).asm["cubin"])


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[int, str], str]:
    """What became of every kernel, by its place in the table: nothing, or the compiler's complaint."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, check=True, timeout=600)
    found: dict[tuple[int, str], str] = pickle.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scalar", ["fp32", "fp64"])
@pytest.mark.parametrize("number", range(len(KERNELS)), ids=[f"{n}-{k.name}" for n, k in enumerate(KERNELS)])
def test_a_kernel_compiles_for_a_gpu(outcomes: dict[tuple[int, str], str], number: int, scalar: str) -> None:
    assert outcomes[number, scalar] == ""


def launched(file: Path) -> set[str]:
    """Return the kernels of a file: what is compiled and named ..._kernel; the others are called by kernels."""
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if f.decorator_list and f.name.endswith("_kernel")}


def test_no_kernel_is_forgotten() -> None:
    files = (PACKAGE / "_ops" / "gpu").glob("*_kernels.py")
    every = {(file.stem, name) for file in files for name in launched(file)}
    assert every
    assert every == {(kernel.module, kernel.name) for kernel in KERNELS}


if __name__ == "__main__":
    found = {}
    for (number, kernel), scalar in itertools.product(enumerate(KERNELS), ("fp32", "fp64")):
        try:
            compiled(kernel, scalar)
            found[number, scalar] = ""
        except Exception as error:  # whatever the compiler raises is the outcome
            found[number, scalar] = f"{type(error).__name__}: {error}"[-600:]
    sys.stdout.buffer.write(pickle.dumps(found))
