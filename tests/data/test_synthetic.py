"""The embedded corpus: parallel, disjoint, reproducible, and grammatical where languages differ most."""

import hashlib
import operator
import re
import time

import pytest

from slamkern.data.synthetic import LANGUAGES, Problem, generate
from slamkern.data.synthetic.generator import _fillings, _numbers
from slamkern.data.synthetic.grammar import grammar
from slamkern.data.synthetic.schemas import SCHEMAS
from slamkern.errors import SlamkernError

# sha256 of 200 training problems: a change of wording is a change of everybody's data, so it must be deliberate.
FROZEN = {
    "en": "3c65b5c96b3bc5b8",
    "de": "5c4f281a555653c9",
    "fr": "4d4c6d6668b460aa",
    "es": "bf0b98eae0a76eb7",
    "ru": "ce8d6a6e065a5d5e",
    "zh": "7fddf7f64dea53ba",
    "ja": "cce65d995d497803",
    "th": "3540803c09a7589f",
    "sw": "e78dd05bd58fd488",
    "bn": "8da713b33c2cbc5d",
}
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return generate(3000)


def _integers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _say(code: str, schema: str, numbers: dict[str, int], **names: str) -> tuple[str, str]:
    told = grammar(code)
    words = {slot: (told.persons if slot in "PQ" else told.nouns)[name] for slot, name in names.items()}
    return tuple(told.render(side[schema], numbers, words) for side in (told.questions, told.solutions))


@pytest.mark.parametrize("code", LANGUAGES)
def test_texts_are_frozen(code: str) -> None:
    texts = [text for p in generate(200, 7, [code]) for text in (p.id, p.questions[code], p.solutions[code])]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == FROZEN[code]


def test_short_call_begins_a_long_one_and_seeds_differ(problems: list[Problem]) -> None:
    assert generate(50) == problems[:50]
    assert [p.id for p in generate(50, 0, ["ja"])] == [p.id for p in problems[:50]]
    assert not {p.id for p in generate(50, seed=1)} & {p.id for p in problems[:50]}


def test_splits_share_no_numbers_of_a_schema() -> None:
    for schema in SCHEMAS:
        parts = [{tuple(n.items()) for n in _numbers(schema, split)} for split in ("train", "valid", "test")]
        assert min(map(len, parts)) >= 10
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(list(schema.numbers()))


def test_a_whole_split_has_no_duplicate_and_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple(schema for schema in SCHEMAS if schema.name in ("pages", "total_price"))
    monkeypatch.setattr("slamkern.data.synthetic.generator.SCHEMAS", small)
    size = sum(len(_numbers(schema, "test")) * len(_fillings(schema.slots)) for schema in small)
    assert len({p.id for p in generate(size, languages=["en"], split="test")}) == size
    with pytest.raises(SlamkernError, match=f"the test split holds {size}"):
        generate(size + 1, languages=["en"], split="test")


def test_more_than_a_million_problems() -> None:
    assert sum(len(_numbers(schema, "train")) * len(_fillings(schema.slots)) for schema in SCHEMAS) > 1_000_000


@pytest.mark.parametrize("arguments", [{"languages": ["en", "xx"]}, {"split": "dev"}, {"count": -1}])
def test_mistakes_are_named(arguments: dict) -> None:
    with pytest.raises(SlamkernError, match=r"xx|dev|-1"):
        generate(**{"count": 3, **arguments})


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_tells_the_same_problem(code: str, problems: list[Problem]) -> None:
    for p in problems:
        question, solution = p.questions[code], p.solutions[code]
        assert sorted(_integers(question)) == sorted(_integers(p.questions["en"])), question
        assert sorted(_integers(solution)) == sorted(_integers(p.solutions["en"])), solution
        assert not re.search(r"[{}|_]|  |^\W*[a-zа-яё]", f"{question}"), question
        assert code == "th" or question[-1] in "?？"


@pytest.mark.parametrize("code", LANGUAGES)
def test_solutions_calculate_and_end_with_the_answer(code: str, problems: list[Problem]) -> None:
    for p in problems:
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", p.solutions[code])
        assert steps
        for left, sign, right, result in steps:
            assert OPERATIONS[sign](int(left), int(right)) == int(result), p.solutions[code]
        assert int(steps[-1][3]) == p.answer
        assert re.search(r"(\d+)\W*$", p.solutions[code].removesuffix("です。"))[1] == steps[-1][3]
        assert min(_integers(p.solutions[code])) >= 2


def test_bengali_has_its_own_digits(problems: list[Problem]) -> None:
    assert not any(re.search("[0-9]", p.questions["bn"] + p.solutions["bn"]) for p in problems)


GIVE = {"a": 24, "b": 21, "r": 3}
BUY = {"a": 21, "b": 22, "r": 43}
PRICE = {"a": 6, "b": 4, "r": 24}
BOXES = {"a": 24, "b": 6, "r": 4}
MORE = {"a": 21, "b": 2, "s": 23, "r": 44}
AGE = {"a": 21, "b": 3, "c": 7, "s": 24, "r": 31}
CHAIRS = {"a": 4, "b": 8, "c": 21, "s": 32, "r": 11}
SELL = {"a": 12, "b": 4, "c": 3, "s": 8, "r": 24}

