"""Chinese word problems: every noun with its measure word (column ``cl``), a space between digits and characters."""

import re

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name g", """
anna 安娜 f
tom 汤姆 m
maria 玛丽亚 f
peter 彼得 m
lisa 丽莎 f
david 大卫 m
sara 莎拉 f
omar 奥马尔 m
""")  # fmt: skip

NOUNS = table("noun cl", """
apple 苹果 个
orange 橙子 个
egg 鸡蛋 个
candy 糖果 颗
book 书 本
pencil 铅笔 支
stamp 邮票 张
ball 球 个
cup 杯子 个
rose 玫瑰 朵
dollar - 美元
page - 页
day - 天
week - 周
hour - 小时
km - 公里
box 盒子 个
friend 朋友 个
year - 岁
chair 椅子 把
row - 排
guest 客人 位
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P}家里有{a:X}。{P?他|她}在市场上又买了{b:X}。{P}现在有多少{X:cl}{X}？",
        "{P}现在有{a} + {b} = {r:X}。",
    ),
    "give_away": (
        "{P}有{a:X}。{P?他|她}把其中{b}{X:cl}送给了朋友{Q}。{P}还剩多少{X:cl}{X}？",
        "{P}还剩{a} - {b} = {r:X}。",
    ),
    "total_price": (
        "{P}想在一家小商店买{a:X}。每{X:cl}{X}的价格是{b:dollar}。{P}一共要付多少美元？",
        "{P}要付{a} * {b} = {r:dollar}。",
    ),
    "change": (
        "{P}买了{a:X}，每{X:cl}{b:dollar}，付给店员{c:dollar}。店员应该找给{P?他|她}多少美元？",
        "{X}一共{a} * {b} = {s:dollar}。店员找给{P}{c} - {s} = {r:dollar}。",
    ),
    "two_prices": (
        "{P}买了{a:X}，每{X:cl}{b:dollar}，还买了{c:Y}，每{Y:cl}{d:dollar}。{P}一共花了多少美元？",
        "{X}一共{a} * {b} = {s:dollar}。{Y}一共{c} * {d} = {t:dollar}。{P}花了{s} + {t} = {r:dollar}。",
    ),
    "pages": (
        "{P}在读一本{a:page}的书。{P?他|她}每天读{b:page}。{c:day}后还剩多少页没有读？",
        "{c:day}里{P}读了{b} * {c} = {s:page}。还剩{a} - {s} = {r:page}。",
    ),
    "speed": (
        "{P}骑自行车，每小时骑{a:km}。{P?他|她}不停地骑了{b:hour}。{P}一共骑了多少公里？",
        "{P}骑了{a} * {b} = {r:km}。",
    ),
    "boxes": (
        "{P}有{a:X}，想把它们装进盒子里。每个盒子装{b:X}。{P}装完所有的{X}需要多少个盒子？",
        "{P}需要{a} / {b} = {r:box}。",
    ),
    "share": (
        "{P}有{a:X}，平均分给{b:friend}。每个朋友得到多少{X:cl}{X}？",
        "每个朋友得到{a} / {b} = {r:X}。",
    ),
    "age": (
        "{P}今年{a:year}。{Q}比{P}大{b:year}。{c}年后{Q}多少岁？",
        "{Q}今年{a} + {b} = {s:year}。{c}年后{Q}{s} + {c} = {r:year}。",
    ),
    "savings": (
        "{P}每周存{a:dollar}。{b:week}后{P?他|她}买了一份{c:dollar}的礼物。{P}还剩多少美元？",
        "{b:week}里{P}存了{a} * {b} = {s:dollar}。{P}还剩{s} - {c} = {r:dollar}。",
    ),
    "sell_rest": (
        "{P}有{a:X}。{P?他|她}给家人留下{b}{X:cl}，其余的以每{X:cl}{c:dollar}的价格卖掉。{P}赚了多少美元？",
        "{P}卖掉{a} - {b} = {s:X}。{P}赚了{s} * {c} = {r:dollar}。",
    ),
    "chairs": (
        "{P}在大厅里摆了{a:row}椅子，每排{b:chair}。后来有{c:guest}坐下了。还有多少把椅子空着？",
        "一共有{a} * {b} = {s:chair}。还有{s} - {c} = {r:chair}空着。",
    ),
    "compare": (
        "{P}有{a:X}。{Q}比{P}多{b:X}。{P}和{Q}一共有多少{X:cl}{X}？",
        "{Q}有{a} + {b} = {s:X}。两人一共有{a} + {s} = {r:X}。",
    ),
}

_SEAM = re.compile(r"(?<=[\u4e00-\u9fff])(?=\d)|(?<=\d)(?=[\u4e00-\u9fff])")


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number}{forms['cl']}{forms['noun']}"


def _space_digits(text: str) -> str:
    return _SEAM.sub(" ", text)


GRAMMAR = Grammar.build(
    PERSONS, NOUNS, TEXTS, answer="答案是{r}。", count=_count, category=lambda number: 0, finish=_space_digits, space=""
)
