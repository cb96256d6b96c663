"""Japanese word problems: a number takes the counter of the thing counted (column ``cl``); the thing itself stands
before it with its particle, so ``{a:X}`` is the number with the counter only."""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name", """
anna アンナ
tom トム
maria マリア
peter ピーター
lisa リサ
david デイビッド
sara サラ
omar オマル
""")  # fmt: skip

NOUNS = table("noun cl", """
apple りんご 個
orange オレンジ 個
egg 卵 個
candy あめ 個
book 本 冊
pencil 鉛筆 本
stamp 切手 枚
ball ボール 個
cup コップ 個
rose バラ 本
dollar ドル ドル
page ページ ページ
day 日 日
week 週 週間
hour 時間 時間
km キロメートル キロメートル
box 箱 個
friend 友だち 人
year 歳 歳
chair 椅子 脚
row 列 列
guest 客 人
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P}さんの家には{X}が{a:X}あります。{P}さんは市場でさらに{b:X}買いました。今、{X}は全部で何{X:cl}ありますか？",
        "{X}は全部で{a} + {b} = {r:X}あります。",
    ),
    "give_away": (
        "{P}さんは{X}を{a:X}持っています。そのうち{b:X}を友だちの{Q}さんにあげました。"
        "{P}さんの{X}は何{X:cl}残っていますか？",
        "{P}さんの{X}は{a} - {b} = {r:X}残っています。",
    ),
    "total_price": (
        "{P}さんは小さな店で{X}を{a:X}買います。{X}は一{X:cl}{b:dollar}です。{P}さんは全部で何ドル払いますか？",
        "{P}さんは{a} * {b} = {r:dollar}払います。",
    ),
    "change": (
        "{P}さんは一{X:cl}{b:dollar}の{X}を{a:X}買い、店の人に{c:dollar}渡しました。おつりは何ドルですか？",
        "{X}は全部で{a} * {b} = {s:dollar}です。おつりは{c} - {s} = {r:dollar}です。",
    ),
    "two_prices": (
        "{P}さんは一{X:cl}{b:dollar}の{X}を{a:X}と、一{Y:cl}{d:dollar}の{Y}を{c:Y}買いました。"
        "{P}さんは全部で何ドル使いましたか？",
        "{X}は全部で{a} * {b} = {s:dollar}です。{Y}は全部で{c} * {d} = {t:dollar}です。"
        "{P}さんは{s} + {t} = {r:dollar}使いました。",
    ),
    "pages": (
        "{P}さんは{a:page}の本を読んでいます。毎日{b:page}ずつ読みます。{c:day}後、残りは何ページですか？",
        "{P}さんは{c:day}で{b} * {c} = {s:page}読みます。残りは{a} - {s} = {r:page}です。",
    ),
    "speed": (
        "{P}さんは自転車に乗り、時速{a:km}で休まずに{b:hour}走りました。{P}さんは何キロメートル走りましたか？",
        "{P}さんは{a} * {b} = {r:km}走りました。",
    ),
    "boxes": (
        "{P}さんは{X}を{a:X}持っていて、箱に詰めます。一つの箱には{b:X}入ります。"
        "{X}を全部詰めるには、箱が何個必要ですか？",
        "箱は{a} / {b} = {r:box}必要です。",
    ),
    "share": (
        "{P}さんは{X}を{a:X}持っていて、{b:friend}の友だちに同じ数ずつ分けます。"
        "友だち一人は{X}を何{X:cl}もらいますか？",
        "友だち一人は{X}を{a} / {b} = {r:X}もらいます。",
    ),
    "age": (
        "{P}さんは{a:year}です。{Q}さんは{P}さんより{b:year}年上です。{c}年後、{Q}さんは何歳になりますか？",
        "{Q}さんは{a} + {b} = {s:year}です。{c}年後、{Q}さんは{s} + {c} = {r:year}になります。",
    ),
    "savings": (
        "{P}さんは毎週{a:dollar}ずつ貯金し、{b:week}後に{c:dollar}のプレゼントを買いました。"
        "{P}さんのお金は何ドル残っていますか？",
        "{P}さんは{b:week}で{a} * {b} = {s:dollar}貯金しました。お金は{s} - {c} = {r:dollar}残っています。",
    ),
    "sell_rest": (
        "{P}さんは{X}を{a:X}持っています。家族のために{b:X}取っておき、残りは一{X:cl}{c:dollar}で売ります。"
        "{P}さんの売り上げは何ドルですか？",
        "{P}さんは{X}を{a} - {b} = {s:X}売ります。売り上げは{s} * {c} = {r:dollar}です。",
    ),
    "chairs": (
        "{P}さんはホールに椅子を{a:row}並べました。どの列にも椅子が{b:chair}あります。"
        "そのあと客が{c:guest}座りました。空いている椅子は何脚ですか？",
        "椅子は全部で{a} * {b} = {s:chair}あります。空いている椅子は{s} - {c} = {r:chair}です。",
    ),
    "compare": (
        "{P}さんは{X}を{a:X}持っています。{Q}さんは{P}さんより{b:X}多く持っています。"
        "{P}さんと{Q}さんは合わせて{X}を何{X:cl}持っていますか？",
        "{Q}さんは{X}を{a} + {b} = {s:X}持っています。二人は合わせて{X}を{a} + {s} = {r:X}持っています。",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return number + forms["cl"]


GRAMMAR = Grammar.build(
    PERSONS, NOUNS, TEXTS, answer="答えは{r}です。", count=_count, category=lambda number: 0, space=""
)
