"""Before and beside the networks: rule-based chatbots, the assistants of the 2010s, and one tool everybody uses."""

from __future__ import annotations

from terakoya.zoo.node import Closed, Note

NODES = (
    Closed(
        name="eliza",
        title="ELIZA",
        born="1966",
        sort="bot",
        note=Note(
            "keywords, decompositions and reassemblies from a script; its DOCTOR mirrors the speaker's words",
            "台本にある鍵語・分解・再構成だけで答える。DOCTOR は話し手の言葉を映して返す",
        ),
        paper="Weizenbaum 1966, Communications of the ACM 9(1)",
    ),
    Closed(
        name="parry",
        title="PARRY",
        born="1972",
        sort="bot",
        parent="eliza",
        note=Note(
            "a simulated paranoid patient: patterns, plus fear, anger and mistrust that change with the talk",
            "妄想症患者の模型。型の照合に加え、恐れ・怒り・不信という内部状態が会話とともに動く",
        ),
    ),
    Closed(
        name="jabberwacky",
        title="Jabberwacky",
        born="1982",
        sort="bot",
        note=Note(
            "no hand-written rules: it answers with what people once said to it in a like place",
            "手書きの規則なし。似た場面で人が言ったことを覚えておき、それで答える",
        ),
    ),
    Closed(
        name="alice",
        title="A.L.I.C.E.",
        born="1995",
        sort="bot",
        parent="eliza",
        note=Note(
            "ELIZA's idea grown large: tens of thousands of patterns in AIML, an XML dialect",
            "ELIZA の考えを大きくしたもの。XML の方言 AIML で書いた数万の型",
        ),
    ),
    Closed(
        name="jinko-muno",
        title="人工無能",
        born="1995",
        sort="bot",
        note=Note(
            "Japan's home-made chatbots (Yuibot, Uzura and others): dictionaries, Markov chains, words learnt in chat",
            "日本の手作り会話プログラム（ゆいぼっと、うずらなど）。辞書とマルコフ連鎖、会話から覚えた言葉",
        ),
    ),
    Closed(
        name="desktop-mascot",
        title="デスクトップマスコット",
        born="1998",
        sort="bot",
        note=Note(
            "figures that live and talk on the desktop (Persona Ware, Ukagaka): scripted words with timing and gesture",
            "机上に住んで話す人形（ペルソナウェア、伺か）。間と身ぶりまで台本に書く",
        ),
    ),
    Closed(
        name="smarterchild",
        title="SmarterChild",
        born="2001",
        sort="bot",
        note=Note(
            "a bot in instant messengers that answered with weather, news and small talk",
            "インスタントメッセンジャーに住み、天気・ニュース・雑談で答えたボット",
        ),
    ),
    Closed(
        name="siri",
        title="Siri",
        born="2010-02",
        note=Note(
            "a voice assistant for the telephone: an app first, part of the iPhone from 2011",
            "電話の音声アシスタント。はじめは一つのアプリ、2011 年から iPhone の一部",
        ),
    ),
    Closed(
        name="watson",
        title="IBM Watson",
        born="2011",
        note=Note(
            "search, evidence scoring and many small models together; won the quiz show Jeopardy!",
            "検索と根拠の採点、多くの小さなモデルの合議。クイズ番組 Jeopardy! で優勝",
        ),
    ),
    Closed(
        name="google-now",
        title="Google Now",
        born="2012",
        note=Note(
            "cards with the answer before the question is asked",
            "たずねる前に答えのカードを出す",
        ),
    ),
    Closed(
        name="mitsuku",
        title="Mitsuku",
        born="2013",
        sort="bot",
        parent="alice",
        note=Note(
            "AIML written by one author over many years; winner of the Loebner Prize in 2013 and four times after",
            "一人の作者が長年書きためた AIML。2013 年にローブナー賞、その後さらに四度受賞",
        ),
    ),
    Closed(
        name="alexa",
        title="Alexa",
        born="2014",
        note=Note(
            "a voice in a loudspeaker: wake word, intents, and skills written by others",
            "スピーカーの中の声。呼びかけ語と意図の分類、他人が書き足す「スキル」",
        ),
    ),
    Closed(
        name="cortana",
        title="Cortana",
        born="2014",
        note=Note(
            "Microsoft's voice assistant for Windows Phone, later for Windows 10",
            "Microsoft の音声アシスタント。Windows Phone、のちに Windows 10 に載る",
        ),
    ),
    Closed(
        name="rinna",
        title="りんな",
        born="2015",
        note=Note(
            "Microsoft Japan's schoolgirl on LINE: small talk for its own sake, learnt from conversations",
            "LINE に現れた日本マイクロソフトの女子高生 AI。会話から学んだ、雑談のための雑談",
        ),
    ),
    Closed(
        name="tay",
        title="Tay",
        born="2016",
        note=Note(
            "learnt from strangers on Twitter without a guard, and was switched off within a day",
            "Twitter で見知らぬ人から無防備に学び、一日たらずで止められた",
        ),
    ),
    Closed(
        name="google-assistant",
        title="Googleアシスタント",
        born="2016-05",
        parent="google-now",
        note=Note(
            "Google Now with a two-way conversation",
            "Google Now に双方向の対話を加えたもの",
        ),
    ),
    Closed(
        name="flash-attention",
        title="FlashAttention",
        born="2022-05",
        sort="tool",
        parent="transformer",
        note=Note(
            "exact attention in tiles that stay in fast memory: the score matrix is never written out",
            "高速メモリに収まるタイルで行う厳密な注意機構。得点行列を一度も書き出さない",
        ),
        paper="Dao 2022, arXiv:2205.14135",
    ),
    Closed(
        name="flash-attention2",
        title="FlashAttention-2",
        born="2023-07",
        sort="tool",
        parent="flash-attention",
        note=Note(
            "the same with less bookkeeping and better sharing of the work among threads",
            "同じ計算を、余分な処理を減らし、仕事の分け方を改めて速くしたもの",
        ),
        paper="Dao 2023, arXiv:2307.08691",
    ),
)
