"""Russian word problems: nouns after a numeral are nominative singular (1, 21), genitive singular (2-4, 22)
or genitive plural (5-20, 25); only after 1, 21 does the accusative differ, and only for feminines (column ``acc``).

No numeral stands in an oblique case but the one of "among 5 friends", the same form for every number used.
"""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("nom gen dat g", """
anna Анна Анны Анне f
tom Том Тома Тому m
maria Мария Марии Марии f
peter Пётр Петра Петру m
lisa Лиза Лизы Лизе f
david Давид Давида Давиду m
sara Сара Сары Саре f
omar Омар Омара Омару m
""")  # fmt: skip

NOUNS = table("one acc few many pl g", """
apple яблоко яблоко яблока яблок яблоки n
orange апельсин апельсин апельсина апельсинов апельсины m
egg яйцо яйцо яйца яиц яйца n
candy конфета конфету конфеты конфет конфеты f
book книга книгу книги книг книги f
pencil карандаш карандаш карандаша карандашей карандаши m
stamp марка марку марки марок марки f
ball мяч мяч мяча мячей мячи m
cup чашка чашку чашки чашек чашки f
rose роза розу розы роз розы f
dollar доллар доллар доллара долларов доллары m
page страница страницу страницы страниц страницы f
day день день дня дней дни m
week неделя неделю недели недель недели f
hour час час часа часов часы m
km километр километр километра километров километры m
box коробка коробку коробки коробок коробки f
year год год года лет годы m
chair стул стул стула стульев стулья m
row ряд ряд ряда рядов ряды m
guest гость гостя гостя гостей гости m
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "У {P:gen} дома {a:X}. На рынке {P?он|она} покупает ещё {b:X.acc}. Сколько {X:many} теперь у {P:gen}?",
        "Теперь у {P:gen} {a} + {b} = {r:X}.",
    ),
    "give_away": (
        "У {P:gen} {a:X}. {P?Он|Она} отдаёт {b:X.acc} {Q?своему другу|своей подруге} {Q:dat}. "
        "Сколько {X:many} осталось у {P:gen}?",
        "Теперь у {P:gen} {a} - {b} = {r:X}.",
    ),
    "total_price": (
        "{P} хочет купить {a:X.acc} в маленьком магазине. "
        "{X?Каждый|Каждая|Каждое} {X:one} стоит {b:dollar}. Сколько всего долларов заплатит {P}?",
        "{P} заплатит {a} * {b} = {r:dollar}.",
    ),
    "change": (
        "{P} покупает {a:X.acc} по {b:dollar} за штуку и даёт продавцу {c:dollar}. Сколько долларов сдачи получит {P}?",
        "Покупка стоит {a} * {b} = {s:dollar}. {P} получит {c} - {s} = {r:dollar} сдачи.",
    ),
    "two_prices": (
        "{P} покупает {a:X.acc} по {b:dollar} за штуку и {c:Y.acc} по {d:dollar} за штуку. "
        "Сколько всего долларов потратит {P}?",
        "За {X:pl} {P} платит {a} * {b} = {s:dollar}. За {Y:pl} {P} платит {c} * {d} = {t:dollar}. "
        "Всего {P} тратит {s} + {t} = {r:dollar}.",
    ),
    "pages": (
        "{P} читает книгу, в которой {a:page}. Каждый день {P?он|она} читает {b:page.acc}. "
        "Сколько страниц останется через {c:day.acc}?",
        "За {c:day.acc} {P} прочитает {b} * {c} = {s:page.acc}. Останется {a} - {s} = {r:page}.",
    ),
    "speed": (
        "{P} едет на велосипеде и проезжает {a:km} в час. {P?Он|Она} едет {b:hour.acc} без остановки. "
        "Сколько километров проедет {P}?",
        "{P} проедет {a} * {b} = {r:km}.",
    ),
    "boxes": (
        "У {P:gen} {a:X}. {P?Он|Она} складывает их в коробки, по {b:X.acc} в каждую. "
        "Сколько коробок понадобится для всех {X:many}?",
        "Понадобится {a} / {b} = {r:box}.",
    ),
    "share": (
        "У {P:gen} {a:X}. {P?Он|Она} делит их поровну между {b} друзьями. Сколько {X:many} получит каждый друг?",
        "Каждый друг получит {a} / {b} = {r:X.acc}.",
    ),
    "age": (
        "{P:dat} {a:year}. {Q} старше {P:gen} на {b:year.acc}. Сколько лет будет {Q:dat} через {c:year.acc}?",
        "{Q:dat} {a} + {b} = {s:year}. Через {c:year.acc} {Q:dat} будет {s} + {c} = {r:year}.",
    ),
    "savings": (
        "Каждую неделю {P} откладывает {a:dollar}. Через {b:week.acc} {P?он|она} покупает подарок за {c:dollar}. "
        "Сколько долларов осталось у {P:gen}?",
        "За {b:week.acc} {P} откладывает {a} * {b} = {s:dollar}. Теперь у {P:gen} {s} - {c} = {r:dollar}.",
    ),
    "sell_rest": (
        "У {P:gen} {a:X}. {P?Он|Она} оставляет {b:X.acc} для семьи, а остальные продаёт по {c:dollar} за штуку. "
        "Сколько долларов заработает {P}?",
        "{P} продаёт {a} - {b} = {s:X.acc}. {P} заработает {s} * {c} = {r:dollar}.",
    ),
    "chairs": (
        "{P} ставит в зале {a:row} стульев, по {b:chair} в каждом ряду. "
        "Потом {c?садится|садятся|садятся} {c:guest}. Сколько свободных стульев останется?",
        "Всего в зале {a} * {b} = {s:chair}. "
        "Останется {s} - {c} = {r} {r?свободный|свободных|свободных} {r?стул|стула|стульев}.",
    ),
    "compare": (
        "У {P:gen} {a:X}. У {Q:gen} на {b:X.acc} больше, чем у {P:gen}. Сколько {X:many} у {P:gen} и {Q:gen} вместе?",
        "У {Q:gen} {a} + {b} = {s:X}. Вместе у них {a} + {s} = {r:X}.",
    ),
}


def _category(number: int) -> int:
    if number % 10 == 1 and number % 100 != 11:
        return 0
    return 1 if 2 <= number % 10 <= 4 and not 12 <= number % 100 <= 14 else 2


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms[(case or 'one', 'few', 'many')[category]]}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="Ответ: {r}.", count=_count, category=_category)
