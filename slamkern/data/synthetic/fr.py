"""French word problems: two genders, and the elision of de and que before a vowel or a mute h."""

import re

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name g", """
anna Anna f
tom Tom m
maria Maria f
peter Pierre m
lisa Lisa f
david David m
sara Sara f
omar Omar m
""")  # fmt: skip

NOUNS = table("many one g", """
apple pommes pomme f
orange oranges orange f
egg œufs œuf m
candy bonbons bonbon m
book livres livre m
pencil crayons crayon m
stamp timbres timbre m
ball balles balle f
cup tasses tasse f
rose roses rose f
dollar dollars dollar m
page pages page f
day jours jour m
week semaines semaine f
hour heures heure f
km kilomètres kilomètre m
box boîtes boîte f
friend amis ami m
year ans an m
chair chaises chaise f
row rangées rangée f
guest invités invité m
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} a {a:X} chez {P?lui|elle}. Au marché, {P?il|elle} achète encore {b:X}. "
        "Combien de {X} {P} a-t-{P?il|elle} maintenant ?",
        "{P} a maintenant {a} + {b} = {r:X}.",
    ),
    "give_away": (
        "{P} a {a:X}. {P?Il|Elle} en donne {b} à son {Q?ami|amie} {Q}. Combien de {X} reste-t-il à {P} ?",
        "Il reste {a} - {b} = {r:X} à {P}.",
    ),
    "total_price": (
        "{P} veut acheter {a:X} dans un petit magasin. Chaque {X:one} coûte {b:dollar}. "
        "Combien de dollars {P} doit-{P?il|elle} payer au total ?",
        "{P} paie {a} * {b} = {r:dollar}.",
    ),
    "change": (
        "{P} achète {a:X} à {b:dollar} pièce et donne {c:dollar} au vendeur. "
        "Combien de dollars le vendeur lui rend-il ?",
        "Les {X} coûtent {a} * {b} = {s:dollar}. Le vendeur rend {c} - {s} = {r:dollar} à {P}.",
    ),
    "two_prices": (
        "{P} achète {a:X} à {b:dollar} pièce et {c:Y} à {d:dollar} pièce. "
        "Combien de dollars {P} dépense-t-{P?il|elle} au total ?",
        "Les {X} coûtent {a} * {b} = {s:dollar}. Les {Y} coûtent {c} * {d} = {t:dollar}. "
        "{P} dépense {s} + {t} = {r:dollar}.",
    ),
    "pages": (
        "{P} lit un livre de {a:page}. {P?Il|Elle} lit {b:page} chaque jour. "
        "Combien de pages lui reste-t-il à lire après {c:day} ?",
        "En {c:day}, {P} lit {b} * {c} = {s:page}. Il reste {a} - {s} = {r:page}.",
    ),
    "speed": (
        "{P} roule à vélo à une vitesse de {a:km} par heure. {P?Il|Elle} roule pendant {b:hour} sans pause. "
        "Combien de kilomètres {P} parcourt-{P?il|elle} ?",
        "{P} parcourt {a} * {b} = {r:km}.",
    ),
    "boxes": (
        "{P} a {a:X} et veut les ranger dans des boîtes. Chaque boîte contient {b:X}. "
        "De combien de boîtes {P} a-t-{P?il|elle} besoin pour {X?tous|toutes} les {X} ?",
        "{P} a besoin de {a} / {b} = {r:box}.",
    ),
    "share": (
        "{P} a {a:X} et les partage équitablement entre {b:friend}. Combien de {X} chaque ami reçoit-il ?",
        "Chaque ami reçoit {a} / {b} = {r:X}.",
    ),
    "age": (
        "{P} a {a:year}. {Q} a {b:year} de plus que {P}. Quel âge aura {Q} dans {c:year} ?",
        "{Q} a {a} + {b} = {s:year}. Dans {c:year}, {Q} aura {s} + {c} = {r:year}.",
    ),
    "savings": (
        "{P} économise {a:dollar} chaque semaine. Après {b:week}, {P?il|elle} achète un cadeau à {c:dollar}. "
        "Combien de dollars reste-t-il à {P} ?",
        "En {b:week}, {P} économise {a} * {b} = {s:dollar}. Il reste {s} - {c} = {r:dollar} à {P}.",
    ),
    "sell_rest": (
        "{P} a {a:X}. {P?Il|Elle} en garde {b} pour sa famille et vend le reste à {c:dollar} pièce. "
        "Combien de dollars {P} gagne-t-{P?il|elle} ?",
        "{P} vend {a} - {b} = {s:X}. {P} gagne {s} * {c} = {r:dollar}.",
    ),
    "chairs": (
        "{P} installe dans la salle {a:row} de {b:chair} chacune. Ensuite, {c:guest} s'assoient. "
        "Combien de chaises restent vides ?",
        "Il y a {a} * {b} = {s:chair}. {P} compte {s} - {c} = {r:chair} vides.",
    ),
    "compare": (
        "{P} a {a:X}. {Q} a {b:X} de plus que {P}. Combien de {X} ont {P} et {Q} ensemble ?",
        "{Q} a {a} + {b} = {s:X}. Ensemble, {P} et {Q} ont {a} + {s} = {r:X}.",
    ),
}

_ELISION = re.compile(r"\b(d|qu)e (?=[aeiouhâéèêœ])", re.IGNORECASE)


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms[('one', 'many')[category]]}"


def _elide(text: str) -> str:
    return _ELISION.sub(r"\1'", text)


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="La réponse est {r}.", count=_count, finish=_elide)
