"""What a disassembly of nvdisasm says about the part of a kernel where its time goes."""

import re

_LABEL = re.compile(r"^(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_WIDE = r"\.\S*(128|256)"


def instructions(code: str) -> list[str]:
    """The operations in order, without predicates and operands."""
    return [found[1] for line in code.splitlines() if (found := _INSTRUCTION.match(line))]


def hot_part(code: str) -> list[str]:
    """The smallest loop that both loads and stores 16 bytes at a time; the whole kernel where there is none.

    A loop is what lies between a label and a later branch to it. No-operations at the end of a kernel do not count.
    """
    labels: dict[str, int] = {}
    operations: list[str] = []
    loops = []
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(operations)
        elif found := _INSTRUCTION.match(line):
            operations.append(found[1])
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append(operations[labels[target[0]] :])
    moving = [loop for loop in loops if _any(loop, "LDG" + _WIDE) and _any(loop, "STG" + _WIDE)]
    return min(moving, key=len, default=[name for name in operations if name != "NOP"])


def _any(operations: list[str], pattern: str) -> bool:
    return any(re.match(pattern, name) for name in operations)
