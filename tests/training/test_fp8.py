"""A model with frozen weights in FP8: which, for how long, how exact, and at what cost."""

import copy

import pytest
import torch
from support.tiny_models import FAMILIES, tiny_model
from support.tiny_training import same_weights
from torch import nn

import slamkern
from slamkern.data.packing import Example, collate
from slamkern.errors import SlamkernError
from slamkern.modules.fp8_linear import FP8Linear, resident_tensors
from slamkern.modules.packed_attention import packed_attention
from slamkern.modules.patch import fused_ffns
from slamkern.selection.layers import LayerSelection
from slamkern.selection.trainable import apply_selection, trained_parameters
from slamkern.training import fp8
from slamkern.training.export import export_model
from slamkern.training.fp8 import find, frozen_in_fp8
from slamkern.training.loss import packed_loss, read_head
from slamkern.training.memory_budget import footprint
from slamkern.training.optimizer import MasterAdamW
from slamkern.training.step_cost import SavedBytes, flop_counter, peak_growth

SHAPE = dict(hidden_size=64, intermediate_size=176, num_attention_heads=4, num_hidden_layers=6, vocab_size=512)
LENGTHS = (70, 33, 90, 57)


def prepared(dtype=torch.float32, layers=(1, 2), family="llama", **overrides):
    model = slamkern.patch_model(tiny_model(family, **SHAPE | overrides).to(dtype))
    apply_selection(model, layers)
    return model.train()


