"""Swahili word problems: everything agrees with the noun class, so each object carries its concords.

Columns of the objects: plural, singular, ``ngapi`` (how many), ``other`` (more of them), ``each`` (one each), ``subj``
(subject prefix, singular), ``obj`` (object infix, plural), ``all``, ``rest`` (those that remain). A count is the noun,
then the number.
"""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name", """
anna Anna
tom Tom
maria Maria
peter Petro
lisa Lisa
david Daudi
sara Sara
omar Omari
""")  # fmt: skip

OBJECTS = table("many one ngapi other each subj obj all rest", """
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
""")  # fmt: skip

UNITS = table("many", """
dollar dola
page kurasa
day siku
week wiki
hour saa
km kilomita
friend marafiki
year miaka
chair viti
guest wageni
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} ana {a:X} nyumbani. Sokoni ananunua {X} {X:other} {b}. Sasa {P} ana {X} {X:ngapi}?",
        "Sasa {P} ana {X} {a} + {b} = {r}.",
    ),
    "give_away": (
        "{P} ana {a:X}. Anampa rafiki yake {Q} {b:X}. {P} anabaki na {X} {X:ngapi}?",
        "{P} anabaki na {X} {a} - {b} = {r}.",
    ),
    "total_price": (
        "{P} anataka kununua {a:X} katika duka dogo. Kila {X:one} {X:subj}nagharimu {b:dollar}. "
        "{P} atalipa jumla ya dola ngapi?",
        "{P} atalipa dola {a} * {b} = {r}.",
    ),
    "change": (
        "{P} ananunua {a:X} kwa {b:dollar} kila {X:each} na kumpa muuzaji {c:dollar}. {P} atarudishiwa dola ngapi?",
        "Bei ya {X} {X:all} ni dola {a} * {b} = {s}. {P} atarudishiwa dola {c} - {s} = {r}.",
    ),
    "two_prices": (
        "{P} ananunua {a:X} kwa {b:dollar} kila {X:each} na {c:Y} kwa {d:dollar} kila {Y:each}. "
        "{P} anatumia jumla ya dola ngapi?",
        "Bei ya {X} {X:all} ni dola {a} * {b} = {s}. Bei ya {Y} {Y:all} ni dola {c} * {d} = {t}. "
        "{P} anatumia dola {s} + {t} = {r}.",
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
        "{P} ana {a:X} na anataka ku{X:obj}pakia katika masanduku. Kila sanduku linachukua {b:X}. "
        "{P} anahitaji masanduku mangapi kwa {X} {X:all}?",
        "{P} anahitaji masanduku {a} / {b} = {r}.",
    ),
    "share": (
        "{P} ana {a:X} na ana{X:obj}gawa sawasawa kwa {b:friend}. Kila rafiki anapata {X} {X:ngapi}?",
        "Kila rafiki anapata {X} {a} / {b} = {r}.",
    ),
    "age": (
        "{P} ana umri wa {a:year}. {Q} ni mkubwa kuliko {P} kwa {b:year}. "
        "Baada ya {c:year} {Q} atakuwa na umri wa miaka mingapi?",
        "{Q} ana umri wa miaka {a} + {b} = {s}. Baada ya {c:year} {Q} atakuwa na umri wa miaka {s} + {c} = {r}.",
    ),
    "savings": (
        "{P} anaweka akiba ya {a:dollar} kila wiki. Baada ya {b:week} ananunua zawadi kwa {c:dollar}. "
        "{P} anabaki na dola ngapi?",
        "Kwa {b:week} {P} anaweka akiba ya dola {a} * {b} = {s}. {P} anabaki na dola {s} - {c} = {r}.",
    ),
    "sell_rest": (
        "{P} ana {a:X}. Anabakiza {b:X} kwa ajili ya familia na kuuza {X} {X:rest} kwa {c:dollar} kila {X:each}. "
        "{P} anapata dola ngapi?",
        "{P} anauza {X} {a} - {b} = {s}. {P} anapata dola {s} * {c} = {r}.",
    ),
    "chairs": (
        "{P} anapanga safu {a} za viti ukumbini, na kila safu ina {b:chair}. Kisha {c:guest} wanaketi. "
        "Viti vingapi vinabaki vitupu?",
        "Kuna viti {a} * {b} = {s}. Viti vitupu ni {s} - {c} = {r}.",
    ),
    "compare": (
        "{P} ana {a:X}. {Q} ana {b:X} zaidi ya {P}. {P} na {Q} wana {X} {X:ngapi} kwa pamoja?",
        "{Q} ana {X} {a} + {b} = {s}. Kwa pamoja wana {X} {a} + {s} = {r}.",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{forms['many']} {number}"


GRAMMAR = Grammar.build(
    PERSONS, {**OBJECTS, **UNITS}, TEXTS, answer="Jibu ni {r}.", count=_count, category=lambda number: 0
)
