"""Tiny random encoders and encoder–decoders of transformers, and the same weights in ours."""

from __future__ import annotations

import functools
import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch

from terakoya.zoo.convert import Loaded, load

TINY = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
DISTIL = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 64}
ALBERT = BERT | {"embedding_size": 24, "num_hidden_layers": 4, "num_hidden_groups": 2}
T5 = {
    "d_model": 48,
    "d_kv": 16,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,  # transformers' cache has room for as many layers as the encoder has
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 2,
}
MARIAN = {
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

# name: (model_type, class, config)
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "BertForPreTraining", BERT),
    "bert-relu": ("bert", "BertForMaskedLM", BERT | {"hidden_act": "relu", "type_vocab_size": 3}),
    "bert-bare": ("bert", "BertModel", BERT),
    "roberta": ("roberta", "RobertaForMaskedLM", BERT),
    "xlm-r": ("xlm-roberta", "XLMRobertaForMaskedLM", BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("distilbert", "DistilBertForMaskedLM", DISTIL),
    "albert": ("albert", "AlbertForPreTraining", ALBERT),
    "albert-wide": ("albert", "AlbertForMaskedLM", ALBERT | {"embedding_size": 48, "num_hidden_groups": 1}),
    "electra": ("electra", "ElectraForPreTraining", BERT | {"embedding_size": 24}),
    "electra-wide": ("electra", "ElectraForPreTraining", BERT | {"embedding_size": 48}),
    "electra-generator": ("electra", "ElectraForMaskedLM", BERT | {"embedding_size": 24}),
}
ENCODERS |= {
    "modernbert": ("modernbert", "ModernBertForMaskedLM", BERT | {"num_hidden_layers": 5, "local_attention": 8}),
    "modernbert-biases": (
        "modernbert",
        "ModernBertForMaskedLM",
        BERT | {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "local_attention": 6},
    ),
}  # fmt: skip
DEBERTA = BERT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
ENCODERS |= {
    "deberta": ("deberta", "DebertaForMaskedLM", DEBERTA | {"max_relative_positions": 12}),
    "deberta-c2p": ("deberta", "DebertaForMaskedLM", DEBERTA | {"pos_att_type": "c2p", "type_vocab_size": 2}),
    "deberta-v2": (
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        DEBERTA
        | {
            "position_buckets": 8,
            "position_biased_input": True,
            "conv_kernel_size": 5,
            "conv_groups": 2,
            "conv_act": "gelu",
        },
    ),
    "deberta-v3": (
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        DEBERTA | {"position_buckets": 6, "share_att_key": True, "norm_rel_ebd": "layer_norm", "embedding_size": 24},
    ),
}
XLNET = {"d_model": 48, "n_layer": 3, "n_head": 4, "d_inner": 80}
ENCODERS |= {
    "xlnet": ("xlnet", "XLNetLMHeadModel", XLNET),
    "xlnet-uni": ("xlnet", "XLNetLMHeadModel", XLNET | {"attn_type": "uni", "ff_activation": "relu"}),
}
UNTIED = {"tie_word_embeddings": False}
PAIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transformer": ("marian", "MarianMTModel", MARIAN | {"scale_embedding": True, "activation_function": "relu"}),
    "marian-two-tables": ("marian", "MarianMTModel", MARIAN | {"share_encoder_decoder_embeddings": False}),
    "bart": ("bart", "BartForConditionalGeneration", MARIAN),
    "mbart": ("mbart", "MBartForConditionalGeneration", MARIAN | {"scale_embedding": True}),
    "t5": ("t5", "T5ForConditionalGeneration", T5),
    "t5-v1.1": ("t5", "T5ForConditionalGeneration", T5 | UNTIED | {"feed_forward_proj": "gated-gelu"}),
}  # fmt: skip
PAIRS |= {
    "mt5": ("mt5", "MT5ForConditionalGeneration", T5),
    "umt5": ("umt5", "UMT5ForConditionalGeneration", T5),
    "ul2": ("t5", "T5ForConditionalGeneration", T5 | UNTIED | {"feed_forward_proj": "gated-silu"}),
    "switch": (
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        T5 | {"num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 2}
        | {"num_decoder_layers": 3},
    ),
    "switch-crowded": (
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        T5 | {"num_experts": 4, "expert_capacity": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1}
        | {"router_bias": True},
    ),
}  # fmt: skip
EYE = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
}
IMAGE = 98
SEEING: dict[str, dict[str, Any]] = {  # LLaVA's keys beside those of its text
    "default": {"vision_config": EYE, "image_token_index": IMAGE},
    "full": {
        "vision_config": EYE | {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
        "image_token_index": IMAGE,
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
}
TOLERANCE = 2e-5  # times the spread: transformers computes norms and softmax in fp32, in another order


@functools.cache
def pair(name: str) -> tuple[Any, Loaded, Path]:
    """Return (their model, ours loaded from their saved folder, the folder); every number is randomised."""
    import transformers

    model_type, cls, config = (ENCODERS | PAIRS)[name]
    torch.manual_seed(len(name))
    made = transformers.AutoConfig.for_model(model_type, **(TINY | config))
    made._attn_implementation = "eager"
    theirs = getattr(transformers, cls)(made).eval()
    with torch.no_grad():
        for p in [*theirs.parameters(), *(b for k, b in theirs.named_buffers() if k == "final_logits_bias")]:
            if p.requires_grad or not isinstance(p, torch.nn.Parameter):
                p.copy_(torch.randn_like(p) * 0.08 if p.dim() > 1 else p + 0.2 * torch.randn_like(p))
    settle(theirs)
    folder = Path(tempfile.mkdtemp()) / name
    theirs.save_pretrained(folder)
    return theirs, load(folder), folder


def settle(theirs: Any) -> None:
    """Undo what transformers 5.23 does to umT5: it forces the tie, and with it T5's scale, which umT5 never had."""
    if theirs.config.model_type == "umt5":
        theirs.config.tie_word_embeddings = False


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids (length,)."""
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(seed))


def padded(a: torch.Tensor, b: torch.Tensor, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (2, len(a)) and mask, the shorter b padded."""
    gap = torch.full((len(a) - len(b),), TINY["pad_token_id"])
    ids = torch.stack([a, torch.cat([gap, b] if left else [b, gap])])
    mask = torch.ones_like(ids)
    mask[1, : len(gap)] = 0
    return ids, mask if left else mask.index_select(1, torch.arange(len(a) - 1, -1, -1))


def takes(model: Any, name: str) -> bool:
    """Tell whether a model's forward has an argument."""
    return name in inspect.signature(model.forward).parameters
