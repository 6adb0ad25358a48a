"""The cost of sparse training on a GPU, on paper: FLOPs and bytes of each product, and the time they take.

Prices matrix products only. What dense and sparse training share (attention, AbsTopK, norms, the optimiser) is
in neither column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from circuits.settings import Count, Positive, Settings

DENSITIES = tuple(1 / 4**i for i in range(2, 7))
"""1/16 to 1/4096."""
PRODUCTS = ("spmm_forward", "spmm_backward", "sddmm")


@dataclass(frozen=True, kw_only=True)
class Gpu(Settings):
    """Rates of one GPU. The defaults are of the H100 class."""

    dense_flops: Positive = 989e12
    "FLOP/s of dense bfloat16 products on tensor cores. Data sheet."
    scalar_flops: Positive = 67e12
    "FLOP/s of float32 outside tensor cores. Data sheet."
    memory_bytes: Positive = 3.35e12
    "Bytes/s of memory. Data sheet."
    cache_bytes: Positive = 5e12
    "Bytes/s out of the L2 cache. An assumption: no data sheet has it."


@dataclass(frozen=True, kw_only=True)
class CostConfig(Settings):
    """Sizes of the largest published weight-sparse model, and one step's tokens."""

    n_layers: Count = 8
    d_model: Count = 2048
    d_mlp: Count = 8192
    tokens: Count = 512 * 256
    "Sequences times their length."
    value_bytes: Count = 2
    "Of an activation or a weight: bfloat16."
    index_bytes: Count = 4
    "Of a nonzero's place."

    def matrices(self) -> list[tuple[int, int]]:
        """(d_in, d_out) of every matrix: W_Q, W_K, W_V, W_O, W_in, W_out of each layer."""
        square = [(self.d_model, self.d_model)] * 4
        return self.n_layers * [*square, (self.d_model, self.d_mlp), (self.d_mlp, self.d_model)]


@dataclass(frozen=True, kw_only=True)
class ProductCost:
    """One product of one matrix [d_in, d_out] at one density."""

    flops: float
    "A multiplication and an addition for each nonzero and token."
    cache_bytes: float
    "Activations fetched for nonzeros: one a token for a product, two for the sampled product."
    memory_bytes: float
    "Activations of both sides once, and the nonzeros with their places."
    dense_flops: float

    def sparse_seconds(self, gpu: Gpu) -> float:
        """The slowest of the three, as if they overlapped perfectly."""
        return max(
            self.flops / gpu.scalar_flops,
            self.cache_bytes / gpu.cache_bytes,
            self.memory_bytes / gpu.memory_bytes,
        )

    def dense_seconds(self, gpu: Gpu) -> float:
        """Tensor cores at the rate of the data sheet, which real products do not reach."""
        return self.dense_flops / gpu.dense_flops


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """All products of one training step, forward and backward; seconds."""

    density: float
    n_nonzero: float
    flops: float
    memory_bytes: float
    dense_seconds: float
    sparse_seconds: float
    floor_seconds: float
    "Time of the memory traffic alone: no kernel, however good, is below it."

    @property
    def ratio(self) -> float:
        """Dense over sparse: above 1, sparse wins."""
        return self.dense_seconds / self.sparse_seconds


def product_cost(name: str, d_in: int, d_out: int, density: float, config: CostConfig) -> ProductCost:
    """Cost of one of `PRODUCTS` for a matrix [d_in, d_out].

    Raises:
        ValueError: an unknown product, or a density outside (0, 1].
    """
    if name not in PRODUCTS:
        raise ValueError(f"name: got {name!r}; expected one of {PRODUCTS}.")
    if not 0 < density <= 1:
        raise ValueError(f"density: got {density}; expected above 0, at most 1.")
    n, tokens = density * d_in * d_out, config.tokens
    fetched = 2 if name == "sddmm" else 1
    return ProductCost(
        flops=2 * tokens * n,
        cache_bytes=fetched * config.value_bytes * tokens * n,
        memory_bytes=config.value_bytes * tokens * (d_in + d_out)
        + (config.value_bytes + config.index_bytes) * n,
        dense_flops=2.0 * tokens * d_in * d_out,
    )


def step_cost(
    density: float, config: CostConfig | None = None, gpu: Gpu | None = None, *, frozen: bool = False
) -> StepCost:
    """All products of a step at one density; `frozen` weights (as in pruning) need no sampled product."""
    config, gpu = config or CostConfig(), gpu or Gpu()
    products = PRODUCTS[:2] if frozen else PRODUCTS
    costs = [product_cost(p, *shape, density, config) for shape in config.matrices() for p in products]
    return StepCost(
        density=density,
        n_nonzero=density * sum(d_in * d_out for d_in, d_out in config.matrices()),
        flops=sum(cost.flops for cost in costs),
        memory_bytes=sum(cost.memory_bytes for cost in costs),
        dense_seconds=sum(cost.dense_seconds(gpu) for cost in costs),
        sparse_seconds=sum(cost.sparse_seconds(gpu) for cost in costs),
        floor_seconds=sum(cost.memory_bytes for cost in costs) / gpu.memory_bytes,
    )


def cost_model(
    config: CostConfig | None = None,
    gpu: Gpu | None = None,
    densities: Sequence[float] = DENSITIES,
    *,
    frozen: bool = False,
) -> list[StepCost]:
    """`step_cost` at several densities.

    Examples:
        >>> costs = circuits.bench.cost_model(densities=(1 / 16, 1 / 256))
        >>> [cost.density for cost in costs]
        [0.0625, 0.00390625]
    """
    return [step_cost(density, config, gpu, frozen=frozen) for density in densities]


def crossover(config: CostConfig | None = None, gpu: Gpu | None = None, *, frozen: bool = False) -> float:
    """The density below which the sparse step is faster: 1 if it always is, 0 if it never is.

    Examples:
        >>> 0 < circuits.bench.crossover(frozen=True) <= 1
        True
    """
    low, high = 1e-9, 1.0
    if step_cost(high, config, gpu, frozen=frozen).ratio >= 1:
        return 1.0
    if step_cost(low, config, gpu, frozen=frozen).ratio < 1:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        wins = step_cost(middle, config, gpu, frozen=frozen).ratio >= 1
        low, high = (middle, high) if wins else (low, middle)
    return low


def cost_table(config: CostConfig | None = None, gpu: Gpu | None = None) -> str:
    """The predictions as a Markdown table: a training step, and a pruning step with frozen weights.

    Examples:
        >>> circuits.bench.cost_table().splitlines()[0].count("|") > 3
        True
    """
    lines = [
        "| density | nonzeros (M) | TFLOP | GB to memory | train: dense ms | sparse ms | dense / sparse "
        "| prune: dense ms | sparse ms | dense / sparse |",
        "|---" + "|---:" * 9 + "|",
    ]
    for train, prune in zip(cost_model(config, gpu), cost_model(config, gpu, frozen=True), strict=True):
        cells = [
            f"1/{round(1 / train.density)}",
            f"{train.n_nonzero / 1e6:.2f}",
            f"{train.flops / 1e12:.2f}",
            f"{train.memory_bytes / 1e9:.0f}",
            *(
                text
                for cost in (train, prune)
                for text in (
                    f"{1e3 * cost.dense_seconds:.0f}",
                    f"{1e3 * cost.sparse_seconds:.0f}",
                    f"{cost.ratio:.2f}",
                )
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
