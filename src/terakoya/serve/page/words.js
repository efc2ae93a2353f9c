// Every text of the page, in English and Japanese.
const words = {
  skip: ["Skip to the message", "入力欄へ移動"],
  history: ["Conversations", "会話の一覧"],
  newChat: ["New chat", "新しい会話"],
  newNote: ["New notebook", "新しいノート"],
  import: ["Import", "読み込む"],
  theme: ["Light or dark", "明るさを切り替える"],
  close: ["Close", "閉じる"],
  model: ["Model", "モデル"],
  context: ["Context used", "使った文脈の量"],
  exportMd: ["Export as Markdown", "Markdown で書き出す"],
  exportJson: ["Export as JSON", "JSON で書き出す"],
  settings: ["Settings", "設定"],
  conversation: ["Conversation", "会話"],
  notebook: ["Notebook", "ノート"],
  message: ["Message", "メッセージ"],
  ask: ["Ask something…", "何でも聞いてください…"],
  noteHint: ["Write the beginning of a text; the model continues it.", "文章の書き出しを入れると、モデルが続きを書きます。"],
  send: ["Send", "送信"],
  go: ["Continue", "続きを書く"],
  stop: ["Stop", "停止"],
  undo: ["Undo", "元に戻す"],
  copy: ["Copy", "コピー"],
  copied: ["Copied", "コピーしました"],
  edit: ["Edit", "編集"],
  save: ["Send again", "送り直す"],
  cancel: ["Cancel", "やめる"],
  again: ["Regenerate", "もう一度"],
  remove: ["Delete", "削除"],
  surely: ["Delete this conversation?", "この会話を削除しますか？"],
  earlier: ["Earlier version", "前の版"],
  later: ["Later version", "次の版"],
  you: ["You", "あなた"],
  thinking: ["Thinking", "思考"],
  foot: ["Enter sends, Shift+Enter begins a line, Esc stops. Models make mistakes: check what matters.",
    "Enter で送信、Shift+Enter で改行、Esc で停止。モデルは間違えます。大事なことは確かめてください。"],
  hello: ["What shall we learn today?", "今日は何を学びましょうか"],
  helloMore: ["Everything stays on this machine: the model, and this conversation in your browser.",
    "モデルはこの機械で動き、会話はこのブラウザーの中だけに残ります。"],
  try1: ["Explain why the sky is blue to a child.", "空が青い理由を子どもに説明してください。"],
  try2: ["Write a short poem about a village school.", "村の学校について短い詩を書いてください。"],
  try3: ["Write a Python function that reverses a string.", "文字列を逆順にする Python の関数を書いてください。"],
  tokens: ["tokens", "トークン"],
  speed: ["tokens/s", "トークン/秒"],
  first: ["first after", "最初の語まで"],
  stopped: ["stopped", "停止しました"],
  cut: ["cut at the limit of tokens", "トークン数の上限で終わりました"],
  answered: ["Answer complete", "回答が終わりました"],
  network: ["The server does not answer.", "サーバーが応答しません。"],
  full: ["The browser's storage is full; delete old conversations.", "ブラウザーの保存領域がいっぱいです。古い会話を消してください。"],
  badFile: ["This is no conversation of Terakoya.", "Terakoya の会話ファイルではありません。"],
  base: ["This model has no chat template: it continues texts. A notebook suits it.",
    "このモデルには会話の型がなく、文章の続きを書きます。ノートが向いています。"],
  system: ["System prompt", "システムプロンプト"],
  systemAbout: ["Said before the conversation: who the model is to be, and how it is to answer.",
    "会話の前に伝えること。モデルの役割や答え方。"],
  temperature: ["Temperature", "温度"],
  temperatureAbout: ["0 always takes the likeliest token; higher is more varied, and wilder.",
    "0 は常に最も確からしい語。高いほど多彩で、奔放になります。"],
  top_p: ["Top p", "Top p"],
  top_pAbout: ["Keep the likeliest tokens that together reach this probability.", "確率の合計がこの値になるまで、上位の語だけを残します。"],
  top_k: ["Top k", "Top k"],
  top_kAbout: ["Keep this many of the likeliest tokens; 0 keeps all.", "上位のこの数だけを残します。0 はすべて。"],
  min_p: ["Min p", "Min p"],
  min_pAbout: ["Drop tokens less likely than this share of the best one.", "最も確からしい語のこの割合に満たない語を除きます。"],
  max_tokens: ["Longest answer", "答えの長さの上限"],
  max_tokensAbout: ["In tokens; a token is a piece of a word, or a character or two of Japanese.", "トークン数。日本語ではおよそ 1〜2 文字で 1 トークンです。"],
  repetition_penalty: ["Repetition penalty", "繰り返しの抑制"],
  repetition_penaltyAbout: ["Above 1 makes tokens that have been said less likely.", "1 より大きいと、すでに出た語が出にくくなります。"],
  presence_penalty: ["Presence penalty", "存在ペナルティ"],
  presence_penaltyAbout: ["Subtracts once from what the answer has said.", "答えに一度でも出た語の点を引きます。"],
  frequency_penalty: ["Frequency penalty", "頻度ペナルティ"],
  frequency_penaltyAbout: ["Subtracts for each time the answer has said it.", "答えに出た回数だけ点を引きます。"],
  seed: ["Seed", "シード"],
  seedAbout: ["The same seed gives the same answer; empty draws a new one.", "同じ数なら同じ答えになります。空なら毎回変わります。"],
  stops: ["Stop texts", "停止する文字列"],
  stopsAbout: ["One a line; the answer ends before it.", "1 行に 1 つ。その直前で答えを終えます。"],
  probabilities: ["Show probabilities", "確率を表示"],
  probabilitiesAbout: ["Colours each token by its probability; hover or focus shows what else was likely.",
    "語ごとの確率を色で示します。重ねると他の候補が見えます。"],
  key: ["API key", "API キー"],
  keyAbout: ["Only where the server asks for one; kept until this tab is closed.", "サーバーが求める場合だけ。タブを閉じるまで保持します。"],
  defaults: ["Defaults", "初期値に戻す"],
  picture: ["picture", "画像"],
};

const names = ["en", "ja"];
let at = Math.max(0, names.indexOf(localStorage.getItem("language") ?? (navigator.language.startsWith("ja") ? "ja" : "en")));

export const language = () => names[at];
export const t = (key) => words[key]?.[at] ?? key;

export function nextLanguage() {
  at = 1 - at;
  localStorage.setItem("language", names[at]);
  translate();
}

// Write the texts into everything that says `data-t` (content) or `data-label` (name for screen readers, and hover).
export function translate(root = document) {
  document.documentElement.lang = names[at];
  for (const e of root.querySelectorAll("[data-t]")) e.textContent = t(e.dataset.t);
  for (const e of root.querySelectorAll("[data-label]")) {
    e.setAttribute("aria-label", t(e.dataset.label));
    if (e.tagName === "BUTTON") e.title = t(e.dataset.label);
  }
}
