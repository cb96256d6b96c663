"""Bengali word problems: Bengali digits with the classifier attached (column ``cl``: টি for things, জন for people),
genitive and dative of names, honorific verb forms as in MGSM. Units of measure take no classifier."""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name gen dat", """
anna আনা আনার আনাকে
tom টম টমের টমকে
maria মারিয়া মারিয়ার মারিয়াকে
peter পিটার পিটারের পিটারকে
lisa লিসা লিসার লিসাকে
david ডেভিড ডেভিডের ডেভিডকে
sara সারা সারার সারাকে
omar ওমর ওমরের ওমরকে
""")  # fmt: skip

NOUNS = table("noun gen cl", """
apple আপেল আপেলের টি
orange কমলা কমলার টি
egg ডিম ডিমের টি
candy লজেন্স লজেন্সের টি
book বই বইয়ের টি
pencil পেনসিল পেনসিলের টি
stamp ডাকটিকিট ডাকটিকিটের টি
ball বল বলের টি
cup কাপ কাপের টি
rose গোলাপ গোলাপের টি
dollar ডলার ডলারের -
page পৃষ্ঠা পৃষ্ঠার -
day দিন দিনের -
week সপ্তাহ সপ্তাহের -
hour ঘণ্টা ঘণ্টার -
km কিলোমিটার কিলোমিটারের -
box বাক্স বাক্সের টি
friend বন্ধু বন্ধুর _জন
year বছর বছরের -
chair চেয়ার চেয়ারের টি
row সারি সারির টি
guest অতিথি অতিথির _জন
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P:gen} বাড়িতে {a:X} আছে। বাজার থেকে তিনি আরও {b:X} কিনলেন। এখন {P:gen} কাছে কতগুলি {X} আছে?",
        "এখন {P:gen} কাছে {a} + {b} = {r:X} আছে।",
    ),
    "give_away": (
        "{P:gen} কাছে {a:X} আছে। তিনি তাঁর বন্ধু {Q:dat} {b:X} দিলেন। {P:gen} কাছে কতগুলি {X} রইল?",
        "{P:gen} কাছে {a} - {b} = {r:X} রইল।",
    ),
    "total_price": (
        "{P} একটি ছোট দোকান থেকে {a:X} কিনতে চান। প্রতিটি {X:gen} দাম {b:dollar}। {P:dat} মোট কত ডলার দিতে হবে?",
        "{P:dat} মোট {a} * {b} = {r:dollar} দিতে হবে।",
    ),
    "change": (
        "{P} প্রতিটি {b:dollar} দরে {a:X} কিনলেন এবং বিক্রেতাকে {c:dollar} দিলেন। তিনি কত ডলার ফেরত পাবেন?",
        "{X:gen} মোট দাম {a} * {b} = {s:dollar}। {P} ফেরত পাবেন {c} - {s} = {r:dollar}।",
    ),
    "two_prices": (
        "{P} প্রতিটি {b:dollar} দরে {a:X} এবং প্রতিটি {d:dollar} দরে {c:Y} কিনলেন। {P} মোট কত ডলার খরচ করলেন?",
        "{X:gen} মোট দাম {a} * {b} = {s:dollar}। {Y:gen} মোট দাম {c} * {d} = {t:dollar}। "
        "{P} খরচ করলেন {s} + {t} = {r:dollar}।",
    ),
    "pages": (
        "{P} {a} পৃষ্ঠার একটি বই পড়ছেন। তিনি প্রতিদিন {b:page} পড়েন। {c:day} পরে আর কত পৃষ্ঠা বাকি থাকবে?",
        "{c} দিনে {P} {b} * {c} = {s:page} পড়েন। বাকি থাকবে {a} - {s} = {r:page}।",
    ),
    "speed": (
        "{P} ঘণ্টায় {a:km} বেগে সাইকেল চালান। তিনি না থেমে {b:hour} সাইকেল চালালেন। {P} মোট কত কিলোমিটার গেলেন?",
        "{P} মোট {a} * {b} = {r:km} গেলেন।",
    ),
    "boxes": (
        "{P:gen} কাছে {a:X} আছে এবং তিনি সেগুলি বাক্সে ভরতে চান। প্রতিটি বাক্সে {b:X} ধরে। সব {X} ভরতে {P:gen} কতগুলি বাক্স লাগবে?",
        "{P:gen} {a} / {b} = {r:box} লাগবে।",
    ),
    "share": (
        "{P:gen} কাছে {a:X} আছে। তিনি সেগুলি {b} জন বন্ধুর মধ্যে সমানভাবে ভাগ করে দিলেন। প্রত্যেক বন্ধু কতগুলি {X} পেলেন?",
        "প্রত্যেক বন্ধু {a} / {b} = {r:X} পেলেন।",
    ),
    "age": (
        "{P:gen} বয়স {a:year}। {Q} {P:gen} চেয়ে {b} বছরের বড়। {c:year} পরে {Q:gen} বয়স কত হবে?",
        "{Q:gen} বয়স {a} + {b} = {s:year}। {c:year} পরে {Q:gen} বয়স হবে {s} + {c} = {r:year}।",
    ),
    "savings": (
        "{P} প্রতি সপ্তাহে {a:dollar} জমান। {b:week} পরে তিনি {c:dollar} দিয়ে একটি উপহার কিনলেন। {P:gen} কাছে কত ডলার রইল?",
        "{b} সপ্তাহে {P} {a} * {b} = {s:dollar} জমান। {P:gen} কাছে {s} - {c} = {r:dollar} রইল।",
    ),
    "sell_rest": (
        "{P:gen} কাছে {a:X} আছে। তিনি পরিবারের জন্য {b:X} রেখে বাকিগুলি প্রতিটি {c:dollar} দরে বিক্রি করলেন। "
        "{P} মোট কত ডলার পেলেন?",
        "{P} {a} - {b} = {s:X} বিক্রি করলেন। {P} মোট {s} * {c} = {r:dollar} পেলেন।",
    ),
    "chairs": (
        "{P} হলঘরে {a} সারি চেয়ার সাজালেন, প্রতিটি সারিতে {b:chair} আছে। তারপর {c:guest} বসলেন। কতগুলি চেয়ার খালি রইল?",
        "মোট {a} * {b} = {s:chair} আছে। খালি রইল {s} - {c} = {r:chair}।",
    ),
    "compare": (
        "{P:gen} কাছে {a:X} আছে। {Q:gen} কাছে {P:gen} চেয়ে {b:X} বেশি আছে। {P} ও {Q:gen} কাছে মোট কতগুলি {X} আছে?",
        "{Q:gen} কাছে {a} + {b} = {s:X} আছে। দুজনের কাছে মোট {a} + {s} = {r:X} আছে।",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number}{forms['cl']} {forms['noun']}"


GRAMMAR = Grammar.build(
    PERSONS, NOUNS, TEXTS, answer="উত্তর হল {r}।", count=_count, category=lambda number: 0, digits="০১২৩৪৫৬৭৮৯"
)
