"""German word problems: three genders, and the dative plural after mit, nach and in (columns ``dat``)."""

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

NOUNS = table("many one dat g", """
apple Äpfel Apfel Äpfeln m
orange Orangen Orange Orangen f
egg Eier Ei Eiern n
candy Bonbons Bonbon Bonbons n
book Bücher Buch Büchern n
pencil Bleistifte Bleistift Bleistiften m
stamp Briefmarken Briefmarke Briefmarken f
ball Bälle Ball Bällen m
cup Tassen Tasse Tassen f
rose Rosen Rose Rosen f
dollar Dollar Dollar Dollar m
page Seiten Seite Seiten f
day Tage Tag Tagen m
week Wochen Woche Wochen f
hour Stunden Stunde Stunden f
km Kilometer Kilometer Kilometern m
box Kisten Kiste Kisten f
friend Freunde Freund Freunden m
year Jahre Jahr Jahren n
chair Stühle Stuhl Stühlen m
row Reihen Reihe Reihen f
guest Gäste Gast Gästen m
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} hat zu Hause {a:X}. Auf dem Markt kauft {P?er|sie} noch {b:X} dazu. Wie viele {X} hat {P} jetzt?",
        "{P} hat jetzt {a} + {b} = {r:X}.",
    ),
    "give_away": (
        "{P} hat {a:X}. {P?Er|Sie} gibt {P?sein|ihr}{Q?em Freund|er Freundin} {Q} {b} davon. "
        "Wie viele {X} hat {P} noch?",
        "{P} hat noch {a} - {b} = {r:X}.",
    ),
    "total_price": (
        "{P} möchte in einem kleinen Laden {a:X} kaufen. {X?Jeder|Jede|Jedes} {X:one} kostet {b:dollar}. "
        "Wie viele Dollar muss {P} insgesamt bezahlen?",
        "{P} bezahlt {a} * {b} = {r:dollar}.",
    ),
    "change": (
        "{P} kauft {a:X} zu je {b:dollar} und gibt dem Verkäufer {c:dollar}. "
        "Wie viele Dollar bekommt {P?er|sie} zurück?",
        "Die {X} kosten {a} * {b} = {s:dollar}. {P} bekommt {c} - {s} = {r:dollar} zurück.",
    ),
    "two_prices": (
        "{P} kauft {a:X} zu je {b:dollar} und {c:Y} zu je {d:dollar}. Wie viele Dollar gibt {P} insgesamt aus?",
        "Die {X} kosten {a} * {b} = {s:dollar}. Die {Y} kosten {c} * {d} = {t:dollar}. "
        "{P} gibt {s} + {t} = {r:dollar} aus.",
    ),
    "pages": (
        "{P} liest ein Buch mit {a:page.dat}. {P?Er|Sie} liest jeden Tag {b:page}. "
        "Wie viele Seiten bleiben nach {c:day.dat} noch übrig?",
        "In {c:day.dat} liest {P} {b} * {c} = {s:page}. Es bleiben {a} - {s} = {r:page} übrig.",
    ),
    "speed": (
        "{P} fährt mit dem Fahrrad {a:km} pro Stunde. {P?Er|Sie} fährt {b:hour} ohne Pause. "
        "Wie viele Kilometer legt {P} zurück?",
        "{P} legt {a} * {b} = {r:km} zurück.",
    ),
    "boxes": (
        "{P} hat {a:X} und möchte sie in Kisten packen. In jede Kiste passen {b:X}. "
        "Wie viele Kisten braucht {P} für alle {X}?",
        "{P} braucht {a} / {b} = {r:box}.",
    ),
    "share": (
        "{P} hat {a:X} und verteilt sie gleichmäßig an {b:friend}. Wie viele {X} bekommt jeder Freund?",
        "Jeder Freund bekommt {a} / {b} = {r:X}.",
    ),
    "age": (
        "{P} ist {a:year} alt. {Q} ist {b:year} älter als {P}. Wie alt wird {Q} in {c:year.dat} sein?",
        "{Q} ist {a} + {b} = {s:year} alt. In {c:year.dat} wird {Q} {s} + {c} = {r:year} alt sein.",
    ),
    "savings": (
        "{P} spart jede Woche {a:dollar}. Nach {b:week.dat} kauft {P?er|sie} ein Geschenk für {c:dollar}. "
        "Wie viele Dollar hat {P} noch?",
        "In {b:week.dat} spart {P} {a} * {b} = {s:dollar}. {P} hat noch {s} - {c} = {r:dollar}.",
    ),
    "sell_rest": (
        "{P} hat {a:X}. {P?Er|Sie} behält {b} davon für die Familie und verkauft den Rest für je {c:dollar}. "
        "Wie viele Dollar verdient {P}?",
        "{P} verkauft {a} - {b} = {s:X}. {P} verdient {s} * {c} = {r:dollar}.",
    ),
    "chairs": (
        "{P} stellt im Saal {a:row} mit je {b:chair.dat} auf. Dann setzen sich {c:guest}. "
        "Wie viele Stühle bleiben leer?",
        "Es gibt {a} * {b} = {s:chair}. {P} zählt {s} - {c} = {r} leere Stühle.",
    ),
    "compare": (
        "{P} hat {a:X}. {Q} hat {b:X} mehr als {P}. Wie viele {X} haben {P} und {Q} zusammen?",
        "{Q} hat {a} + {b} = {s:X}. Zusammen haben sie {a} + {s} = {r:X}.",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms['one' if category == 0 else case or 'many']}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="Die Antwort ist {r}.", count=_count)
