"""Packed attention by name, for trainers that flatten their batches.

    from slamkern.integrations.packed_attention import register
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation=register())

From then on each sequence of a row sees only itself, on every device and in every dtype, in batches of transformers'
``DataCollatorWithFlattening`` and of TRL with ``padding_free`` or ``packing_strategy="bfd"``. Padding and caches are
refused: call ``model.set_attn_implementation("sdpa")`` before padded batches and ``generate()``.
Use ``check_first_batch`` or ``SlamCallback`` with it: they refuse a model that cannot be packed.
"""

from slamkern.modules import packed_attention


def register() -> str:
    """Make the implementation known to transformers and return its name, ``"slamkern_packed"``.

    In a process that has not called this, transformers refuses the name.
    """
    packed_attention.register()
    return packed_attention.NAME
