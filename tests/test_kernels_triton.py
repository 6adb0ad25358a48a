"""The Triton kernels: parity with naive, and that they compile for the GPUs they are meant for.

Parity runs natively on a GPU. Without one it runs on the CPU under Triton's interpreter, which has to be chosen before
the kernels are imported: one test starts a second pytest, on this file and on the table of operations, with
TRITON_INTERPRET=1.
"""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.kernels import (
    SparseWeight,
    abs_topk,
    chosen_impl,
    sddmm,
    slice_topk_mask,
    sparse_linear,
    spmm,
    spmm_t,
    topk_mask,
    topk_threshold,
)

triton = pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
parity = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
)
DTYPES = [torch.float32, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


@pytest.mark.skipif(INTERPRETED, reason="already under the interpreter")
@pytest.mark.slow
def test_parity_under_the_interpreter() -> None:
    table = pathlib.Path(__file__).with_name("test_kernels_dispatch.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "parity_of",
        __file__,
        table,
    ]
    run = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout)
    assert "skipped" not in run.stdout


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def close(got: Tensor, expected: Tensor) -> None:
    """To the precision of the type of `got`, relative to the largest entry."""
    scale = expected.abs().max().item() if expected.numel() else 1.0
    tolerance = max(16 * torch.finfo(torch.float32).eps, torch.finfo(got.dtype).eps) * max(scale, 1e-30)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance)


