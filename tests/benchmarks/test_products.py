"""`benchmarks.products`: the products that are measured are those of the workloads' plans, and the report says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import products
from benchmarks.products import Product
from benchmarks.where import compiled_step
from benchmarks.workloads import find


def found(name: str) -> set[Product]:
    step, batch = compiled_step(find(name))
    return set(products.products_of(step.lower(*batch).plan))


def test_large_products_are_found_as_they_lie_and_those_of_attention_whatever_their_size():
    of_mlp = found("mlp")  # Which operand is which, the number of lanes decides.
    assert [sorted((p.m, p.n, p.k)) for p in of_mlp] == [[128, 200, 784]] * 2
    of_gpt = found("gpt")
    assert {p for p in of_gpt if p.is_attention} == {
        Product(64, 64, 32, "n", "t", 64, is_attention=True), Product(64, 32, 64, "n", "n", 64, is_attention=True)
    }  # fmt: skip
    assert all(p.flops >= products.LEAST_FLOPS for p in of_gpt if not p.is_attention) and len(of_gpt) > 8


@pytest.mark.parametrize("product", [Product(5, 6, 7, "n", "t"), Product(5, 6, 7, "t", "n", 3)])
def test_operands_lie_as_a_product_says(product):
    a, b = (x.numpy() for x in products.operands(product, np.random.default_rng(0)))
    shapes = {"n": ((5, 7), (7, 6)), "t": ((7, 5), (6, 7))}
    assert a.shape[-2:] == shapes[product.a][0] and b.shape[-2:] == shapes[product.b][1]
    assert a.shape[:-2] == b.shape[:-2] == ((3,) if product.batch == 3 else ())


def test_the_report_is_a_table_and_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(products, "ROUNDS", 2)
    assert products.main(["--only", "mlp", "--threads", "1", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " × 784" in lines[1] and " 40.1 " in lines[1] and lines[1].endswith("mlp")
    report = json.loads((tmp_path / "products-1threads.json").read_text())
    assert report["threads"] == 1 and len(report["rows"]) == 2
    assert all(row["gflops"] > 0 and 0 < row["share_of_peak"] < 2 for row in report["rows"])
