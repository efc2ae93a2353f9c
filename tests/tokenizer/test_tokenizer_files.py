"""Tokenizers on disk: what is saved comes back, transformers reads it, strangers' files work or are refused clearly."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from terakoya.errors import TerakoyaError
from terakoya.tokenizer import Tokenizer, load
from tests.tokenizer.texts import CORPUS, PIECES


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.hash() == tokenizer.hash()
    assert (again.bos, again.eos, again.pad) == (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    assert (again.name, again.template, again.vocab_size) == (tokenizer.name, "chatml", tokenizer.vocab_size)
    assert again.encode_batch(PIECES) == tokenizer.encode_batch(PIECES)
    assert load(tmp_path / "tokenizer.json").hash() == tokenizer.hash()
    before = sorted((f.name, f.read_bytes()) for f in tmp_path.iterdir())
    again.save(tmp_path)
    assert sorted((f.name, f.read_bytes()) for f in tmp_path.iterdir()) == before


def test_the_hash_tells_tokenizers_apart(trained: dict[str, Tokenizer]) -> None:
    one = trained["bpe"]
    hashes = {t.hash() for t in trained.values()}
    assert len(hashes) == len(trained)
    assert (
        Tokenizer(one.description(), name="another", eos=one.eos, bos=one.bos, template="chatml").hash() == one.hash()
    )
    assert Tokenizer(one.description(), eos=one.eos, bos=one.bos).hash() not in hashes
    assert Tokenizer(one.description(), eos=2, bos=one.bos, template="chatml").hash() not in hashes
    assert one.with_template("smollm2").hash() not in hashes
    assert one.with_template("smollm2").template == "smollm2"


def test_transformers_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == "<|endoftext|>"
    for text in CORPUS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    said = theirs.apply_chat_template([{"role": "user", "content": "やあ"}], tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nやあ<|im_end|>\n<|im_start|>assistant\n"


def _strangers() -> dict[str, tokenizers.Tokenizer]:
    """Files as other programs write them: GPT-2, Llama (both ways), T5, BERT."""
    end = ["<unk>", "<s>", "</s>"]
    made: dict[str, tokenizers.Tokenizer] = {}
    gpt2: Any = tokenizers.Tokenizer(models.BPE())
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    gpt2.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    gpt2.add_tokens(["<think>", "   "])
    made["gpt2"] = gpt2
    for name, scheme in (("legacy", None), ("first", "first")):
        llama: Any = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        if scheme:
            llama.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        else:
            llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        llama.train_from_iterator(CORPUS * 5, trainers.BpeTrainer(vocab_size=500, special_tokens=end))
        llama.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
        llama.enable_truncation(4)
        llama.enable_padding(length=50)
        made[f"llama {name}"] = llama
    t5: Any = tokenizers.Tokenizer(models.Unigram())
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.decoder = decoders.Metaspace()
    t5.train_from_iterator(
        CORPUS * 5, trainers.UnigramTrainer(vocab_size=400, special_tokens=end, unk_token="<unk>", show_progress=False)
    )
    made["t5"] = t5
    bert: Any = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer(lowercase=False)
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece(cleanup=False)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert.train_from_iterator(CORPUS * 5, trainers.WordPieceTrainer(vocab_size=400, special_tokens=names))
    made["bert"] = bert
    return made


@pytest.fixture(scope="module")
def strangers() -> dict[str, tokenizers.Tokenizer]:
    return _strangers()


def test_strangers_files_say_the_same_ids_and_text(strangers: dict[str, tokenizers.Tokenizer], tmp_path: Path) -> None:
    for name, theirs in strangers.items():
        path = tmp_path / f"{name}.json"
        theirs.save(str(path))
        ours = load(path)
        theirs.no_truncation()
        theirs.no_padding()
        assert ours.vocab_size == theirs.get_vocab_size()
        for text in (*CORPUS, "吾輩 cat", " a  b"):
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text) == ids, name
            assert ours.encode_parts([(text, False)]) == ids, name
            assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True).strip(), name
            stream = ours.stream()
            assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids), name
        mark = next(n for n, i in ours.specials.items() if i == ours.eos)
        for trusted in (f"猫 cat{mark}dog is", f"{mark}猫", f"a {mark} b{mark}"):
            ids = theirs.encode(trusted, add_special_tokens=False).ids
            assert ours.encode_trusted(trusted) == ids, (name, trusted)
            assert set(ours.specials.values()).isdisjoint(ours.encode(trusted))


def test_marks_are_control_and_spaces_are_text(strangers: dict[str, tokenizers.Tokenizer], tmp_path: Path) -> None:
    strangers["gpt2"].save(str(tmp_path / "gpt2.json"))
    one = load(tmp_path / "gpt2.json")
    assert list(one.specials) == ["<|endoftext|>", "<think>"]
    assert one.wrap() == ([one.specials["<|endoftext|>"]], [])
    three = strangers["gpt2"].token_to_id("   ")
    assert three in one.encode("a   b")
    assert one.token_bytes(three) == b"   "
    assert one.specials["<think>"] not in one.encode("<think>")


def test_rows_of_a_config_are_read(strangers: dict[str, tokenizers.Tokenizer], tmp_path: Path) -> None:
    strangers["llama legacy"].save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": "{{ secret }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    one = load(tmp_path)
    assert (one.bos, one.eos, one.pad, one.template, one.jinja) == (1, 2, None, None, "{{ secret }}")
    assert one.wrap() == ([1], [2])
    assert one.name == tmp_path.name
    config["eos_token"] = "<nothing>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TerakoyaError, match=r"eos_token.*no token of this vocabulary"):
        load(tmp_path)


def _edited(trained: dict[str, Tokenizer], **changes: Any) -> str:
    description = trained["bpe"].description()
    for path, value in changes.items():
        at: Any = description
        *way, last = path.split("__")
        for step in way:
            at = at[step]
        at[last] = value
    return json.dumps(description)


JUNK = (None, 0, -1, 1e308, "x", "", [], {}, [[]], {"type": "x"}, ["a", 1], True, 1 << 70)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_of_another_shape_is_an_error_of_ours(
    trained: dict[str, Tokenizer], tmp_path: Path, data: st.DataObject
) -> None:
    description = trained[data.draw(st.sampled_from(["bpe", "unigram"]))].description()
    at: Any = description
    while True:
        keys = sorted(at) if isinstance(at, dict) else range(min(len(at), 4))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(at[key], dict | list) and at[key]) or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(st.sampled_from(JUNK))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    with suppress(TerakoyaError):
        one = load(path)
        assert isinstance(one.decode(one.encode("吾輩は cat <|im_end|>")), str)


def test_broken_files_are_errors_in_one_line(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    bomb = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    lonely = [{"id": 5, "content": "<other>", "special": True}]
    cases = {
        "": "not proper JSON",
        "[]": "must hold a JSON object",
        "[" * 100_000: "nested too deeply",
        '{"a": NaN}': "NaN is no number",
        '{"a": 1, "a": 2}': "'a' stands twice",
        "{}": "no model we know",
        '{"model": {"type": "Magic"}}': "'Magic' is no model we know",
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}': "is empty",
        '{"model": {"type": "BPE", "vocab": [], "merges": []}}': "must map pieces to ids",
        _edited(trained, model__vocab={"a": 1 << 40}): "allowed: 0 to",
        _edited(trained, model__vocab={"a": -1}): "allowed: 0 to",
        _edited(trained, model__vocab={"a": 1, "b": 1}): "gives id 1 to",
        _edited(trained, added_tokens=lonely): "gives id 5 to",
        _edited(trained, model__merges=[["no", "such"]]): "refused by the tokenizer library",
        _edited(trained, model__continuing_subword_prefix="xx"): "without the prefix 'xx'",
        _edited(trained, pre_tokenizer=bomb): "matching time can explode",
        _edited(trained, decoder={"type": "CTC"}): "decoder we do not know",
        _edited(trained, model__vocab={"\ud800": 650}): "lone surrogate",
    }
    for i, (text, match) in enumerate(cases.items()):
        path = tmp_path / f"{i}.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(TerakoyaError, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    for path, match in ((tmp_path / "none.json", "cannot be read"), (tmp_path / "a.txt", "is no tokenizer")):
        with pytest.raises(TerakoyaError, match=match):
            load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TerakoyaError, match="holds no tokenizer"):
        load(tmp_path / "empty")
