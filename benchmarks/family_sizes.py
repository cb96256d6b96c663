"""A tiny configuration of any model of transformers: their fields bear a dozen names for the same sizes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# A configuration takes the fields it has. Two layers everywhere: a first one that may be special, and another.
_SIZES: Mapping[int, str] = MappingProxyType(
    {
        96: "vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab",
        32: "hidden_size n_embd d_model emb_dim input_embedding_size output_embedding_size word_embed_proj_dim"
        " lru_width backbone_hidden_size hidden_size_global",
        48: "intermediate_size intermediate_size_mlp ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff d_inner"
        " feed_forward_size ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size"
        " dense_intermediate_size",
        2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads"
        " eos_token_id num_experts_per_tok moe_topk moe_k index_n_heads",
        4: "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads num_experts"
        " encoder_attention_heads n_routed_experts num_local_experts moe_num_experts mamba_n_heads mamba_num_heads"
        " linear_num_key_heads linear_num_value_heads linear_num_heads laurel_rank",
        8: "head_dim dim_head rotary_dim v_head_dim qk_nope_head_dim qk_rope_head_dim global_head_dim kv_channels"
        " attention_head_size hidden_size_per_layer_input linear_key_head_dim linear_value_head_dim linear_head_dim"
        " index_head_dim",
        16: "moe_intermediate_size moe_shared_expert_intermediate_size mamba_d_head mamba_head_dim kv_lora_rank"
        " q_lora_rank o_lora_rank mamba_d_state state_size ssm_state_size adapter_rank expert_ffn_hidden_size"
        " router_hidden_size gated_norm_rank index_topk chunk_size mamba_chunk_size",
        64: "mamba_d_ssm max_position_embeddings n_positions n_ctx max_seq_len context_length sliding_window",
        1: "bos_token_id n_group topk_group mamba_n_groups n_groups mamba_ngroups",
        0: "pad_token_id num_kv_shared_layers",
    }
)
SIZES = MappingProxyType({name: size for size, names in _SIZES.items() for name in names.split()})
# What some need beside that, for their defaults name more layers or other widths.
_OWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "lfm2": {"layer_types": ["conv", "full_attention"]},
        "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        "mamba2": {"head_dim": 16},
        # Tokens are codes of sound, several in parallel; one of them is a sequence of tokens as others have it.
        "musicgen": {"num_codebooks": 1},
        "musicgen_melody": {"num_codebooks": 1},
        # Only in training mode it has a backward, for whole chunks and positions of as many tokens as the table tries.
        "reformer": {
            "attn_layers": ["local", "lsh"],
            "axial_pos_embds_dim": [8, 24],
            "axial_pos_shape": [3, 4],
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "hash_seed": 0,
            "hidden_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
        },
        "cohere_compass_text": {
            "layer_types": ["sliding_attention", "full_attention"],
            # Half a head's width: pairs that turn with the height, the width and the time of an image.
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
                for kind in ("sliding_attention", "full_attention")
            },
        },
        # Its attention reads the base of its rotations where its configuration has no such field.
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 48},
        },
        "xmod": {"default_language": "en_XX"},
        # Their second hybrid layer shares the weights of the first.
        "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4},
        "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4},
        "zaya": {"num_experts_per_tok": 1},
    }
)

# An assistant takes keys and values from the model that it drafts for, and has no embeddings a layer.
_DRAFT = MappingProxyType({"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0})
# Parts that may be of any kind: of which they are here.
_PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", **_DRAFT}},
        "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text", **_DRAFT}},
        "got_ocr2": {"text_config": {"model_type": "qwen2"}},
    }
)
# The causal language model is this part of them, and has its configuration.
_ONLY = MappingProxyType({"musicgen": "decoder", "musicgen_melody": "decoder"})


def tiny_config(model_type: str) -> Any:
    """The configuration of this model type with small sizes, its parts (text, vision) small too."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = CONFIG_MAPPING[model_type]
    if model_type in _ONLY:
        own = own.sub_configs[_ONLY[model_type]]
    parts: dict[str, Any] = {}
    for name, kind in own.sub_configs.items():
        if hasattr(kind, "__dataclass_fields__"):
            parts[name] = _sizes(kind)
        elif part := _PARTS.get(model_type, {}).get(name):
            parts[name] = _sizes(CONFIG_MAPPING[part["model_type"]]) | dict(part)
    return own(**{**_sizes(own), **parts, **_OWN.get(model_type, {})})


def _sizes(config: Any) -> dict[str, Any]:
    names = {*config.__dataclass_fields__, *config.attribute_map}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has as many keys as queries
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if "is_decoder" in names:
        sizes["is_decoder"] = True
    return sizes
