"""Models whose weights, and mostly whose structure, were never published: history only."""

from __future__ import annotations

from terakoya.zoo.node import Closed, Note

NODES = (
    Closed(
        name="gpt3.5",
        title="GPT-3.5",
        born="2022-03",
        parent="gpt3",
        takes=("codex", "instructgpt"),
        note=Note(
            "GPT-3 trained on with code and instructions: text-davinci-002 and -003, then gpt-3.5-turbo",
            "コードと指示で GPT-3 をさらに訓練。text-davinci-002・003、のちに gpt-3.5-turbo",
        ),
    ),
    Closed(
        name="chatgpt",
        title="ChatGPT",
        born="2022-11",
        parent="gpt3.5",
        takes=("instructgpt",),
        note=Note(
            "InstructGPT's method on conversations, opened to everybody",
            "InstructGPT の方法を会話に使い、誰にでも開いた",
        ),
        paper="https://openai.com/blog/chatgpt",
    ),
    Closed(
        name="gpt4",
        title="GPT-4",
        born="2023-03",
        parent="gpt3.5",
        note=Note(
            "reads pictures as well; the report says neither size nor structure",
            "画像も読む。報告書は大きさも構造も明かさない",
        ),
        paper="OpenAI 2023, arXiv:2303.08774",
    ),
    Closed(
        name="gpt4-turbo",
        title="GPT-4 Turbo",
        born="2023-11",
        parent="gpt4",
        note=Note("128k tokens of context, at a lower price", "文脈は 12 万 8 千トークン、価格は下がる"),
    ),
    Closed(
        name="reasoning-models",
        title="o1, o3 (reasoning models)",
        born="2024-09",
        parent="gpt4",
        note=Note(
            "models that think in writing before they answer, taught by reinforcement: "
            "o1 and o3, Claude 3.7 Sonnet, Gemini 2.0 Flash Thinking",
            "答える前に書いて考えることを強化学習で身につけたモデル。"
            "o1・o3、Claude 3.7 Sonnet、Gemini 2.0 Flash Thinking",
        ),
    ),
    Closed(
        name="titan",
        title="Amazon Titan",
        born="2023-04",
        note=Note("Amazon's own models behind the Bedrock service", "Bedrock で提供される Amazon 自身のモデル群"),
    ),
    Closed(
        name="bard",
        title="Bard",
        born="2023-02",
        parent="lamda",
        takes=("palm",),
        note=Note(
            "Google's chat service: LaMDA at first, PaLM 2 and Gemini later",
            "Google の対話サービス。はじめは LaMDA、のちに PaLM 2 と Gemini",
        ),
    ),
    Closed(
        name="minerva",
        title="Minerva",
        born="2022-06",
        parent="palm",
        note=Note(
            "PaLM trained on with papers and web pages that keep their formulas",
            "数式を残した論文とウェブページで PaLM をさらに訓練",
        ),
        paper="Lewkowycz 2022, arXiv:2206.14858",
    ),
    Closed(
        name="palm2",
        title="PaLM 2",
        born="2023-05",
        parent="palm",
        takes=("ul2",),
        note=Note(
            "smaller than PaLM, with more and more multilingual data and a mixture of objectives",
            "PaLM より小さく、より多くの多言語データと混合した目的関数で訓練",
        ),
        paper="Anil 2023, arXiv:2305.10403",
    ),
    Closed(
        name="gemini",
        title="Gemini",
        born="2023-12",
        parent="palm2",
        note=Note(
            "text, image, sound and video in one model from the start of training",
            "文章・画像・音声・動画を訓練の初めから一つのモデルで扱う",
        ),
        paper="Gemini Team 2023, arXiv:2312.11805",
    ),
    Closed(
        name="flan-palm",
        title="Flan-PaLM",
        born="2022-10",
        parent="palm",
        takes=("flan",),
        note=Note(
            "PaLM tuned on 1,836 tasks phrased as instructions, some with their reasoning",
            "指示の形にした 1,836 課題（一部は思考過程つき）で PaLM を調整",
        ),
        paper="Chung 2022, arXiv:2210.11416",
    ),
    Closed(
        name="flan-u-palm",
        title="Flan-U-PaLM",
        born="2022-10",
        parent="ul2r",
        takes=("palm", "flan"),
        note=Note("the same tuning after UL2R's extra objectives", "UL2R の目的で追加訓練したあと、同じ調整を行う"),
        paper="Chung 2022, arXiv:2210.11416",
    ),
    Closed(
        name="claude",
        title="Claude",
        born="2023-03",
        takes=("gpt3",),
        note=Note(
            "Anthropic's assistant; its harmlessness is taught with a written list of principles",
            "Anthropic のアシスタント。無害さを、文章にした原則で教える",
        ),
        paper="method: Bai 2022, Constitutional AI, arXiv:2212.08073",
    ),
    Closed(
        name="claude2",
        title="Claude 2",
        born="2023-07",
        parent="claude",
        note=Note("100k tokens of context, open to the public", "文脈は 10 万トークン。一般に公開"),
    ),
    Closed(
        name="claude2.1",
        title="Claude 2.1",
        born="2023-11",
        parent="claude2",
        note=Note("200k tokens of context and tool use", "文脈は 20 万トークン。道具の利用も始まる"),
    ),
    Closed(
        name="sparrow",
        title="Sparrow",
        born="2022-09",
        parent="chinchilla",
        note=Note(
            "a dialogue agent that cites what it searched, taught by people's preferences and broken rules",
            "検索した根拠を示す対話エージェント。人の好みと規則違反の判定から学ぶ",
        ),
        paper="Glaese 2022, arXiv:2209.14375",
    ),
    Closed(
        name="gophercite",
        title="GopherCite",
        born="2022-03",
        parent="gopher",
        note=Note(
            "answers with a verbatim quotation, or says that it does not know",
            "原文の引用をつけて答え、わからなければわからないと言う",
        ),
        paper="Menick 2022, arXiv:2203.11147",
    ),
    Closed(
        name="alphacode2",
        title="AlphaCode 2",
        born="2023-12",
        parent="gemini",
        takes=("alphacode",),
        note=Note(
            "AlphaCode's sample, filter and cluster, on Gemini",
            "大量に生成し、ふるい、まとめる AlphaCode の方法を Gemini で行う",
        ),
    ),
)
