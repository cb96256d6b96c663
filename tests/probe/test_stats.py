"""ActivationStats: exact merge, the file contract, and refusals of files that are something else."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import slamkern
from slamkern.files import save_tensors
from slamkern.ops.moments import Moments, merge_moments_
from slamkern.probe.stats import ActivationStats, QuestionGroups


def moments_of(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(mean, m2, active) of (tokens, layers, neurons), in float64."""
    mean = values.double().mean(0)
    return mean, (values.double() - mean).square().sum(0), (values > 0).sum(0)


def stats_of(values: dict[str, torch.Tensor], **changes) -> ActivationStats:
    mean, m2, active = (torch.stack(parts) for parts in zip(*map(moments_of, values.values()), strict=True))
    count = torch.tensor([len(rows) for rows in values.values()])
    stats = ActivationStats(tuple(values), "some/model", "llama-2-8-5", "gate", count, mean, m2, active)
    return dataclasses.replace(stats, **changes)


def sample(tokens: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return mean + std * torch.randn(tokens, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grouped() -> ActivationStats:
    """Statistics of two languages in two groups of questions."""
    values = {"en": sample(4, 0), "th": sample(6, 1)}
    halves = [[moments_of(rows.chunk(2)[half]) for rows in values.values()] for half in (0, 1)]
    return stats_of(
        values,
        groups=QuestionGroups(
            torch.tensor([[2, 3], [2, 3]]),
            torch.stack([torch.stack([mean for mean, _, _ in half]) for half in halves]).float(),
            torch.stack([torch.stack([active for _, _, active in half]) for half in halves]).int(),
        ),
    )


def test_merge_equals_one_pass_over_everything():
    a, b, c = sample(7, 0), sample(1, 1), sample(12, 2)
    merged = stats_of({"en": a, "de": b}).merge(stats_of({"sw": b, "en": c}))
    whole = stats_of({"en": torch.cat([a, c]), "de": b, "sw": b})
    assert merged.languages == ("en", "de", "sw")
    assert torch.equal(merged.count, whole.count) and torch.equal(merged.active, whole.active)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-13, atol=1e-13)


def test_merge_keeps_the_variance_of_values_far_from_zero():
    # Sum of squares minus square of sums would lose every digit here.
    parts = [sample(1000, seed, mean=1e6, std=1e-1) for seed in range(20)]
    merged = stats_of({"en": parts[0]})
    for part in parts[1:]:
        merged = merged.merge(stats_of({"en": part}))
    variance = torch.cat(parts).var(0, correction=0)
    torch.testing.assert_close(merged.variance[0], variance, rtol=1e-7, atol=0)


def test_counts_stay_exact_past_single_precision():
    moments = Moments.zeros(1, 1)
    large = Moments(
        torch.tensor([2**24 + 1]), torch.ones(1, 1).double(), torch.zeros(1, 1).double(), torch.tensor([[2**24 + 1]])
    )
    merge_moments_(moments.tensors, large.tensors)
    merge_moments_(moments.tensors, large.tensors)
    assert moments.count.item() == moments.active.item() == 2**25 + 2
    assert moments.mean.item() == 1.0 and moments.m2.item() == 0.0


def test_adding_nothing_changes_nothing():
    moments = Moments(
        torch.tensor([3]), torch.tensor([[0.1]]).double(), torch.tensor([[2.0]]).double(), torch.tensor([[1]])
    )
    before = [tensor.clone() for tensor in vars(moments).values()]
    merge_moments_(moments.tensors, Moments.zeros(1, 1).tensors)
    assert all(torch.equal(old, new) for old, new in zip(before, vars(moments).values(), strict=True))


def test_file_contract_and_round_trip(tmp_path):
    stats = grouped()
    path = tmp_path / "stats.safetensors"
    stats.save(path)
    with safe_open(path, "pt") as opened:
        metadata = {name: json.loads(value) for name, value in opened.metadata().items()}
        names = opened.keys()
        contract = {name: (opened.get_tensor(name).dtype, tuple(opened.get_tensor(name).shape)) for name in names}
    assert contract["count"] == (torch.int64, (2,))
    assert contract["mean"] == contract["m2"] == (torch.float64, (2, 2, 5))
    assert contract["active"] == (torch.int64, (2, 2, 5))
    assert metadata["languages"] == ["en", "th"] and metadata["model"] == "some/model"
    assert metadata["observe"] == "gate" and metadata["slamkern_version"] == slamkern.__version__
    again = ActivationStats.load(path)
    for name in ("languages", "model", "signature", "observe"):
        assert getattr(again, name) == getattr(stats, name)
    for name in ("count", "mean", "m2", "active"):
        assert torch.equal(getattr(again, name), getattr(stats, name))
    assert all(torch.equal(a, b) for a, b in zip(vars(again.groups).values(), vars(stats.groups).values(), strict=True))


def test_statistics_of_different_models_do_not_merge():
    stats = stats_of({"en": sample(4, 0)})
    for change in ({"signature": "llama-2-8-6"}, {"observe": "hidden"}):
        with pytest.raises(slamkern.SlamkernError, match="cannot merge statistics"):
            stats.merge(dataclasses.replace(stats, **change))
    with pytest.raises(slamkern.SlamkernError, match=r"\(2, 5\) and \(2, 4\)"):
        stats.merge(dataclasses.replace(stats, mean=stats.mean[..., :4]))


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "stats.safetensors"
    with pytest.raises(slamkern.SlamkernError, match="does not exist; expected a statistics file"):
        ActivationStats.load(path)
    stats_of({"en": sample(4, 0)}).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(slamkern.SlamkernError, match="truncated or not safetensors"):
        ActivationStats.load(path)
    save_file({"mean": torch.zeros(1)}, path)
    with pytest.raises(slamkern.SlamkernError, match="not written by slamkern"):
        ActivationStats.load(path)
    metadata = {"slamkern_version": "0", "languages": ["en"], "signature": "s", "observe": "gate"}
    save_tensors(path, {"mean": torch.zeros(1)}, metadata)
    with pytest.raises(slamkern.SlamkernError, match="model: Field required"):
        ActivationStats.load(path)
    save_tensors(path, {"mean": torch.zeros(1)}, metadata | {"model": "m"})
    with pytest.raises(slamkern.SlamkernError, match="'count' is missing"):
        ActivationStats.load(path)


def with_value(name: str, value: float, index: tuple[int, ...] = (0,)):
    """The statistics with one element of one tensor changed."""

    def change(stats: ActivationStats) -> ActivationStats:
        owner, field = (stats.groups, name[6:]) if name.startswith("group_") else (stats, name)
        tensor = getattr(owner, field).clone()
        tensor[(*index, *[0] * (tensor.dim() - len(index)))] = value
        changed = dataclasses.replace(owner, **{field: tensor})
        return dataclasses.replace(stats, groups=changed) if owner is stats.groups else changed

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value("count", -4), "count"),
        (with_value("count", 0), "is inconsistent: its count"),
        (lambda s: dataclasses.replace(s, count=s.count.double()), "count is float64, not int64"),
        (lambda s: dataclasses.replace(s, mean=s.mean.float()), "mean is float32, not float64"),
        (lambda s: dataclasses.replace(s, m2=s.m2[..., :4]), r"m2 is \(2, 2, 4\), not \(2, 2, 5\)"),
        (lambda s: dataclasses.replace(s, mean=s.mean[0]), r"mean is \(2, 5\)"),
        (lambda s: dataclasses.replace(s, mean=s.mean[..., :0], m2=s.m2[..., :0], active=s.active[..., :0]), "neurons"),
        (with_value("mean", float("nan")), "mean of 'en' is not finite"),
        (with_value("m2", float("inf"), (1,)), "m2 of 'th' is not finite"),
        (with_value("m2", -1.0), "m2 of 'en' is below 0"),
        (with_value("active", 5), "active of 'en' is not within 0 and its 4 tokens"),
        (with_value("active", -1, (1,)), "active of 'th' is not within 0 and its 6 tokens"),
        (lambda s: dataclasses.replace(s, languages=("en", "en")), "languages"),
        (lambda s: dataclasses.replace(s, languages=("en", "")), "languages"),
        (lambda s: dataclasses.replace(s, languages=(1, 2)), "languages"),
        (lambda s: dataclasses.replace(s, languages=("en",)), r"count is \(2,\), not \(1,\)"),
        (lambda s: dataclasses.replace(s, observe="up"), "observes 'up'"),
        (lambda s: dataclasses.replace(s, model=None), "model: .*string, not None"),
        (with_value("group_count", 3), "groups"),
        (with_value("group_active", 1000), "groups"),
        (with_value("group_mean", float("nan")), "groups"),
        (lambda s: dataclasses.replace(s, groups=dataclasses.replace(s.groups, mean=s.groups.mean[:1])), "group_mean"),
    ],
)
def test_statistics_that_cannot_be_are_refused_on_load(tmp_path, monkeypatch, change, message):
    path = tmp_path / "stats.safetensors"
    grouped().save(path)
    assert ActivationStats.load(path).languages == ("en", "th")
    with monkeypatch.context() as patch:
        patch.setattr("slamkern.probe.stats._flaw", lambda _: None)
        change(grouped()).save(path)
    with pytest.raises(slamkern.SlamkernError, match=message):
        ActivationStats.load(path)


def test_statistics_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(slamkern.SlamkernError, match=r"not saved to .*: mean of 'en' is not finite"):
        with_value("mean", float("nan"))(grouped()).save(tmp_path / "stats.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("languages", [None, "en", {"en": 1}, [["en"], "th"]])
def test_metadata_of_another_kind_is_refused(tmp_path, languages):
    path = tmp_path / "stats.safetensors"
    stats = grouped()
    tensors = {name: getattr(stats, name) for name in ("count", "mean", "m2", "active")}
    metadata = {"languages": languages, "model": "m", "signature": "s", "observe": "gate", "slamkern_version": "0"}
    save_tensors(path, tensors, metadata)
    with pytest.raises(slamkern.SlamkernError, match="languages"):
        ActivationStats.load(path)
