"""English word problems."""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name g", """
anna Anna f
tom Tom m
maria Maria f
peter Peter m
lisa Lisa f
david David m
sara Sara f
omar Omar m
""")  # fmt: skip

NOUNS = table("many one", """
apple apples apple
orange oranges orange
egg eggs egg
candy candies candy
book books book
pencil pencils pencil
stamp stamps stamp
ball balls ball
cup cups cup
rose roses rose
dollar dollars dollar
page pages page
day days day
week weeks week
hour hours hour
km kilometers kilometer
box boxes box
friend friends friend
year years year
chair chairs chair
row rows row
guest guests guest
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} has {a:X} at home. At the market {P?he|she} buys {b} more {X}. How many {X} does {P} have now?",
        "{P} now has {a} + {b} = {r:X}.",
    ),
    "give_away": (
        "{P} has {a:X}. {P?He|She} gives {b} of them to {P?his|her} friend {Q}. How many {X} does {P} have left?",
        "{P} has {a} - {b} = {r:X} left.",
    ),
    "total_price": (
        "{P} wants to buy {a:X} in a small shop. Each {X:one} costs {b:dollar}. "
        "How many dollars does {P} have to pay in total?",
        "{P} pays {a} * {b} = {r:dollar}.",
    ),
    "change": (
        "{P} buys {a:X} for {b:dollar} each and gives the seller {c:dollar}. "
        "How many dollars does {P?he|she} get back?",
        "The {X} cost {a} * {b} = {s:dollar}. {P} gets back {c} - {s} = {r:dollar}.",
    ),
    "two_prices": (
        "{P} buys {a:X} for {b:dollar} each and {c:Y} for {d:dollar} each. How many dollars does {P} spend in total?",
        "The {X} cost {a} * {b} = {s:dollar}. The {Y} cost {c} * {d} = {t:dollar}. {P} spends {s} + {t} = {r:dollar}.",
    ),
    "pages": (
        "{P} is reading a book with {a:page}. {P?He|She} reads {b:page} every day. "
        "How many pages are left after {c:day}?",
        "In {c:day} {P} reads {b} * {c} = {s:page}. There are {a} - {s} = {r:page} left.",
    ),
    "speed": (
        "{P} rides a bicycle at a speed of {a:km} per hour. {P?He|She} rides for {b:hour} without a break. "
        "How many kilometers does {P} ride?",
        "{P} rides {a} * {b} = {r:km}.",
    ),
    "boxes": (
        "{P} has {a:X} and wants to pack them into boxes. Each box holds {b:X}. "
        "How many boxes does {P} need for all the {X}?",
        "{P} needs {a} / {b} = {r:box}.",
    ),
    "share": (
        "{P} has {a:X} and shares them equally among {b:friend}. How many {X} does each friend get?",
        "Each friend gets {a} / {b} = {r:X}.",
    ),
    "age": (
        "{P} is {a:year} old. {Q} is {b:year} older than {P}. How old will {Q} be in {c:year}?",
        "{Q} is {a} + {b} = {s:year} old. In {c:year} {Q} will be {s} + {c} = {r:year} old.",
    ),
    "savings": (
        "{P} saves {a:dollar} every week. After {b:week} {P?he|she} buys a present for {c:dollar}. "
        "How many dollars does {P} have left?",
        "In {b:week} {P} saves {a} * {b} = {s:dollar}. {P} has {s} - {c} = {r:dollar} left.",
    ),
    "sell_rest": (
        "{P} has {a:X}. {P?He|She} keeps {b} of them for the family and sells the rest for {c:dollar} each. "
        "How many dollars does {P} earn?",
        "{P} sells {a} - {b} = {s:X}. {P} earns {s} * {c} = {r:dollar}.",
    ),
    "chairs": (
        "{P} sets up {a:row} of chairs in the hall, with {b:chair} in each row. Then {c:guest} sit down. "
        "How many chairs are still empty?",
        "There are {a} * {b} = {s:chair}. {P} counts {s} - {c} = {r} empty chairs.",
    ),
    "compare": (
        "{P} has {a:X}. {Q} has {b} more {X} than {P}. How many {X} do {P} and {Q} have together?",
        "{Q} has {a} + {b} = {s:X}. Together they have {a} + {s} = {r:X}.",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms[('one', 'many')[category]]}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="The answer is {r}.", count=_count)
