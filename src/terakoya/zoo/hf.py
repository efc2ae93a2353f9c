"""Hugging Face's config.json and our spec, by one table per family that is read in both directions.

A key maps either to a path of the spec (a number or flag that is the same on both sides) or to a codec. Keys that say
nothing about structure (token ids, dropout, dtype) are passed over by name; any other unknown key whose value is not
empty is an error, since ignoring it could load another model than the file means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from terakoya.config import build, dump, hints, load, override, values
from terakoya.errors import TerakoyaError
from terakoya.model import spec
from terakoya.model.spec_sparse import Lsh
from terakoya.zoo.codec import NULL, Changes, Codec, Config, Key, written
from terakoya.zoo.layers import apply

DEEPEST = 10_000  # layers

IGNORED = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype name_or_path _name_or_path auto_map tokenizer_class
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id unk_index bos_index eos_index pad_index
    mask_index forced_bos_token_id forced_eos_token_id id2label label2id problem_type finetuning_task
    task_specific_params transformers.js_config is_llama_config prefix
    attention_dropout hidden_dropout embd_pdrop emb_pdrop attn_pdrop resid_pdrop dropout activation_dropout layerdrop
    hidden_dropout_prob attention_probs_dropout_prob classifier_dropout residual_dropout embedding_dropout
    initializer_range init_std init_device use_mup_init gradient_checkpointing pretraining_tp
    chunk_size_feed_forward use_cache cache_implementation return_dict output_hidden_states output_attentions
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder pruned_heads
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    predict_special_tokens torchscript use_bfloat16
    reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 slow_but_exact n_ctx
    output_router_logits router_aux_loss_coef router_jitter_noise aux_loss_alpha seq_aux ep_size
    num_nextn_predict_layers unsloth_version
    temperature top_k top_p repetition_penalty length_penalty typical_p do_sample early_stopping max_length min_length
    num_beams num_beam_groups diversity_penalty num_return_sequences no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens remove_invalid_values
    exponential_decay_length_penalty return_dict_in_generate output_scores
    """.split()  # noqa: SIM905
)


def unknown(keys: Mapping[str, Key], config: Config) -> list[str]:
    """Return the keys of a config.json that say something about structure and that a table does not know."""
    claimed = {name for target in keys.values() if isinstance(target, Codec) for name in target.claims()}
    return [k for k, v in config.items() if k not in keys and k not in claimed and k not in IGNORED and not _empty(v)]


def read_config(base: spec.Model, keys: Mapping[str, Key], config: Config, place: str) -> spec.Model:
    """Return the spec that a config.json describes, starting from the family's."""
    for key in unknown(keys, config):
        raise TerakoyaError(f"{place}: {key}", "has no meaning for this family", given=config[key])
    changes: Changes = {}
    patterns: list[tuple[str, Codec]] = []
    for key, target in keys.items():
        value = config.get(key)
        if isinstance(target, Codec):
            if key in config or target.always:
                changes |= _guarded(f"{place}: {key}", value, lambda t=target, v=value: t.read(v, config))
                patterns.append((key, target))
        elif value is not None:
            changes[target] = _typed(base, target, value, f"{place}: {key}")
    s = _arrange(base, changes.pop("depth", base.depth), patterns, config, place)
    whole = (".layout", ".depth", ".blocks")  # of an encoder: what is said of its parts holds for these
    for path in sorted(changes, key=lambda p: (not p.endswith(whole), p.count("."))):
        if values(s, path) or "." not in path:
            s = _guarded(place, changes[path], lambda p=path, s=s: override(s, {p: changes[p]}))
    return _checked(simplest(s), place)


def _arrange(base: spec.Model, depth: int, patterns: list[tuple[str, Codec]], config: Config, place: str) -> spec.Model:
    """Build the list of layers, each as the per-layer keys say."""
    if not 0 < depth <= DEEPEST:
        raise TerakoyaError(f"{place}: number of layers", given=depth, allowed=f"1 to {DEEPEST}")
    layers = list(replace(base, depth=depth, layout=base.layout and base.layout[:depth]).layers())
    for key, codec in patterns:
        value = config.get(key)
        layers = _guarded(f"{place}: {key}", value, lambda c=codec, v=value, a=layers: apply(c, a, v, config))
    return simplest(replace(base, depth=depth, layout=None, blocks=tuple(layers)))


def _guarded(place: str, value: Any, act: Any) -> Any:
    """Call `act`; what goes wrong in it is said of `place` in one line."""
    try:
        return act()
    except TerakoyaError as error:
        raise TerakoyaError(place, str(error).removeprefix(": ")) from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise TerakoyaError(place, f"cannot be read ({type(error).__name__}: {error})", given=value) from None


def _typed(base: spec.Model, path: str, value: Any, place: str) -> Any:
    """Return a plain value as the type of the field at `path`."""
    owner, _, name = path.rpartition(".")
    found = values(base, owner) if owner else [base]
    return build(hints(type(found[0]))[name], value, place=place) if found else value


def _checked(s: spec.Model, place: str) -> spec.Model:
    """Make sure that every value of a spec is of its field's type."""
    try:
        spec.check(s)
        return load(spec.Model, dump(s))
    except TerakoyaError as error:
        raise TerakoyaError(place, str(error)) from None


def simplest(s: spec.Model) -> spec.Model:
    """Say the same network the shortest way: a repeating pattern without a layout, defaults left out."""
    s = replace(s, encoder=s.encoder and simplest(s.encoder))
    known: dict[spec.Block, spec.Block] = {}
    layers = [known.setdefault(block, block) for block in s.layers()]
    plain = {block: _plain(block, s.dim) for block in known}
    layers = [plain[block] for block in layers]
    for period in range(1, min(s.depth, 64)):
        if layers[period:] == layers[:-period]:
            return replace(s, layout=None, blocks=tuple(layers[:period]))
    if s.depth == 1:
        return replace(s, layout=None, blocks=tuple(layers))
    blocks = tuple(dict.fromkeys(layers))
    layout = [blocks.index(block) for block in layers]
    while len(layout) > 1 and layout[-1] == layout[-2]:
        layout.pop()
    return replace(s, layout=tuple(layout), blocks=blocks)


def _plain(block: spec.Block, dim: int) -> spec.Block:
    branches = []
    for branch in block.branches:
        mix = tuple(_plain_mixer(m, dim) for m in branch.mix)
        branches.append(replace(branch, mix=mix))
    return spec.Block(tuple(branches))


def _plain_mixer(a: spec.Mixer, dim: int) -> spec.Mixer:
    if not isinstance(a, spec.Attention | Lsh):
        return a
    same = a.head_dim is not None and a.head_dim * a.heads == dim
    if isinstance(a, Lsh):
        return replace(a, head_dim=None if same else a.head_dim)
    return replace(a, kv_heads=None if a.kv_heads == a.heads else a.kv_heads, head_dim=None if same else a.head_dim)


def _empty(value: Any) -> bool:
    return value is None or value is False or (not isinstance(value, bool) and value in ("", [], {}, 0, 0.0))


def write_config(s: spec.Model, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Return the structural keys of config.json for a spec."""
    out: dict[str, Any] = {}
    for key, target in keys.items():
        value = written(target, s)
        if value is not None:
            out[key] = None if value is NULL else value
    return out
