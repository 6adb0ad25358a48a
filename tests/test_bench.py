"""The benchmark: no ratio without parity, rows as documented, pages written from them; the cost model."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.bench import (
    NAMES,
    BenchConfig,
    CostConfig,
    Gpu,
    cells,
    cost_model,
    cost_table,
    crossover,
    markdown,
    measure,
    operation,
    run_bench,
    write_pages,
)
from circuits.bench import table as bench_table
from circuits.bench.cost import PRODUCTS, product_cost
from circuits.bench.end_to_end import exponent, growth, measure_step, projection_share
from circuits.bench.measurement import interleaved, quartiles
from circuits.bench.steps import STEP_NAMES, StepConfig, projection, step, toy
from circuits.bench.table import BEGIN, END
from circuits.plots import bench_figure

DOCS = Path(__file__).parent.parent / "docs"
TINY = BenchConfig(steps="none", widths=(8, 16), densities=(1 / 4,), tokens=5, repeats=3, warmup=1)
MADE = {
    "machine": "a machine",
    "threads": 2,
    "date": "2026-01-02",
    "minutes": 1.0,
    "command": "circuits bench",
}
KEYS = {"name", "d_model", "density", "ratio", "parity", "bytes_per_memcpy"}


@pytest.fixture(scope="module")
def report():
    return run_bench(TINY)


def test_rows_are_as_documented(report):
    assert [row["name"] for row in report["rows"]] == [name for name in NAMES for _ in TINY.widths]
    for row in report["rows"]:
        assert set(row) >= KEYS
        assert row["parity"] is True
        assert row["max_difference"] < 1e-5
        assert row["ratio"] > 0
        assert row["ratio_spread"][0] <= row["ratio"] <= row["ratio_spread"][1]
        assert row["fast_ms"] > 0
        assert row["bytes_per_memcpy"] > 0
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_implementation_gets_no_ratio(name):
    right = operation(name, 16, 1 / 4, tokens=6)

    def wrong():
        result = right.fast().clone()
        result.view(-1)[result.abs().argmax()] *= 1.5
        return result

    row = measure(replace(right, fast=wrong), repeats=1, warmup=1)
    assert not row.parity
    assert row.max_difference == pytest.approx(0.5, rel=1e-5)
    assert row.ratio is row.ratio_plain is row.fast_ms is row.bytes_per_memcpy is None
    shown = cells(asdict(row))
    assert "FAILS: off by 0.5" in shown
    assert shown[4:] == [""] * 4


@pytest.mark.parametrize("spoil", [lambda y: y * math.nan, lambda y: y[:-1]], ids=["nan", "shape"])
def test_nan_and_other_shapes_fail(spoil):
    right = operation("spmm_forward", 8, 1 / 4, tokens=5)
    row = measure(replace(right, fast=lambda: spoil(right.fast())), repeats=1)
    assert not row.parity
    assert row.max_difference is None
    assert "not finite" in cells(asdict(row))[3]
    json.dumps(asdict(row), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_plain_pytorch_does_the_same(name):
    case = operation(name, 16, 1 / 4, tokens=6)
    case.prepare()
    naive = case.naive().clone()
    case.prepare()
    plain = case.plain()
    if name != "sddmm":  # there it is the whole dense gradient, which training on dense matrices computes
        torch.testing.assert_close(plain, naive)


def test_every_projection_starts_from_the_same_weights():
    case = operation("project_topk", 8, 1 / 4)
    case.prepare()
    once = case.fast().clone()
    case.prepare()
    assert torch.equal(case.fast(), once)
    assert (once != 0).sum() == 8 * 32 // 4


def test_rounds_interleave_and_rotate():
    order, prepared = [], []
    ways = [lambda i=i: order.append(i) for i in range(3)]
    times = interleaved(ways, lambda: prepared.append(1), repeats=2, warmup=1)
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert len(prepared) == 9
    assert [len(each) for each in times] == [2, 2, 2]
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0)


def test_pages_quote_the_results(report, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("circuits.plots.figure_to_png", lambda figure, path, **_: drawn.append(path.name))
    (tmp_path / "benchmarks.md").write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    for _ in range(2):  # twice: the page can be rewritten
        kept = write_pages(report, tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.startswith("# Before")
    assert page.endswith("After\n")
    assert "old" not in page
    assert markdown(kept) in page
    assert (
        json.loads((tmp_path / "results" / "bench.json").read_text())["command"] == "circuits bench --write"
    )
    assert drawn == ["benchmarks.png", "benchmarks.png"]


def test_pages_refuse_a_place_without_marks(report, tmp_path):
    with pytest.raises(ValueError, match="between which the table goes"):
        write_pages(report, tmp_path)
    assert not (tmp_path / "results").exists()


def test_figure_leaves_failures_out(report):
    rows = report["rows"]
    failed = {**rows[0], "parity": False, "ratio": None, "ratio_plain": None}
    figure = bench_figure([failed, *rows[1:]])
    assert len(figure.data) == len(NAMES)
    assert len(figure.data[0].x) == 1
    assert "1 without parity" in figure.layout.title.text
    with pytest.raises(ValueError, match="Did every parity check fail"):
        bench_figure([failed])


def test_command(monkeypatch):
    monkeypatch.setattr(bench_table.BenchConfig, "quick", classmethod(lambda cls: TINY))
    done = CliRunner().invoke(app, ["bench", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["rows"]) == len(NAMES) * len(TINY.widths)
    refused = CliRunner().invoke(app, ["bench", "--quick", "--write"])
    assert refused.exit_code == 2
    assert "too rough" in refused.output


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"repeats": 0}, {"densities": (0.0,)}, {"densities": (2.0,)}, {"tokens": 0}]
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BenchConfig(**wrong)


def test_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="spmm_sideways"):
        operation("spmm_sideways", 8, 0.5)


def test_product_cost_by_hand():
    config = CostConfig(n_layers=1, d_model=4, d_mlp=8, tokens=10)
    cost = product_cost("spmm_forward", 4, 8, 1 / 4, config)  # 8 nonzeros
    assert (cost.flops, cost.dense_flops) == (2 * 10 * 8, 2 * 10 * 32)
    assert cost.cache_bytes == 2 * 10 * 8
    assert cost.memory_bytes == 2 * 10 * (4 + 8) + 6 * 8
    assert product_cost("sddmm", 4, 8, 1 / 4, config).cache_bytes == 2 * cost.cache_bytes
    slow = Gpu(dense_flops=64.0, scalar_flops=16.0, memory_bytes=1e9, cache_bytes=1e9)
    assert (cost.sparse_seconds(slow), cost.dense_seconds(slow)) == (10, 10)


@pytest.mark.parametrize("frozen", [False, True])
def test_cost_falls_with_density_and_crosses_once(frozen):
    steps = cost_model(densities=[2.0**-i for i in range(20)], frozen=frozen)
    seconds = [step.sparse_seconds for step in steps]
    assert seconds == sorted(seconds, reverse=True)
    assert len({step.dense_seconds for step in steps}) == 1
    assert all(step.sparse_seconds >= step.floor_seconds * 0.999 for step in steps)
    at = crossover(frozen=frozen)
    above, below = cost_model(densities=[at * 1.01, at / 1.01], frozen=frozen)
    assert above.ratio < 1 < below.ratio


def test_crossover_at_the_ends():
    assert crossover(gpu=Gpu(dense_flops=1.0)) == 1.0
    assert crossover(gpu=Gpu(memory_bytes=1.0)) == 0.0


def test_cost_model_refuses():
    with pytest.raises(ValueError, match="density: got 0"):
        cost_model(densities=[0.0])
    with pytest.raises(ValueError, match="name: got 'spmm'"):
        product_cost("spmm", 2, 2, 0.5, CostConfig())
    with pytest.raises(ValueError, match="cache_bytes"):
        Gpu(cache_bytes=0.0)
    with pytest.raises(ValueError, match="n_layers"):
        CostConfig(n_layers=0)


def test_the_explanation_quotes_the_model():
    """Remake with: python -c "from circuits.bench import cost_table; print(cost_table())"."""
    text = (DOCS / "explanation" / "sparse-compute.md").read_text()
    assert cost_table() in text
    assert f"1/{round(1 / crossover())} " in text
    assert f"1/{round(1 / crossover(frozen=True))} " in text
    assert all(name in text for name in PRODUCTS)


@pytest.mark.parametrize("name", STEP_NAMES)
@pytest.mark.slow
def test_a_step_agrees_with_masked_dense_and_has_both_memories(name):
    config = StepConfig(name=name, d_model=64, density=1 / 16, n_layers=1, batch=2, pos=16, d_vocab=16)
    row = measure_step(config, repeats=1)
    assert row.parity
    assert row.max_difference <= 1e-12
    assert row.ratio is not None
    assert row.fast_peak is None or row.fast_peak >= 0


@pytest.mark.parametrize("name", STEP_NAMES)
@pytest.mark.slow
def test_the_fast_way_multiplies_no_dense_matrix_forward(name, monkeypatch):
    config = StepConfig(name=name, d_model=64, density=1 / 16, n_layers=1, batch=2, pos=16, d_vocab=16)
    monkeypatch.setattr("circuits.model.affine.F.linear", lambda *_: pytest.fail("multiplied a dense matrix"))
    step(config, "fast")()
    with pytest.raises(pytest.fail.Exception, match="dense matrix"):
        step(config, "plain")()


def test_a_step_that_disagrees_gets_no_ratio(monkeypatch):
    config = StepConfig(
        name="prune_step", d_model=64, density=1 / 16, n_layers=1, batch=2, pos=16, d_vocab=16
    )
    monkeypatch.setattr(
        "circuits.bench.end_to_end.gradients", lambda config, way: torch.tensor([float(len(way))])
    )
    row = measure_step(config, repeats=1)
    assert not row.parity
    assert row.ratio is row.fast_ms is row.plain_ms is None


def test_the_projection_is_a_part_of_the_step_and_starts_anew_each_time():
    config = toy(d_model=32, batch=2, pos=8, density=1 / 8)
    project, prepare = projection(config)
    for _ in range(2):
        prepare()
        assert project().count_nonzero() <= 50 * 32 // 16
    found = projection_share(config, repeats=2)
    assert found["ms"] > 0
    assert found["share"] > 0
    assert "The projection is 3.4% of the toy training step (1.2 ms)." in markdown(
        {**MADE, "rows": [], "growth": None, "projection": {"share": 0.034, "ms": 1.23}}
    )


def test_exponents_are_those_of_a_power_law():
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1.0)
    assert exponent([1, 10], [5.0, 5.0]) == pytest.approx(0.0)
    assert exponent([2, 8], [4.0, 64.0]) == pytest.approx(2.0)


def test_growth_has_a_time_for_every_size():
    found = growth(quick=True, repeats=1)
    assert len(found["nonzeros"]["ms"]) == len(found["nonzeros"]["density"])
    assert len(found["width"]["ms"]) == len(found["width"]["d_model"])
    assert all(ms > 0 for part in found.values() for ms in part["ms"])
