"""Decoders that are not built yet: a row leaves the tree when a family takes its name."""

from __future__ import annotations

from terakoya.zoo.node import Note, Planned

NODES = (
    Planned(
        name="lamda",
        title="LaMDA",
        born="2021-05",
        parent="transformer",
        takes=("meena",),
        note=Note(
            "a decoder for dialogue, tuned for quality, safety and facts, which may ask tools",
            "対話のためのデコーダー。質・安全・根拠で調整し、道具にもたずねる",
        ),
        paper="Thoppilan 2022, arXiv:2201.08239",
    ),
    Planned(
        name="glam",
        title="GLaM",
        born="2021-12",
        parent="transformer",
        takes=("gpt3",),
        note=Note(
            "every other layer is a mixture of 64 experts, two of them at work per token",
            "一層おきに 64 人の専門家を置き、トークンごとに二人だけ働く",
        ),
        paper="Du 2021, arXiv:2112.06905",
    ),
    Planned(
        name="palm",
        title="PaLM",
        born="2022-04",
        parent="transformer",
        takes=(
            "gpt3",
            "lamda",
        ),
        note=Note(
            "parallel branches, one key and value for all heads, SwiGLU; 540B",
            "並列の枝、全頭で共有する鍵と値、SwiGLU。5,400 億",
        ),
        paper="Chowdhery 2022, arXiv:2204.02311",
    ),
    Planned(
        name="gopher",
        title="Gopher",
        born="2021-12",
        parent="gpt",
        takes=(
            "transformer-xl",
            "gpt2",
        ),
        note=Note(
            "280B with RMSNorm and Transformer-XL's relative positions",
            "RMSNorm と Transformer-XL の相対位置。2,800 億",
        ),
        paper="Rae 2021, arXiv:2112.11446",
    ),
    Planned(
        name="chinchilla",
        title="Chinchilla",
        born="2022-03",
        parent="gopher",
        note=Note(
            "a quarter of Gopher's size on four times the text, and better",
            "Gopher の四分の一の大きさ、四倍の文章で、より賢い",
        ),
        paper="Hoffmann 2022, arXiv:2203.15556",
    ),
    Planned(
        name="phi1",
        title="phi-1",
        born="2023-06",
        parent="gpt2",
        takes=("gpt-j",),
        note=Note(
            "a small model of code, taught on textbooks, many of them generated",
            "小さなコードのモデル。教科書で学び、その多くは生成したもの",
        ),
        paper="Gunasekar 2023, arXiv:2306.11644",
        licence="MIT",
    ),
    Planned(
        name="phi1.5",
        title="phi-1.5",
        born="2023-09",
        parent="phi1",
        note=Note(
            "phi-1's shape on generated textbooks of common sense",
            "phi-1 の形を、生成した常識の教科書で訓練",
        ),
        paper="Li 2023, arXiv:2309.05463",
        licence="MIT",
    ),
    Planned(
        name="phi2",
        title="phi-2",
        born="2023-12",
        parent="phi1.5",
        note=Note(
            "2.7B, the same idea with chosen web text",
            "同じ考えを、選んだウェブ文章とともに 2.7B で",
        ),
        licence="MIT",
    ),
    Planned(
        name="tinyllama",
        title="TinyLlama",
        born="2023-09",
        parent="llama2",
        note=Note(
            "LLaMA 2's shape at 1.1B, trained on 3 trillion tokens",
            "1.1B に縮めた LLaMA 2 を 3 兆トークンで訓練",
        ),
        paper="Zhang 2024, arXiv:2401.02385",
        licence="Apache-2.0",
    ),
    Planned(
        name="mistral",
        title="Mistral",
        born="2023-09",
        parent="llama2",
        note=Note(
            "sliding window; grouped queries",
            "スライディング窓、グループ化クエリ",
        ),
        paper="Jiang 2023, arXiv:2310.06825",
        licence="Apache-2.0",
    ),
    Planned(
        name="mixtral",
        title="Mixtral",
        born="2023-12",
        parent="mistral",
        note=Note(
            "eight experts per layer, two of them at work per token",
            "各層に八人の専門家、トークンごとに二人が働く",
        ),
        paper="Jiang 2024, arXiv:2401.04088",
        licence="Apache-2.0",
    ),
    Planned(
        name="plamo",
        title="PLaMo",
        born="2023-09",
        parent="llama",
        note=Note(
            "one norm before parallel branches, keys and values shared by tiling; Japanese and English, 13B",
            "並列の枝の前に一つの正規化、鍵と値を共有。日本語と英語の 13B",
        ),
        paper="https://www.preferred.jp/en/news/pr20230928/",
        licence="Apache-2.0",
    ),
    Planned(
        name="deepseek-v3",
        title="DeepSeek-V3",
        born="2024-12",
        parent="llama2",
        note=Note(
            "keys and values compressed to a latent; 256 small experts and a shared one; 671B, 37B at work",
            "鍵と値を潜在表現に圧縮。256 の小さな専門家と共有の一人。671B のうち 37B が働く",
        ),
        paper="DeepSeek-AI 2024, arXiv:2412.19437",
    ),
)
