"""Every causal language model of transformers, tiny, with random weights: what is fused, and is it still the same?

    python -m benchmarks.families [--only MODEL_TYPE ...]

One row a model type that ``AutoModelForCausalLM.from_config`` can build small: which FFNs are found and fused, or why
they are left alone; whether SLAM's selection (up and down) can be trained; and how far patched and packed are from the
stock model, as Frobenius norms of differences over those of the values, in float32: logits, gradients of all weights
under next-token loss, and the gradients of the same two sequences packed into one row against padded. Rounding is
about 1e-6.
"""

import argparse
import gc
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.family_sizes import tiny_config
from benchmarks.results import Row
from benchmarks.stage import Stage, show
from slamkern.data.packing import Example, collate, padded_batch
from slamkern.errors import SlamkernError
from slamkern.modules.explain import explain
from slamkern.modules.packed_attention import supports_packing
from slamkern.modules.patch import fused_ffns, patch_model
from slamkern.selection.trainable import apply_selection
from slamkern.training.loss import packed_loss, padded_loss

COLUMNS = ("family", "ffn", "activation", "layers", "fused", "left", "logits", "gradients", "packed", "selection")
BACKWARD_IN_TRAINING = ("reformer",)  # in eval mode it has none
MOST = 40_000_000  # parameters that still are a tiny model


def family(name: str) -> Row:
    """The row of one model type; ``absent`` where it cannot be built or run as it is."""
    row: Row = {"family": name}
    try:
        model = build(name)
        expected = outcome(model)
    except Exception as error:  # transformers raises what it likes for a configuration it does not support
        return row | {"absent": first_line(error)}
    row |= found(model)
    if not row["fused"]:
        return row
    logits, gradients = expected
    try:
        patched = patch_model(model.requires_grad_(True), strict=False)
        got = outcome(patched)
    except SlamkernError as error:
        return row | {"fused": 0, "left": str(error)}
    except Exception as error:  # whatever it is, the table shall say so
        return row | {"failed": first_line(error)}
    row["logits"] = distance([got[0]], [logits])
    row["gradients"] = distance(list(got[1].values()), [gradients[name] for name in got[1]])
    try:
        row["packed"] = packed(patched)
        apply_selection(patched, [next(ffn.layer for ffn in fused_ffns(patched))])
    except SlamkernError as error:
        row["selection"] = str(error)
    except Exception as error:
        row["failed"] = first_line(error)
    return row


def build(name: str) -> Any:
    """A tiny random model, without dropout, with weights wide enough for every part of it to show in the logits."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config(name)
    of_a_part = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    create = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]] if of_a_part else AutoModelForCausalLM.from_config
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in create(config).parameters())
    if size > MOST:
        raise SlamkernError(f"{size:,} parameters even with small sizes")
    model = create(config).float().train(name in BACKWARD_IN_TRAINING)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.1)
    return model


def outcome(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of two sequences, and the gradient of each weight under next-token loss."""
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, 12), generator=drawn)
    model.zero_grad()
    output = model(**(drafting(model, drawn) or {"input_ids": ids}), use_cache=False)
    logits = output.logits.reshape(*ids.shape, -1)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    if not torch.isfinite(loss):
        raise SlamkernError(f"the stock model's loss is {float(loss)}")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), gradients


def drafting(model: Any, drawn: torch.Generator) -> dict[str, Any]:
    """What a model that drafts for another takes of it instead of tokens; nothing for all others."""
    if (backbone := getattr(model.config, "backbone_hidden_size", None)) is None:
        return {}
    text = model.config.get_text_config()
    layers = {kind: text.per_layer_config[index] for index, kind in enumerate(text.layer_types)}
    return {
        "inputs_embeds": torch.randn(2, 12, 2 * backbone, generator=drawn),
        "shared_kv_states": {
            kind: tuple(
                torch.randn(2, layer.num_key_value_heads, 12, layer.head_dim, generator=drawn) for _ in range(2)
            )
            for kind, layer in layers.items()
        },
    }


def found(model: Any) -> Row:
    """What there is to fuse, how much of it is, and the reasons of the rest."""
    rows = explain(model)
    known = [row for row in rows if row.reason is None]
    reasons = list(dict.fromkeys(str(row.reason) for row in rows if row.reason is not None))
    return {
        "ffn": ", ".join(dict.fromkeys(str(row.kind) for row in known)) or None,
        "activation": ", ".join(dict.fromkeys(str(row.activation) for row in known)) or None,
        "layers": getattr(model.config.get_text_config(), "num_hidden_layers", None),
        "fused": len(known),
        "left": "; ".join(reasons) if rows else "no FFN found",
    }


def packed(model: Any) -> float | str:
    """Distance of the gradients of two sequences packed from those padded; or why the model cannot be packed."""
    if (reason := supports_packing(model)) is not None:
        return reason
    drawn = torch.Generator().manual_seed(2)
    texts = [tuple(torch.randint(3, 90, (length,), generator=drawn).tolist()) for length in (9, 14)]
    examples = [Example(ids, (-100, *ids[1:])) for ids in texts]
    if (head := model.get_output_embeddings()) is not None:
        head.requires_grad_(False)  # as in training
    gradients = []
    for loss in (packed_loss(model, collate(examples)), padded_loss(model, padded_batch(examples, pad_id=0))):
        model.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    return distance([ours[name] for name in theirs], list(theirs.values()))


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Frobenius norm of the difference over that of ``theirs``, all tensors as one."""
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (apart / sum(float(tensor.double().square().sum()) for tensor in theirs)) ** 0.5


def first_line(error: Exception) -> str:
    """Type and first line of an error, of at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def main(argv: Sequence[str] | None = None) -> int:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", help="default: all that transformers has")
    own, rest = parser.parse_known_args(argv)
    stage = Stage("families", __doc__.splitlines()[0], rest)
    names = own.only or (["llama", "phi3", "gpt2"] if stage.dry else list(NAMES))
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stage.rows.append(family(name))
        gc.collect()
        print(stage.rows[-1], file=sys.stderr, flush=True)
        stage.save()
    show("Families", stage.rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