@torch.no_grad()
def gentle(model):
    """Closer to a trained model, whose layers change the residual a little."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(0.5)
    return model


def packed():
    generator = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(3, 96, (length,), generator=generator).tolist()) for length in LENGTHS]
    return collate([Example(ids, ids) for ids in rows])


def backward(model):
    """Loss and gradients of what is trained."""
    loss = packed_loss(model, packed()) / sum(LENGTHS)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trained_parameters(model).items()}
    model.zero_grad()
    return loss.item(), gradients


def test_which_weights_are_quantized_and_the_report_says_so():
    model = prepared()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    identities = list(map(id, model.parameters()))
    with frozen_in_fp8(model) as report:
        inside = {name for name, module in model.named_modules() if isinstance(module, FP8Linear)}
        attention = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(6) for p in "qkvo"}
        frozen = {f"model.layers.{i}.mlp.{p}_proj" for i in range(6) for p in ("up", "down") if i not in (1, 2)}
        assert inside == attention | frozen | {f"model.layers.{i}.mlp.gate_proj" for i in range(6)}
        # A copy for the backward only above the lowest trained layer.
        kept = {name for name in inside if model.get_submodule(name).slamkern_fp8.bytes_transposed}
        assert kept == {name for name in inside if int(name.split(".")[2]) > 1}
        assert list(map(id, model.parameters())) == identities
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert model.state_dict().keys() == state.keys()
        assert report.weights == len(inside) and report.emulated
        elements = sum(model.get_submodule(name).weight.numel() for name in inside)
        outputs = sum(model.get_submodule(name).out_features for name in inside)
        assert (report.elements, report.bytes_before) == (elements, 4 * elements)
        assert report.bytes - report.bytes_transposed == elements + 4 * outputs
        extra = {id(t) for t in resident_tensors(model)} - {id(t) for t in (*model.parameters(), *model.buffers())}
        assert sum(t.nbytes for t in resident_tensors(model) if id(t) in extra) == report.bytes
        text = str(report)
        assert text.startswith(f"FP8: {len(inside)} frozen weights")
        assert "2 x model.layers.*.mlp.up_proj stay: trained" in text
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any("slamkern_fp8" in vars(module) for module in model.modules())


def test_it_ends_when_the_block_fails():
    model = prepared()
    with pytest.raises(RuntimeError, match="stop"), frozen_in_fp8(model):
        raise RuntimeError("stop")
    assert not any(isinstance(module, FP8Linear) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_nearly_the_same(family, input_ids):
    model = slamkern.patch_model(tiny_model(family))
    if family in ("gpt2", "falcon"):  # their projections are no nn.Linear, or a subclass of it
        model.requires_grad_(False)
        with pytest.raises(SlamkernError, match="no frozen weight can be in FP8"), frozen_in_fp8(model):
            pass
        return
    apply_selection(gentle(model), (1,), ("down",))
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        with frozen_in_fp8(model) as report:
            actual = model(input_ids=input_ids).logits
        assert report.weights >= 4 * 2 and torch.equal(model(input_ids=input_ids).logits, expected)
    error = float((actual - expected).norm() / expected.norm())
    assert 1e-3 < error < 0.15


def test_what_stays_as_it_is():
    model = prepared(intermediate_size=184)
    model.model.layers[3].self_attn.q_proj.register_forward_hook(lambda *_: None)
    model.model.layers[4].self_attn.k_proj.forward = lambda x: x
    with frozen_in_fp8(model) as report:
        text = str(report)
    assert "6 x model.layers.*.mlp.gate_proj stay: 184 x 64 are not multiples of 16" in text
    assert "1 x model.layers.*.self_attn.q_proj stay: no plain Linear" in text
    assert "1 x model.layers.*.self_attn.k_proj stay: no plain Linear" in text
    apply_selection(patched := prepared(), LayerSelection(layers=(1,), neurons={1: (3, 5)}))
    single = {found.path for found in find(patched) if found.reason == "in an FFN that trains single neurons"}
    assert single == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    with frozen_in_fp8(patched):
        _, gradients = backward(patched)
    assert set(gradients) == {f"model.layers.1.mlp.{name}_proj.weight@neurons" for name in ("up", "down")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_gradients_are_close_to_those_without(dtype):
    model = gentle(prepared(dtype))
    loss, expected = backward(model)
    with frozen_in_fp8(model):
        rough, actual = backward(model)
    assert rough != loss and rough == pytest.approx(loss, rel=0.01)
    for name, gradient in expected.items():
        mine, theirs = actual[name].double().flatten(), gradient.double().flatten()
        assert torch.nn.functional.cosine_similarity(mine, theirs, 0) > 0.95, name
        assert float(mine.norm() / theirs.norm()) == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_saved_and_counted_is_what_was(recompute):
    model = prepared(torch.bfloat16)
    for ffn in fused_ffns(model):
        ffn.recompute = recompute
    head, batch = read_head(model), packed()

    def saved_and_flops():
        with packed_attention(model), flop_counter() as counter:
            with SavedBytes(model) as saved:
                loss = packed_loss(model, batch, head=head)
            loss.backward()
        return saved.by_module, counter.get_total_flops()

    saved, flops = saved_and_flops()
    with frozen_in_fp8(model):
        assert saved_and_flops() == (saved, flops)
    assert saved["model.layers.4.mlp"] > 0 and "model.layers.0.mlp" not in saved


def test_products_that_a_gpu_would_take_are_counted_too():
    a, b = (torch.zeros(shape).to(torch.float8_e4m3fn) for shape in ((4, 32), (48, 32)))
    with flop_counter() as counter:
        torch._scaled_mm(a, b.t(), torch.ones(1), torch.ones(1), out_dtype=torch.bfloat16)
    assert counter.get_total_flops() == 2 * 4 * 32 * 48


@pytest.mark.parametrize("keep", [True, False])
def test_a_memory_budget_counts_it(keep):
    model = prepared()
    before = footprint(model)
    with frozen_in_fp8(model, keep_transposed=keep) as report:
        measured = footprint(model)
        assert measured.weights == before.weights + report.bytes  # a CPU keeps the originals beside
        assert (measured.saved, measured.recomputable) == (before.saved, before.recomputable)
        assert measured.recomputable
        optimizer, head, batch = MasterAdamW(trained_parameters(model).items()), read_head(model), packed()
        with packed_attention(model):
            for growth in (None, []):  # moments exist from the first step on
                with peak_growth(torch.device("cpu")) as growth:
                    (packed_loss(model, batch, head=head) / sum(LENGTHS)).backward()
                    optimizer.collect_gradients()
                    optimizer.step(1e-5)
    expected = measured.total(sum(LENGTHS)) - measured.weights - measured.state
    assert 0.95 <= expected / growth[0] <= 1.3


def test_an_export_inside_has_the_original_values(tmp_path, tiny_tokenizer):
    model = prepared()
    with frozen_in_fp8(model):
        export_model(model, tiny_tokenizer, tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert same_weights(loaded, model)


def test_mistakes_are_one_line(monkeypatch):
    model = prepared()
    with frozen_in_fp8(model), pytest.raises(SlamkernError, match="is in FP8 already"), frozen_in_fp8(model):
        pass
    model.requires_grad_(True)
    trained = r"no frozen weight can be in FP8 \(model.layers.0.self_attn.q_proj: trained"
    with pytest.raises(SlamkernError, match=trained), frozen_in_fp8(model):
        pass
    assert "CUDA devices, not on mps" in fp8.unavailable_reason(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    assert fp8.unavailable_reason(torch.device("cuda")).endswith("8.9 or newer (Ada, Hopper); A100 has 8.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert fp8.unavailable_reason(torch.device("cuda")) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="this GPU has no FP8 products"
)
@pytest.mark.parametrize("keep", [True, False])
def test_on_cuda_the_products_match_the_emulation_and_memory_is_saved(keep):
    model = prepared(torch.bfloat16, hidden_size=256, intermediate_size=512).cuda()
    originals = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    x = torch.randn(100, 256, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(100, 512, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    with frozen_in_fp8(model, keep_transposed=keep) as report:
        assert before - torch.cuda.memory_allocated() > 0.9 * (report.bytes_before - report.bytes)
        weight: nn.Linear = model.model.layers[4].mlp.gate_proj
        assert weight.weight.device.type == "cpu" and model.device.type == "cuda"
        on_gpu = weight.slamkern_fp8
        on_cpu = copy.deepcopy(on_gpu)
        on_cpu.values, on_cpu.scale = on_gpu.values.cpu(), on_gpu.scale.cpu()
        on_cpu._transposed = None
        for mine, theirs in (
            (
                on_gpu.project(on_gpu.quantized(x), None, x.dtype),
                on_cpu.project(on_cpu.quantized(x.cpu()), None, x.dtype),
            ),
            (on_gpu.input_gradient(grad), on_cpu.input_gradient(grad.cpu())),
        ):
            assert float((mine.cpu().float() - theirs.float()).norm() / theirs.float().norm()) < 5e-3
        assert all(torch.equal(tensor.cpu(), originals[name]) for name, tensor in model.state_dict().items())
        batch = packed().to("cuda")
        packed_loss(model, batch).backward()
    for name, tensor in model.state_dict().items():
        assert tensor.is_cuda and torch.equal(tensor.cpu(), originals[name]), name
