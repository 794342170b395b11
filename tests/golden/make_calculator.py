#!/usr/bin/env python3
"""Expressions with what CPython makes of them behind the filters of nanochat's calculator; null where there is no result.

usage: make_calculator.py > calculator.json        (Python 3.11.7; the same bytes each time)
The filters are those of `use_calculator` in karpathy/nanochat, nanochat/engine.py at 92d63d4, said again. What passes them and is
neither arithmetic nor a count in a plain string (`()`, `...`, `f'a'.count('a')`, another method) is left out.
"""
import ast, io, json, random, re, sys, tokenize, warnings

ARITHMETIC = set("0123456789*+-/.() ")
WORDS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'\"()._ ")
REFUSED = "__ import exec eval compile open file input raw_input globals locals vars dir getattr setattr delattr hasattr".split()


def passes(text):
    if set(text) <= ARITHMETIC:
        return "**" not in text
    return set(text) <= WORDS and not any(word in text.lower() for word in REFUSED) and ".count(" in text


def covered(tree, text):
    """Whether our language has it."""
    plain = all(token.string[0] in "'\"" and token.string[:3] not in ("'''", '"""') for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline) if token.type == tokenize.STRING)

    def count(node):
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count" and isinstance(node.func.value, ast.Constant) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str) and not node.keywords

    def number(node):
        if isinstance(node, ast.BinOp):
            return number(node.left) and number(node.right)
        return number(node.operand) if isinstance(node, ast.UnaryOp) else isinstance(node, ast.Constant) and type(node.value) in (int, float)

    return number(tree) or plain and count(tree)


def answer(expression):
    """The text of the result, None, or False where it is left out."""
    text = expression.replace(",", "")
    if not passes(text):
        return None
    try:
        result = eval(text, {"__builtins__": {}}, {})
    except Exception:
        return None
    if result is None:
        return None
    return str(result) if covered(ast.parse(text.strip(), mode="eval").body, text) else False


def number(r):
    digits = lambda n: "".join(r.choice("0123456789") for _ in range(n))
    whole = lambda n: r.choice("123456789") + digits(n - 1)
    return r.choice([
        lambda: digits(1), lambda: whole(r.randint(1, 4)), lambda: whole(r.randint(1, 4)), lambda: whole(r.randint(8, 22)),
        lambda: f"{whole(r.randint(1, 2))},{digits(3)}", lambda: f"{whole(2)}.{digits(r.randint(1, 3))}", lambda: f".{digits(2)}",
        lambda: f"{digits(3)}.", lambda: f"0.{'0' * r.randint(0, 6)}{digits(3)}", lambda: whole(r.randint(40, 90)),
        lambda: f"0{digits(1)}.5", lambda: f"{whole(17)}.{digits(2)}",
    ])()


def arithmetic(r, depth):
    if depth == 0 or r.random() < 0.25:
        return r.choice(["", "", "", "-", "+", "--", "- "]) + number(r)
    gap = r.choice(["", " "])
    text = arithmetic(r, depth - 1) + gap + r.choice(["+", "-", "*", "/", "//", "*", "/"]) + gap + arithmetic(r, depth - 1)
    return f"({text})" if r.random() < 0.4 else text


def count(r):
    letters = lambda n: "".join(r.choice("aabbrs eE1_.()") for _ in range(n))
    string = lambda n: (lambda quote: f"{quote}{letters(n)}{quote}")(r.choice("'\"")) + r.choice([""] * 6 + [" 'ab'", "'r'"])
    text = f"{string(r.randint(0, 12))}.count({string(r.randint(0, 2))})"
    return r.choice([text, text, f"({text})", text.replace(".count(", " .count( "), f" {text} ", text.replace("r", "r,")])


def spoiled(r, text):
    at = r.randrange(len(text) + 1)
    return text[:at] + r.choice(["", "(", ")", "*", "/", ".", "-", " ", "0", "'", ",", "%", "x", "\n"]) + text[at + r.randint(0, 1):]


SAID = ["", " ", "1", " 1 ", "0/-5", "00", "01", "1.", ".", "1..", "1.5.5", "1 .5", "2 3", "5(3)", "()", "2**3", "2*,*3", "2* *3", "7//0", "7/0.", "-7//2", "7.5//-2", "-7//2.0", "1/3", "1e5", "7%3", "1_000", "10/5", "1000000*1000000", "0.1+0.2", "1/0.00001", "123456789.0*10000000", "1234567890123456789.", "100000000000000000.", "0.0001", "0.00001", "-0.0", "-0", "0.0//-3", "(", "9" * 400, "9" * 400 + ".", "-" + "9" * 400 + ".", "9" * 400 + ".-" + "9" * 400 + ".", "9" * 400 + ".//3", "3//" + "9" * 400 + ".", "-3//" + "9" * 400 + ".", "9" * 400 + "*1.0", "3" * 400 + "/7", "1/" + "9" * 320, "3/" + "7" * 323, "5/" + "1" + "0" * 324, "2/" + "1" + "0" * 324, "1/" + "9" * 400, "-1/" + "9" * 400, "1" + "0" * 400 + "/1" + "0" * 390, "9" * 450 + "*" + "9" * 450, "9" * 450 + "//" + "3" * 200, "-" + "9" * 450 + "//" + "7" * 449, "1" + "0" * 300 + "//" + "9" * 99 + "8", "9007199254740993/1", "9007199254740993*1.0", "9007199254740995*1.0", "18014398509481985/2", "1" + "0" * 27 + "/" + "1" + "0" * 9, "179769313486231580793" + "0" * 288 + "/1", "179769313486231570814" + "0" * 288 + "/1", "1" * 309 + "*1.0", "(" * 200 + "1" + ")" * 200, "(" * 201 + "1" + ")" * 201, "-" * 900 + "1", "1" + "+1" * 500, "'strawberry'.count('r')", "'a,b'.count(',')", "'profile'.count('f')", "'abc'.count", "'aaa'.count('aa')", "''.count('')", "'ab'.count('')", "'it''s'.count('s')", "'a'.upper()", "print('a'.count('a'))", "'Straße'.count('s')", "'.count('", "'a'.count(1)", "'a'.count()", "('a').count(('a'))", "('a' 'b').count('a')", "'a'.count('a').count('a')", "'x'.count('x')'y'", "\"it's\".count('s')", "'a'. count('a')", "'a' .count ('a')", "'a'+'a'.count('a')", "'Evaluate'.count('a')", "'a'.count('a',)"]


def main():
    warnings.simplefilter("ignore")
    r = random.Random(21)
    texts = list(SAID)
    for i in range(3000):
        text = count(r) if i % 4 == 0 else arithmetic(r, r.randint(1, 4))
        texts.append(spoiled(r, text) if i % 3 == 0 else text)
    pairs = [json.dumps([text, result], ensure_ascii=False) for text in dict.fromkeys(texts) if len(text) <= 1024 and (result := answer(text)) is not False]
    rows = [", ".join(pairs[i : i + 50]) for i in range(0, len(pairs), 50)]
    print("[" + ",\n".join(rows) + "]")


main()
