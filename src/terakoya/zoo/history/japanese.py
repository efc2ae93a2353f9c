"""Japan's models that keep another family's structure: trained from nothing, trained on, or tuned.

Facts of data and licence: the table of llm-jp/awesome-japanese-llm and the makers' model cards.
"""

from __future__ import annotations

from terakoya.zoo.node import Note, Tuning

PRETRAIN = Note("pretraining from nothing", "一からの事前学習")
CONTINUE = Note("continued training on Japanese text", "日本語の文章での継続訓練")

NODES = (
    Tuning(
        name="japanese-gpt-neox-sft",
        title="Japanese-GPT-NeoX instruction-sft",
        born="2023-05",
        parent="japanese-gpt-neox",
        takes=("flan",),
        note=Note("rinna's 3.6B taught to converse", "会話するように教えた rinna の 3.6B"),
        data=Note("parts of HH-RLHF, FLAN and SHP, in Japanese", "日本語にした HH-RLHF・FLAN・SHP の一部"),
        method=Note("supervised tuning", "教師あり調整"),
        recipe="sft",
        paper="Sawada 2024, arXiv:2404.01657",
        licence="MIT",
    ),
    Tuning(
        name="japanese-gpt-neox-ppo",
        title="Japanese-GPT-NeoX instruction-ppo",
        born="2023-05",
        parent="japanese-gpt-neox-sft",
        takes=("instructgpt",),
        note=Note(
            "an early openly licensed Japanese model with reinforcement from preferences",
            "好みによる強化学習まで行った、早い時期の公開日本語モデル",
        ),
        data=Note("HH-RLHF, in Japanese", "日本語にした HH-RLHF"),
        method=Note("PPO after supervised tuning", "教師あり調整のあとの PPO"),
        recipe="rlhf",
        paper="Sawada 2024, arXiv:2404.01657",
        licence="MIT",
    ),
    Tuning(
        name="calm2",
        title="CALM2",
        born="2023-11",
        parent="llama",
        takes=("opencalm",),
        note=Note(
            "CyberAgent's 7B in LLaMA's shape; the chat model reads 32k tokens",
            "LLaMA の形をしたサイバーエージェントの 7B。対話版は 3 万 2 千トークンを読む",
        ),
        data=Note(
            "1.3 trillion tokens of public Japanese and English text", "公開された日本語と英語の文章 1.3 兆トークン"
        ),
        method=PRETRAIN,
        recipe="pretrain",
        paper="https://www.cyberagent.co.jp/news/detail/id=29479",
        licence="Apache-2.0",
    ),
    Tuning(
        name="elyza",
        title="ELYZA-japanese-Llama-2",
        born="2023-08",
        parent="llama2",
        note=Note(
            "LLaMA 2 trained on with Japanese; the “fast” variants add Japanese tokens",
            "日本語で訓練を続けた LLaMA 2。fast 版は日本語のトークンを足してある",
        ),
        data=Note(
            "18 billion tokens: Japanese Wikipedia, OSCAR and crawled pages",
            "180 億トークン。日本語 Wikipedia、OSCAR、収集したページ",
        ),
        method=CONTINUE,
        recipe="continue-pretraining",
        paper="https://note.com/elyza/n/na405acaca130",
        licence="Llama 2 Community",
    ),
    Tuning(
        name="youri",
        title="Youri",
        born="2023-10",
        parent="llama2",
        note=Note("rinna's LLaMA 2 7B, trained on with Japanese", "日本語で訓練を続けた rinna の LLaMA 2 7B"),
        data=Note(
            "about 40 billion tokens of Japanese and English: CC-100, C4, OSCAR, The Pile, Wikipedia",
            "日本語と英語 約 400 億トークン。CC-100、C4、OSCAR、The Pile、Wikipedia",
        ),
        method=CONTINUE,
        recipe="continue-pretraining",
        paper="Sawada 2024, arXiv:2404.01657",
        licence="Llama 2 Community",
    ),
    Tuning(
        name="swallow",
        title="Swallow",
        born="2023-12",
        parent="llama2",
        note=Note(
            "more Japanese tokens in the vocabulary, then continued training at 7B, 13B and 70B",
            "語彙に日本語を足してから訓練を続ける。7B・13B・70B",
        ),
        data=Note(
            "about 100 billion tokens: Swallow Corpus, Japanese Wikipedia, RefinedWeb, The Pile",
            "約 1 千億トークン。Swallow コーパス、日本語 Wikipedia、RefinedWeb、The Pile",
        ),
        method=Note("a larger vocabulary, then continued training", "語彙の拡張、続いて継続訓練"),
        recipe="continue-pretraining",
        paper="Fujii 2024, arXiv:2404.17790",
        licence="Llama 2 Community",
    ),
    Tuning(
        name="llm-jp",
        title="LLM-jp",
        born="2023-10",
        parent="llama",
        takes=("gpt2",),
        note=Note(
            "an open community's models with all data and code; v1 has GPT-2's shape, v2 and later LLaMA's",
            "データもコードも公開する共同研究のモデル群。v1 は GPT-2 の形、v2 からは LLaMA の形",
        ),
        data=Note(
            "llm-jp-corpus: Wikipedia, Japanese mC4, The Pile, The Stack (v1: 300 billion tokens)",
            "llm-jp-corpus。Wikipedia、日本語 mC4、The Pile、The Stack（v1 は 3 千億トークン）",
        ),
        method=PRETRAIN,
        recipe="pretrain",
        paper="LLM-jp 2024, arXiv:2407.03963",
        licence="Apache-2.0",
    ),
    Tuning(
        name="tanuki",
        title="Tanuki",
        born="2024-08",
        parent="llama",
        takes=("mixtral", "zephyr"),
        note=Note(
            "volunteers around Matsuo Lab: 8B from nothing, and a mixture of experts of 47B",
            "松尾研を中心とする有志の開発。一から訓練した 8B と、47B の専門家混合版",
        ),
        data=Note(
            "web text and much synthetic text: 1.3 trillion tokens (8B), 1.7 trillion (8x8B)",
            "ウェブと大量の合成データ。8B は 1.3 兆、8x8B は 1.7 兆トークン",
        ),
        method=Note("pretraining, supervised tuning, DPO", "事前学習、教師あり調整、DPO"),
        recipe="pretrain",
        paper="https://weblab.t.u-tokyo.ac.jp/2024-08-30/",
        licence="Apache-2.0",
    ),
)
