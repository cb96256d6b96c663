"""Spanish word problems: two genders that cuántos, cada uno, todos and the object pronouns follow."""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name g", """
anna Ana f
tom Tom m
maria María f
peter Pedro m
lisa Lisa f
david David m
sara Sara f
omar Omar m
""")  # fmt: skip

NOUNS = table("many one g", """
apple manzanas manzana f
orange naranjas naranja f
egg huevos huevo m
candy caramelos caramelo m
book libros libro m
pencil lápices lápiz m
stamp sellos sello m
ball pelotas pelota f
cup tazas taza f
rose rosas rosa f
dollar dólares dólar m
page páginas página f
day días día m
week semanas semana f
hour horas hora f
km kilómetros kilómetro m
box cajas caja f
friend amigos amigo m
year años año m
chair sillas silla f
row filas fila f
guest invitados invitado m
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P} tiene {a:X} en casa. En el mercado compra {b:X} más. ¿{X?Cuántos|Cuántas} {X} tiene {P} ahora?",
        "{P} tiene ahora {a} + {b} = {r:X}.",
    ),
    "give_away": (
        "{P} tiene {a:X}. Le da {b} a su {Q?amigo|amiga} {Q}. ¿{X?Cuántos|Cuántas} {X} le quedan a {P}?",
        "A {P} le quedan {a} - {b} = {r:X}.",
    ),
    "total_price": (
        "{P} quiere comprar {a:X} en una tienda pequeña. Cada {X:one} cuesta {b:dollar}. "
        "¿Cuántos dólares tiene que pagar {P} en total?",
        "{P} paga {a} * {b} = {r:dollar}.",
    ),
    "change": (
        "{P} compra {a:X} a {b:dollar} cada {X?uno|una} y le da {c:dollar} al vendedor. "
        "¿Cuántos dólares le devuelve el vendedor?",
        "{X?Los|Las} {X} cuestan {a} * {b} = {s:dollar}. El vendedor le devuelve {c} - {s} = {r:dollar} a {P}.",
    ),
    "two_prices": (
        "{P} compra {a:X} a {b:dollar} cada {X?uno|una} y {c:Y} a {d:dollar} cada {Y?uno|una}. "
        "¿Cuántos dólares gasta {P} en total?",
        "{X?Los|Las} {X} cuestan {a} * {b} = {s:dollar}. {Y?Los|Las} {Y} cuestan {c} * {d} = {t:dollar}. "
        "{P} gasta {s} + {t} = {r:dollar}.",
    ),
    "pages": (
        "{P} lee un libro de {a:page}. Cada día lee {b:page}. ¿Cuántas páginas le quedan por leer después de {c:day}?",
        "En {c:day} {P} lee {b} * {c} = {s:page}. Quedan {a} - {s} = {r:page}.",
    ),
    "speed": (
        "{P} va en bicicleta a una velocidad de {a:km} por hora. Pedalea durante {b:hour} sin parar. "
        "¿Cuántos kilómetros recorre {P}?",
        "{P} recorre {a} * {b} = {r:km}.",
    ),
    "boxes": (
        "{P} tiene {a:X} y quiere {X?guardarlos|guardarlas} en cajas. En cada caja caben {b:X}. "
        "¿Cuántas cajas necesita {P} para {X?todos los|todas las} {X}?",
        "{P} necesita {a} / {b} = {r:box}.",
    ),
    "share": (
        "{P} tiene {a:X} y {X?los|las} reparte por igual entre {b:friend}. ¿{X?Cuántos|Cuántas} {X} recibe cada amigo?",
        "Cada amigo recibe {a} / {b} = {r:X}.",
    ),
    "age": (
        "{P} tiene {a:year}. {Q} tiene {b:year} más que {P}. ¿Cuántos años tendrá {Q} dentro de {c:year}?",
        "{Q} tiene {a} + {b} = {s:year}. Dentro de {c:year} {Q} tendrá {s} + {c} = {r:year}.",
    ),
    "savings": (
        "{P} ahorra {a:dollar} cada semana. Después de {b:week} compra un regalo de {c:dollar}. "
        "¿Cuántos dólares le quedan a {P}?",
        "En {b:week} {P} ahorra {a} * {b} = {s:dollar}. A {P} le quedan {s} - {c} = {r:dollar}.",
    ),
    "sell_rest": (
        "{P} tiene {a:X}. Guarda {b} para su familia y vende el resto a {c:dollar} cada {X?uno|una}. "
        "¿Cuántos dólares gana {P}?",
        "{P} vende {a} - {b} = {s:X}. {P} gana {s} * {c} = {r:dollar}.",
    ),
    "chairs": (
        "{P} coloca en la sala {a:row} de {b:chair} cada una. Después se sientan {c:guest}. "
        "¿Cuántas sillas quedan vacías?",
        "Hay {a} * {b} = {s:chair}. {P} cuenta {s} - {c} = {r:chair} vacías.",
    ),
    "compare": (
        "{P} tiene {a:X}. {Q} tiene {b:X} más que {P}. ¿{X?Cuántos|Cuántas} {X} tienen {P} y {Q} en total?",
        "{Q} tiene {a} + {b} = {s:X}. En total tienen {a} + {s} = {r:X}.",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms[('one', 'many')[category]]}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="La respuesta es {r}.", count=_count)
