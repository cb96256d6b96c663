"""Swahili word problems: everything agrees with the noun class, so each object carries its concords.

Columns: plural, singular, ``ngapi`` (how many), ``other`` (more of them), ``each`` (one each), ``subj`` (subject
prefix, singular), ``obj`` (object infix, plural), ``all``, ``rest`` (those that remain). A count is noun, then number.
"""

from slamkern.corpus.grammar import Forms, Grammar, table

PERSONS = table("name", """
anna Ana
tom Tom
maria Maria
peter Petro
lisa Lisa
david Daudi
sara Sara
omar Omari
""")  # fmt: skip

NOUNS = table("many one ngapi other each subj obj all rest", """
apple matufaha tufaha mangapi mengine moja li ya yote yaliyobaki
orange machungwa chungwa mangapi mengine moja li ya yote yaliyobaki
egg mayai yai mangapi mengine moja li ya yote yaliyobaki
candy peremende peremende ngapi nyingine moja i zi zote zilizobaki
book vitabu kitabu vingapi vingine kimoja ki vi vyote vilivyobaki
pencil penseli penseli ngapi nyingine moja i zi zote zilizobaki
stamp stempu stempu ngapi nyingine moja i zi zote zilizobaki
ball mipira mpira mingapi mingine mmoja u i yote iliyobaki
cup vikombe kikombe vingapi vingine kimoja ki vi vyote vilivyobaki
rose mawaridi waridi mangapi mengine moja li ya yote yaliyobaki
dollar dola dola ngapi nyingine moja i zi zote zilizobaki
page kurasa ukurasa ngapi nyingine mmoja u zi zote zilizobaki
day siku siku ngapi nyingine moja i zi zote zilizobaki
week wiki wiki ngapi nyingine moja i zi zote zilizobaki
hour saa saa ngapi nyingine moja i zi zote zilizobaki
km kilomita kilomita ngapi nyingine moja i zi zote zilizobaki
box masanduku sanduku mangapi mengine moja li ya yote yaliyobaki
friend marafiki rafiki wangapi wengine mmoja a wa wote waliobaki
year miaka mwaka mingapi mingine mmoja u i yote iliyobaki
chair viti kiti vingapi vingine kimoja ki vi vyote vilivyobaki
row safu safu ngapi nyingine moja i zi zote zilizobaki
guest wageni mgeni wangapi wengine mmoja a wa wote waliobaki
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} ana {a:X} nyumbani. Sokoni ananunua {X} {X:other} {b}. Sasa {P} ana {X} {X:ngapi}?",
        "Sasa {P} ana {X} {a} + {b} = {r}.",
    ),
    "give_away": (
        "{P} ana {a:X}. Anampa rafiki yake {Q} {b:X}. {P} amebaki na {X} {X:ngapi}?",
        "{P} amebaki na {X} {a} - {b} = {r}.",
    ),
    "total_price": (
        "{P} anataka kununua {a:X} katika duka dogo. Kila {X:one} {X:subj}nagharimu {b:dollar}. "
        "{P} atalipa jumla ya dola ngapi?",
        "{P} atalipa dola {a} * {b} = {r}.",
    ),
    "change": (
        "{P} ananunua {a:X} kwa {b:dollar} kila {X:each} na kumpa muuzaji {c:dollar}. "
        "{P} atarudishiwa dola ngapi?",
        "Bei ya {X} ni dola {a} * {b} = {s}. {P} atarudishiwa dola {c} - {s} = {r}.",
    ),
    "two_prices": (
        "{P} ananunua {a:X} kwa {b:dollar} kila {X:each} na {c:Y} kwa {d:dollar} kila {Y:each}. "
        "{P} anatumia jumla ya dola ngapi?",
        "Bei ya {X} ni dola {a} * {b} = {s}. Bei ya {Y} ni dola {c} * {d} = {t}. {P} anatumia dola {s} + {t} = {r}.",
    ),
    "pages": (
        "{P} anasoma kitabu chenye {a:page}. Anasoma {b:page} kila siku. Baada ya {c:day} zitabaki kurasa ngapi?",
        "Kwa {c:day} {P} anasoma kurasa {b} * {c} = {s}. Zinabaki kurasa {a} - {s} = {r}.",
    ),
    "speed": (
        "{P} anaendesha baiskeli kwa kasi ya {a:km} kwa saa. Anaendesha kwa {b:hour} bila kupumzika. "
        "{P} anasafiri kilomita ngapi?",
        "{P} anasafiri kilomita {a} * {b} = {r}.",
    ),
    "boxes": (
        "{P} ana {a:X} na anataka ku{X:obj}pakia katika masanduku. Kila sanduku linabeba {b:X}. "
        "{P} anahitaji masanduku mangapi kwa {X} {X:all}?",
        "{P} anahitaji masanduku {a} / {b} = {r}.",
    ),
    "share": (
        "{P} ana {a:X} na ana{X:obj}gawa kwa usawa kwa {b:friend}. Kila rafiki anapata {X} {X:ngapi}?",
        "Kila rafiki anapata {X} {a} / {b} = {r}.",
    ),
    "age": (
        "{P} ana umri wa {a:year}. {Q} ni mkubwa kuliko {P} kwa {b:year}. "
        "Baada ya {c:year} {Q} atakuwa na umri wa miaka mingapi?",
        "{Q} ana umri wa miaka {a} + {b} = {s}. Baada ya {c:year} {Q} atakuwa na umri wa miaka {s} + {c} = {r}.",
    ),
    "savings": (
        "{P} anaweka akiba ya {a:dollar} kila wiki. Baada ya {b:week} ananunua zawadi kwa {c:dollar}. "
        "{P} amebaki na dola ngapi?",
        "Kwa {b:week} {P} anaweka akiba ya dola {a} * {b} = {s}. {P} amebaki na dola {s} - {c} = {r}.",
    ),
    "sell_rest": (
        "{P} ana {a:X}. Anabakiza {b:X} kwa familia na kuuza {X} {X:rest} kwa {c:dollar} kila {X:each}. "
        "{P} anapata dola ngapi?",
        "{P} anauza {X} {a} - {b} = {s}. {P} anapata dola {s} * {c} = {r}.",
    ),
    "chairs": (
        "{P} anapanga safu {a} za viti ukumbini, na kila safu ina {b:chair}. Kisha {c:guest} wanaketi. "
        "Ni viti vingapi vinabaki vitupu?",
        "Kuna viti {a} * {b} = {s}. Viti vitupu ni {s} - {c} = {r}.",
    ),
    "compare": (
        "{P} ana {a:X}. {Q} ana {b:X} zaidi ya {P}. {P} na {Q} wana {X} {X:ngapi} kwa pamoja?",
        "{Q} ana {X} {a} + {b} = {s}. Kwa pamoja wana {X} {a} + {s} = {r}.",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{forms['many']} {number}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="Jibu ni {r}.", count=_count, category=lambda number: 0)
