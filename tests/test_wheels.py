"""Wheels for a machine that reaches no index."""

from importlib.metadata import PackageNotFoundError, version

import pytest

pytest.importorskip("rich")

from benchmarks import (
    wheels,
)


def test_wheels_follow_requirements_and_leave_out_what_is_there():
    there = ["torch", "triton", "transformers"]
    every = wheels.required("slamkern", ["test"], there, "3.12")
    assert every["datasets"] == version("datasets") and "pyarrow" in every  # which datasets requires
    assert not {"slamkern", *there} & set(every)
    assert "tokenizers" not in every  # only transformers requires it
    assert "pytest" in every and "pytest" not in wheels.required("slamkern", [], there, "3.12")
    assert set(every) - set(wheels.required("slamkern", ["test"], [*there, "Datasets"], "3.12")) >= {
        "datasets",
        "xxhash",  # nobody else requires it
    }


def test_a_freeze_of_the_other_machine_is_read(tmp_path):
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("# made there\nnumpy==2.5.2\ntorch @ file:///torch.whl\n-e git+https://host/x#egg=x\n")
    assert wheels.names_of([str(freeze), "triton"]) == ["numpy", "torch", "triton"]


def test_an_unknown_requirement_is_one_line(capsys, monkeypatch):
    def required(*_):
        raise PackageNotFoundError("peft")

    monkeypatch.setattr(wheels, "required", required)
    assert wheels.main([]) == 2
    assert capsys.readouterr().err == "error: peft is required but not installed here; its version is unknown\n"
