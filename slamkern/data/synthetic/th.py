"""Thai word problems: noun, number, classifier (column ``cl``); ``{a:X}`` is the number with the classifier.

Thai has no full stop: a space ends a sentence. Arabic digits, as in today's schoolbooks and in MGSM.
"""

from slamkern.data.synthetic.grammar import Forms, Grammar, table

PERSONS = table("name g", """
anna แอนนา f
tom ทอม m
maria มาเรีย f
peter ปีเตอร์ m
lisa ลิซ่า f
david เดวิด m
sara ซาร่า f
omar โอมาร์ m
""")  # fmt: skip

NOUNS = table("noun cl", """
apple แอปเปิล ลูก
orange ส้ม ลูก
egg ไข่ ฟอง
candy ลูกอม เม็ด
book หนังสือ เล่ม
pencil ดินสอ แท่ง
stamp แสตมป์ ดวง
ball ลูกบอล ลูก
cup ถ้วย ใบ
rose กุหลาบ ดอก
dollar เงิน ดอลลาร์
page หน้า หน้า
day วัน วัน
week สัปดาห์ สัปดาห์
hour ชั่วโมง ชั่วโมง
km กิโลเมตร กิโลเมตร
box กล่อง กล่อง
friend เพื่อน คน
year อายุ ปี
chair เก้าอี้ ตัว
row แถว แถว
guest แขก คน
""")  # fmt: skip

TEXTS = {
    "buy_more": (
        "{P}มี{X}ที่บ้าน {a:X} {P?เขา|เธอ}ซื้อ{X}ที่ตลาดเพิ่มอีก {b:X} ตอนนี้{P}มี{X}กี่{X:cl}",
        "ตอนนี้{P}มี{X} {a} + {b} = {r:X}",
    ),
    "give_away": (
        "{P}มี{X} {a:X} {P?เขา|เธอ}แบ่งให้เพื่อนชื่อ{Q}ไป {b:X} {P}เหลือ{X}กี่{X:cl}",
        "{P}เหลือ{X} {a} - {b} = {r:X}",
    ),
    "total_price": (
        "{P}ต้องการซื้อ{X} {a:X} ที่ร้านค้าเล็ก ๆ แห่งหนึ่ง {X}ราคา{X:cl}ละ {b:dollar} {P}ต้องจ่ายเงินทั้งหมดกี่ดอลลาร์",
        "{P}จ่ายเงิน {a} * {b} = {r:dollar}",
    ),
    "change": (
        "{P}ซื้อ{X} {a:X} ราคา{X:cl}ละ {b:dollar} และจ่ายเงินให้คนขาย {c:dollar} {P?เขา|เธอ}ได้รับเงินทอนกี่ดอลลาร์",
        "{X}ราคารวม {a} * {b} = {s:dollar} {P}ได้รับเงินทอน {c} - {s} = {r:dollar}",
    ),
    "two_prices": (
        "{P}ซื้อ{X} {a:X} ราคา{X:cl}ละ {b:dollar} และซื้อ{Y} {c:Y} ราคา{Y:cl}ละ {d:dollar} {P}ใช้เงินทั้งหมดกี่ดอลลาร์",
        "{X}ราคารวม {a} * {b} = {s:dollar} {Y}ราคารวม {c} * {d} = {t:dollar} {P}ใช้เงิน {s} + {t} = {r:dollar}",
    ),
    "pages": (
        "{P}กำลังอ่านหนังสือที่มี {a:page} {P?เขา|เธอ}อ่านวันละ {b:page} เมื่อผ่านไป {c:day} จะเหลืออีกกี่หน้า",
        "ใน {c:day} {P}อ่านได้ {b} * {c} = {s:page} เหลืออีก {a} - {s} = {r:page}",
    ),
    "speed": (
        "{P}ขี่จักรยานด้วยความเร็ว {a:km}ต่อชั่วโมง {P?เขา|เธอ}ขี่เป็นเวลา {b:hour} โดยไม่หยุดพัก {P}ขี่จักรยานได้กี่กิโลเมตร",
        "{P}ขี่จักรยานได้ {a} * {b} = {r:km}",
    ),
    "boxes": (
        "{P}มี{X} {a:X} และต้องการใส่{X}ลงในกล่อง แต่ละกล่องใส่ได้ {b:X} {P}ต้องใช้กี่กล่องจึงจะใส่{X}ได้ทั้งหมด",
        "{P}ต้องใช้ {a} / {b} = {r:box}",
    ),
    "share": (
        "{P}มี{X} {a:X} และแบ่งให้เพื่อน {b:friend} เท่า ๆ กัน เพื่อนแต่ละคนได้{X}กี่{X:cl}",
        "เพื่อนแต่ละคนได้{X} {a} / {b} = {r:X}",
    ),
    "age": (
        "{P}อายุ {a:year} {Q}อายุมากกว่า{P} {b:year} อีก {c:year}ข้างหน้า {Q}จะมีอายุกี่ปี",
        "{Q}อายุ {a} + {b} = {s:year} อีก {c:year}ข้างหน้า {Q}จะมีอายุ {s} + {c} = {r:year}",
    ),
    "savings": (
        "{P}เก็บเงินสัปดาห์ละ {a:dollar} เมื่อครบ {b:week} {P?เขา|เธอ}ซื้อของขวัญราคา {c:dollar} {P}เหลือเงินกี่ดอลลาร์",
        "ใน {b:week} {P}เก็บเงินได้ {a} * {b} = {s:dollar} {P}เหลือเงิน {s} - {c} = {r:dollar}",
    ),
    "sell_rest": (
        "{P}มี{X} {a:X} {P?เขา|เธอ}เก็บไว้ให้ครอบครัว {b:X} และขายส่วนที่เหลือในราคา{X:cl}ละ {c:dollar} {P}ได้เงินกี่ดอลลาร์",
        "{P}ขาย{X} {a} - {b} = {s:X} {P}ได้เงิน {s} * {c} = {r:dollar}",
    ),
    "chairs": (
        "{P}จัดเก้าอี้ในห้องโถง {a:row} แถวละ {b:chair} จากนั้นมีแขกมานั่ง {c:guest} ยังมีเก้าอี้ว่างกี่ตัว",
        "มีเก้าอี้ทั้งหมด {a} * {b} = {s:chair} มีเก้าอี้ว่าง {s} - {c} = {r:chair}",
    ),
    "compare": (
        "{P}มี{X} {a:X} {Q}มี{X}มากกว่า{P} {b:X} {P}และ{Q}มี{X}รวมกันกี่{X:cl}",
        "{Q}มี{X} {a} + {b} = {s:X} ทั้งสองคนมี{X}รวมกัน {a} + {s} = {r:X}",
    ),
}


def _count(number: str, category: int, forms: Forms, case: str) -> str:
    return f"{number} {forms['cl']}"


GRAMMAR = Grammar.build(PERSONS, NOUNS, TEXTS, answer="คำตอบคือ {r}", count=_count, category=lambda number: 0)