def awkward(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Gaussian entries with ties, zeros, NaN and infinities among them."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.0, NAN, INF, -INF])
    drawn = special[torch.randint(len(special), shape)]
    return torch.where(torch.rand(shape) < 0.5, torch.randn(shape), drawn).to(DEVICE, dtype)


# shape, dim, dtype
SELECTIONS = [
    ((9, 37), 1, torch.float32),
    ((9, 37), 1, torch.bfloat16),
    ((37, 33), 0, torch.float32),
    ((37, 5), 0, torch.bfloat16),
    ((3, 11, 2), 1, torch.float32),
    ((1, 1), 0, torch.float32),
    ((1, 300), 1, torch.float32),
]


@parity
@pytest.mark.parametrize(("shape", "dim", "dtype"), SELECTIONS)
def test_parity_of_abs_topk(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x, dy = awkward(shape, dtype), torch.randn(shape).to(DEVICE, dtype)
    for k in sorted({max(1, shape[dim] // 4), shape[dim]}):
        results = []
        for impl in ("triton", "naive"):
            leaf = x.clone().requires_grad_()
            kept = abs_topk(leaf, k, dim, impl=impl)
            kept.backward(dy)
            results.append((kept.detach(), leaf.grad))
        same(results[0][0], results[1][0])
        same(results[0][1], results[1][1])
    same(slice_topk_mask(x, k, dim, impl="triton"), slice_topk_mask(x, k, dim, impl="naive"))


@parity
def test_parity_of_abs_topk_without_ties() -> None:
    x = torch.randn(9, 140, device=DEVICE)
    for given, dim in ((x, 1), (x.t().contiguous(), 0), (x.t().contiguous().t(), 1)):
        out = torch.full_like(given, NAN)
        assert abs_topk(given, 40, dim, impl="triton", out=out) is out
        same(out, abs_topk(given, 40, dim, impl="naive"))
    sparse = abs_topk(x, 3, impl="triton")  # fewer nonzeros than k: unchanged
    same(abs_topk(sparse, 40, impl="triton"), sparse)


@parity
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_of_weight_selection(dtype: torch.dtype) -> None:
    for w in (
        torch.randn(70, 71).to(DEVICE, dtype),
        awkward((13, 17), dtype),
        torch.zeros(5, 7, device=DEVICE),
    ):
        always = torch.rand(w.shape, device=DEVICE) < 0.01
        for k in sorted({w.numel() // 3, w.numel()}):
            same(topk_mask(w, k, impl="triton"), topk_mask(w, k, impl="naive"))
            same(topk_threshold(w, k, impl="triton"), topk_threshold(w, k, impl="naive"))
            if int(always.sum()) <= k:
                same(topk_mask(w, k, always, impl="triton"), topk_mask(w, k, always, impl="naive"))


def drawn(d_in: int, d_out: int, density: float) -> Tensor:
    w = torch.randn(d_in, d_out) * (torch.rand(d_in, d_out) < density)
    if density < 1:
        w[0], w[:, -1] = 0.0, 0.0
    return w


# d_in, d_out, density, tokens, dtype
PRODUCTS = [
    (1, 1, 1.0, 1, torch.float32),
    (7, 13, 1.0, 3, torch.float32),
    (33, 9, 0.2, 300, torch.float32),
    (12, 10, 0.0, 5, torch.float32),
    (9, 21, 0.3, 257, torch.bfloat16),
]


@parity
@pytest.mark.parametrize(("d_in", "d_out", "density", "tokens", "dtype"), PRODUCTS)
def test_parity_of_products_and_gradients(
    d_in: int, d_out: int, density: float, tokens: int, dtype: torch.dtype
) -> None:
    weight = SparseWeight.from_dense(drawn(d_in, d_out, density).to(dtype)).to(DEVICE)
    x, dy, bias = (
        torch.randn(shape).to(DEVICE, dtype) for shape in ((d_in, tokens), (d_out, tokens), (d_out,))
    )
    w, wide, tall = weight.to_dense().double(), x.double(), dy.double()
    values = weight.values.clone()
    leaves = [leaf.requires_grad_() for leaf in (x, values, bias)]
    y = sparse_linear(weight, x, values, bias, impl="triton")
    y.backward(dy)
    close(y.detach(), w.t() @ wide + bias.detach().double()[:, None])
    close(leaves[0].grad, w @ tall)
    close(leaves[1].grad, (wide @ tall.t())[w != 0])
    close(leaves[2].grad, tall.sum(1))
    for out in (torch.full_like(dy, NAN), torch.full((tokens, d_out), NAN).to(dy).t()):
        close(spmm(weight, x, impl="triton", out=out), w.t() @ wide)
    close(spmm_t(weight, dy, impl="triton", out=torch.full_like(x, NAN)), w @ tall)


@parity
def test_parity_of_nothing() -> None:
    weight = SparseWeight.from_dense(torch.ones(3, 0)).to(DEVICE)
    x, dy = torch.ones(3, 4, device=DEVICE), torch.ones(0, 4, device=DEVICE)
    assert spmm(weight, x, impl="triton").shape == (0, 4)
    same(spmm_t(weight, dy, impl="triton"), torch.zeros_like(x))
    assert sddmm(weight, x, dy, impl="triton").shape == (0,)
    assert abs_topk(torch.ones(0, 3, device=DEVICE), 1, impl="triton").shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_auto_picks_triton_on_a_gpu() -> None:
    x = torch.zeros(64, 2, device="cuda")
    assert chosen_impl(x) == "triton"
    assert chosen_impl(x.double()) == "naive"
    assert chosen_impl(x, weight=SparseWeight.from_dense(torch.eye(64)).to("cuda")) == "triton"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_a_tensor_in_the_wrong_place_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"impl='triton' takes float32 or bfloat16 on a CUDA device; got"):
        abs_topk(torch.ones(3), 1, impl="triton")


SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory one block may use. Source: CUDA C++ Programming Guide, compute capabilities 8.0, 9.0, 10.0."""
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16"}
SIGNATURES = {
    "spmm_fwd_kernel": "start:*i32 index:*i32 order:*i32 values:* x:* bias:* y:* tokens:i32 scale:i32",
    "sddmm_fwd_kernel": "start:*i32 index:*i32 x:* dy:* out:* tokens:i32 scale:i32",
    "abs_topk_fwd_kernel rows": "x:* y:* identity:*u8 slices:i32 n:i32 slice_stride:i32 entry_stride:1 "
    "batch_stride:i32 k:i32 scale:i32",
    "abs_topk_fwd_kernel columns": "x:* y:* identity:*u8 slices:i32 n:i32 slice_stride:1 entry_stride:i32 "
    "batch_stride:i32 k:i32 scale:i32",
    "abs_topk_bwd_kernel": "dy:* y:* identity:*u8 dx:* size:i32 batch_stride:i32 inner:i32",
}
"""Types of the arguments as the package passes them; a bare * is the type of the activations, 1 the constant 1."""


def constants_of(name: str, dtype: str) -> dict[str, Any]:
    from circuits.kernels.triton import kernels

    low = {"LOW": 0 if dtype == "float32" else 16}
    if name.startswith("abs_topk_fwd"):
        return {"AS_MASK": False} | low
    by_name = {
        "spmm_fwd_kernel": {"HAS_ORDER": True, "HAS_BIAS": True},
        "abs_topk_bwd_kernel": {"BLOCK": kernels.FLAT},
    }
    return dict(by_name.get(name, {}))


def compile_ahead(name: str, dtype: str, capability: int, config: Any) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from circuits.kernels.triton import kernels

    kernel = getattr(kernels, name.split()[0])
    signature = dict(argument.split(":") for argument in SIGNATURES[name].split())
    constants = constants_of(name, dtype) | (config.kwargs if config else {})
    constants |= {argument: 1 for argument, kind in signature.items() if kind == "1"}
    signature = {argument: POINTERS[dtype] if kind == "*" else kind for argument, kind in signature.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    options = {"enable_fp_fusion": True} | ({"num_warps": config.num_warps} if config else {})
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any, folder: pathlib.Path) -> dict[str, int]:
    """What the assembler says that the kernel uses. STACK is where spilled registers go."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    )
    return {
        word: int(number) for word, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report.stdout)
    }


def check_compiled(name: str, dtype: str, capability: int, config: Any, folder: pathlib.Path) -> None:
    compiled = compile_ahead(name, dtype, capability, config)
    used = resources(compiled, folder)
    setting = f"{name} {dtype} for {capability} with {config}: {used}"
    assert used["STACK"] == 0, setting
    assert used["LOCAL"] == 0, setting
    assert used["REG"] <= 255, setting
    assert used["SHARED"] + compiled.metadata.shared <= SHARED_LIMIT[capability], setting


def search_space(name: str) -> list[Any]:
    from circuits.kernels.triton import kernels

    return kernels.CONFIGS.get(name, [None])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", sorted(SHARED_LIMIT))
@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_compiles_ahead_of_time_without_spills(name: str, capability: int, tmp_path: pathlib.Path) -> None:
    check_compiled(name, "float32", capability, search_space(name)[0], tmp_path)
    if capability == 90:
        check_compiled(name, "bfloat16", capability, search_space(name)[0], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    "name", [name for name in sorted(SIGNATURES) if "bwd" not in name and "topk_" not in name[:5]]
)
def test_the_whole_search_space_compiles_without_spills(name: str, tmp_path: pathlib.Path) -> None:
    for capability in SHARED_LIMIT:
        for config in search_space(name)[1:]:
            check_compiled(name, "float32", capability, config, tmp_path)