# Each row is a place where a careless template goes wrong: case, gender, number, concord, counter, elision.
AGREEMENT = [
    ("en", "give_away", GIVE, "lisa omar - candy", "Lisa has 24 candies. She gives 21 of them to her friend Omar."),
    ("de", "give_away", GIVE, "tom anna - apple", "Er gibt seiner Freundin Anna 21 davon. Wie viele Äpfel"),
    ("de", "give_away", GIVE, "lisa omar - apple", "Sie gibt ihrem Freund Omar 21 davon."),
    ("de", "total_price", PRICE, "tom - - egg", "Jedes Ei kostet 4 Dollar."),
    ("de", "total_price", PRICE, "tom - - ball", "6 Bälle kaufen. Jeder Ball kostet"),
    ("de", "chairs", CHAIRS, "tom - - -", "4 Reihen mit je 8 Stühlen auf. Dann setzen sich 21 Gäste."),
    ("de", "age", AGE, "tom anna - -", "Wie alt wird Anna in 7 Jahren sein?"),
    ("fr", "compare", MORE, "omar anna - orange", "Anna a 2 oranges de plus qu'Omar. Combien d'oranges ont"),
    ("fr", "boxes", BOXES, "maria - - egg", "Maria a-t-elle besoin pour tous les œufs ?"),
    ("fr", "boxes", BOXES, "tom - - apple", "Tom a-t-il besoin pour toutes les pommes ?"),
    ("es", "boxes", BOXES, "maria - - book", "María tiene 24 libros y quiere guardarlos en cajas."),
    ("es", "boxes", BOXES, "maria - - cup", "quiere guardarlas en cajas. En cada caja caben 6 tazas."),
    ("es", "boxes", BOXES, "maria - - pencil", "necesita María para todos los lápices?"),
    ("es", "compare", MORE, "tom anna - rose", "¿Cuántas rosas tienen Tom y Ana en total?"),
    ("ru", "buy_more", BUY, "anna - - book", "У Анны дома 21 книга. На рынке она покупает ещё 22 книги."),
    ("ru", "give_away", GIVE, "peter lisa - cup", "У Петра 24 чашки. Он отдаёт 21 чашку своей подруге Лизе."),
    ("ru", "give_away", GIVE, "lisa peter - apple", "Она отдаёт 21 яблоко своему другу Петру. Сколько яблок"),
    (
        "ru",
        "total_price",
        PRICE,
        "tom - - egg",
        "хочет купить 6 яиц в маленьком магазине. Каждое яйцо стоит 4 доллара.",
    ),
    ("ru", "age", AGE, "tom anna - -", "Тому 21 год. Анна старше Тома на 3 года. Сколько лет будет Анне через 7 лет?"),
    ("ru", "chairs", CHAIRS, "tom - - -", "Потом садится 21 гость."),
    ("ru", "chairs", CHAIRS, "tom - - -", "Останется 32 - 21 = 11 свободных стульев."),
    ("zh", "give_away", GIVE, "tom anna - book", "汤姆有 24 本书。他把其中 21 本送给了朋友安娜。汤姆还剩多少本书？"),
    ("zh", "total_price", PRICE, "anna - - rose", "买 6 朵玫瑰。每朵玫瑰的价格是 4 美元。"),
    (
        "ja",
        "give_away",
        GIVE,
        "tom anna - stamp",
        "切手を24枚持っています。そのうち21枚を友だちのアンナさんにあげました。",
    ),
    ("ja", "total_price", PRICE, "tom - - book", "本を6冊買います。本は一冊4ドルです。"),
    ("th", "total_price", PRICE, "tom - - pencil", "ซื้อดินสอ 6 แท่ง ที่ร้านค้าเล็ก ๆ แห่งหนึ่ง ดินสอราคาแท่งละ 4 ดอลลาร์"),
    ("th", "give_away", GIVE, "anna tom - egg", "แอนนามีไข่ 24 ฟอง เธอแบ่งให้เพื่อนชื่อทอมไป 21 ฟอง แอนนาเหลือไข่กี่ฟอง"),
    ("sw", "boxes", BOXES, "omar - - book", "Omari ana vitabu 24 na anataka kuvipakia katika masanduku."),
    ("sw", "boxes", BOXES, "omar - - apple", "kuyapakia katika masanduku. Kila sanduku linachukua matufaha 6."),
    ("sw", "total_price", PRICE, "tom - - ball", "Kila mpira unagharimu dola 4."),
    ("sw", "buy_more", BUY, "tom - - cup", "Sokoni ananunua vikombe vingine 22. Sasa Tom ana vikombe vingapi?"),
    ("sw", "sell_rest", SELL, "tom - - pencil", "kuuza penseli zilizobaki kwa dola 3 kila moja."),
    ("sw", "sell_rest", SELL, "tom - - ball", "kuuza mipira iliyobaki kwa dola 3 kila mmoja."),
    ("bn", "give_away", GIVE, "tom anna - book", "টমের কাছে ২৪টি বই আছে। তিনি তাঁর বন্ধু আনাকে ২১টি বই দিলেন।"),
    ("bn", "total_price", PRICE, "maria - - book", "প্রতিটি বইয়ের দাম ৪ ডলার। মারিয়াকে মোট কত ডলার দিতে হবে?"),
    ("bn", "chairs", CHAIRS, "maria - - -", "তারপর ২১ জন অতিথি বসলেন।"),
]


@pytest.mark.parametrize(("code", "schema", "numbers", "names", "expected"), AGREEMENT)
def test_agreement(code: str, schema: str, numbers: dict[str, int], names: str, expected: str) -> None:
    words = {slot: name for slot, name in zip("PQYX", names.split(), strict=True) if name != "-"}
    assert expected in " ".join(_say(code, schema, numbers, **words))


def test_ten_thousand_problems_take_seconds() -> None:
    start = time.process_time()
    generate(10_000)
    assert time.process_time() - start < 10  # 2 s on one core of a 2026 server
